"""A reader under hostile input, and what must hold of it: one clear line or an answer, and nothing outside its folder."""

from __future__ import annotations

import json
import random
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutation import mutate

from glscl.errors import GlsclError
from glscl.options import plain

PATIENCE = 60  # seconds of the processor until a case counts as hanging; a good one takes milliseconds


@dataclass(frozen=True)
class Reader:
    """One row of the table.

    Attributes:
        name: of the reader, for the test and for the seed of its cases.
        files: good files, by relative path, or what makes them below a folder.
        read: reads them all below a folder; what it returns must be JSON-able.
        writes: it writes to the folder `out` beside.
        only: which files are mutated, by suffix; all by default.
        few: cases of a short run; slow readers have fewer.
        refuses: whether it has something to say of bad files.
    """

    name: str
    files: Mapping[str, bytes] | Callable[[Path], None]
    read: Callable[[Path], Any]
    writes: bool = False
    only: tuple[str, ...] = ()
    few: int = 60
    refuses: bool = True


@dataclass
class Tally:
    """What became of the cases."""

    read: int = 0
    refused: int = 0


def attack(reader: Reader, box: Path, *, start: int, cases: int) -> Tally:
    """Read `cases` hostile versions of a reader's files, numbered from `start`.

    Raises:
        AssertionError: naming reader, case and file where anything but a GlsclError comes out.
    """
    folder = box / "in"
    folder.mkdir()
    (box / "videos").mkdir()
    for clip in range(6):
        (box / "videos" / f"video{clip}.mp4").touch()
    if callable(reader.files):
        reader.files(folder)
    else:
        for name, data in reader.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    names = sorted(p for p in folder.rglob("*") if p.is_file() and (not reader.only or p.as_posix().endswith(reader.only)))
    good = {path: data for path in names if (data := path.read_bytes())}
    reader.read(folder)  # what is not mutated is good
    before = _outside(box)
    tally = Tally()
    for case in range(start, start + cases):
        number = random.Random(f"{reader.name} {case}").randrange(len(good))  # names of shards differ from run to run
        path, relative = names[number], names[number].relative_to(folder).as_posix()
        path.write_bytes(mutate(f"{reader.name} {number}{path.suffix}", good[path], case))
        try:
            with _alarm():
                _one(reader, folder, tally)
        except Exception as error:
            raise AssertionError(f"{reader.name}, case {case} ({relative}): {type(error).__name__}: {error}") from error
        finally:
            path.write_bytes(good[path])
        if reader.writes:
            assert _outside(box) == before, f"{reader.name}, case {case}: wrote outside its folder"
            shutil.rmtree(box / "out", ignore_errors=True)
    assert _outside(box) == before, f"{reader.name}: wrote outside its folder"
    return tally


def _one(reader: Reader, folder: Path, tally: Tally) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = reader.read(folder)
    except GlsclError as error:
        line = " ".join(str(error).split())
        assert 10 < len(line) < 2000, f"a message of {len(line)} characters: {line[:300]}"
        tally.refused += 1
    else:
        json.dumps(plain(found), allow_nan=False)
        tally.read += 1


def _outside(box: Path) -> set[str]:
    return {p.relative_to(box).as_posix() for p in box.rglob("*") if p.relative_to(box).parts[0] != "out"}


@contextmanager
def _alarm() -> Iterator[None]:
    """A case that hangs ends in TimeoutError, with the place where it hung."""

    def expired(*_: object) -> None:
        raise TimeoutError(f"no answer within {PATIENCE} s of the processor")

    before = signal.signal(signal.SIGPROF, expired)
    signal.setitimer(signal.ITIMER_PROF, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
