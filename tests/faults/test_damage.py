"""Bits that flip and files that are cut anywhere in a cache: found by name, or without effect; never another error."""

from __future__ import annotations

import os
import random
import shutil

import numpy as np
import pytest

from glscl.cache.schema import STREAMS
from glscl.cache.store import open_store
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import GlsclError

FORMATS = pytest.mark.parametrize("format", ["zarr", "hdf5"])
ROUNDS = int(os.environ.get("GLSCL_FAULT_ROUNDS", "24"))


def content(path):
    store = open_store(path)
    return store.backbone_tensors() | {
        f"{s} {n}": array for s in STREAMS for n, array in store.arrays(s, raw=True).items()
    }


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


@FORMATS
@pytest.mark.parametrize("damage", [flip, cut])
def test_damage_anywhere_is_found_or_has_no_effect_and_repair_leaves_only_what_is_right(
    small_cache, format, damage, tmp_path
):
    original = small_cache(format, videos=6, captions=1, name="whole")
    original.fill().write_backbone_tensors({"logit_scale": np.array([2.5], np.float32), "weight": np.ones((8, 8))})
    whole, rng, found = content(original.path), random.Random(f"{format} {damage.__name__}"), 0
    for number in range(ROUNDS):
        path = tmp_path / "cache"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(original.path, path)
        victims = files(path)
        weights = [p.stat().st_size if "shards" in p.parts else 300 for p in victims]
        victim = rng.choices(victims, weights)[0]
        damage(victim, rng)
        try:
            problems = verify(open_store(path))
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
        store = open_store(path)
        assert verify(store) == [], f"{number}: {victim}"
        for stream in STREAMS:
            for shard, commit in store.commits(stream).items():
                ours = store.arrays(stream, items=range(*commit.items), raw=True)
                theirs = open_store(original.path).arrays(stream, items=range(*commit.items), raw=True)
                assert all(np.array_equal(ours[name], array) for name, array in theirs.items()), f"{victim} {shard}"
    assert found > ROUNDS // 3
