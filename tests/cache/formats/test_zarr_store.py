"""Zarr shards are read as raw bytes where they lie plainly, through the library where they do not, and never wrongly."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from glscl.cache.formats import blocks
from glscl.cache.formats.blocks import Blocks
from glscl.cache.formats.zarr_store import ZarrShards
from glscl.cache.store import open_store

VALUES = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)

FOREIGN = {
    "big endian": {"serializer": BytesCodec(endian="big"), "compressors": None},
    "several chunks": {"chunks": (3, 5), "compressors": [Crc32cCodec()]},
    "one larger chunk": {"chunks": (9, 5), "compressors": None},
    "cut columns": {"chunks": (7, 2), "compressors": None},
    "other chunk names": {"chunk_key_encoding": {"name": "v2", "separator": "."}, "compressors": None},
}


PACKED = {
    "blosc": {"compressors": [BloscCodec()]},
    "zstd": {"compressors": [ZstdCodec()]},
    "gzip": {"compressors": [Crc32cCodec(), GzipCodec()]},
    "sharded": {"chunks": (1, 5), "shards": (7, 5), "compressors": None},
    "transposed": {"filters": [TransposeCodec(order=(1, 0))], "compressors": None},
}


@pytest.mark.parametrize("options", FOREIGN.values(), ids=FOREIGN.keys())
def test_arrays_that_other_programs_wrote_are_read_however_they_lie(tmp_path, options):
    group = zarr.create_group(tmp_path / "shard", zarr_format=3)
    array = group.create_array("values", shape=VALUES.shape, dtype=VALUES.dtype, **{"chunks": VALUES.shape, **options})
    array[...] = VALUES
    found = ZarrShards.rows(tmp_path / "shard", ["values"])["values"].map()
    np.testing.assert_array_equal(found, VALUES)


WRITTEN = {
    "several chunks": VALUES,
    "half precision": VALUES.astype(np.float16),
    "one chunk of bytes": np.arange(9, dtype=np.uint8),
    "big endian": np.arange(40, dtype=">i8"),
    "every other": np.arange(40, dtype=np.uint16)[::2],
    "no rows": VALUES[:0],
    "no columns": VALUES[:, :0],
    "one value": np.array(5, np.int32),
    "blocks": Blocks(VALUES.shape, VALUES.dtype, lambda: iter(np.array_split(VALUES, 4))),
}


@pytest.mark.parametrize("array", WRITTEN.values(), ids=WRITTEN.keys())
def test_what_is_written_is_what_the_library_would_write_and_reads(tmp_path, array, monkeypatch):
    monkeypatch.setattr(blocks, "MAX_CHUNK_BYTES", 48)
    ZarrShards.write_groups(tmp_path / "ours", [("video/0", {"values": array})])
    plain = array.whole() if isinstance(array, Blocks) else array
    theirs = zarr.create_group(tmp_path / "theirs", zarr_format=3).create_group("video/0")
    shape = zarr.open_array(tmp_path / "ours" / "video" / "0" / "values", mode="r").chunks
    options = {"chunks": shape, "compressors": [Crc32cCodec()], "fill_value": 0, "config": {"write_empty_chunks": True}}
    written = theirs.create_array("values", shape=plain.shape, dtype=plain.dtype.newbyteorder("="), **options)
    if plain.size:
        written[...] = plain
    files = [
        {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        for folder in (tmp_path / root / "video" / "0" / "values" for root in ("ours", "theirs"))
    ]
    assert files[0] == files[1]
    assert zarr.open_group(tmp_path / "ours", mode="r")["video/0/values"].shape == plain.shape
    with ZarrShards.opened(tmp_path / "ours" / "video" / "0") as shard:
        found = shard.read("values")
        np.testing.assert_array_equal(found, plain, strict=plain.dtype.isnative)
        if plain.size and plain.ndim:
            np.testing.assert_array_equal(np.concatenate([*shard.blocks("values")]), plain)


def test_a_chunk_that_changed_is_refused_with_its_name(tmp_path):
    ZarrShards.write(tmp_path / "shard", {"values": VALUES}, {})
    chunk = tmp_path / "shard" / "values" / "c" / "0" / "0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with ZarrShards.opened(tmp_path / "shard") as shard, pytest.raises(ValueError, match=f"{chunk} does not have the"):
        shard.read("values")


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


@pytest.mark.parametrize("options", PACKED.values(), ids=PACKED.keys())
def test_what_is_packed_is_refused_unread(tmp_path, options, monkeypatch):
    group = zarr.create_group(tmp_path / "shard", zarr_format=3)
    array = group.create_array("values", shape=VALUES.shape, dtype=VALUES.dtype, **{"chunks": VALUES.shape, **options})
    array[...] = VALUES
    monkeypatch.setattr(zarr.Array, "__getitem__", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(ValueError, match=r"is packed by \w+Codec; expected plain numbers"):
        ZarrShards.rows(tmp_path / "shard", ["values"])
    with (
        pytest.raises(ValueError, match=r"is packed by \w+Codec; expected plain numbers"),
        ZarrShards.opened(tmp_path / "shard") as shard,
    ):
        shard.read("values")


@pytest.mark.parametrize(
    "codec",
    [
        ZstdCodec(),
        *(
            pytest.param(codec, marks=pytest.mark.exhaustive)
            for codec in (GzipCodec(), BloscCodec(typesize=8, cname="zstd", shuffle="shuffle"))
        ),
    ],
    ids=lambda codec: type(codec).__name__,
)
def test_a_small_chunk_that_would_become_large_takes_no_memory(small_cache, codec, tmp_path):
    """A chunk of a quarter of a gigabyte, in place of a small one of a cache."""
    root = small_cache("zarr").fill().path
    shard = sorted((root / "shards/video").glob("*-*-*"))[-1]
    described = json.loads((shard / "values/zarr.json").read_text())
    described["codecs"] = [{"name": "bytes", "configuration": {"endian": "little"}}, codec.to_dict()]
    (shard / "values/zarr.json").write_text(json.dumps(described))
    ones = zarr.create_array(
        tmp_path / "ones", shape=(2**25,), dtype="f8", chunks=(2**25,), compressors=[codec], filters=None
    )
    ones[...] = 1  # zeros would be no chunk at all
    (shard / "values/c/0/0").write_bytes((tmp_path / "ones/c/0").read_bytes())
    program = (
        "import resource, sys\n"
        "import zarr.codecs\n"
        "from glscl.cache.library import open_library\n"
        "from glscl.cache.upkeep.verification import verify\n"
        "from glscl.cache.store import open_store\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"print(verify(open_library({str(root)!r})))\n"
        "try:\n"
        f"    open_store({str(root)!r}).arrays('video')\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    problems, refused, grown = ran.stdout.strip().splitlines()
    assert problems.count("values cannot be read") == 1 and "is packed by" in problems
    assert "is packed by" in refused
    assert int(grown) < 100, "MiB"


def test_a_chunk_that_is_longer_than_its_numbers_is_refused_unread(tmp_path):
    group = zarr.create_group(tmp_path / "shard", zarr_format=3)
    group.create_array("values", shape=(7, 5), dtype="f4", chunks=(7, 2), compressors=None)[...] = VALUES
    with open(tmp_path / "shard/values/c/0/1", "r+b") as chunk:
        chunk.truncate(2**40)  # a hole: nothing on the disk
    with pytest.raises(ValueError, match="1099511627776 bytes, expected 56"):
        ZarrShards.rows(tmp_path / "shard", ["values"])


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_what_a_group_says_of_its_arrays_does_not_count(tmp_path):
    group = zarr.create_group(tmp_path / "shard", zarr_format=3)
    group.create_array("values", shape=(7, 5), dtype="f4", chunks=(7, 2), compressors=[ZstdCodec()])[...] = VALUES
    zarr.consolidate_metadata(tmp_path / "shard", zarr_format=3)
    told = json.loads((tmp_path / "shard/zarr.json").read_text())
    told["consolidated_metadata"]["metadata"]["values"]["codecs"].pop()
    (tmp_path / "shard/zarr.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="is packed by ZstdCodec"):
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
