"""Commands on a cache that are killed or whose disk fails, many of them: all is imported once, each one is a forked process.

    python crash_harness.py WORK FORMAT SEED STAGE:KIND=ROUNDS…

A stage is a command on what stands there before: the extraction of a list into a new cache (`first`), of a longer list with
a renamed, a copied and a replaced file and repeated captions into that (`second`), another attempt at videos that failed
(`retry`), and `merge` and `convert` of such caches. A round lets it die at one point, looks at the cache, and finishes the
work in another process; in a third of the rounds another list is extracted in between. Points are the calls that make data
durable or visible (`call`, before the n-th), lines of the code that writes (`line`, before the n-th), and moments (`time`).
`commit` finds its calls by itself: every place in the code where something becomes visible or vanishes; to die before each
is to die in every state that others can see; `appear` leaves out those where something vanishes. With the kind `disk` it lives on, and that call fails once or from then on, as on
a full, failing or read-only disk; with `size` no file may grow beyond some bytes. Prints one JSON object: {STAGE: {"rounds":
{kind: how many}, "stopped": {kind: rounds that ended before the work was done}, "commit_points", "messages", "problems"}}.

What dies is a process, never the machine: nothing here waits for the disk.

Only the pool of decoding processes is replaced: the same decoders run in the extraction's own process.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import importlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from decoding_here import DecodesHere

from glscl.cache import files, lock
from glscl.cache.formats import STORES
from glscl.cache.keys import from_array
from glscl.cache.library import open_library
from glscl.cache.lists import current_version, list_names
from glscl.cache.schema import STREAMS, Annotations, Status, TextItem, VideoItem
from glscl.cache.store import Store, open_store
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import StorageError, UsageError
from glscl.extract import pipeline
from glscl.extract.backbone.encoder import Backbone, load_backbone
from glscl.extract.listing import ListOrigin
from glscl.extract.settings import ExtractSettings

VIDEOS = 8  # of the first list
CLIPS = 10  # files that there must be
DURABLE = ("fsync", "link", "replace", "rename", "unlink", "mkdir", "open", "rmdir")
VISIBLE = ("link", "replace", "rename", "unlink")  # those after which others see something else
KILLS = ("call", "line", "time")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, errno.EACCES)
WRITES = ("fsync", "link", "replace", "rename", "mkdir", "open")
TOLERANCE = 2e-3  # of float16 features that were encoded in other batches


def corpus(folder: Path) -> Annotations:
    """Eight clips, one of which is no video and one is not there; two captions each."""
    videos, texts = [], []
    for i in range(VIDEOS):
        split = "train" if i < 5 else "test"
        path = folder / f"clip{i}.mp4"
        videos.append(VideoItem(f"clip{i}", split, str(path) if i != 5 else None))
        texts += [TextItem(f"clip{i}#{k}", f"clip{i}", split, f"a red square moves {'up ' * (i + k)}") for k in (0, 1)]
    return Annotations(dataset="csv", videos=videos, texts=texts)


def longer_corpus(folder: Path) -> Annotations:
    """The first list and more: clip 0 renamed, clip 1 under two ids, clip 2 replaced, a new clip 8, captions that stand twice."""
    more, found = folder.parent / "more", corpus(folder)
    if not more.exists():
        more.mkdir()
        for source, name in ((0, "renamed"), (1, "copy"), (9, "clip2")):
            shutil.copy(folder / f"clip{source}.mp4", more / f"{name}.mp4")
    path = {"clip0": more / "renamed.mp4", "clip2": more / "clip2.mp4"}
    videos = [VideoItem(v.id, v.split, str(path[v.id]) if v.id in path else v.path) for v in found.videos]
    videos += [
        VideoItem("copy", "train", str(more / "copy.mp4")),
        VideoItem("clip8", "test", str(folder / "clip8.mp4")),
    ]
    texts = found.texts + [
        TextItem(f"{id}#{k}", id, split, text)
        for id, split in (("copy", "train"), ("clip8", "test"))
        for k, text in enumerate(("a red square moves ", f"{id} is new", f"{id} is new"))
    ]
    return Annotations(dataset="csv", videos=videos, texts=texts)


def other_corpus(folder: Path) -> Annotations:
    """Another list, of some of the clips and captions."""
    found = corpus(folder)
    chosen = {f"clip{i}" for i in (1, 3, 7)}
    videos = [video for video in found.videos if video.id in chosen] + [
        VideoItem("9", "test", str(folder / "clip9.mp4"))
    ]
    texts = [text for text in found.texts if text.video in chosen] + [TextItem("9#0", "9", "test", "another list asks")]
    return Annotations(dataset="other", videos=videos, texts=texts)


def extract(
    out: Path,
    clips: Path,
    format: str,
    backbone: Backbone,
    *,
    listed: Callable[[Path], Annotations] = corpus,
    failing: Iterable[str] = (),
    **more: Any,
) -> None:
    pipeline.DecodePool = DecodesHere
    DecodesHere.failing = {str(clips / name): "no progress for 60 s" for name in failing}
    settings = ExtractSettings(
        fps=2.0,
        format=format,
        shard_videos=2,
        shard_texts=8,
        batch_frames=8,
        batch_texts=8,
        workers=1,
        decoder="pyav",
        **more,
    )
    annotations = listed(clips)
    pipeline.extract(annotations, out, settings, origin=ListOrigin(name=annotations.dataset), backbone=backbone)


# --- what is killed ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A command, and what stands there before it; `box` is the folder in which all of it stands, `box / "cache"` the cache.

    Attributes:
        begin: makes what stands there before.
        run: the command.
        another: whether another list may be extracted into the cache before the command is given again.
        once: whether nothing usable is made again.
        repeats: whether the command, given again, has more to do: what fails for good is tried again.
    """

    begin: Callable[[Path], object]
    run: Callable[[Path], object]
    another: bool = True
    once: bool = True
    repeats: bool = False


