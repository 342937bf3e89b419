"""A cache written again says the same: in the other format, and as one flat file or group."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
import zarr

from glscl.cache.schema import STREAMS
from glscl.cache.shard_arrays import LAYOUT
from glscl.cache.store import Store, open_store
from glscl.cache.table import FeatureTable
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.summary import summarise
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import CacheFormatError, CacheIncompleteError, StorageError, UsageError


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("format", "name"), [("zarr", "b"), ("hdf5", "b"), ("zarr", "b.h5"), ("hdf5", "b.zarr")])
def test_a_converted_cache_holds_the_same(small_cache, tmp_path, format, name, dtype):
    made = small_cache(format, dtype)
    store = made.create()
    pieces = {"logit_scale": np.ones(1, np.float32), "positional_embedding": np.eye(3, dtype=np.float32)}
    store.write_backbone_tensors(pieces)
    store = made.fill()
    again = open_store(convert(store, tmp_path / name))
    assert again.fingerprint == store.fingerprint and again.complete
    assert again.header["format"] != format
    for stream in LAYOUT:
        for key, array in store.arrays(stream).items():
            np.testing.assert_array_equal(again.arrays(stream)[key], array)
    assert again.failures() == store.failures()
    kept = [row for shard in range(again.num_shards("video")) for row in again.ledger(shard)]
    assert kept == [row for shard in range(store.num_shards("video")) for row in store.ledger(shard)]
    assert [row["decoder"] for row in kept] == ["decord" if i % 2 else "pyav" for i in range(store.num_items["video"])]
    assert again.splits == store.splits
    assert verify(again) == []
    for key, piece in pieces.items():
        np.testing.assert_array_equal(again.backbone_tensors()[key], piece)
    assert FeatureTable.load(again, "test").captions == FeatureTable.load(store, "test").captions
    a, b = summarise(store), summarise(again)
    assert {k: a[k] for k in ("videos", "texts", "frames", "splits", "failed")} == {
        k: b[k] for k in ("videos", "texts", "frames", "splits", "failed")
    }


def test_flat_files_are_ordinary_ones(small_cache, tmp_path):
    store = small_cache().fill()
    convert(store, tmp_path / "flat.h5")
    convert(store, tmp_path / "flat.zarr")
    with h5py.File(tmp_path / "flat.h5") as file:
        np.testing.assert_array_equal(file["video/values"][...], store.arrays("video")["values"])
    np.testing.assert_array_equal(zarr.open(tmp_path / "flat.zarr")["text/pooled"][...], store.arrays("text")["pooled"])
    assert summarise(open_store(tmp_path / "flat.h5"))["bytes"] == (tmp_path / "flat.h5").stat().st_size
    assert summarise(open_store(tmp_path / "flat.zarr"))["bytes"] > store.arrays("video")["values"].nbytes


def test_nothing_is_overwritten_and_nothing_half_is_left(small_cache, tmp_path, monkeypatch):
    store = small_cache().fill()
    (tmp_path / "there.h5").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        convert(store, tmp_path / "there.h5")
    with pytest.raises(UsageError, match="by its name"):
        convert(store, tmp_path / "x.h5", format="zarr")

    def full(path, groups):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("glscl.cache.formats.hdf5_store.Hdf5Shards.write_groups", staticmethod(full))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(StorageError, match="the disk is full"):
        convert(store, tmp_path / "x.h5")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("done", [0, 1, 4, None], ids=["head", "one shard", "four shards", "all shards"])
def test_a_stopped_conversion_is_finished_by_the_same_call(small_cache, tmp_path, monkeypatch, done):
    store, out = small_cache().fill(), tmp_path / "out"
    committing, committed = Store.commit, []

    def commit(self, stream, shard, *args, **options):
        if len(committed) == done:
            raise KeyboardInterrupt
        committed.append((stream, shard))
        return committing(self, stream, shard, *args, **options)

    def finish(self, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "commit", commit)
    with monkeypatch.context() as until, pytest.raises(KeyboardInterrupt):
        until.setattr(Store, "finish", finish)
        convert(store, out)
    done = -1
    assert open_store(out).resume_hint().settings == {"out": out, "format": "hdf5"}
    convert(store, out)
    assert len(committed) == len(set(committed)), "no shard was written twice"
    assert open_store(out).complete and verify(open_store(out)) == []
    for stream in STREAMS:
        for name, array in store.arrays(stream).items():
            np.testing.assert_array_equal(open_store(out).arrays(stream)[name], array)
    with pytest.raises(UsageError, match="exists already"):
        convert(store, out)


def test_a_conversion_goes_on_only_with_what_it_began(small_cache, tmp_path):
    store = small_cache().fill()
    small_cache("hdf5", name="other", seed=1, videos=12).create()
    small_cache("zarr", name="same format").create()
    (tmp_path / "mine").mkdir()
    for name in ("other", "same format", "mine"):
        with pytest.raises(UsageError, match="exists already"):
            convert(store, tmp_path / name)


def test_what_a_killed_conversion_left_beside_a_flat_file_is_removed(small_cache, tmp_path):
    store = small_cache().fill()
    (tmp_path / ".x.h5.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".x.zarr.0123abcd.tmp").mkdir()
    convert(store, tmp_path / "x.h5")
    assert [path.name for path in tmp_path.glob(".*")] == [".x.zarr.0123abcd.tmp"], "another file's may be under way"
    convert(store, tmp_path / "x.zarr")
    assert list(tmp_path.glob(".*")) == []


def test_an_incomplete_cache_is_not_converted(small_cache, tmp_path):
    made = small_cache()
    store = made.create()
    made.commit(store, "video", 0)
    with pytest.raises(CacheIncompleteError):
        convert(store, tmp_path / "x.h5")
    with pytest.raises(CacheIncompleteError):
        convert(store, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_files_of_others_are_not_caches(tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["head"] = np.arange(4, dtype=np.uint8)
    with h5py.File(tmp_path / "json.h5", "w") as file:
        file["head"] = np.frombuffer(b'{"schema": "glscl.cache/1"}', np.uint8)
    for name in ("text.h5", "foreign.h5", "json.h5"):
        with pytest.raises(CacheFormatError, match="is not a glscl cache"):
            open_store(tmp_path / name)
