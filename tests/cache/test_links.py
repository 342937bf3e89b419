"""Links in a cache: refused in one line before anything happens, and nothing outside ever changes."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from formats import EITHER
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import snapshot

from glscl.cache.files import remove
from glscl.cache.library import open_library
from glscl.cache.lock import hold
from glscl.cache.schema import DEPTH
from glscl.cache.store import open_store
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.summary import summarise
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import CacheCorruptError, GlsclError, StorageError
from glscl.extract.shard_frames import ShardFrames

FORMATS = ("zarr", "hdf5")


def resume(box):
    """What extract and import-features do once features are there."""
    made = box.made
    library = made.create()
    with hold(made.path):
        library.refresh()
        library.write_backbone_tensors({"piece": np.ones(3, np.float32)})
        for stream in ("text", "video"):
            for shard in made.pending(library, stream):
                made.commit(library, stream, shard)
        made.finish(library)


def write_frames(box):
    with hold(box.made.path):
        frames = ShardFrames(box.made.path, SimpleNamespace(encoding="jpeg"))
        frames.add(SimpleNamespace(item=0, jpegs=(b"picture",)))
        frames.close()


COMMANDS = {
    "resume": resume,
    "store frames": write_frames,
    "repair": lambda box: repair(box.made.path),
    "repair --dry-run": lambda box: repair(box.made.path, dry_run=True),
    "merge it": lambda box: merge([box.made.path], box.new),
    "merge into it": lambda box: merge([box.whole], box.made.path),
    "convert to it": lambda box: convert(open_library(box.whole), box.made.path, format=box.made.format),
    "convert it": lambda box: convert(open_library(box.made.path), box.new.with_suffix(".h5")),
    "inspect --verify": lambda box: (
        summarise(open_library(box.made.path)),
        verify(open_library(box.made.path)),
    ),
}
WRITING = list(COMMANDS)[:-2]
QUICK = ("repair",)  # in `make test` with Zarr too, whose many files take seconds a command
DEEP = ("repair", "repair --dry-run", "merge it")  # look into the shards too


@pytest.fixture(scope="module")
def boxes(small_cache_class, tmp_path_factory):
    """`caches/cache` with a shard to do and what killed writers left, `whole`, and `thesis`, which nobody may touch."""

    def make(format: str) -> SimpleNamespace:
        root = tmp_path_factory.mktemp(format)
        made = small_cache_class(root / "caches" / "cache", format, "float16", videos=6, captions=1, dim=8, seed=0)
        made.fill().library.write_backbone_tensors({"piece": np.ones(3, np.float32)})
        whole = root / "caches" / "whole"
        shutil.copytree(made.path, whole)
        addition = made.addition("video").name
        for name in (f"{addition}.json", f"{addition}-00001.json"):
            (made.path / "commits" / "video" / name).unlink()
        (made.path / "lists" / "made" / "current").unlink()
        left = (
            "partial/0123456789abcdef-00001-0badcafe/values/c/0",
            "damaged/20200101T000000/shards/video/0123456789abcdef-00000-0badcafe",
            "locks/notes.json",
            "lists/made/.current.0badcafe.tmp",
            "files.jsonl",
            ".store.json.0badcafe.tmp",
        )
        for name in left:
            (made.path / name).parent.mkdir(parents=True, exist_ok=True)
            (made.path / name).write_text("left by a killed writer")
        for name in ("thesis/chapters/1.tex", "thesis/video/0123456789abcdef-00000.json", "notes.txt", "moved/.keep"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("years of work")
        return SimpleNamespace(root=root, made=made, whole=whole, new=root / "new")

    return {format: make(format) for format in FORMATS}


def outside(box) -> dict[str, tuple]:
    own = ("caches/cache", "new")
    return {name: about for name, about in snapshot(box.root).items() if not name.startswith(own)}


def kinds(root: Path) -> list[Path]:
    """One of each kind of file and folder of a cache: the first of those whose names differ in numbers only."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if len(path.relative_to(root).parts) <= DEPTH or "/values" in name or "damaged" in name:
            found.setdefault(re.sub(r"[0-9a-f]{16}|[0-9]+(-[0-9a-f]{8})?|video|text", "N", name), path)
    return list(found.values())


