"""Very many hostile files for every reader, in pieces, each in a process of its own; what was run is written down.

    python tests/faults/fuzz_long.py --cases 100000 --results fuzz.jsonl
    python tests/faults/fuzz_long.py --cases 200000 --results fuzz.jsonl --reader csv --reader run   # goes on after it
    python tests/faults/fuzz_long.py --results fuzz.jsonl --table                                    # as Markdown

Every reader has its turn, a piece of cases or of seconds, until all have had theirs. Ctrl-C or SIGTERM stop it; the piece under way
is not counted. Exit status 1: a case failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from annotation_readers import ANNOTATIONS
from feature_readers import FEATURES
from hostile_reader import PATIENCE, Attack, Reader
from stored_readers import STORED

GROUPS = {"Annotations": ANNOTATIONS, "Arrays and weights of others": FEATURES, "Our own files": STORED}
READERS = {reader.name: reader for group in GROUPS.values() for reader in group}
_PROCESSES = multiprocessing.get_context("fork")
_HEAVY = (
    "extract.datasets",
    "extract.importing.import_features",
    "cache.upkeep.convert",
    "train_head.resume_state",
    "evaluate.report",
)


@dataclass(frozen=True)
class Piece:
    """What one process did; a line of the results.

    Attributes:
        reader: its name. start: number of the first case. cases: how many were run.
        read, refused: what became of them. failures: a line each for the others.
        seconds: of the processor, without what it took to begin.
        slowest: processor seconds of the slowest case, and its number.
    """

    reader: str
    start: int
    cases: int
    read: int
    refused: int
    failures: list[str]
    seconds: float
    slowest: tuple[float, int]


def main() -> int:
    options = _options()
    done = _read(options.results)
    if options.table:
        print(table(done))
        return 0
    names = deque(options.reader or READERS)
    stop = time.monotonic() + options.seconds
    reached = {name: max((p.start + p.cases for p in done if p.reader == name), default=0) for name in names}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        for module in ("accelerate", "h5py", "zarr", *(f"glscl.{name}" for name in _HEAVY)):
            importlib.import_module(module)  # once here, not in every process
        while names and time.monotonic() < stop:
            name = names.popleft()
            left = options.cases - reached[name]
            if left <= 0:
                continue
            seconds = min(options.piece_seconds, stop - time.monotonic())
            piece = run_apart(READERS[name], reached[name], min(options.piece, left), seconds, options.memory)
            with open(options.results, "a") as file:
                file.write(json.dumps(asdict(piece)) + "\n")
            done.append(piece)
            reached[name] = piece.start + piece.cases
            names.append(name)
            print(_line(piece), flush=True)
    print(table(done))
    return int(any(piece.failures for piece in done))


def run_apart(reader: Reader, start: int, cases: int, seconds: float, memory: float) -> Piece:
    """Run a piece in a process of its own; a process that ends by itself, or hangs, is a failure of the case it was at.

    Args:
        seconds: stop after so many.
        memory: GB of addresses the process may have.
    """
    shared = Path("/dev/shm")
    within = shared if os.access(shared, os.W_OK) else None  # memory is faster than a disk
    with tempfile.TemporaryDirectory(dir=within, prefix="hostile-", ignore_cleanup_errors=True) as ground:
        here, there = _PROCESSES.Pipe(duplex=False)
        at = _PROCESSES.Value("q", start, lock=False)
        process = _PROCESSES.Process(
            target=_piece, args=(there, at, reader, Path(ground), start, cases, seconds, memory)
        )
        process.start()
        there.close()
        piece = None
        try:
            piece = _answer(process, here, at, time.monotonic() + seconds + PATIENCE)
        finally:
            if piece is None:
                process.kill()
            process.join()
            here.close()
    if piece is not None:
        return piece
    said = f"{reader.name}, case {at.value}: the process ended or hung (exit status {process.exitcode})"
    return Piece(reader.name, start, at.value + 1 - start, 0, 0, [said], 0.0, (0.0, at.value))


def _answer(process: Any, pipe: Any, at: Any, limit: float) -> Piece | None:
    """What a process sends; None where it ends without, or stays at one case for too long."""
    before = at.value
    while not pipe.poll(1) and process.is_alive() and time.monotonic() < limit:
        if at.value != before:  # it goes on: a case may take as long as it would alone on a loaded machine
            before, limit = at.value, max(limit, time.monotonic() + 5 * PATIENCE)
    with contextlib.suppress(EOFError):
        return Piece(**pipe.recv()) if pipe.poll(0) else None
    return None


def _piece(
    pipe: Any, at: Any, reader: Reader, ground: Path, start: int, cases: int, seconds: float, memory: float
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (int(memory * 1e9),) * 2)
    attack = Attack(reader, ground)
    began = time.process_time()

    def begins(case: int) -> None:
        at.value = case

    tally = attack.run(start, cases, seconds=seconds, begins=begins)
    spent = time.process_time() - began
    counts = {"cases": at.value + 1 - start, "read": tally.read, "refused": tally.refused, "failures": tally.failures}
    pipe.send({"reader": reader.name, "start": start, **counts, "seconds": round(spent, 3), "slowest": tally.slowest})
    pipe.close()


def table(pieces: list[Piece]) -> str:
    """The results as Markdown, a line a reader."""
    lines = ["| what | reader | cases | answered | refused | failed | cases a second | slowest case |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
    for group, readers in GROUPS.items():
        for reader in readers:
            own = [piece for piece in pieces if piece.reader == reader.name]
            cases, seconds = sum(piece.cases for piece in own), sum(piece.seconds for piece in own)
            counts = [cases, *(sum(getattr(piece, of) for piece in own) for of in ("read", "refused"))]
            failed = sum(len(piece.failures) for piece in own)
            rate, slowest = cases / seconds if seconds else 0, max((piece.slowest[0] for piece in own), default=0)
            cells = [group, reader.name, *(f"{n:,}" for n in (*counts, failed)), f"{rate:,.0f}", f"{slowest:.2f} s"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"{sum(piece.cases for piece in pieces):,} cases, {sum(len(piece.failures) for piece in pieces)} failed.",
    ]
    return "\n".join(lines)


def _line(piece: Piece) -> str:
    rate = piece.cases / piece.seconds if piece.seconds else 0
    told = f"{piece.reader}: {piece.cases:,} cases from {piece.start:,}, {rate:,.0f} a second"
    return "\n".join([told, *piece.failures])


def _read(path: Path) -> list[Piece]:
    return [Piece(**json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100_000, help="of every reader, numbered from 0")
    parser.add_argument(
        "--reader", action="append", choices=READERS, metavar="NAME", help="this one (repeatable); default all"
    )
    parser.add_argument(
        "--results", type=Path, required=True, metavar="FILE.jsonl", help="a line a piece; taken up if there"
    )
    parser.add_argument("--piece", type=int, default=5_000, help="cases of a process")
    parser.add_argument("--piece-seconds", type=float, default=60.0, help="or so long, whichever comes first")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--memory", type=float, default=16.0, metavar="GB", help="addresses a process may have")
    parser.add_argument("--table", action="store_true", help="only print what the results say")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
