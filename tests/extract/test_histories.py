"""Any history of a cache: files that come, go, change and take each other's names; lists, kills, parts, retries; merging,
converting, damage and repair. After each step every list reads, entry by entry, as a dictionary says.

GLSCL_HISTORIES sets how many `make test-all` tries.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_extraction import Extractor, MadeBackbone, MadePool, named, require_reads, write

from glscl.cache.keys import clip, video_key
from glscl.cache.library import Library, open_library
from glscl.cache.lists import current_version, list_names, versions_of
from glscl.cache.schema import STREAMS, Annotations, Status, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import CacheIncompleteError, DecodeError, NotFoundError
from glscl.extract import pipeline

HISTORIES = int(os.environ.get("GLSCL_HISTORIES", 200))
STEPS = 20
NAMES = "abcdef"  # of the first half of the train split, of the others of the test split
CONTENTS = (b"one", b"three", b"broken", b"", b"a cut one!", b"bone", b"something long")
FAMILIES = ("made", "made", "made", "own")  # of four lists; of the third each video is a part of a file
RANKS = {Status.OK: 0, Status.PARTIAL: 1, Status.DECODE_ERROR: 2, Status.TIMED_OUT: 2, Status.MISSING: 3}
RETRIED = (Status.DECODE_ERROR, Status.TIMED_OUT)


def sometimes(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 4).flatmap(lambda number: strategy if number == 4 else st.none())


def mostly(common: st.SearchStrategy[Any], *others: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One of others as often as not."""
    return st.booleans().flatmap(lambda rare: st.one_of(*others) if rare else common)


name, content = st.sampled_from(NAMES), st.sampled_from(CONTENTS)
extraction = st.fixed_dictionaries(
    {
        "cache": st.sampled_from([0, 0, 0, 1]),
        "list": st.integers(0, len(FAMILIES) - 1),
        "names": st.sets(name, min_size=1),
        "texts": st.lists(st.sampled_from(["a dog", "a cat", "rain", "é"]), max_size=4),
        "shard": st.integers(1, 3),
        "part": sometimes(st.sampled_from(["1/2", "2/2", "1/3", "3/4"])),
        "killed": sometimes(st.integers(0, 40)),
        "retry": st.booleans(),
        "all_captions": st.sampled_from([False, False, True]),
        "unseen": sometimes(name),
        "failing": sometimes(name),
        "race": sometimes(st.tuples(name, name, st.one_of(st.none(), content))),
    }
)
steps = st.lists(
    mostly(
        st.tuples(st.just("extract"), extraction),
        st.tuples(st.just("write"), name, content),
        st.tuples(st.sampled_from(["move", "copy"]), name, name),
        st.tuples(st.just("delete"), name),
        st.one_of(
            st.tuples(st.just("merge")),
            st.tuples(st.just("convert"), st.integers(0, 1), st.sampled_from(["zarr", "hdf5"])),
            st.tuples(st.just("damage"), st.integers(0, 1), st.integers(0, 2**32)),
        ),
    ),
    min_size=STEPS // 2,
    max_size=STEPS,
)
first_files = st.lists(st.one_of(content, content, st.none()), min_size=len(NAMES), max_size=len(NAMES))


class Killed(BaseException): ...


