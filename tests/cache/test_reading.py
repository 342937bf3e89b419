"""Runs of items are read by threads straight into their place, and an error of one of them is the error."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from glscl.cache import reading
from glscl.cache.formats.blocks import Blocks
from glscl.cache.formats.rows import RawRows
from glscl.cache.reading import read_rows
from glscl.cache.schema import Status
from glscl.cache.store import Store, open_store
from glscl.cache.table import FeatureTable
from glscl.common.errors import CacheCorruptError


@pytest.fixture(autouse=True)
def many_small_pieces(monkeypatch):
    """Every array is cut into pieces and handed to threads, as only large ones are otherwise."""
    monkeypatch.setattr(reading, "PIECE_BYTES", 48)
    monkeypatch.setattr(reading, "SMALL_BYTES", 1)


@pytest.fixture(scope="module", params=["zarr", "hdf5"])
def made(small_cache_class, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reading")
    cache = small_cache_class(folder / "cache", request.param, "float16", videos=11, captions=3, dim=8, seed=0)
    cache.fill()
    return cache


@pytest.fixture
def own_copy(made, tmp_path):
    """A store that a test may damage."""
    return open_store(shutil.copytree(made.path, tmp_path / "copy"))


def shard_file(store: Store, stream: str, shard: int) -> Path:
    """Where a shard of the one addition lies."""
    about = store.library.stream(stream)
    return store.path / about.commits[about.additions[0].name, shard].path


def test_pieces_read_by_threads_are_what_was_written(made):
    store = open_store(made.path)
    for stream in ("video", "text"):
        whole = [made.arrays(stream, shard) for shard in range(made.addition(stream).num_shards)]
        found = store.arrays(stream, raw=True)
        for name in ("values", "pooled", "token_ids", "times", "status", "duration", "text_bytes"):
            if name in found:
                np.testing.assert_array_equal(
                    found[name], np.concatenate([arrays[name] for arrays in whole]), err_msg=name
                )


@pytest.mark.parametrize("every", [1, 2, 7, 1000])
def test_rows_are_taken_alike_whether_all_or_a_few_are_wanted(made, every):
    store = open_store(made.path)
    values = store.arrays("text", ["values"])["values"]
    rows = np.sort(np.concatenate([np.arange(0, len(values), every), [3, 3, len(values) - 1]]))
    np.testing.assert_array_equal(read_rows(store.library, "text", "values", rows, store.numbers["text"]), values[rows])


def test_a_row_beyond_the_last_is_refused(made):
    store = open_store(made.path)
    count = len(store.arrays("text", ["values"])["values"])
    with pytest.raises(IndexError, match=f"row {count} of {count} text rows"):
        read_rows(store.library, "text", "values", np.array([0, count]), store.numbers["text"])


@pytest.mark.parametrize("taken", [False, True], ids=["whole", "rows"])
def test_a_file_cut_short_after_it_was_looked_up_is_named(own_copy, taken):
    store = own_copy
    store.arrays("text")
    shard = shard_file(store, "text", 1)
    file = shard if shard.is_file() else shard / "values" / "c" / "0" / "0"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CacheCorruptError, match=f"{shard.name} cannot be read"):
        if taken:
            read_rows(store.library, "text", "values", np.arange(0, 60, 3), store.numbers["text"])
        else:
            store.arrays("text", ["values"])


def test_a_shard_that_vanished_after_it_was_looked_up_is_named(own_copy):
    store = own_copy
    store.arrays("video")
    shard = shard_file(store, "video", 0)
    shard.rename(shard.with_name("elsewhere"))
    with pytest.raises(CacheCorruptError, match="is committed but not there"):
        store.arrays("video", ["values"])


def test_where_arrays_lie_is_looked_up_once_a_shard(made, monkeypatch):
    store = open_store(made.path)
    store.arrays("video"), store.arrays("text")
    monkeypatch.setattr(type(store.library.format), "rows", None)
    assert len(store.arrays("video")["values"]) and len(store.captions()) == store.num_items["text"]


def test_a_table_keeps_only_the_tokens_of_captions_that_have_a_video(made):
    store = open_store(made.path)
    table = FeatureTable.load(store, None, max_frames=None)
    text, status = store.arrays("text"), store.status()
    kept = np.flatnonzero(np.isin(status[store.list.text_video], [Status.OK, Status.PARTIAL]))
    assert 0 < len(kept) < store.num_items["text"]
    wanted = [text["values"][text["offsets"][i] : text["offsets"][i + 1]] for i in kept]
    np.testing.assert_array_equal(table.token_values.numpy(), np.concatenate(wanted))
    np.testing.assert_array_equal(table.token_count.numpy(), [*map(len, wanted)])
    np.testing.assert_array_equal(table.token_first.numpy(), np.cumsum([0, *map(len, wanted)])[:-1])
    np.testing.assert_array_equal(table.text_features.numpy(), text["pooled"][kept])
    assert table.captions == [store.captions()[i] for i in kept]


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_an_array_of_several_chunks_is_read_across_their_bounds(made, tmp_path, rows, monkeypatch):
    values = np.arange(90, dtype=np.int32).reshape(30, 3)
    monkeypatch.setattr("glscl.cache.formats.blocks.MAX_CHUNK_BYTES", 12 * rows)
    format = open_store(made.path).library.format
    format.write(tmp_path / "shard", {"values": Blocks(values.shape, values.dtype, lambda: iter([values]))}, {})
    reader = format.rows(tmp_path / "shard", ["values"])["values"]
    assert isinstance(reader, RawRows) and len(reader.chunks) == -(-30 // rows)
    np.testing.assert_array_equal(reader.map(), values)
    for start, stop in ((0, 30), (0, 0), (3, 11), (29, 30)):
        np.testing.assert_array_equal(reader.read(start, stop), values[start:stop])
    with pytest.raises(IndexError, match="rows 29:31 of 30"):
        reader.read(29, 31)
