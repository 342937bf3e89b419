"""A shard as one Zarr v3 group: plain arrays, uncompressed, one chunk each with a crc32c checksum, mappable."""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glscl.cache.formats.blocks import Blocks, Groups, chunk_shape
from glscl.cache.formats.rows import Chunk, LibraryRows, RawRows, RowReader
from glscl.common.archive_limits import FLOOR, check_unpacked

if TYPE_CHECKING:
    import zarr

# The library is imported where it is needed: our own shards are read as raw bytes, which takes less time than the import.
_PLAIN_TYPES = {"uint8", "uint16", "int32", "int64", "float16", "float32", "float64"}


class _OpenGroup:
    """See `glscl.cache.formats.OpenShard`."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self._path, self._group = path, group

    def array(self, name: str) -> zarr.Array:
        """An array of which every chunk is there."""
        import zarr

        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise TypeError(f"{name} of {self._path} is a group, expected an array")
        _require_chunks(self._path, array)
        return array

    def read(self, name: str) -> np.ndarray:
        return np.asarray(self.array(name)[...])

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        array = self.array(name)
        for start in range(0, array.shape[0], array.chunks[0]):
            yield np.asarray(array[start : start + array.chunks[0]])


class ZarrShards:
    """Reads and writes Zarr groups. See `glscl.cache.formats.ShardFormat`."""

    name = "zarr"
    suffix = ""

    @staticmethod
    def prepare_root(root: Path, streams: tuple[str, ...]) -> None:
        """Make the cache itself a Zarr group, with groups down to each shard."""
        import zarr
        from zarr.errors import ContainsGroupError

        for folder in (root, root / "shards", *(root / "shards" / stream for stream in streams)):
            if not (folder / "zarr.json").exists():
                with contextlib.suppress(ContainsGroupError):  # another launch was a moment faster
                    zarr.create_group(folder, zarr_format=3)

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray | Blocks], attributes: Mapping[str, str]) -> None:
        import zarr

        _write_arrays(zarr.create_group(path, zarr_format=3, attributes=dict(attributes)), arrays)

    @staticmethod
    def write_groups(path: Path, groups: Groups) -> None:
        import zarr

        root = zarr.create_group(path, zarr_format=3)
        for name, arrays in groups:
            _write_arrays(root if name == "/" else root.create_group(name), arrays)

    @staticmethod
    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[_OpenGroup]:
        import zarr

        yield _OpenGroup(path, zarr.open_group(path, mode="r"))

    @staticmethod
    def rows(path: Path, names: list[str]) -> dict[str, RowReader]:
        if json.loads((path / "zarr.json").read_bytes())["node_type"] != "group":
            raise ValueError(f"{path} is not a Zarr group")
        return {name: _raw_rows(path / name) or _library_rows(path, name) for name in names}


def _library_rows(path: Path, name: str) -> LibraryRows:
    with ZarrShards.opened(path) as group:
        array = group.array(name)
    return LibraryRows(lambda rows: np.asarray(array[rows]), array.shape, array.dtype)


def _write_arrays(group: zarr.Group, arrays: Mapping[str, np.ndarray | Blocks]) -> None:
    from zarr.codecs import Crc32cCodec

    for name, array in arrays.items():
        full = bool(array.size and array.ndim)
        chunks = chunk_shape(array.shape, array.dtype) if full else tuple(max(1, n) for n in array.shape)
        target = group.create_array(
            name,
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks,
            compressors=[Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},  # without it an all-zero chunk gets no file
        )
        if full and isinstance(array, Blocks):
            for start, piece in array.chunks(chunks[0]):
                target[start : start + len(piece)] = piece
        elif array.size and not isinstance(array, Blocks):
            target[...] = array


def _require_chunks(path: Path, array: zarr.Array) -> None:
    if array.nbytes > FLOOR:
        check_unpacked(array.nbytes, array.nbytes_stored())
    # A missing chunk would read as zeros without a word.
    if array.size and array.nchunks_initialized != array.nchunks:
        raise OSError(
            f"array {array.name} of {path} lacks {array.nchunks - array.nchunks_initialized} of {array.nchunks} chunks"
        )


def _raw_rows(folder: Path) -> RawRows | None:
    """The chunk files of an uncompressed array that is cut along its first axis only; None where they are anything else.

    Raises:
        FileNotFoundError: there is no such array. ValueError, KeyError, …: its description cannot be read.
    """
    described = json.loads((folder / "zarr.json").read_bytes())
    shape, checksums = tuple(described["shape"]), _plain_codecs(described["codecs"])
    grid, keys = described["chunk_grid"], described["chunk_key_encoding"]
    if (
        checksums is None
        or not shape
        or grid["name"] != "regular"
        or tuple(grid["configuration"]["chunk_shape"][1:]) != shape[1:]
        or (keys["name"], keys.get("configuration", {}).get("separator", "/")) != ("default", "/")
        or described["data_type"] not in _PLAIN_TYPES
    ):
        return None
    dtype = np.dtype(described["data_type"]).newbyteorder("<")
    if not all(shape):
        return RawRows([], 1, shape, dtype)
    rows = grid["configuration"]["chunk_shape"][0]
    expected = dtype.itemsize * rows * math.prod(shape[1:]) + checksums
    chunks = []
    for number in range(-(-shape[0] // rows)):
        chunks.append(Chunk(folder.joinpath("c", str(number), *("0" for _ in shape[1:])), 0))
        if _size(chunks[-1].path) != expected:
            return None  # the library says what is wrong
    return RawRows(chunks, rows, shape, dtype)


def _size(file: Path) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        about = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def _plain_codecs(codecs: list[dict[str, Any]]) -> int | None:
    """Bytes of checksums behind the values; None where the codecs do more than store them little-endian."""
    first, *others = codecs
    little = first["name"] == "bytes" and first.get("configuration", {}).get("endian", "little") == "little"
    return 4 * len(others) if little and all(codec["name"] == "crc32c" for codec in others) else None
