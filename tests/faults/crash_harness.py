"""Extractions that are killed or whose disk fails, many of them: all is imported once, each one is a forked process.

    python crash_harness.py WORK FORMAT SEED KIND=ROUNDS…

A round begins a cache, dies at one point, is looked at, and is finished by another process. Points are the calls that
make data durable or visible (`call`, before the n-th), lines of the code that writes (`line`, before the n-th), and
moments (`time`). `commit` finds its calls by itself: every place in the code where something becomes visible or vanishes;
to die before each is to die in every state that others can see. With the kind `disk` it lives on, and that call fails
once or from then on, as on a full, failing or read-only disk; with `size` no file may grow beyond some bytes. Prints one
JSON object: {"rounds": {kind: how many}, "stopped": {kind: rounds that ended before the work was done},
"commit_points": [...], "messages": [...], "problems": [...]}.

What dies is a process, never the machine: nothing here waits for the disk.

Only the pool of decoding processes is replaced: the same decoders run in the extraction's own process.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from glscl.cache import files, library, lock
from glscl.cache.schema import STREAMS, Annotations, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import StorageError
from glscl.extract import pipeline
from glscl.extract.backbone.encoder import Backbone, load_backbone
from glscl.extract.decode.video import Decoding, FrameChunk, VideoDone, VideoTask, decode_video
from glscl.extract.settings import ExtractSettings

VIDEOS = 8
DURABLE = ("fsync", "link", "replace", "rename", "unlink", "mkdir", "open", "rmdir")
VISIBLE = ("link", "replace", "rename", "unlink")  # those after which others see something else
KILLS = ("call", "line", "time")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES)
WRITES = ("fsync", "link", "replace", "rename", "mkdir", "open")


class DecodeHere:
    """Stands for the pool: decodes in this process, one video after another."""

    def __init__(self, decoding: Decoding, **_: Any) -> None:
        self.decoding = decoding

    def __enter__(self) -> DecodeHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def decode(self, tasks: Iterable[VideoTask]) -> Iterator[FrameChunk | VideoDone]:
        for task in tasks:
            yield from decode_video(task, self.decoding)


def corpus(folder: Path) -> Annotations:
    """Eight clips, one of which is no video and one is not there; two captions each."""
    videos, texts = [], []
    for i in range(VIDEOS):
        split = "train" if i < 5 else "test"
        path = folder / f"clip{i}.mp4"
        videos.append(VideoItem(f"clip{i}", split, str(path) if i != 5 else None))
        texts += [TextItem(f"clip{i}#{k}", f"clip{i}", split, f"a red square moves {'up ' * (i + k)}") for k in (0, 1)]
    return Annotations(dataset="csv", videos=videos, texts=texts)


def extract(out: Path, clips: Path, format: str, backbone: Backbone) -> None:
    pipeline.DecodePool = DecodeHere
    settings = ExtractSettings(
        fps=2.0, format=format, shard_videos=2, shard_texts=8, batch_frames=8, batch_texts=8, workers=1, decoder="pyav"
    )
    pipeline.extract(corpus(clips), out, settings, backbone=backbone)


# --- dying at a chosen point -------------------------------------------------------------------------------------------


class Countdown:
    """Kills this process when it was called `at` times; with None it only counts."""

    def __init__(self, at: int | None) -> None:
        self.at, self.count = at, 0

    def __call__(self, call: str = "") -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)


class CommitPoints:
    """Counts calls, and remembers by the place in the code those that change what others see.

    Attributes:
        calls: of each place, the call's name and the functions of the room that lead to it, the numbers of its calls.
    """

    def __init__(self, room: Path) -> None:
        self.room, self.count, self.calls = room, 0, {}

    def __call__(self, call: str) -> None:
        if call in VISIBLE:
            self.calls.setdefault(self._place(call), []).append(self.count)
        self.count += 1

    def _place(self, call: str) -> str:
        frame, place = sys._getframe(3), [call]
        while frame:
            code = frame.f_code
            if Path(code.co_filename).is_relative_to(self.room):
                place.append(f"{code.co_qualname}:{frame.f_lineno}")
            frame = frame.f_back
        return " < ".join(place)


def count_calls(tick: Callable[[str], None]) -> None:
    """Calls `tick` with its name before each call of the operating system that makes data durable or visible."""

    def wrapped(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            tick(name)
            return original(*args, **options)

        return call

    for name in DURABLE:
        setattr(os, name, wrapped(name, getattr(os, name)))


def count_lines(tick: Callable[[], None], watched: frozenset[str] | None = None) -> None:
    """Calls `tick` before each line of the files `watched`: of what writes a cache, with the library's file access."""
    if watched is None:
        import zarr.storage._local

        stores = (Path(library.__file__).parent / "formats" / name for name in ("hdf5_store.py", "zarr_store.py"))
        watched = frozenset(
            [library.__file__, files.__file__, lock.__file__, zarr.storage._local.__file__, *map(str, stores)]
        )

    def lines(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            tick()
        return lines

    def calls(frame: Any, event: str, _: Any) -> Any:
        return lines if frame.f_code.co_filename in watched else None

    import threading

    threading.settrace(calls)  # the library writes in a thread of its own
    sys.settrace(calls)


class FailingDisk:
    """Lets the `at`-th call that writes fail, or all from there on; with None it only counts."""

    def __init__(self, at: int | None, code: int, *, lasting: bool) -> None:
        self.at, self.code, self.lasting, self.count = at, code, lasting, 0

    def tick(self) -> None:
        self.count += 1
        if self.at is not None and (self.count == self.at or (self.lasting and self.count > self.at)):
            raise OSError(self.code, os.strerror(self.code))

    def install(self) -> None:
        def wrapped(original: Callable[..., Any], writes: Callable[..., bool]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                if writes(*args, **options):
                    self.tick()
                return original(*args, **options)

            return call

        def always(*_: Any, **__: Any) -> bool:
            return True

        def by_flags(_: Any, flags: int, *__: Any, **___: Any) -> bool:
            return bool(flags & (os.O_WRONLY | os.O_RDWR))

        def by_mode(_: Any, mode: str = "r", *__: Any, **___: Any) -> bool:
            return any(letter in mode for letter in "wax+")

        for name in WRITES:
            setattr(os, name, wrapped(getattr(os, name), by_flags if name == "open" else always))
        builtins.open = io.open = wrapped(io.open, by_mode)  # type: ignore[assignment]


HOOKS = {"call": count_calls, "commit": count_calls, "line": count_lines}


def in_child(work: Callable[[], Any], *, kill_after: float | None = None) -> tuple[int, Any]:
    """Run `work` in a forked process: its exit status (negative for a signal) and what it returned, as JSON."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            try:
                answer = json.dumps(work())
            except BaseException:
                answer = json.dumps({"raised": traceback.format_exc()})
            os.write(write, answer.encode())  # opening anything may be what fails
        finally:
            os._exit(0)
    os.close(write)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(answer) if answer and status == 0 else None


# --- what must be true afterwards --------------------------------------------------------------------------------------


def records(path: Path) -> dict[str, dict[int, Any]]:
    """What the commits of a cache say: items, shapes, checksums and failures of every shard."""
    opened = open_store(path)
    return {s: {n: (c.items, c.arrays, c.failures) for n, c in opened.commits(s).items()} for s in STREAMS}


def look(path: Path, reference: Path) -> list[str]:
    """Problems of a cache whose writer was killed: what is committed must be whole, and what it should be."""
    if not (path / "store.json").exists():
        return []
    expected = records(reference)
    return verify(open_store(path)) + [
        f"{stream} shard {shard} is not that of an uninterrupted run"
        for stream, shards in records(path).items()
        for shard, found in shards.items()
        if found != expected[stream][shard]
    ]


def finish(path: Path, clips: Path, format: str, backbone: Backbone, reference: Path) -> list[str]:
    """Problems of going on to the end: an error, another result, or something left behind."""
    committed = {p: p.stat().st_mtime_ns for p in path.glob("commits/*/*.json")}
    extract(path, clips, format, backbone)
    problems = verify(open_store(path))
    if records(path) != records(reference) or not open_store(path).complete:
        problems.append("it is not the cache of an uninterrupted run")
    problems += [f"{p} was written again" for p, when in committed.items() if p.stat().st_mtime_ns != when]
    # who dies with the work done leaves a lock that is nobody's; there is nothing to write, so nobody has removed it
    problems += [f"{p.file.name} still locks the cache" for p in lock.locks(path) if not p.stale]
    return problems + [f"{p.name} was left behind" for p in path.glob("partial/*")]


def one_round(kind: str, place: float, sizes: dict[str, float], setting: dict[str, Any]) -> dict[str, Any]:
    """Stop at `place` (0 to 1 of the whole run), look, finish. Returns whether it stopped there, what it said, problems."""
    out = setting["work"] / "cache"
    shutil.rmtree(out, ignore_errors=True)
    run = {name: setting[name] for name in ("clips", "format", "backbone")}
    at = int(place * sizes[kind])
    where = f"stopped at {place:.4f} of {sizes[kind]:g} ({kind})"

    def begin() -> str | None:
        if kind == "disk":
            FailingDisk(1 + at, ERRORS[at % len(ERRORS)], lasting=at % 2 == 0).install()
        elif kind == "size":
            run["backbone"].pieces = dict  # they are the largest file and would always be the one that fails
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (at, resource.RLIM_INFINITY))
        elif kind in HOOKS:
            HOOKS[kind](Countdown(1 + at))
        try:
            extract(out, **run)
        except StorageError as error:
            return str(error)
        return None

    status, answer = in_child(begin, kill_after=0.7 * place * sizes["time"] if kind == "time" else None)
    if isinstance(answer, dict):
        return {"stopped": False, "said": None, "problems": [f"{where}: {answer['raised']}"]}
    problems = []
    if answer is not None and ("\n" in answer or str(out) not in answer):
        problems.append(f"{where}: not one line that names the place: {answer}")
    reference = setting["reference"]
    code, found = in_child(lambda: look(out, reference) + finish(out, reference=reference, **run))
    if code != 0 or isinstance(found, dict):
        problems.append(f"{where}: the next process ended with {code}: {found and found['raised']}")
    else:
        problems += [f"{where}: {line}" for line in found]
    return {"stopped": status == -signal.SIGKILL or answer is not None, "said": answer, "problems": problems}


def places(rounds: dict[str, int], seed: int) -> list[tuple[str, float]]:
    """A kind and a place for each round: every kind spread over the whole run, at random within its slice."""
    rng = random.Random(seed)
    return [(kind, (i + rng.random()) / count) for kind, count in rounds.items() for i in range(count)]


def at_commit_points(calls: dict[str, list[int]], total: int, each: int, seed: int) -> list[float]:
    """Places before `each` of the calls of every commit point, of all the `total` calls of a run."""
    rng = random.Random(seed)
    chosen = {n for numbers in calls.values() for n in rng.sample(numbers, min(each, len(numbers)))}
    return [(n + 0.5) / total for n in sorted(chosen)]


def measure(setting: dict[str, Any], kinds: Iterable[str]) -> tuple[dict[str, float], dict[str, list[int]]]:
    """How many calls, lines, seconds and bytes (of its largest file) a whole run takes, and the calls of its commit points.

    The cache of the first run is the reference.
    """
    run = {name: setting[name] for name in ("clips", "format", "backbone")}

    def plain() -> dict[str, float]:
        began, out = time.perf_counter(), setting["reference"]
        extract(out, **run)
        seconds = time.perf_counter() - began
        sizes = [p.stat().st_size for p in out.rglob("*") if p.is_file() and p.parent.name != "backbone"]
        return {"time": seconds, "size": max(sizes)}

    def counted() -> dict[str, Any]:
        calls, disk = CommitPoints(Path(files.__file__).parent), FailingDisk(None, 0, lasting=False)
        count_calls(calls)
        disk.install()
        extract(setting["work"] / "counted", **run)
        return {"call": calls.count, "commit": calls.count, "disk": disk.count, "points": calls.calls}

    def traced() -> dict[str, float]:
        lines = Countdown(None)
        count_lines(lines)
        extract(setting["work"] / "traced", **run)
        return {"line": lines.count}

    found: dict[str, Any] = {}
    for whole in (plain, counted, *([traced] if "line" in kinds else [])):
        status, answer = in_child(whole)
        if status != 0 or "raised" in answer:
            raise SystemExit(f"an uninterrupted run ends with {status}: {answer}")
        found |= answer
    return found, found.pop("points")


def main(work: str, format: str, seed: str, *kinds: str) -> None:
    os.fsync = lambda _: None
    folder = Path(work)
    setting = {
        "work": folder,
        "reference": folder / "reference",
        "clips": folder / "clips",
        "format": format,
        "backbone": load_backbone("demo", None, words=12, device="cpu", precision="fp32"),
    }
    asked = {kind: int(rounds) for kind, _, rounds in (word.partition("=") for word in kinds)}
    sizes, points = measure(setting, asked)
    chosen = [("commit", at) for at in at_commit_points(points, sizes["call"], asked.pop("commit", 0), int(seed))]
    chosen += places(asked, int(seed))
    rounds = Counter(kind for kind, _ in chosen)
    report = {
        "rounds": rounds,
        "stopped": dict.fromkeys(rounds, 0),
        "sizes": sizes,
        "commit_points": sorted(points),
        "messages": [],
        "problems": [],
    }
    for kind, place in chosen:
        found = one_round(kind, place, sizes, setting)
        report["stopped"][kind] += found["stopped"]
        report["messages"] += [found["said"].replace(str(folder), "")] if found["said"] else []
        report["problems"] += found["problems"]
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
