"""Chunks that are not what they should be are refused before the HDF5 library, which would crash or read on behind them."""

from __future__ import annotations

import struct
import zlib

import h5py
import numpy as np
import pytest

from glscl.cache.formats.hdf5_checks import check_dataset
from glscl.cache.library import open_library
from glscl.cache.store import open_store
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import CacheCorruptError, InputError
from glscl.extract.importing.feature_files import open_arrays

SHAPE, CHUNK = (50, 8), (20, 8)
PACKED = {
    "plain": {},
    "fletcher32": {"fletcher32": True},
    "gzip": {"compression": "gzip"},
    "lzf": {"compression": "lzf"},
    "shuffle": {"compression": "gzip", "shuffle": True},
    "all": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "lzf-all": {"compression": "lzf", "shuffle": True, "fletcher32": True},
}


def make(path, *, values=None, **options):
    """A file with the dataset `a`, half noise and half zeros."""
    if values is None:
        values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
        values[::2] = 0
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=values, **{"chunks": CHUNK, **options})
    return values


def refused(path, words):
    with h5py.File(path) as file, pytest.raises(ValueError, match=words):
        check_dataset(file["a"].id)
    with open_arrays(path) as arrays, pytest.raises(InputError):
        arrays.read("a")


@pytest.mark.parametrize("how", PACKED)
@pytest.mark.parametrize("userblock", [0, 512])
def test_what_the_library_wrote_may_be_read(tmp_path, how, userblock):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w", userblock_size=userblock):
        pass
    values = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    values[::2] = 0
    with h5py.File(path, "r+") as file:
        file.create_dataset("a", data=values, chunks=CHUNK, **PACKED[how])
        file.create_dataset("b", shape=SHAPE, dtype="f4", chunks=CHUNK)  # nothing stored: zeros
    with h5py.File(path) as file:
        check_dataset(file["a"].id)
        check_dataset(file["b"].id)
    with open_arrays(path) as arrays:
        np.testing.assert_array_equal(arrays.read("a"), values)


@pytest.mark.parametrize(
    ("how", "data"),
    [
        ("fletcher32", b"xyz"),
        ("fletcher32", b"x" * 640),
        ("gzip", zlib.compress(b"x" * 639)),
        ("gzip", zlib.compress(b"x" * 641)),
        ("gzip", zlib.compress(bytes(640))[:-5]),
        ("gzip", b"no stream of zlib"),
        ("shuffle", zlib.compress(b"x" * 11)),
        ("all", b"\1\2\3"),
        ("all", zlib.compress(bytes(639)) + b"sums"),
        ("lzf", bytes([31]) + bytes(32)),
        ("lzf", bytes([3, 1, 2])),
        ("lzf-all", bytes([0, 1, 255, 255, 0]) + b"sums"),
    ],
)
def test_a_chunk_of_another_length_is_refused(tmp_path, how, data):
    make(tmp_path / "a.h5", **PACKED[how])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["a"].id.write_direct_chunk((20, 0), data)
    refused(tmp_path / "a.h5", "holds|unpacked")


def test_a_chunk_that_unpacks_to_very_much_takes_no_more_memory_than_it_should(tmp_path):
    make(tmp_path / "a.h5", compression="gzip")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["a"].id.write_direct_chunk((0, 0), zlib.compress(bytes(1 << 28)))
    refused(tmp_path / "a.h5", "holds 641 bytes, expected 640")


def test_chunks_larger_than_they_could_ever_be_filled_are_refused(tmp_path):
    make(
        tmp_path / "a.h5",
        values=np.zeros((1, 8), np.float32),
        chunks=(1 << 24, 8),
        maxshape=(None, 8),
        compression="gzip",
    )
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["a"].id.write_direct_chunk((0, 0), zlib.compress(b""))
    refused(tmp_path / "a.h5", "claims 536870912 bytes")


@pytest.mark.parametrize("options", [{"scaleoffset": 3}, {"compression": "szip"}], ids=str)
def test_packing_that_is_not_known_is_refused_with_what_to_do(tmp_path, options):
    if options.get("compression") == "szip" and not h5py.h5z.get_filter_info(4) & h5py.h5z.FILTER_CONFIG_ENCODE_ENABLED:
        make(tmp_path / "a.h5")
        return
    make(tmp_path / "a.h5", **options)
    refused(tmp_path / "a.h5", "h5repack -f GZIP")


def test_texts_references_and_numbers_of_other_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = ["some", "words"]
    refused(tmp_path / "a.h5", "expected numbers")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("a", shape=(4,), dtype="f4", external=[(str(tmp_path / "raw"), 0, 16)])
    refused(tmp_path / "b.h5", "other files")


def test_a_chunk_beyond_the_end_is_refused(tmp_path):
    path = tmp_path / "a.h5"
    make(path, fletcher32=True)
    with h5py.File(path) as file:
        infos = [file["a"].id.get_chunk_info(i) for i in range(3)]
    data = path.read_bytes()
    record = struct.pack("<IIQQQ", infos[1].size, 0, 20, 0, 0)  # of a B-tree of version 1; its address follows
    at = data.index(record) + len(record)
    path.write_bytes(data[:at] + struct.pack("<Q", len(data) - 100) + data[at + 8 :])
    refused(path, "beyond the end|addr overflow")


@pytest.mark.parametrize("size", [0, 3])
def test_a_cache_whose_file_says_that_a_chunk_is_empty_is_an_error_not_a_crash(small_cache, size):
    """As found by fuzzing: the filter of checksums took four bytes off none."""
    made = small_cache("hdf5")
    store = made.fill()
    where = store.path / store.library.stream("text").commits[made.addition("text").name, 0].path
    with h5py.File(where) as file:
        info = file["values"].id.get_chunk_info(0)
    data = where.read_bytes()
    record = struct.pack("<II", info.size, 0) + struct.pack("<3Q", 0, 0, 0)
    places = [i for i in range(len(data)) if data.startswith(record, i)]
    assert places
    for at in places:
        data = data[:at] + struct.pack("<I", size) + data[at + 4 :]
    where.write_bytes(data)
    assert any("values cannot be read" in problem for problem in verify(open_library(store.path)))
    with pytest.raises(CacheCorruptError, match="holds"):
        open_store(store.path).arrays("text", ["values"])
