"""Python programs in processes of their own that start at once: forked from a server that has imported what they need.

`Forked([SCRIPT, ARGUMENT…])` or `Forked(["-m", MODULE, ARGUMENT…])` begins one; it is used as a `subprocess.Popen` whose
output is text. Run as a script, this file is the server, one for all processes of a run of tests: each program is forked by
a process of its own, which waits for it.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

IMPORTED = (
    "accelerate",
    "h5py",
    "torch._dynamo",  # which the first step of a training imports
    "zarr.storage",
    "glscl.cli",
    "glscl.commands.extraction",
    "glscl.commands.training",
    "glscl.extract.pipeline",
    "glscl.extract.backbone.encoder",
    "glscl.train_head.train",
    "glscl.train_head.finetuning.finetune",
)

SERVER = "GLSCL_FORK_SERVER"  # its name, for the processes of a run of tests


class Forked:
    """A program that was begun in a session of its own.

    Args:
        argv: the script or `-m` and the module, and its arguments.
        environment: all of it; None is that of this process.
        cwd: where it begins; None is where this process is.
    """

    def __init__(
        self, argv: Sequence[object], environment: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        words = [str(word) for word in argv]
        asked = {"argv": words, "environment": dict(environment or os.environ), "cwd": str(cwd or Path.cwd())}
        self._said: tuple[IO[str], IO[str]] = (tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+"))
        read, write = os.pipe()
        socket.send_fds(_server(), [json.dumps(asked).encode()], [*(file.fileno() for file in self._said), write])
        os.close(write)
        self._told = os.fdopen(read, "rb", buffering=0)
        self.pid, self.returncode = int(self._line()), None

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            byte = self._told.read(1)
            assert byte, "the server ended"
            line += byte
        return line

    def poll(self) -> int | None:
        return self._ended(0)

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], timeout)[0]:
            self.returncode = int(self._line())
        return self.returncode

    def send_signal(self, kind: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, kind)

    def lines(self, count: int, timeout: float = 300) -> list[str]:
        """The first ones of its standard output, as soon as there are so many; fewer where it ends without."""
        until = time.monotonic() + timeout
        while True:
            ended = self.poll() is not None or time.monotonic() > until
            *whole, _ = os.pread(self._said[0].fileno(), 1 << 16, 0).decode().split("\n")
            if len(whole) >= count or ended:
                return whole[:count]
            time.sleep(0.005)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed to standard output and standard error, once it has ended."""
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        self._told.close()
        for file in self._said:
            file.seek(0)
        out, err = (file.read() for file in self._said)
        return out, err


def serve() -> None:
    """Begin the server of this process and of those that it begins; it ends with this one."""
    name = f"glscl-forked-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"\0{name}")
        listening.listen()
        ended, _ = os.pipe()  # of which the other end is open as long as this process is
        for each in (listening.fileno(), ended):
            os.set_inheritable(each, True)
        words = [sys.executable, __file__, str(listening.fileno()), str(ended)]
        os.spawnve(os.P_NOWAIT, sys.executable, words, os.environ | {"OMP_NUM_THREADS": "1"})
        os.close(ended)
    os.environ[SERVER] = name


@functools.cache
def _server() -> socket.socket:
    if SERVER not in os.environ:
        serve()
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connected.connect(f"\0{os.environ[SERVER]}")
    return connected


def asked_of(listening: socket.socket, ended: IO[bytes]) -> list[str]:
    """Forks at every message; returns, in the process that is to become it, the program and its arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asking = selectors.DefaultSelector()
    asking.register(ended, selectors.EVENT_READ)
    asking.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in asking.select():
            if not isinstance(channel := key.fileobj, socket.socket):
                sys.exit()
            if channel is listening:
                asking.register(listening.accept()[0], selectors.EVENT_READ)
                continue
            message, descriptors, *_ = socket.recv_fds(channel, 1 << 20, 3)
            if not message:
                asking.unregister(channel)
                channel.close()
            elif os.fork() == 0:
                for each in list(asking.get_map().values()):
                    each.fileobj.close()
                return _begun(json.loads(message), *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def _begun(asked: dict, out: int, err: int, told: int) -> list[str]:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who waits is of the terminal's group still
    if child := os.fork():
        os.write(told, b"%d\n" % child)
        os.write(told, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(out, 1)
    os.dup2(err, 2)
    for descriptor in (out, err, told):
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    return asked["argv"]


if __name__ == "__main__":
    for module in IMPORTED:
        importlib.import_module(module)
    sys.modules["glscl.commands.options"].parser_of(sys.modules["glscl.cli"].app)
    gc.freeze()
    words = asked_of(socket.socket(fileno=int(sys.argv[1])), open(int(sys.argv[2]), "rb"))
    status: object = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path[0] = os.path.dirname(words[0])
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        status = ended.code or 0
        if not isinstance(status, int):
            raise
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # two seconds earlier: all that was imported need not be taken apart
