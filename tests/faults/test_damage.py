"""Bits that flip and files that are cut anywhere in a cache: found by name, or without effect; never another error."""

from __future__ import annotations

import os
import random
import shutil

import numpy as np
import pytest

from glscl.cache.library import open_library
from glscl.cache.lists import versions_of
from glscl.cache.reading import read_arrays
from glscl.cache.schema import STREAMS
from glscl.cache.shard_arrays import LAYOUT
from glscl.cache.store import open_store
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import GlsclError

FORMATS = pytest.mark.parametrize("format", ["zarr", "hdf5"])
ROUNDS = int(os.environ.get("GLSCL_FAULT_ROUNDS", "24"))  # of the exhaustive sweep


def content(path):
    """Everything that readers are given, though the last step of an extraction be lost."""
    (version,) = versions_of(path, "made")
    store = open_store(path, version)
    arrays = {f"{s} {n}": array for s in STREAMS for n, array in store.arrays(s, raw=True).items()}
    return arrays | store.backbone_tensors() | {"captions": store.captions(), "splits": str(store.splits)}


def files(path):
    """The files that hold data or say what it is."""
    whole = [p for p in sorted(path.rglob("*")) if p.is_file() and p.stat().st_size]
    return [p for p in whole if p.relative_to(path).parts[0] not in ("locks", "zarr.json")]


def flip(path, rng):
    """One bit, of a byte that is not mere padding."""
    data = bytearray(path.read_bytes())
    data[rng.choice([i for i, byte in enumerate(data) if byte])] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(data))


def cut(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


@pytest.mark.parametrize("rounds", [4, pytest.param(ROUNDS, marks=pytest.mark.exhaustive)])
@FORMATS
@pytest.mark.parametrize("damage", [flip, cut])
def test_damage_anywhere_is_found_or_has_no_effect_and_repair_leaves_only_what_is_right(
    small_cache, format, damage, rounds, tmp_path
):
    original = small_cache(format, videos=6, captions=1, name="whole")
    original.fill().library.write_backbone_tensors(
        {"logit_scale": np.array([2.5], np.float32), "weight": np.ones((8, 8))}
    )
    whole, rng, found = content(original.path), random.Random(f"{format} {damage.__name__}"), 0
    for number in range(rounds):
        path = tmp_path / "cache"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(original.path, path)
        victims = files(path)
        weights = [p.stat().st_size if "shards" in p.parts else 300 for p in victims]
        victim = rng.choices(victims, weights)[0]
        damage(victim, rng)
        try:
            problems = verify(open_library(path))
        except GlsclError as error:
            assert "\n" not in str(error)
            problems = [str(error)]
        if not problems:  # a bit that no value depends on
            now = content(path)
            assert all(np.array_equal(now[name], array) for name, array in whole.items()), f"{number}: {victim}"
            continue
        found += 1
        try:
            repair(path)
        except GlsclError as error:  # the head itself is damaged
            assert "store.json" in str(victim), error
            continue
        library, good = open_library(path), open_library(original.path)
        assert verify(library) == [], f"{number}: {victim}"
        for stream in STREAMS:
            about, whole_stream = library.stream(stream), good.stream(stream)
            for place in about.committed():  # of the additions that are left
                there = whole_stream.index.find(about.keys_at(place))
                ours = read_arrays(library, stream, list(LAYOUT[stream]), place.items)
                theirs = read_arrays(good, stream, list(LAYOUT[stream]), there)
                assert all(np.array_equal(ours[name], array) for name, array in theirs.items()), f"{victim} {place}"
        original.path, intact = path, original.path
        assert original._fill().complete, "what was lost is made again"
        original.path = intact
        assert all(np.array_equal(content(path)[name], array) for name, array in whole.items()), f"{number}: {victim}"
    assert found > rounds // 3
