"""A shard as one Zarr v3 group: plain arrays, uncompressed, one chunk each with a crc32c checksum, mappable."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glscl.cache.files import dump_json, plain, write_atomically
from glscl.cache.formats.blocks import Blocks, Groups, chunk_shape
from glscl.cache.formats.rows import Chunk, LibraryRows, RawRows, RowReader

if TYPE_CHECKING:
    import zarr
    from zarr.abc.buffer import Buffer
    from zarr.storage import LocalStore

# The library is imported where it is needed: our own shards are read as raw bytes, which takes less time than the import.
_PLAIN_TYPES = {"uint8", "uint16", "int32", "int64", "float16", "float32", "float64"}


class _OpenGroup:
    """See `glscl.cache.formats.OpenShard`."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self._path, self._group = path, group

    def array(self, name: str) -> zarr.Array:
        """An array of plain numbers of which every chunk is there."""
        import zarr

        plain(self._path / name / "zarr.json")
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
        """Make the cache itself a Zarr group, with groups down to each shard.

        In one step each, and half-written under a name of ours: what zarr writes aside would be a stranger's after a kill.
        """
        for folder in (root, root / "shards", *(root / "shards" / stream for stream in streams)):
            if not (folder / "zarr.json").exists():
                write_atomically(
                    folder / "zarr.json", dump_json({"zarr_format": 3, "node_type": "group", "attributes": {}})
                )

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray | Blocks], attributes: Mapping[str, str]) -> None:
        _write_arrays(_new_group(path, attributes), arrays)

    @staticmethod
    def write_groups(path: Path, groups: Groups) -> None:
        root = _new_group(path)
        for name, arrays in groups:
            _write_arrays(root if name == "/" else root.create_group(name), arrays)

    @staticmethod
    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[_OpenGroup]:
        import zarr

        plain(path / "zarr.json")
        yield _OpenGroup(path, zarr.open_group(path, mode="r", zarr_format=3, use_consolidated=False))

    @staticmethod
    def rows(path: Path, names: list[str]) -> dict[str, RowReader]:
        if json.loads(plain(path / "zarr.json").read_bytes())["node_type"] != "group":
            raise ValueError(f"{path} is not a Zarr group")
        return {name: _raw_rows(path / name) or _library_rows(path, name) for name in names}


def _new_group(path: Path, attributes: Mapping[str, str] | None = None) -> zarr.Group:
    import zarr

    return zarr.create_group(_linkless()(path), zarr_format=3, attributes=dict(attributes or {}))


@functools.cache
def _linkless() -> type[LocalStore]:
    from zarr.storage import LocalStore

    class Linkless(LocalStore):
        """Makes no hard links, which vfat, exFAT, and many FUSE and SMB mounts refuse.

        The library makes them to spare what another writer has put meanwhile; who writes a group here is alone.
        """

        async def set_if_not_exists(self, key: str, value: Buffer) -> None:
            if not await self.exists(key):
                await self.set(key, value)

    return Linkless


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
    """Raise ValueError or OSError for an array that the library must not be asked to read.

    That is one of anything but numbers; one whose chunks are more than its numbers and their checksums, for what is packed may
    unpack to any size; and one that lacks a chunk, which would read as zeros without a word.
    """
    from zarr.codecs import BytesCodec, Crc32cCodec
    from zarr.core.metadata import ArrayV3Metadata

    if array.dtype.kind not in "fiu":
        raise ValueError(f"array {array.name} of {path} holds {array.dtype}, expected numbers")
    chunks = [
        Path(folder, name)
        for folder, _, names in os.walk(path / array.path, onerror=_raise)  # what may not be listed is not missing
        for name in names
        if name != "zarr.json"
    ]
    codecs = array.metadata.codecs if isinstance(array.metadata, ArrayV3Metadata) else ()
    packed = next((codec for codec in codecs if not isinstance(codec, BytesCodec | Crc32cCodec)), None)
    if packed is not None and chunks:
        raise ValueError(
            f"array {array.name} of {path} is packed by {type(packed).__name__}; expected plain numbers, as glscl writes them"
        )
    expected = math.prod(array.chunks) * array.dtype.itemsize + 4 * (len(codecs) - 1)
    for chunk in chunks:
        if _size(chunk) != expected:
            raise ValueError(f"{chunk} has {_size(chunk)} bytes, expected {expected}")
    there = array.nchunks_initialized if len(chunks) >= array.nchunks else len(chunks)
    if array.size and there != array.nchunks:
        raise OSError(f"array {array.name} of {path} lacks {array.nchunks - there} of {array.nchunks} chunks")


def _raise(error: OSError) -> None:
    raise error


def _raw_rows(folder: Path) -> RawRows | None:
    """The chunk files of an uncompressed array that is cut along its first axis only; None where they are anything else.

    Raises:
        FileNotFoundError: there is no such array. ValueError, KeyError, …: its description cannot be read.
    """
    described = json.loads(plain(folder / "zarr.json").read_bytes())
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