def stages(clips: Path, format: str, backbone: Backbone) -> dict[str, Stage]:
    other = next(name for name in STORES if name != format)

    def into(name: str, **more: Any) -> Callable[[Path], object]:
        return lambda box: extract(box / name, clips, format, backbone, **more)

    def parts(box: Path) -> None:
        for name, more in {"a": {"part": "1/2"}, "b": {"part": "2/2"}, "c": {"listed": longer_corpus}}.items():
            into(name, **more)(box)

    def several(box: Path) -> None:
        for listed in (corpus, longer_corpus, other_corpus):
            into("a", listed=listed)(box)

    def united(box: Path) -> None:
        merge([box / name for name in "abc"], box / "cache")

    def converted(box: Path) -> None:
        try:
            convert(open_library(box / "a"), box / "cache", format=other)
        except UsageError:  # it exists already
            if len(tables(box / "cache")) < len(tables(box / "a")):
                raise

    failing = ("clip1.mp4", "clip6.mp4", "clip7.mp4")
    return {
        "first": Stage(lambda box: None, into("cache")),
        "second": Stage(into("cache"), into("cache", listed=longer_corpus)),
        "retry": Stage(into("cache", failing=failing), into("cache", retry_failed=True), repeats=True),
        "merge": Stage(parts, united, once=False),
        "convert": Stage(several, converted, another=False),
    }


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


WRITERS = ("additions", "commits", "creation", "files", "filling", "known_files", "library", "lists", "lock")


def count_lines(tick: Callable[[], None], watched: frozenset[str] | None = None) -> None:
    """Calls `tick` before each line of the files `watched`: of what writes a cache."""
    if watched is None:
        names = (*WRITERS, "formats.hdf5_store", "formats.zarr_store", "upkeep.merge", "upkeep.convert")
        modules = [importlib.import_module(f"glscl.cache.{name}") for name in names]
        watched = frozenset(str(module.__file__) for module in modules)

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


HOOKS = {"call": count_calls, "commit": count_calls, "appear": count_calls, "line": count_lines}


