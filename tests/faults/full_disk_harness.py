"""Commands that write onto a disk with too little room: a tmpfs of a few megabytes, and a ballast file that fills it.

    python full_disk_harness.py WORK DISK ROUNDS SEED

DISK is a folder; this process mounts the tmpfs there, in a mount namespace of its own. Where it may not mount, files larger than the room that is meant to be left are refused by the system
instead (RLIMIT_FSIZE). Prints one JSON object: {"disk": "tmpfs" or "file size limit", "failed": {command: rounds that ended
for want of room}, "messages": [...], "problems": [...]}.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crash_harness as crash
import training_harness as training

from glscl.cache.upkeep.summary import bytes_on_disk
from glscl.common.errors import StorageError
from glscl.extract.backbone.encoder import Backbone, load_backbone

SIZE = 64 << 20  # of the disk, bytes; a training at its largest takes half of that


def own_mounts() -> None:
    """Let what is mounted from here on be seen by this process and its children alone, where the system admits that."""
    libc, user, group = ctypes.CDLL(None), os.getuid(), os.getgid()
    mounts, users, private = 0x20000, 0x10000000, 0x44000  # CLONE_NEWNS, CLONE_NEWUSER, MS_REC | MS_PRIVATE
    if libc.unshare(mounts) != 0 and libc.unshare(mounts | users) == 0:  # the first as root, the other as anybody
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    libc.mount(b"none", b"/", None, private, None)


class Disk:
    """A disk that can be made small, and large again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ballast = folder, folder / "ballast"
        mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
        self.mounted = bool(shutil.which("mount")) and subprocess.run(mount, capture_output=True).returncode == 0

    def leave(self, room: int) -> Callable[[], None]:
        """Leave `room` bytes; what a process that writes must call first."""
        if self.mounted:
            free = shutil.disk_usage(self.folder).free
            with open(self.ballast, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, free - room))
            return lambda: None

        def limit() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

        return limit

    def empty(self) -> None:
        self.ballast.unlink(missing_ok=True)

    def give_back(self) -> None:
        """Unmount; a mount namespace of our own would do so when this process ends."""
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