@contextlib.contextmanager
def turned_into_link(path: Path, target: Path, keep: Path):
    """The path as a link, what stood there at `keep`; all as before afterwards, unless the link went."""
    os.rename(path, keep)
    path.symlink_to(os.path.relpath(target, path.parent))
    try:
        yield
    finally:
        if path.is_symlink():
            path.unlink()
            os.rename(keep, path)


@pytest.mark.parametrize(
    ("format", "name"),
    [
        pytest.param(format, name, marks=() if format == "hdf5" or name in QUICK else pytest.mark.exhaustive)
        for format in FORMATS
        for name in WRITING
    ],
)
def test_every_part_of_a_cache_that_became_a_link_is_refused_before_anything_happens(boxes, tmp_path, format, name):
    box, cache, keep = boxes[format], boxes[format].made.path, boxes[format].root / "moved" / "it"
    shutil.copytree(cache, tmp_path / "pristine")
    for path in kinds(cache):
        inside, thesis = path.relative_to(cache), box.root / ("thesis" if path.is_dir() else "notes.txt")
        refusable = len(inside.parts) <= DEPTH or name in DEEP  # nothing else looks so deep, or writes there
        for target in (keep, thesis, box.root / "nowhere") if refusable and format == "hdf5" else (keep,):
            refused = None
            with turned_into_link(path, target, keep):
                before, own = outside(box), snapshot(cache)
                try:
                    COMMANDS[name](box)
                except GlsclError as error:
                    refused = error
                assert outside(box) == before, (inside, target)
                if refusable:
                    assert refused is not None and snapshot(cache) == own, (inside, target)
                if refusable and (target == keep or name in DEEP):
                    assert isinstance(refused, StorageError) and f"{path} is a link to " in str(refused)
                    assert "\n" not in str(refused)
            if not refusable:  # the command has done its work
                for folder in (cache, box.new):
                    shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(keep) if keep.is_dir() else keep.unlink(missing_ok=True)
                shutil.copytree(tmp_path / "pristine", cache)


@pytest.mark.parametrize("format", EITHER)
def test_inspect_tells_every_link_and_is_harmed_by_none(boxes, format):
    box = boxes[format]
    for path in kinds(box.made.path):
        keep = box.root / "moved" / "it"
        for target in (keep, box.root / "nowhere") if format == "hdf5" else (keep,):
            with turned_into_link(path, target, keep):
                before, own = outside(box), snapshot(box.made.path)
                with contextlib.suppress(GlsclError):
                    _, problems = COMMANDS["inspect --verify"](box)
                    assert f"{path.relative_to(box.made.path)} is a link to {os.readlink(path)}" in problems
                assert (outside(box), snapshot(box.made.path)) == (before, own)


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_behind_a_link_that_leads_out_is_not_read_and_one_inside_is(boxes, format):
    box = boxes[format]
    library, items = open_library(box.made.path), range(4)
    shard = box.made.path / library.stream("video").commits[box.made.addition("video").name, 0].path
    out = box.root / "moved" / "it"
    with (
        turned_into_link(shard, out, out),
        pytest.raises(CacheCorruptError, match="a link that leads out of the cache"),
    ):
        open_store(box.made.path, box.made.list.hash).arrays("video", items=items)
    inside = box.made.path / "damaged" / "it"
    with turned_into_link(shard, inside, inside):
        assert len(open_store(box.made.path, box.made.list.hash).arrays("video", items=items)["status"]) == 4


def test_the_cache_itself_may_be_reached_by_links(small_cache, tmp_path):
    made = small_cache("hdf5", name="disk/cache")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    (tmp_path / "mine").symlink_to(tmp_path / "data" / "cache")
    made.path = tmp_path / "mine"
    (tmp_path / "disk" / "cache").mkdir()
    made.fill()
    (made.path / "partial").mkdir(exist_ok=True)
    (made.path / "partial" / "half").write_text("left over")
    assert repair(made.path).partial == ["partial/half"] and not list(made.path.glob("partial/*"))
    assert verify(open_library(made.path)) == []
    assert merge([made.path], tmp_path / "merged").linked