class History:
    """Files, caches, and what must be in them.

    Attributes:
        caches: folders; a conversion puts another in the place of the first.
        versions: hash of a list → its annotations, what its files were, and whether all captions were asked for.
        items: cache → key of a video → what became of it, each time. texts: cache → captions that it has.
        repaired: caches that lost something.
    """

    def __init__(self, root: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.format = root, format
        self.caches = [root / "cache0", root / "cache1"]
        self.versions: dict[str, tuple[Annotations, dict[str, bytes | None], bool]] = {}
        self.items: dict[Path, dict[bytes, list[Status]]] = defaultdict(lambda: defaultdict(list))
        self.texts: dict[Path, set[bytes]] = defaultdict(set)
        self.repaired: set[Path] = set()
        self.killed: set[Path] = set()  # whose last writer was, so that something half-written may lie there
        self.extractor = Extractor(MadeBackbone(), MadePool())
        self.retry = False
        monkeypatch.setattr(pipeline, "DecodePool", self.extractor.pool)
        monkeypatch.setattr(Library, "commit", self._commit(Library.commit))
        self.left: int | None = None  # steps until it is killed
        for step in ("link", "replace", "rename"):
            monkeypatch.setattr(os, step, self._step(getattr(os, step)))

    def _step(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """Everything that lasts is one of these."""

        def or_killed(*args: Any, **options: Any) -> Any:
            if self.left is not None:
                if self.left == 0:
                    raise Killed
                self.left -= 1
            return act(*args, **options)

        return or_killed

    def _commit(self, act: Callable[..., bool]) -> Callable[..., bool]:
        def noted(library: Library, addition: Any, shard: int, arrays: Any, **options: Any) -> bool:
            assert act(library, addition, shard, arrays, **options), "nobody else commits"
            run = addition.shard_range(shard)
            for key, status in zip(addition.keys[run.start : run.stop], arrays["status"]):
                self._encoded(library.path, addition.stream, key.tobytes(), Status(int(status)))
            return True

        return noted

    def _encoded(self, cache: Path, stream: str, key: bytes, status: Status) -> None:
        if stream == "text":
            assert key not in self.texts[cache], "a caption is encoded twice"
            self.texts[cache].add(key)
            return
        before = best(self.items[cache][key])
        assert before in (None, Status.MISSING) or (self.retry and before in RETRIED), f"encoded again after {before}"
        self.items[cache][key].append(status)

    # --- files -----------------------------------------------------------------------------------------------------

    def path(self, name: str) -> Path:
        return self.root / "videos" / f"{name}.mp4"

    def write(self, name: str, content: bytes) -> None:
        write(self.path(name), content)

    def move(self, old: str, new: str) -> None:
        if old != new and self.path(old).exists():
            shutil.move(self.path(old), self.path(new))

    def copy(self, old: str, new: str) -> None:
        if old != new and self.path(old).exists():
            shutil.copy2(self.path(old), self.path(new))

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)

    # --- lists -----------------------------------------------------------------------------------------------------

    def extract(self, asked: dict[str, Any]) -> Path:
        cache, origin = self.caches[asked["cache"]], named(f"list{asked['list']}", FAMILIES[asked["list"]])
        annotations, contents = self._asked(cache, origin.name, origin.family, asked)
        pool, race = self.extractor.pool, asked["race"]
        pool.failing = {str(self.path(asked["failing"])): Status.TIMED_OUT} if asked["failing"] else {}
        pool.meanwhile = self._race(race)
        self.retry, self.left = asked["retry"], asked["killed"]
        options = {"shard_videos": asked["shard"], "shard_texts": asked["shard"], "all_captions": asked["all_captions"]}
        options |= {"format": self.format_of(cache), "part": asked["part"]}
        before = set(versions_of(cache, origin.name))
        done = None
        try:
            done = self.extractor(annotations, cache, origin, retry_failed=asked["retry"], **options)
        except Killed:
            self.killed.add(cache)
        except NotFoundError:
            assert not any(each is not None for each in contents.values()), "none of the videos was found"
        except DecodeError:  # all is there, and none gives frames
            pass
        finally:
            self.left, self.retry = None, False
            for hash in set(versions_of(cache, origin.name)) - before:
                version = annotations, contents, asked["all_captions"]
                assert self.versions.setdefault(hash, version)[1] == contents
        if done is not None and asked["part"] is None:
            self.killed.discard(cache)
        if done is None or not done.complete:
            assert done is None or asked["part"] is not None
            return cache
        assert current_version(cache, origin.name) == done.list_hash and self.versions[done.list_hash][1] == contents
        if race is None:
            lost = [row["id"] for row in done.failed if row["status"] == "missing"]
            assert {*lost} == {id for id, each in contents.items() if each is None}
            again = self.extractor(annotations, cache, origin, **options)
            assert again.already_complete and self.extractor.items == []
        return cache

    def _asked(
        self, cache: Path, list: str, family: str, asked: dict[str, Any]
    ) -> tuple[Annotations, dict[str, bytes | None]]:
        """The list of an extraction, and what is to be read for each of its videos."""
        videos, texts, contents = [], [], {}
        for number, id in enumerate(sorted(asked["names"])):
            split, path = "train" if id < NAMES[3] else "test", self.path(id)
            seen = path.exists() and id != asked["unseen"]
            times = (1, 3) if list == "list2" else (None, None)
            videos.append(VideoItem(id, split, str(path) if seen else None, *times))
            contents[id] = path.read_bytes() if seen else None
            given = asked["texts"]
            texts += [
                TextItem(f"{id}#{n}", id, split, given[(number + n) % len(given)]) for n in range(min(2, len(given)))
            ]
        at_hand = {key_of(video, contents[video.id]) for video in videos if contents[video.id] is not None}
        for video in videos:
            if contents[video.id] is None:
                contents[video.id] = self._known_by_id(cache, list, family, video, at_hand)
        return Annotations(dataset="made", videos=videos, texts=texts), contents

    def _known_by_id(self, cache: Path, list: str, family: str, video: VideoItem, at_hand: set[bytes]) -> bytes | None:
        """What an id was in the lists of the family: in the list itself, else in others, else in any version."""
        tiers: tuple[set[bytes], set[bytes], set[bytes]] = (set(), set(), set())
        for name in list_names(cache):
            if FAMILIES[int(name[4:])] != family:
                continue
            current = current_version(cache, name)
            for hash in versions_of(cache, name):
                annotations, contents, _ = self.versions[hash]
                same = any(each.id == video.id and each.start == video.start for each in annotations.videos)
                content = contents[video.id] if same else None
                if content is None:
                    continue
                key = key_of(video, content)
                if key not in at_hand and best(self.items[cache][key]) in (None, Status.MISSING):
                    continue
                tiers[(name != list) if hash == current else 2].add(content)
        nearest = next((tier for tier in tiers if tier), set())
        return next(iter(nearest)) if len(nearest) == 1 else None

    def _race(self, race: tuple[str, str, bytes | None] | None) -> Callable[[str], None]:
        def happens(path: str) -> None:
            if race is not None and path == str(self.path(race[0])):
                self.delete(race[1]) if race[2] is None else self.write(race[1], race[2])

        return happens

    def format_of(self, cache: Path) -> str:
        return open_library(cache).header["format"] if (cache / "store.json").exists() else self.format

    # --- upkeep ----------------------------------------------------------------------------------------------------

    def merge(self) -> Path | None:
        first, second = self.caches
        if not all((cache / "store.json").exists() for cache in self.caches):
            return None
        if self.format_of(first) != self.format_of(second):
            return None
        had = {**self.items[first]}, {**self.items[second]}
        texts = self.texts[first] | self.texts[second]
        merge([second], first)
        self.repaired |= {first} & {first if second in self.repaired else second}
        self._look(first)
        for key in {*had[0], *had[1]}:
            ranks = [RANKS[status] for each in had for status in each.get(key, ())]
            now = best(self.items[first][key])
            assert not ranks or min(ranks) > 1 or (now is not None and RANKS[now] == min(ranks))
        assert self.texts[first] == texts
        return first

    def convert(self, number: int, format: str) -> Path | None:
        cache = self.caches[number]
        out = cache.with_name(f"{cache.name}x")
        if not (cache / "store.json").exists():
            return None
        try:
            convert(open_library(cache), out, format=format)
        except CacheIncompleteError:
            shutil.rmtree(out, ignore_errors=True)
            assert cache in self.repaired or not any(current_version(cache, name) for name in list_names(cache))
            return None
        old = {name: current_version(cache, name) for name in list_names(cache) if current_version(cache, name)}
        assert {name: current_version(out, name) for name in list_names(out)} == old
        self.caches[number] = out
        self._look(out)
        return out

    def damage(self, number: int, seed: int) -> Path | None:
        cache, dice = self.caches[number], random.Random(seed)
        if not (cache / "store.json").exists():
            return None
        victims = [p for p in sorted(cache.rglob("*")) if p.is_file() and p.name not in ("store.json", "zarr.json")]
        victim = dice.choice([p for p in victims if "damaged" not in p.parts] or [cache / "store.json"])
        data = bytearray(victim.read_bytes())
        if victim.name == "store.json" or not data:
            return None
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        victim.unlink()  # a merge may have linked it: the other cache keeps its own
        victim.write_bytes(data)
        repair(cache)
        self.repaired.add(cache)
        self._look(cache)
        return cache

    def _look(self, cache: Path) -> None:
        """Learn from the files what is there, where another than an extraction decides it."""
        self.items[cache].clear()
        self.texts[cache].clear()
        library = open_library(cache)
        for stream in STREAMS:
            about = library.stream(stream)
            for key, status, there in zip(about.keys, about.status, about.is_committed):
                if there and stream == "text":
                    self.texts[cache].add(key.tobytes())
                elif there:
                    self.items[cache][key.tobytes()].append(Status(int(status)))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def check(self, cache: Path) -> None:
        """Every list that counts reads as what it was made from."""

        def status_of(item: VideoItem, content: bytes) -> list[Status]:
            found = self.items[cache][key_of(item, content)]
            return [status for status in found if RANKS[status] == min(RANKS[each] for each in found)]

        for name in list_names(cache):
            if (hash := current_version(cache, name)) is None:
                continue
            store = open_store(cache, name)
            annotations, contents, all_captions = self.versions[hash]
            assert store.complete or cache in self.repaired
            if store.complete:
                require_reads(store, annotations, contents, status_of=status_of, all_captions=all_captions)

    def finish(self) -> None:
        for cache in self.caches:
            if (cache / "store.json").exists():
                library = open_library(cache)
                assert verify(library) == []
                if cache not in self.killed:  # threads of a writer that only seems to die go on for a moment
                    assert not (cache / "partial").exists() or not os.listdir(cache / "partial")
                self._look_same(cache)

    def _look_same(self, cache: Path) -> None:
        """What was noted while it was encoded is what there is."""
        noted = {key: sorted(each) for key, each in self.items[cache].items() if each}, {*self.texts[cache]}
        self._look(cache)
        assert noted == ({key: sorted(each) for key, each in self.items[cache].items()}, self.texts[cache])


def best(found: list[Status]) -> Status | None:
    return min(found, key=RANKS.__getitem__) if found else None


def key_of(video: VideoItem, content: bytes) -> bytes:
    digest = blake2b(f"{len(content)}\0".encode() + content, digest_size=16).digest()
    return video_key(digest, *clip(video.start, video.end))


def lived(root: Path, format: str, first: list[bytes | None], history: list[tuple[Any, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        world = History(root, format, patch)
        for name, content in zip(NAMES, first):
            if content is not None:
                world.write(name, content)
        for act, *how in history:
            if (touched := getattr(world, act)(*how)) is not None:
                world.check(touched)
        world.finish()
    shutil.rmtree(root)


def histories(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    quiet = settings(deadline=None, suppress_health_check=[*HealthCheck], print_blob=True, max_examples=count)
    return lambda test: quiet(
        given(format=st.sampled_from(["hdf5", "hdf5", "hdf5", "zarr"]), first=first_files, history=steps)(test)
    )


@histories(3)
def test_every_list_reads_as_what_it_was_made_from(tmp_path_factory, format, first, history):
    lived(tmp_path_factory.mktemp("history"), format, first, history)


@pytest.mark.exhaustive
@histories(HISTORIES)
def test_every_list_reads_after_many_histories(tmp_path_factory, format, first, history):
    lived(tmp_path_factory.mktemp("history"), format, first, history)
