"""A shard as one Zarr v3 group: plain arrays, uncompressed, one chunk each with a crc32c checksum, mappable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from glscl.cache.hdf5_store import chunk_shape


class ZarrShards:
    """Reads and writes Zarr groups. See `glscl.cache.store.ShardFormat`."""

    name = "zarr"
    suffix = ""

    @staticmethod
    def prepare_root(root: Path, streams: tuple[str, ...]) -> None:
        """Make the cache itself a Zarr group, with groups down to each shard."""
        for folder in (root, root / "shards", *(root / "shards" / stream for stream in streams)):
            if not (folder / "zarr.json").exists():
                zarr.create_group(folder, zarr_format=3)

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str]) -> None:
        _write_arrays(zarr.create_group(path, zarr_format=3, attributes=dict(attributes)), arrays)

    @staticmethod
    def write_groups(path: Path, groups: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        root = zarr.create_group(path, zarr_format=3)
        for name, arrays in groups.items():
            _write_arrays(root if name == "/" else root.create_group(name), arrays)

    @staticmethod
    def read(path: Path, name: str) -> np.ndarray:
        array = zarr.open_group(path, mode="r")[name]
        _require_chunks(path, array)
        return np.asarray(array[...])

    @staticmethod
    def map(path: Path, names: list[str]) -> dict[str, np.ndarray]:
        group = zarr.open_group(path, mode="r")
        return {name: _map_array(path / name, group[name]) for name in names}


def _write_arrays(group: zarr.Group, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        target = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunk_shape(array) if array.size and array.ndim else tuple(max(1, n) for n in array.shape),
            compressors=[Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},  # without it an all-zero chunk gets no file
        )
        if array.size:
            target[...] = array


def _require_chunks(path: Path, array: zarr.Array) -> None:
    # A missing chunk would read as zeros without a word.
    if array.size and array.nchunks_initialized != array.nchunks:
        raise OSError(f"array {array.name} of {path} lacks {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks")


def _map_array(folder: Path, array: zarr.Array) -> np.ndarray:
    """The raw bytes of an uncompressed one-chunk array as a read-only map; else what the library reads."""
    plain = array.nchunks == 1 and array.chunks == array.shape and not array.filters
    codecs = [*array.compressors, array.serializer]
    checksum = 4 * sum(isinstance(codec, Crc32cCodec) for codec in codecs)
    little = all(isinstance(c, Crc32cCodec) or (isinstance(c, BytesCodec) and _little(c)) for c in codecs)
    if array.size and plain and little:
        chunk = folder / "c" / "/".join("0" for _ in array.shape)
        if chunk.is_file() and chunk.stat().st_size == array.nbytes + checksum:
            return np.memmap(chunk, array.dtype, "r", shape=array.shape)
    _require_chunks(folder, array)
    return np.asarray(array[...])


def _little(codec: BytesCodec) -> bool:
    return codec.endian is None or codec.endian.value == "little"