def in_child(work: Callable[[], Any], *, kill_after: float | None = None) -> tuple[int, Any]:
    """Run `work` in a forked process: its exit status (negative for a signal) and what it returned, as JSON.

    What it imported is imported here then, so that all after it have it.
    """
    read, write = os.pipe()
    known = {*sys.modules}
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            try:
                answer = work()
            except BaseException:
                answer = {"raised": traceback.format_exc()}
            new = [name for name in sys.modules if name not in known]
            os.write(write, json.dumps([answer, new]).encode())  # opening anything may be what fails
        finally:
            os._exit(0)
    os.close(write)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    returned, new = json.loads(answer) if answer and status == 0 else (None, [])
    for module in new:
        with contextlib.suppress(Exception):  # some are made up while others run
            importlib.import_module(module)
    return status, returned


# --- what must be true afterwards --------------------------------------------------------------------------------------


def records(path: Path) -> dict[tuple[str, str, int], Any]:
    """What the commits of a cache say: items, shapes, checksums and failures of every shard."""
    library = open_library(path)
    return {
        (stream, *shard): (c.items, c.arrays, c.failures)
        for stream in STREAMS
        for shard, c in library.stream(stream).commits.items()
    }


def tables(path: Path) -> dict[str, Store]:
    """The lists of a cache that count."""
    names = list_names(path) if (path / "store.json").exists() else []
    return {name: open_store(path, name) for name in names if current_version(path, name)}


def entries(store: Store) -> dict[tuple[str, str], tuple[np.ndarray, ...]]:
    """(stream, id) → status, features and pooled feature, of every entry of a list."""
    found = {}
    for stream in STREAMS:
        arrays, bounds = store.arrays(stream), store.arrays(stream, ["offsets"])["offsets"]
        for row, id in enumerate(store.ids(stream)):
            values = arrays["values"][bounds[row] : bounds[row + 1]]
            found[stream, id] = arrays["status"][row], values, arrays["pooled"][row]
    return found


def alike(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...], tolerance: float = 0.0) -> bool:
    return all(a.shape == b.shape and np.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(one, other))


class Known(NamedTuple):
    """What a cache holds that changes no more: `records`, and of each list that counts its version and its `entries`."""

    records: dict[tuple[str, str, int], Any]
    lists: dict[str, tuple[str, dict[tuple[str, str], tuple[np.ndarray, ...]]]]


def known(path: Path) -> Known:
    """Read once, and from then on from a file beside it: each round compares with the same."""
    file = path.with_name(f"{path.name}.known")
    if not file.exists():
        found = Known(records(path), {name: (store.list_hash, entries(store)) for name, store in tables(path).items()})
        file.write_bytes(pickle.dumps(found))
    return pickle.loads(file.read_bytes())


def look(path: Path, reference: Path, before: Path | None = None) -> list[str]:
    """Problems of a cache whose writer was killed: what is committed must be whole, and what it should be.

    Args:
        before: the cache as it stood before the command: lists that counted then count still, and each entry reads as it
            did then, or as it will at the end.
    """
    if not (path / "store.json").exists():
        return []
    expected, problems = known(reference), verify(open_library(path))
    for shard, found in records(path).items():
        if found != expected.records.get(shard):
            problems.append(f"shard {shard} is not that of an uninterrupted run")
    now = tables(path)
    for name, (version, then) in (known(before).lists if before else {}).items():
        at_end, end = expected.lists[name]
        if name not in now or now[name].list_hash not in (version, at_end):
            problems.append(f"the list {name} counts no more")
            continue
        for entry, found in entries(now[name]).items():
            if not any(alike(found, either[entry]) for either in (then, end) if entry in either):
                problems.append(f"{entry} of the list {name} reads as neither before nor at the end")
    return problems


def finish(path: Path, clips: Path, format: str, backbone: Backbone, reference: Path) -> list[str]:
    """Problems of extracting the first list to its end: an error, another result, or something left behind."""
    return ended(path, Stage(lambda _: None, lambda _: extract(path, clips, format, backbone)), reference)


