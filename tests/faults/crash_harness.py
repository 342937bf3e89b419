"""Extractions that are killed, many of them: everything is imported once, each extraction is a forked process of its own.

    python crash_harness.py WORK FORMAT ROUNDS [SEED]

A round begins a cache, dies at one point, is looked at, and is finished by another process. Points are the calls that
make data durable or visible (`call`, before the n-th), lines of the code that writes (`line`, before the n-th), and
moments (`time`). Prints one JSON object: {"killed": {kind: rounds that died}, "rounds", "problems": [...]}.

Only the pool of decoding processes is replaced: the same decoders run in the extraction's own process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from glscl.cache import files, lock, store
from glscl.cache.schema import STREAMS, Annotations, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.cache.summary import verify
from glscl.extract import pipeline
from glscl.extract.encoder import Backbone
from glscl.extract.sampling import Sampling
from glscl.extract.video import FrameChunk, VideoDone, VideoTask, decode_video

VIDEOS = 8
DURABLE = ("fsync", "link", "replace", "rename", "unlink", "mkdir", "open", "rmdir")
KINDS = ("call", "line", "time")


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


def count_lines(tick: Callable[[], None]) -> None:
    """Calls `tick` before each line of the code that writes a cache, in our modules and the library's file access."""
    import zarr.storage._local

    watched = {store.__file__, files.__file__, lock.__file__, zarr.storage._local.__file__}
    watched |= {str(Path(store.__file__).with_name(name)) for name in ("hdf5_store.py", "zarr_store.py")}

    def lines(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            tick()
        return lines

    def calls(frame: Any, event: str, _: Any) -> Any:
        return lines if frame.f_code.co_filename in watched else None

    import threading

    threading.settrace(calls)  # the library writes in a thread of its own
    sys.settrace(calls)


HOOKS = {"call": count_calls, "line": count_lines}


def in_child(work: Callable[[], Any], *, kill_after: float | None = None) -> tuple[int, Any]:
    """Run `work` in a forked process: its exit status (negative for a signal) and what it returned, as JSON."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            answer = json.dumps(work())
        except BaseException:
            answer = json.dumps({"raised": traceback.format_exc()})
        with os.fdopen(write, "w") as pipe:
            pipe.write(answer)
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


def one_round(kind: str, place: float, sizes: dict[str, float], setting: dict[str, Any]) -> tuple[bool, list[str]]:
    """Kill at `place` (0 to 1 of the whole run), look, finish. Returns whether it died there, and the problems."""
    out = setting["work"] / "cache"
    shutil.rmtree(out, ignore_errors=True)
    run = {name: setting[name] for name in ("clips", "format", "backbone")}

    def begin() -> None:
        if kind in HOOKS:
            HOOKS[kind](Countdown(1 + int(place * sizes[kind])))
        extract(out, **run)

    status, answer = in_child(begin, kill_after=place * sizes["time"] if kind == "time" else None)
    where = f"killed at {place:.4f} of {sizes[kind]:g} ({kind})"
    if answer is not None:
        return False, [f"{where}: {answer['raised']}"]
    problems = []
    for step in (lambda: look(out, setting["reference"]), lambda: finish(out, reference=setting["reference"], **run)):
        code, found = in_child(step)
        if code != 0 or isinstance(found, dict):
            problems.append(f"{where}: the next process ended with {code}: {found and found['raised']}")
        else:
            problems += [f"{where}: {line}" for line in found]
    return status == -signal.SIGKILL, problems


def places(rounds: int, seed: int) -> list[tuple[str, float]]:
    """A kind and a place for each round: every kind spread over the whole run, at random within its slice."""
    rng = random.Random(seed)
    chosen = []
    for number, kind in enumerate(KINDS):
        count = len(range(number, rounds, len(KINDS)))
        chosen += [(kind, (i + rng.random()) / count) for i in range(count)]
    return chosen


def measure(setting: dict[str, Any]) -> dict[str, float]:
    """How many calls, lines and seconds an uninterrupted run takes; its cache is the reference."""
    run = {name: setting[name] for name in ("clips", "format", "backbone")}

    def whole(hook: str | None, out: Path) -> float:
        tick = Countdown(None)
        if hook:
            HOOKS[hook](tick)
        began = time.perf_counter()
        extract(out, **run)
        return time.perf_counter() - began if hook is None else tick.count

    sizes = {}
    for kind, hook in (("time", None), ("call", "call"), ("line", "line")):
        out = setting["reference"] if kind == "time" else setting["work"] / kind
        status, sizes[kind] = in_child(lambda hook=hook, out=out: whole(hook, out))
        if status != 0 or isinstance(sizes[kind], dict):
            raise SystemExit(f"an uninterrupted run ends with {status}: {sizes[kind]}")
    return sizes


def main(work: str, format: str, rounds: str, seed: str = "0") -> None:
    folder = Path(work)
    setting = {
        "work": folder,
        "reference": folder / "reference",
        "clips": folder / "clips",
        "format": format,
        "backbone": Backbone.load("demo", None, words=12, device="cpu", precision="fp32"),
    }
    sizes = measure(setting)
    killed, problems = dict.fromkeys(KINDS, 0), []
    for kind, place in places(int(rounds), int(seed)):
        died, found = one_round(kind, place, sizes, setting)
        killed[kind] += died
        problems += found
    print(json.dumps({"rounds": int(rounds), "killed": killed, "sizes": sizes, "problems": problems}))


if __name__ == "__main__":
    main(*sys.argv[1:])