def largest(folder: Path) -> int:
    return max(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Rounds:
    """The commands, one after another; each with too little room and then with enough."""

    def __init__(self, work: Path, disk: Disk, rounds: int, seed: int) -> None:
        self.work, self.disk, self.rounds, self.rng = work, disk, rounds, random.Random(seed)
        self.report: dict[str, Any] = {"disk": "tmpfs" if disk.mounted else "file size limit"}
        self.report |= {"failed": {}, "messages": [], "problems": []}

    def places(self, whole: Path) -> list[int]:
        """Bytes that are left, spread over what `whole` takes."""
        most = bytes_on_disk(whole) if self.disk.mounted else largest(whole)
        return [int(most * (i + self.rng.random()) / self.rounds) for i in range(self.rounds)]

    def short(self, name: str, room: int, write: Callable[[], None]) -> None:
        """`write` with `room` bytes left: nothing but one line may come of it."""
        begin = self.disk.leave(room)

        def attempt() -> str | None:
            begin()
            try:
                write()
            except (StorageError, RuntimeError) as error:
                return str(error)
            return None

        status, said = crash.in_child(attempt)
        self.disk.empty()
        if status or isinstance(said, dict):
            self.problem(name, room, f"ended with {status}: {said and said['raised']}")
        elif said is not None:
            self.report["failed"][name] = self.report["failed"].get(name, 0) + 1
            self.report["messages"].append(said)

    def expect(self, name: str, room: int, work: Callable[[], Any]) -> None:
        for line in training.expect(lambda: work() or []):
            self.problem(name, room, line)

    def problem(self, name: str, room: int, line: str) -> None:
        self.report["problems"].append(f"{name} with {room} bytes left: {line}")

    def extraction(self, format: str, backbone: Backbone) -> None:
        clips, whole, out = self.work / "clips", self.work / f"whole {format}", self.disk.folder / format
        self.expect(format, SIZE, lambda: crash.extract(whole, clips, format, backbone))
        for room in self.places(whole):
            shutil.rmtree(out, ignore_errors=True)
            self.short(format, room, lambda: crash.extract(out, clips, format, backbone))
            self.expect(format, room, lambda: crash.look(out, whole))
            self.expect(format, room, lambda: crash.finish(out, clips, format, backbone, whole))

    def training(self, cache: Path) -> Path:
        whole, out = self.work / "whole run", self.disk.folder / "run"
        self.expect(
            "train-head", SIZE, lambda: training.run(training.command("train-head", cache, whole, resume=False))
        )
        for room in self.places(whole):
            shutil.rmtree(out, ignore_errors=True)
            self.short("train-head", room, lambda: run(training.command("train-head", cache, out, resume=False)))
            self.expect("train-head", room, lambda: training.look(out))
            self.expect("train-head", room, lambda: run(training.command("train-head", cache, out, resume=True)))
            self.expect(
                "train-head",
                room,
                lambda: [n for n, v in training.content(out).items() if v != training.content(whole)[n]],
            )
        return out

    def judging(self, cache: Path, trained: Path) -> None:
        """Results are small: with no room at all, and with room for the first of two files alone."""
        result, matrix = trained / "result.json", self.disk.folder / "matrix.npy"
        judge = ["eval", "--run", str(trained), "--cache", str(cache), "--device", "cpu"]
        self.expect("eval", SIZE, lambda: run(judge))
        before = result.read_bytes()
        for name, command in (("eval", judge), ("save-similarity", [*judge, "--save-similarity", str(matrix)])):
            for room in (0, 100):
                self.short(name, room, lambda command=command: run(command))
                if result.read_bytes() != before and room == 0:
                    self.problem(name, room, "the result of before is gone")
                self.expect(name, room, lambda: [] if json.loads(result.read_text()) else ["no result"])
                if matrix.exists():
                    self.problem(name, room, "half a matrix stands there")
        self.expect("save-similarity", SIZE, lambda: run([*judge, "--save-similarity", str(matrix)]))
        if not matrix.exists():
            self.problem("save-similarity", SIZE, "no matrix")

    def telling(self, cache: Path, trained: Path) -> None:
        """A page and vectors: with no room at all, and with room for little of them."""
        page, vectors = self.disk.folder / "report.html", self.disk.folder / "vectors"
        commands = {
            "report": ["report", str(trained), "--out", str(page), "--cache", str(cache)],
            "export": ["export", "--zero-shot", "--cache", str(cache), "--split", "all", "--out", str(vectors)],
        }
        for name, command in commands.items():
            for room in (0, 400):
                self.short(name, room, lambda command=command: run([*command, "--device", "cpu"]))
                if page.exists() or (vectors / "ids.json").exists():
                    self.problem(name, room, "half of it stands there as if it were whole")


def run(arguments: list[str]) -> None:
    """As `training.run`, but what a command says at its end is all of the error."""
    try:
        training.run(arguments)
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise RuntimeError(lines[-1].removeprefix("glscl: ") if "Traceback" not in str(error) else str(error)) from None


def main(work: str, disk: str, rounds: str, seed: str) -> None:
    own_mounts()
    folder = Path(work)
    small = Disk(Path(disk))
    try:
        print(json.dumps(all_commands(Rounds(folder, small, int(rounds), int(seed)))))
    finally:
        small.give_back()


def all_commands(found: Rounds) -> dict[str, Any]:
    backbone = load_backbone("demo", None, words=12, device="cpu", precision="fp32")
    backbone.tensors_for_heads = dict  # they are the largest file and would always be the one that fails
    for format in ("zarr", "hdf5"):
        found.extraction(format, backbone)
    cache = found.work / "whole zarr"
    trained = found.training(cache)
    found.judging(cache, trained)
    found.telling(cache, trained)
    return found.report


if __name__ == "__main__":
    main(*sys.argv[1:])