def ended(path: Path, stage: Stage, reference: Path, another: Callable[[], object] | None = None) -> list[str]:
    """Problems of giving the command of a stage again, perhaps after another list was extracted. `path`: of the cache."""
    committed = {p: p.stat().st_mtime_ns for p in path.glob("commits/*/*.json")}
    if another is not None:
        another()
    stage.run(path.parent)
    whole = known(reference)
    found, expected, problems = records(path), whole.records, []
    if another is None and (found != expected if not stage.repeats else not expected.items() <= found.items()):
        problems.append("it is not the cache of an uninterrupted run")
    now, tolerance = tables(path), 0.0 if another is None else TOLERANCE
    for name, (version, ends) in whole.lists.items():
        if name not in now or now[name].list_hash != version:
            problems.append(f"the list {name} does not count")
            continue
        found = entries(now[name])
        wrong = [entry for entry, end in ends.items() if not alike(found[entry], end, tolerance)]
        problems += [f"{len(wrong)} entries of the list {name} read otherwise, {wrong[0]} is one"] if wrong else []
    problems += [f"{p} was written again" for p, when in committed.items() if p.stat().st_mtime_ns != when]
    for stream in STREAMS:
        if stage.once and (count := twice(path, stream)):
            problems.append(f"{count} {stream} items were made twice")
    # who dies with the work done leaves a lock that is nobody's; there is nothing to write, so nobody has removed it
    problems += [f"{p.file.name} still locks the cache" for p in lock.locks(path) if not p.stale]
    problems += [f"{p.name} was left behind" for p in path.glob("partial/*")]
    report = repair(path, dry_run=True)  # verifies everything first
    wrong = [*report.damaged, *report.aside, *report.restored, *report.withdrawn]
    return problems + [f"there is something to repair: {each}" for each in wrong]


def twice(path: Path, stream: str) -> int:
    """How many items were made although they were there, usable."""
    about = open_library(path).stream(stream)
    usable = np.isin(about.status, [int(status) for status in Status if status.usable])
    return int(usable.sum()) - len({*from_array(about.keys[usable])})


def one_round(stage: str, kind: str, place: float, sizes: dict[str, float], setting: dict[str, Any]) -> dict[str, Any]:
    """Stop at `place` (0 to 1 of the whole run), look, finish. Returns whether it stopped there, what it said, problems."""
    work, command = setting["work"], setting["stages"][stage]
    box, start, reference = work / "box", work / stage / "start", work / stage / "end" / "cache"
    shutil.rmtree(box, ignore_errors=True)
    shutil.copytree(start, box)
    at = int(place * sizes[kind])
    between = command.another and setting["rng"].random() < 0.3
    where = f"{stage} stopped at {place:.4f} of {sizes[kind]:g} ({kind})"

    def begin() -> str | None:
        if kind == "disk":
            FailingDisk(1 + at, ERRORS[at % len(ERRORS)], lasting=at % 2 == 0).install()
        elif kind == "size":
            # they are the largest file and would always be the one that fails
            setting["backbone"].tensors_for_heads = dict
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (at, resource.RLIM_INFINITY))
        elif kind in HOOKS:
            HOOKS[kind](Countdown(1 + at))
        try:
            command.run(box)
        except StorageError as error:
            return str(error)
        return None

    def go_on() -> list[str]:
        cache, before = box / "cache", start / "cache"
        problems = look(cache, reference, before if before.exists() else None)
        other = (lambda: setting["other"](cache)) if between else None
        problems += ended(cache, command, reference, other)
        return [f"{line}{', another list between' if between else ''}" for line in problems]

    status, answer = in_child(begin, kill_after=0.7 * place * sizes["time"] if kind == "time" else None)
    if isinstance(answer, dict):
        return {"stopped": False, "said": None, "problems": [f"{where}: {answer['raised']}"]}
    problems = []
    if answer is not None and ("\n" in answer or str(box) not in answer):
        problems.append(f"{where}: not one line that names the place: {answer}")
    code, found = in_child(go_on)
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


