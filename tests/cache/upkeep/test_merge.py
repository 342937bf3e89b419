"""Caches that hold parts of one extraction become one, by links or copies, and equal the cache made in one go."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest

from glscl.cache.creation import create_store
from glscl.cache.store import open_store
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import CacheCorruptError, CacheFormatError, CacheIncompleteError, FingerprintError, UsageError


@pytest.fixture(params=["zarr", "hdf5"])
def format(request):
    return request.param


def part(small_cache, format, name, index, count, **options):
    """A cache with the shards `index` (from 0), `index + count`, … of each stream."""
    made = small_cache(format, name=name, **options)
    store = made.create()
    for stream in ("text", "video"):
        for shard in range(index, store.num_shards(stream), count):
            made.commit(store, stream, shard)
    return made


def assert_equal_caches(a, b):
    for stream in ("video", "text"):
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name], err_msg=f"{stream} {name}")


@pytest.mark.parametrize("copy", [False, True])
def test_merged_parts_equal_the_cache_made_in_one_go(small_cache, format, tmp_path, copy):
    whole = small_cache(format, name="whole").fill()
    parts = [part(small_cache, format, f"part{i}", i, 3).path for i in range(3)]
    done = merge(parts, tmp_path / "merged", copy=copy)
    merged = open_store(tmp_path / "merged")
    assert merged.complete and (merged.path / "manifest.json").exists() and merged.fingerprint == whole.fingerprint
    assert merged.plan == open_store(whole.path).plan and merged.failures() == whole.failures() and verify(merged) == []
    assert_equal_caches(whole, merged)
    assert done.shards == merged.num_shards("video") + merged.num_shards("text")
    assert (done.linked == 0, done.copied == 0) == (copy, not copy)
    for folder in parts:  # the parts can go
        for base, _, files in os.walk(folder, topdown=False):
            for name in files:
                os.unlink(os.path.join(base, name))
    assert verify(open_store(merged.path)) == []


def test_copies_are_made_where_links_cannot_be(small_cache, format, tmp_path, monkeypatch):
    parts = [part(small_cache, format, f"part{i}", i, 2).path for i in range(2)]
    real = os.link

    def other_file_system(source, target, **options):
        if not str(source).endswith(".tmp"):
            raise OSError(18, "Invalid cross-device link")
        return real(source, target, **options)

    monkeypatch.setattr(os, "link", other_file_system)
    done = merge(parts, tmp_path / "merged")
    assert done.linked == 0 and done.copied > 0 and verify(open_store(tmp_path / "merged")) == []


def test_a_part_that_is_missing_is_said_and_can_come_later(small_cache, format, tmp_path):
    parts = [part(small_cache, format, f"part{i}", i, 3).path for i in range(3)]
    with pytest.raises(CacheIncompleteError, match=r"1 of 3 video shards, 1 of 5 text shards are in none of them"):
        merge(parts[:2], tmp_path / "merged")
    assert not open_store(tmp_path / "merged").complete
    assert merge(parts[2:], tmp_path / "merged").shards == 2
    assert open_store(tmp_path / "merged").complete
    assert merge(parts, tmp_path / "merged").shards == 0


def test_parts_may_be_merged_into_one_of_them(small_cache, format, tmp_path):
    first, second = (part(small_cache, format, f"part{i}", i, 2).path for i in range(2))
    merge([first, second], first)
    assert_equal_caches(small_cache(format, name="whole").fill(), open_store(first))


def test_the_highest_revision_of_a_shard_counts(small_cache, format, tmp_path):
    first, second = part(small_cache, format, "a", 0, 1), part(small_cache, format, "b", 1, 2)
    second.videos[5] = second.videos[5]._replace(frame_features=second.videos[5].frame_features + 1)
    second.commit(open_store(second.path), "video", 1, revision=1)
    merge([first.path, second.path], tmp_path / "merged")
    merged = open_store(tmp_path / "merged")
    assert merged.commits("video")[1].revision == 1
    offsets = merged.arrays("video")["offsets"]
    expected = second.videos[5].frame_features.astype(np.float16)
    np.testing.assert_array_equal(merged.arrays("video")["values"][offsets[5] : offsets[6]], expected)


def test_what_does_not_belong_together_is_refused(small_cache, format, tmp_path):
    first = part(small_cache, format, "a", 0, 2)
    other = part(small_cache, format, "b", 1, 2, videos=10)
    with pytest.raises(FingerprintError, match=r"b is no part of what .*a is \(annotations: found"):
        merge([first.path, other.path], tmp_path / "merged")
    turned = part(small_cache, {"zarr": "hdf5", "hdf5": "zarr"}[format], "c", 1, 2)
    with pytest.raises(UsageError, match="c has format .*; .*a has"):
        merge([first.path, turned.path], tmp_path / "merged")
    made = small_cache(format, name="d")
    create_store(made.path, dataclasses.replace(made.spec, shard_items={"video": 3, "text": 7}), format)
    with pytest.raises(UsageError, match="d has streams .*'shard_items': 3"):
        merge([first.path, made.path], tmp_path / "merged")
    flat = convert(small_cache(format, name="e").fill(), tmp_path / "flat.h5")
    with pytest.raises(UsageError, match="is one flat file"):
        merge([flat], tmp_path / "merged")
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(CacheFormatError, match="found thesis.tex"):
        merge([first.path], tmp_path / "mine")


def test_a_shard_that_vanished_is_named_before_anything_is_committed(small_cache, format, tmp_path):
    first = part(small_cache, format, "a", 0, 1)
    commit = open_store(first.path).commits("video")[1]
    os.rename(first.path / commit.path, tmp_path / "elsewhere")
    with pytest.raises(CacheCorruptError, match=r"committed but not there.*inspect"):
        merge([first.path], tmp_path / "merged")
    assert sorted(open_store(tmp_path / "merged").commits("video")) == [0]


def test_a_damaged_commit_is_not_taken_over(small_cache, format, tmp_path):
    first = part(small_cache, format, "a", 0, 1)
    commit = first.path / "commits" / "text" / "00002.json"
    row = json.loads(commit.read_text())
    commit.write_text(json.dumps(row | {"path": "../../elsewhere"}))
    with pytest.raises(CacheCorruptError, match=r"00002.json cannot be read: path is"):
        merge([first.path], tmp_path / "merged")
    assert not open_store(tmp_path / "merged").complete


def test_the_merged_cache_says_how_it_is_finished(small_cache, format, tmp_path):
    made = small_cache(format, name="a")
    command = "glscl extract --dataset made --out a --fps 2"
    create_store(made.path, dataclasses.replace(made.spec, provenance={"command": command}), format)
    merged = tmp_path / "merged"
    with pytest.raises(CacheIncompleteError, match="2 of 3 video shards|3 of 3 video shards") as refused:
        merge([made.path], merged)
    assert refused.value.hint.command == command and refused.value.hint.settings == {"out": merged, "format": format}
    told = "glscl extract --dataset made --out elsewhere"
    with pytest.raises(CacheIncompleteError):
        merge([made.path], tmp_path / "told", command=told)
    assert open_store(tmp_path / "told").header["provenance"]["command"] == told
    assert (
        json.loads((tmp_path / "merged" / "store.json").read_text())["fingerprint"] == open_store(made.path).fingerprint
    )
