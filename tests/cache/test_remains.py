"""What killed writers left goes when the next one succeeds, and nothing else does."""

from __future__ import annotations

import itertools
import os
import shutil

import pytest

from glscl.cache.additions import folder
from glscl.cache.creation import create_library
from glscl.cache.files import written
from glscl.cache.filling import filling
from glscl.cache.library import open_library
from glscl.cache.store import open_store
from glscl.cache.upkeep.convert import convert, spec_of
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.repair import repair

HALF = [".store.json.0123abcd.tmp", ".files.jsonl.89abcdef.tmp", "backbone/.pieces.safetensors.0123abcd.tmp"]
HALF += ["commits/video/.0123456789abcdef-00000.json.0123abcd.tmp", "additions/text/.0123456789abcdef.txt.0123abcd.tmp"]
HALF += ["lists/made/.current.0123abcd.tmp", "partial/x.h5", "partial/y/z"]


def leave(root, suffix, addition):
    """The remains of writers that were killed at many moments; what is not to be touched."""
    for name in (*HALF, "locks/.1-of-1-0123abcd.json.0123abcd.tmp", "notes.tmp"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"half")
    for name in (f"shards/video/{addition}-00009-0123abcd{suffix}", f"lists/made/0123456789abcdef{suffix}"):
        if suffix:
            (root / name).write_bytes(b"whole, but nothing refers to it")
        else:
            (root / name).mkdir()
            (root / name / "zarr.json").write_text("{}")
    lost = root / f"shards/text/fedcba9876543210-00000-0123abcd{suffix}"
    lost.write_bytes(b"its addition may have been lost")
    return [lost, root / "notes.tmp", root / "locks/.1-of-1-0123abcd.json.0123abcd.tmp"]


def left(root, kept):
    report = repair(root, dry_run=True)
    found = [*report.partial, *report.unreferenced, *report.temporary]
    return sorted({root / name for name in found} - {*kept})


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_the_next_writer_takes_away_what_a_killed_one_left(small_cache, format):
    made = small_cache(format)
    library = made.create()
    made.commit(library, "video", 0)
    kept = leave(made.path, library.format.suffix, made.addition("video").name)
    assert left(made.path, kept)
    with filling(library, made.list):
        for stream in ("text", "video"):
            for shard in made.pending(library, stream):
                made.commit(library, stream, shard)
    assert left(made.path, kept) == [] and all(path.exists() for path in kept)
    assert open_store(made.path).complete


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_a_writer_of_a_part_leaves_alone_what_another_may_be_writing(small_cache, format):
    made = small_cache(format)
    library = made.create()
    kept = leave(made.path, library.format.suffix, made.addition("video").name)
    before = left(made.path, kept)
    with filling(library, made.list, part=(1, 2)):
        pass
    assert before and left(made.path, kept) == before


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_a_conversion_and_a_merge_take_away_what_was_left(small_cache, tmp_path, format):
    store, other = small_cache(format).fill(), {"hdf5": "zarr", "zarr": "hdf5"}[format]
    whole = convert(store.library, tmp_path / "whole")
    for out, form, finish in (
        (tmp_path / "converted", other, lambda out: convert(store.library, out)),
        (tmp_path / "merged", format, lambda out: merge([store.path], out)),
    ):
        begun = create_library(out, spec_of(store.library), form)
        name = ""
        if form == other:  # its additions are those of the whole conversion
            for path in folder(whole, "video").glob("*.txt"):
                shutil.copyfile(path, folder(out, "video") / path.name)
                name = path.stem
        kept = leave(out, begun.format.suffix, name or "0123456789abcdef")
        (out / "lists/made").mkdir(exist_ok=True)
        finish(out)
        remains = [path for path in left(out, kept) if name or "0123456789abcdef-00009" not in path.name]
        assert remains == [] and open_store(out).complete
        assert all(written(path) for path in open_library(out).path.glob("commits/*/*.json"))


class Killed(BaseException): ...


def dying(act, steps, last):
    """An act of the system that ends the process instead of being its `last` step."""

    def step(*arguments, **options):
        if next(steps) == last:
            raise Killed
        return act(*arguments, **options)

    return step


@pytest.mark.parametrize("format", ["hdf5", "zarr"])
def test_a_writer_killed_at_any_step_of_making_a_cache_hinders_nobody(small_cache, format, monkeypatch):
    for last in range(1, 100):
        made, steps = small_cache(format, name=f"cache{last}", videos=2, captions=1), itertools.count(1)
        with monkeypatch.context() as patch:
            for name in ("link", "replace", "rename", "mkdir"):
                patch.setattr(os, name, dying(getattr(os, name), steps, last))
            try:
                create_library(made.path, made.spec, format)
                break
            except Killed:
                pass
        library = made.create()
        with filling(library, made.list):
            for stream in ("text", "video"):
                for shard in made.pending(library, stream):
                    made.commit(library, stream, shard)
        assert open_store(made.path).complete and left(made.path, []) == [], last
    assert 5 < last < 99