def measure(stage: str, setting: dict[str, Any], kinds: Iterable[str]) -> tuple[dict[str, float], dict[str, list[int]]]:
    """How many calls, lines, seconds and bytes (of its largest file) a whole run takes, and the calls of its commit points.

    What stands there before is made first; the cache at the end of the first run is the reference.
    """
    work, command = setting["work"] / stage, setting["stages"][stage]

    def start() -> dict[str, float]:
        (work / "start").mkdir(parents=True)
        command.begin(work / "start")
        return {}

    def plain() -> dict[str, float]:
        shutil.copytree(work / "start", work / "end")
        began = time.perf_counter()
        command.run(work / "end")
        seconds = time.perf_counter() - began
        sizes = [
            p.stat().st_size for p in (work / "end" / "cache").rglob("*") if p.is_file() and p.parent.name != "backbone"
        ]
        return {"time": seconds, "size": max(sizes)}

    def counted() -> dict[str, Any]:
        shutil.copytree(work / "start", work / "counted")
        calls, disk = CommitPoints(Path(files.__file__).parent), FailingDisk(None, 0, lasting=False)
        count_calls(calls)
        disk.install()
        command.run(work / "counted")
        counts = dict.fromkeys(("call", "commit", "appear"), calls.count)
        return {**counts, "disk": disk.count, "points": calls.calls}

    def traced() -> dict[str, float]:
        shutil.copytree(work / "start", work / "traced")
        lines = Countdown(None)
        count_lines(lines)
        command.run(work / "traced")
        return {"line": lines.count}

    found: dict[str, Any] = {}
    for whole in (start, plain, counted, *([traced] if "line" in kinds else [])):
        status, answer = in_child(whole)
        if status != 0 or "raised" in answer:
            raise SystemExit(f"an uninterrupted run of {stage} ends with {status}: {answer}")
        found |= answer
    return found, found.pop("points")


def all_rounds(stage: str, asked: dict[str, int], setting: dict[str, Any], seed: int) -> dict[str, Any]:
    """The rounds of a stage, and what came of them."""
    sizes, points = measure(stage, setting, asked)
    at_points = {"commit": points, "appear": {name: n for name, n in points.items() if not name.startswith("unlink")}}
    chosen = [
        (kind, at)
        for kind, calls in at_points.items()
        for at in at_commit_points(calls, int(sizes["call"]), asked.pop(kind, 0), seed)
    ]
    chosen += places(asked, seed)
    rounds = Counter(kind for kind, _ in chosen)
    report: dict[str, Any] = {"rounds": rounds, "stopped": dict.fromkeys(rounds, 0), "sizes": sizes}
    report |= {"commit_points": sorted(points), "messages": [], "problems": []}
    for kind, place in chosen:
        found = one_round(stage, kind, place, sizes, setting)
        report["stopped"][kind] += found["stopped"]
        report["messages"] += [found["said"].replace(str(setting["work"]), "")] if found["said"] else []
        report["problems"] += found["problems"]
    return report


def main(work: str, format: str, seed: str, *words: str) -> None:
    os.fsync = lambda _: None
    folder = Path(work)
    clips = folder / "clips"
    backbone = load_backbone("demo", None, words=12, device="cpu", precision="fp32")
    setting = {
        "work": folder,
        "stages": stages(clips, format, backbone),
        "other": lambda cache: extract(cache, clips, format, backbone, listed=other_corpus),
        "backbone": backbone,
        "rng": random.Random(seed),
    }
    asked: dict[str, dict[str, int]] = {}
    for word in words:
        stage, _, rounds = word.partition(":")
        kind, _, count = rounds.partition("=")
        asked.setdefault(stage, {})[kind] = int(count)
    print(json.dumps({stage: all_rounds(stage, rounds, setting, int(seed)) for stage, rounds in asked.items()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
