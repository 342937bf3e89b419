"""Extractions that are killed or whose disk fails, many of them: all is imported once, each one is a forked process.

    python crash_harness.py WORK FORMAT ROUNDS [SEED] [KIND,KIND…]

A round begins a cache, dies at one point, is looked at, and is finished by another process. Points are the calls that
make data durable or visible (`call`, before the n-th), lines of the code that writes (`line`, before the n-th), and
moments (`time`). With the kind `disk` it lives on, and that call fails once or from then on, as on a full, failing or
read-only disk; with `size` no file may grow beyond some bytes. Prints one JSON object: {"stopped": {kind: rounds that
ended before the work was done}, "rounds", "messages": [...], "problems": [...]}.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from glscl.cache import files, library, lock
from glscl.cache.schema import STREAMS, Annotations, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import StorageError
from glscl.extract import pipeline
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import FrameChunk, VideoDone, VideoTask, decode_video

VIDEOS = 8
DURABLE = ("fsync", "link", "replace", "rename", "unlink", "mkdir", "open", "rmdir")
KILLS = ("call", "line", "time")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES)
WRITES = ("fsync", "link", "replace", "rename", "mkdir", "open")


class DecodeHere:
    """Stands for the pool: decodes in this process, one video after another."""

    def __init__(self, *, sampling: Sampling, geometry: Any, decoder: str, **_: Any) -> None:
        self.options = {"geometry": geometry, "decoder": decoder}
        self.sampling = sampling

    def __enter__(self) -> DecodeHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def decode(self, tasks: Iterable[VideoTask]) -> Iterator[FrameChunk | VideoDone]:
        for task in tasks:
            yield from decode_video(task.path, self.sampling, index=task.index, **self.options)


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
    pipeline.extract(
        corpus(clips),
        out,
        backbone=backbone,
        sampling=Sampling(fps=2),
        format=format,
        shard_videos=2,
        shard_texts=8,
        batch_frames=8,
        batch_texts=8,
        workers=1,
        decoder="pyav",
    )


# --- dying at a chosen point -------------------------------------------------------------------------------------------


class Countdown:
    """Kills this process when it was called `at` times; with None it only counts."""

    def __init__(self, at: int | None) -> None:
        self.at, self.count = at, 0

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)


def count_calls(tick: Callable[[], None]) -> None:
    """Calls `tick` before each call of the operating system that makes data durable or visible."""

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            tick()
            return original(*args, **options)

        return call

    for name in DURABLE:
        setattr(os, name, wrapped(getattr(os, name)))


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


HOOKS = {"call": count_calls, "line": count_lines}


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
    problems = look(path, reference)
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
    for step in (lambda: look(out, setting["reference"]), lambda: finish(out, reference=setting["reference"], **run)):
        code, found = in_child(step)
        if code != 0 or isinstance(found, dict):
            problems.append(f"{where}: the next process ended with {code}: {found and found['raised']}")
        else:
            problems += [f"{where}: {line}" for line in found]
    return {"stopped": status == -signal.SIGKILL or answer is not None, "said": answer, "problems": problems}


def places(rounds: int, seed: int, kinds: Sequence[str]) -> list[tuple[str, float]]:
    """A kind and a place for each round: every kind spread over the whole run, at random within its slice."""
    rng = random.Random(seed)
    chosen = []
    for number, kind in enumerate(kinds):
        count = len(range(number, rounds, len(kinds)))
        chosen += [(kind, (i + rng.random()) / count) for i in range(count)]
    return chosen


def measure(setting: dict[str, Any], kinds: Sequence[str]) -> dict[str, float]:
    """How many calls, lines, seconds and bytes (of its largest file) a whole run takes; its cache is the reference."""
    run = {name: setting[name] for name in ("clips", "format", "backbone")}

    def whole(kind: str, out: Path) -> float:
        tick, disk = Countdown(None), FailingDisk(None, 0, lasting=False)
        if kind in HOOKS:
            HOOKS[kind](tick)
        elif kind == "disk":
            disk.install()
        began = time.perf_counter()
        extract(out, **run)
        seconds = time.perf_counter() - began
        sizes = [p.stat().st_size for p in out.rglob("*") if p.is_file() and p.parent.name != "backbone"]
        return {"time": seconds, "disk": disk.count, "size": max(sizes)}.get(kind, tick.count)

    found = {}
    for kind in dict.fromkeys(["time", *kinds]):
        out = setting["reference"] if kind == "time" else setting["work"] / kind
        status, found[kind] = in_child(lambda kind=kind, out=out: whole(kind, out))
        if status != 0 or isinstance(found[kind], dict):
            raise SystemExit(f"an uninterrupted run ends with {status}: {found[kind]}")
    return found


def main(work: str, format: str, rounds: str, seed: str = "0", kinds: str = ",".join(KILLS)) -> None:
    folder = Path(work)
    setting = {
        "work": folder,
        "reference": folder / "reference",
        "clips": folder / "clips",
        "format": format,
        "backbone": Backbone.load("demo", None, words=12, device="cpu", precision="fp32"),
    }
    chosen = kinds.split(",")
    sizes = measure(setting, chosen)
    report = {
        "rounds": int(rounds),
        "stopped": dict.fromkeys(chosen, 0),
        "sizes": sizes,
        "messages": [],
        "problems": [],
    }
    for kind, place in places(int(rounds), int(seed), chosen):
        found = one_round(kind, place, sizes, setting)
        report["stopped"][kind] += found["stopped"]
        report["messages"] += [found["said"].replace(str(folder), "")] if found["said"] else []
        report["problems"] += found["problems"]
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
