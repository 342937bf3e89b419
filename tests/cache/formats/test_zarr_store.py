"""Zarr shards are read as raw bytes where they lie plainly, through the library where they do not, and never wrongly."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from glscl.cache.formats.zarr_store import ZarrShards
from glscl.cache.store import open_store

VALUES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)

FOREIGN = {
    "compressed": {"compressors": [BloscCodec()]},
    "big endian": {"serializer": BytesCodec(endian="big"), "compressors": None},
    "several chunks": {"chunks": (3, 5), "compressors": [Crc32cCodec()]},
    "one larger chunk": {"chunks": (9, 5), "compressors": None},
    "cut columns": {"chunks": (7, 2), "compressors": None},
    "sharded": {"chunks": (1, 5), "shards": (7, 5), "compressors": None},
    "other chunk names": {"chunk_key_encoding": {"name": "v2", "separator": "."}, "compressors": None},
}


@pytest.mark.parametrize("options", FOREIGN.values(), ids=FOREIGN.keys())
def test_arrays_that_other_programs_wrote_are_read_however_they_lie(tmp_path, options):
    group = zarr.create_group(tmp_path / "shard", zarr_format=3)
    array = group.create_array("values", shape=VALUES.shape, dtype=VALUES.dtype, **{"chunks": VALUES.shape, **options})
    array[...] = VALUES
    found = ZarrShards.rows(tmp_path / "shard", ["values"])["values"].map()
    np.testing.assert_array_equal(found, VALUES)


@pytest.mark.parametrize("checksums", [[], [Crc32cCodec()], [Crc32cCodec(), Crc32cCodec()]])
def test_plain_arrays_are_mapped_with_and_without_checksums(tmp_path, checksums):
    group = zarr.create_group(tmp_path / "shard", zarr_format=3)
    group.create_array("values", shape=VALUES.shape, dtype=VALUES.dtype, chunks=VALUES.shape, compressors=checksums)[
        ...
    ] = VALUES
    found = ZarrShards.rows(tmp_path / "shard", ["values"])["values"].map()
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, VALUES)


def test_a_chunk_that_is_not_there_is_not_read_as_zeros(tmp_path):
    group = zarr.create_group(tmp_path / "shard", zarr_format=3)
    group.create_array("values", shape=VALUES.shape, dtype=VALUES.dtype, chunks=VALUES.shape)
    with pytest.raises(OSError, match="lacks 1 of 1 chunks"):
        ZarrShards.rows(tmp_path / "shard", ["values"])


def test_a_cache_of_ours_is_opened_and_read_without_importing_zarr(small_cache):
    made = small_cache("zarr")
    made.fill()
    program = (
        "import sys\n"
        "from glscl.cache.store import open_store\n"
        "from glscl.cache.upkeep.summary import summarise\n"
        f"store = open_store({str(made.path)!r})\n"
        "summarise(store.library), store.arrays('text'), store.arrays('video'), store.captions()\n"
        "print('zarr' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"
    assert open_store(made.path).complete