NAMES = st.sampled_from(
    [
        "partial",
        "shards",
        "shards/video",
        "shards/text",
        "commits",
        "commits/video",
        "additions",
        "additions/video",
        "lists",
        "lists/made",
        "backbone",
        "locks",
        "damaged",
        "partial/0123456789abcdef-00002-0badcafe",
        "partial/x/y",
        "shards/video/0123456789abcdef-00009-0badcafe",
        "shards/text/0123456789abcdef-00000-0badcafe",
        "shards/video/x",
        "commits/video/0123456789abcdef-00002.json",
        "commits/video/0123456789abcdef.json",
        "commits/text/.0123456789abcdef-00000.json.0badcafe.tmp",
        "files.jsonl",
        "lists/made/current",
        "lists/made/0123456789abcdef.json",
        "lists/made/0123456789abcdef.h5",
        "lists/other",
        "locks/1-of-1-0badcafe.json",
        "locks/.x.0badcafe.tmp",
        "additions/text/0123456789abcdef.txt",
        "backbone/pieces.safetensors",
        "zarr.json",
        "store.json",
        ".files.jsonl.0badcafe.tmp",
        "damaged/20200101T000000/x",
        "shards/zarr.json",
        "another",
    ]
)
TARGETS = st.sampled_from(
    [
        "thesis",
        "thesis/chapters",
        "thesis/video",
        "thesis/chapters/1.tex",
        "notes.txt",
        "caches",
        "caches/whole",
        ".",
        "nowhere",
        "caches/whole/shards",
        "caches/whole/shards/video",
        "caches/whole/commits/video",
        "caches/whole/store.json",
        "caches/cache",
        "caches/cache/shards",
        "caches/cache/partial",
    ]
)


@settings(max_examples=60, deadline=None)
@given(
    links=st.lists(st.tuples(NAMES, TARGETS, st.booleans()), min_size=1, max_size=4),
    commands=st.lists(st.sampled_from(list(COMMANDS)), min_size=1, max_size=2),
)
def test_whatever_links_a_cache_holds_nothing_outside_changes(boxes, links, commands):
    box = boxes["hdf5"]
    with tempfile.TemporaryDirectory() as spare:
        shutil.copytree(box.made.path, Path(spare, "cache"))
        try:
            for name, target, relative in links:
                place = box.made.path / name
                if not Path(os.path.realpath(place.parent)).is_relative_to(box.made.path):
                    continue  # an earlier link leads out
                with contextlib.suppress(FileExistsError, NotADirectoryError):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)
                    place.symlink_to(
                        os.path.relpath(box.root / target, place.parent) if relative else box.root / target
                    )
            before = outside(box)
            for name in commands:
                with contextlib.suppress(GlsclError):
                    COMMANDS[name](box)
                assert outside(box) == before, name
        finally:
            shutil.rmtree(box.made.path)
            shutil.copytree(Path(spare, "cache"), box.made.path)
            shutil.rmtree(box.new, ignore_errors=True)
            box.new.with_suffix(".h5").unlink(missing_ok=True)


TREES = st.recursive(
    st.sampled_from(["file", "to ..", "to out", "to file"]),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(tree=TREES, way=st.lists(st.sampled_from("abc"), min_size=1, max_size=3))
def test_removing_follows_no_link_on_the_way_and_none_within(tree, way):
    with tempfile.TemporaryDirectory() as box:
        root, out = Path(box, "root"), Path(box, "out")
        for name in ("a", "b/c", "c/a/b"):
            (out / name).mkdir(parents=True)
            (out / name / "file").write_text("years of work")
        (out / "a" / "link").symlink_to("file")
        root.mkdir()

        def plant(path: Path, what: object) -> None:
            if isinstance(what, dict):
                path.mkdir(exist_ok=True)
                for name, inner in what.items():
                    plant(path / name, inner)
            elif what == "file":
                path.write_text("ours")
            else:
                path.symlink_to({"to ..": "..", "to out": out, "to file": out / "a" / "file"}[what])

        for name, inner in tree.items() if isinstance(tree, dict) else [("a", tree)]:
            plant(root / name, inner)
        before, path = snapshot(out), root.joinpath(*way)
        led = any(each.is_symlink() for each in path.parents if each.is_relative_to(root))
        own = snapshot(root)
        remove(path, root)
        assert snapshot(out) == before
        assert snapshot(root) == own if led else not os.path.lexists(path)
