"""A reader under hostile input, and what must hold of it: one clear line or an answer, and nothing outside its folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutation import mutate

from glscl.commands.options import plain
from glscl.common.errors import GlsclError

PATIENCE = 60  # seconds of the processor until a case counts as hanging; a good one takes milliseconds
BATCH = 50  # cases until the folders are searched for files that should not be there
ENOUGH = 20  # failures after which there is nothing more to learn
ELSEWHERE = Path("/tmp/outside.mp4")  # where a mutated name with an absolute path leads


@dataclass(frozen=True)
class Reader:
    """One row of the table.

    Attributes:
        name: of the reader, for the test and for the seed of its cases.
        files: good files, by relative path, or what makes them below a folder.
        read: reads them all below a folder, given the file that was changed (None: none); what it returns must be JSON-able.
        writes: it writes to the folder `out` beside.
        only: which files are mutated, by suffix; all by default.
        few: cases of a short run; slow readers have fewer.
        refuses: whether it has something to say of bad files.
    """

    name: str
    files: Mapping[str, bytes] | Callable[[Path], None]
    read: Callable[[Path, Path | None], Any]
    writes: bool = False
    only: tuple[str, ...] = ()
    few: int = 60
    refuses: bool = True


@dataclass
class Tally:
    """What became of the cases.

    Attributes:
        failures: a line for each case where anything but an answer or a GlsclError came out, or a file appeared outside.
        slowest: processor seconds of the slowest case, and its number.
    """

    read: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)

    @property
    def cases(self) -> int:
        return self.read + self.refused + len(self.failures)


class Attack:
    """Good files of one reader below a folder, of which one at a time is made hostile.

    Args:
        reader: whose files.
        ground: an empty folder; the reader works two levels below, so that `../..` of it is seen as well.
    """

    def __init__(self, reader: Reader, ground: Path) -> None:
        self.reader, self.ground, self.box = reader, ground, ground / "a" / "b"
        self.folder = self.box / "in"
        self.folder.mkdir(parents=True)
        (self.box / "videos").mkdir()
        for clip in range(6):
            (self.box / "videos" / f"video{clip}.mp4").touch()
        if callable(reader.files):
            reader.files(self.folder)
        else:
            for name, data in reader.files.items():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                (self.folder / name).write_bytes(data)
        files = sorted(p for p in self.folder.rglob("*") if p.is_file() and p.as_posix().endswith(reader.only or ""))
        self.good = {path: data for path in files if (data := path.read_bytes())}
        self.names = list(self.good)
        self.tally = Tally()
        self._changed: Path | None = None  # the file that is not good at the moment
        reader.read(self.folder, None)  # what is not mutated is good
        self._clear()
        self._known = self._elsewhere()

    def run(
        self,
        start: int,
        cases: int,
        *,
        seconds: float = float("inf"),
        begins: Callable[[int], None] = lambda case: None,
    ) -> Tally:
        """Read hostile versions numbered from `start`, until all, the time or the patience with failures is used up.

        Args:
            seconds: stop at the end of a batch that lasted beyond.
            begins: told the number of every case before it.
        """
        end, stop = start + cases, time.monotonic() + seconds
        with _patience(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while start < end and time.monotonic() < stop and len(self.tally.failures) < ENOUGH:
                batch = range(start, min(start + BATCH, end))
                for case in batch:
                    begins(case)
                    self._case(case)
                self._require_nothing_outside(batch)
                start = batch.stop
        return self.tally

    def _case(self, case: int) -> None:
        path = self._put(case)
        began = time.process_time()
        try:
            signal.setitimer(signal.ITIMER_PROF, PATIENCE)
            try:
                answered = _answers(self.reader, self.folder, path)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except (Exception, _Hangs) as error:
            file = path.relative_to(self.folder).as_posix()
            said = f"{type(error).__name__}: {error}"[:1000]
            self.tally.failures.append(f"{self.reader.name}, case {case} ({file}): {said}")
        else:
            self.tally.read += answered
            self.tally.refused += not answered
        self.tally.slowest = max(self.tally.slowest, (round(time.process_time() - began, 3), case))
        self._clear()

    def _put(self, case: int) -> Path:
        """Make one file hostile, and the one before it good again."""
        number = random.Random(f"{self.reader.name} {case}").randrange(
            len(self.good)
        )  # shards' names differ from run to run
        path = self.names[number]
        if self._changed not in (None, path):
            _write(self._changed, self.good[self._changed])
        _write(path, mutate(f"{self.reader.name} {number}{path.suffix}", self.good[path], case))
        self._changed = path
        return path

    def _clear(self) -> None:
        if self.reader.writes:
            shutil.rmtree(self.box / "out", ignore_errors=True)

    def _require_nothing_outside(self, batch: range) -> None:
        """Search for new files; where there are any, read the batch again to say which case it was."""
        if self._elsewhere() == self._known:
            return
        guilty = []
        for case in batch:
            self._remove_new()
            path = self._put(case)
            try:
                self.reader.read(self.folder, path)
            except Exception as error:
                del error  # it was judged before; what counts here are files
            new = sorted(self._elsewhere() - self._known)
            if new:
                guilty.append(f"{self.reader.name}, case {case}: wrote {', '.join(new)[:300]} outside its folder")
        self._remove_new()
        self.tally.failures += guilty or [
            f"{self.reader.name}, cases {batch.start} to {batch.stop - 1}: wrote outside its folder"
        ]

    def _elsewhere(self) -> set[str]:
        out = self.box / "out"
        found = {ELSEWHERE.as_posix()} if os.path.lexists(ELSEWHERE) else set()
        for at, folders, files in os.walk(self.ground):
            if Path(at) == self.box and out.name in folders:
                folders.remove(out.name)
            found.update(os.path.join(at, name) for name in (*folders, *files))
        return found

    def _remove_new(self) -> None:
        self._clear()
        for name in sorted(self._elsewhere() - self._known, reverse=True):
            Path(name).rmdir() if Path(name).is_dir() and not Path(name).is_symlink() else Path(name).unlink(
                missing_ok=True
            )


def _answers(reader: Reader, folder: Path, changed: Path) -> bool:
    """True where it answers in JSON, False where it refuses in one line; anything else is raised."""
    try:
        found = reader.read(folder, changed)
    except GlsclError as error:
        line = " ".join(str(error).split())
        if not 10 < len(line) < 2000:
            raise AssertionError(f"a message of {len(line)} characters: {line[:300]}") from error
        return False
    json.dumps(plain(found), allow_nan=False)
    return True


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(data)


class _Hangs(BaseException):
    """No `Exception`, so that a reader that turns all of them into a line of its own does not turn this one."""


@contextmanager
def _patience() -> Iterator[None]:
    """Inside, a case that hangs ends in `_Hangs`."""

    def expired(*_: object) -> None:
        raise _Hangs(f"no answer within {PATIENCE} s of the processor")

    before = signal.signal(signal.SIGPROF, expired)
    try:
        yield
    finally:
        signal.signal(signal.SIGPROF, before)
