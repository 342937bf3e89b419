"""What runs inside the processes of a decode pool: one video at a time, under guards, its frames sent back in chunks.

A video that fits one chunk returns with the result of its task. The chunks of a longer one are files in a spool
folder (shared memory where there is room), written aside and renamed; the worker waits while too many lie unread, so
that neither side ever holds a whole video.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from glscl.cache.jpeg import encode_jpeg
from glscl.extract.decode.video import Beat, Decoding, FrameChunk, VideoDone, VideoTask

SPOOL_WINDOW = 4  # chunks of one video that may lie unread
WAIT_SECONDS = 0.01


class DecodeFunction(Protocol):
    """`decode_video`, or a stand-in."""

    def __call__(
        self, task: VideoTask, decoding: Decoding, *, resume_after: float | None, beat: Beat
    ) -> Iterator[FrameChunk | VideoDone]: ...


@dataclass(frozen=True)
class WorkerSettings:
    """What is the same for every video of a pool."""

    decoding: Decoding
    decode: DecodeFunction
    spool: str


class Spool:
    """Chunks of videos on their way from worker to reader, as files `<name>.<number>` in one folder."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def _file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number}"

    def full(self, name: str, number: int) -> bool:
        """Whether chunk `number` must wait until the reader has taken an earlier one."""
        return number >= SPOOL_WINDOW and self._file(name, number - SPOOL_WINDOW).exists()

    def put(self, name: str, number: int, chunk: FrameChunk) -> None:
        """Writes a chunk so that a reader sees all of it or nothing. Raises OSError when the disk is full."""
        aside = self.folder / f"{name}.part"
        with open(aside, "wb") as file:
            np.save(file, chunk.times)
            np.save(file, chunk.frames)
            np.save(file, np.array([len(jpeg) for jpeg in chunk.jpegs], np.int64))
            file.write(b"".join(chunk.jpegs))
        os.replace(aside, self._file(name, number))

    def take(self, name: str, number: int, item: int) -> FrameChunk | None:
        """Reads and removes a chunk, or None where it has not come yet."""
        path = self._file(name, number)
        try:
            with open(path, "rb") as file:
                times, frames, lengths = np.load(file), np.load(file), np.load(file)
                jpegs = tuple(file.read(length) for length in lengths)
        except FileNotFoundError:
            return None
        path.unlink()
        return FrameChunk(item, frames, times, jpegs)

    def stall_report(self, name: str) -> Path:
        """Where a worker that stood still leaves the traceback of what it stood in."""
        return self.folder / f"{name}.stall"

    def discard(self, name: str) -> None:
        """Removes whatever is left of a video."""
        for path in self.folder.glob(f"{name}.*"):
            path.unlink(missing_ok=True)


class StallGuard:
    """Ends this process when `beat` was not called for `limit` seconds.

    The clock is a thread of the C library behind faulthandler, so it fires even where native code hangs with the
    interpreter's lock held. The process leaves a traceback in `report` and exits with status 1.
    """

    def __init__(self, limit: float, report: Path) -> None:
        self.limit = limit
        self._file = open(report, "w")  # noqa: SIM115, closed in stop
        self._report = report
        self._renew_after = min(1.0, limit / 10)
        self._armed = -np.inf
        self.beat()

    def beat(self) -> None:
        now = time.monotonic()
        if now - self._armed >= self._renew_after:
            faulthandler.dump_traceback_later(self.limit, file=self._file, exit=True)
            self._armed = now

    def stop(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        self._file.close()
        self._report.unlink(missing_ok=True)


_packed: bytes | None = None
_settings: WorkerSettings | None = None


def initialise(packed: bytes, spool: str) -> None:
    """Remembers the settings of the pool; they are unpacked with the first video, where an error can be told."""
    global _packed
    _packed = packed
    threading.Thread(target=_end_with_reader, args=(spool,), daemon=True).start()


def _end_with_reader(spool: str) -> None:
    """Ends this process when the one that reads its frames is gone, even where that was killed without a word.

    While native code hangs with the interpreter's lock held this must wait; the stall guard ends such a process.
    """
    reader: Any = multiprocessing.parent_process()
    if reader is not None:
        reader.join()
        for _ in range(100):  # nobody will read, nobody else cleans up; videos under way still write there
            shutil.rmtree(spool, ignore_errors=True)
            if not os.path.exists(spool):
                break
        os._exit(1)


def _load_settings() -> WorkerSettings:
    global _settings
    if _settings is None:
        assert _packed is not None, "initialise ran first"
        unpacked: WorkerSettings = pickle.loads(_packed)
        _settings = unpacked
        if "torch" in sys.modules:  # came with the preprocessing; the other cores belong to the other workers
            sys.modules["torch"].set_num_threads(1)
        if unpacked.decoding.memory_limit is not None:
            limit_memory(unpacked.decoding.memory_limit)
    return _settings


def limit_memory(more: int) -> bool:
    """Lets this process allocate `more` bytes beyond what it holds; returns False where the system has no such limit.

    RLIMIT_DATA counts what is allocated, not the address space that libraries map and never touch, so it works with
    torch loaded. What goes beyond fails inside the decoder, which reports it as an ordinary error.
    """
    if not sys.platform.startswith("linux"):
        return False
    import resource

    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    held = int(fields["VmData"].split()[0]) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + more
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    return True


def decode_task(
    task: VideoTask, name: str, decoder: str, resume_after: float | None
) -> tuple[VideoDone, FrameChunk | None]:
    """Decodes one video: earlier chunks go to the spool as `name`, the last comes back with the account.

    Raises:
        OSError: the spool cannot be written.
    """
    settings = _load_settings()
    spool = Spool(settings.spool)
    decoding = replace(settings.decoding, decoder=decoder)
    guard = StallGuard(decoding.time_limit, spool.stall_report(name))
    try:
        number, held, done = 0, None, None
        for event in settings.decode(task, decoding, resume_after=resume_after, beat=guard.beat):
            if isinstance(event, VideoDone):
                done = event
                continue
            event = _with_jpegs(event, decoding.jpeg_quality, guard)
            if held is not None:
                _wait_for_room(spool, name, number, guard)
                spool.put(name, number, held)
                number += 1
            held = event
        assert done is not None, "a decode function ends with its account"
        return done, held
    finally:
        guard.stop()


def _with_jpegs(chunk: FrameChunk, quality: int | None, guard: StallGuard) -> FrameChunk:
    """Here, where there are many processes, and not where the features are made."""
    if quality is None:
        return chunk
    jpegs = []
    for frame in chunk.frames:
        jpegs.append(encode_jpeg(frame, quality))
        guard.beat()
    return chunk._replace(jpegs=tuple(jpegs))


def _wait_for_room(spool: Spool, name: str, number: int, guard: StallGuard) -> None:
    while spool.full(name, number):
        guard.beat()
        time.sleep(WAIT_SECONDS)
