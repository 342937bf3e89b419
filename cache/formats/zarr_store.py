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

import google_crc32c
import numpy as np

from glscl.cache.files import plain, write_atomically
from glscl.cache.formats.blocks import Blocks, Groups, chunk_shape
from glscl.cache.formats.rows import Chunk, LibraryRows, RawRows, RowReader

if TYPE_CHECKING:
    import zarr

# The library is imported where it is needed, for what others wrote: our own shards take less time than the import.
_PLAIN_TYPES = {"uint8", "uint16", "int32", "int64", "float16", "float32", "float64"}
_CHECKSUM = 4  # bytes of a crc32c behind the values of a chunk


class _OpenGroup:
    """See `glscl.cache.formats.OpenShard`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @functools.cached_property
    def _group(self) -> zarr.Group:
        import zarr

        return zarr.open_group(self._path, mode="r", zarr_format=3, use_consolidated=False)

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
        rows = _checked_rows(self._path / name)
        if rows is None:
            return np.asarray(self.array(name)[...])
        if len(rows.chunks) == 1:
            return _chunk(rows, 0)
        found = np.empty(rows.shape, rows.dtype)
        for i in range(len(rows.chunks)):
            found[i * rows.rows : (i + 1) * rows.rows] = _chunk(rows, i)
        return found

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        rows = _checked_rows(self._path / name)
        if rows is not None:
            yield from (_chunk(rows, i) for i in range(len(rows.chunks)))
            return
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
                write_atomically(folder / "zarr.json", _group_json({}))

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray | Blocks], attributes: Mapping[str, str]) -> None:
        _write_group(path, attributes)
        for name, array in arrays.items():
            _write_array(path / name, array)

    @staticmethod
    def write_groups(path: Path, groups: Groups) -> None:
        _write_group(path, {})
        for group, arrays in groups:
            folder = path
            for name in group.strip("/").split("/") if group != "/" else ():
                folder = folder / name
                if not folder.exists():
                    _write_group(folder, {})
            for name, array in arrays.items():
                _write_array(folder / name, array)

    @staticmethod
    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[_OpenGroup]:
        _require_group(path)
        yield _OpenGroup(path)

    @staticmethod
    def rows(path: Path, names: list[str]) -> dict[str, RowReader]:
        _require_group(path)
        return {name: _raw_rows(path / name) or _library_rows(path, name) for name in names}


def _require_group(path: Path) -> None:
    described = json.loads(plain(path / "zarr.json").read_bytes())
    if (described["zarr_format"], described["node_type"]) != (3, "group"):
        raise ValueError(f"{path} is not a Zarr group of version 3")


def _group_json(attributes: Mapping[str, str]) -> bytes:
    return _described({"attributes": dict(attributes), "zarr_format": 3, "node_type": "group"})


def _write_group(folder: Path, attributes: Mapping[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "zarr.json").write_bytes(_group_json(attributes))


def _library_rows(path: Path, name: str) -> LibraryRows:
    with ZarrShards.opened(path) as group:
        array = group.array(name)
    return LibraryRows(lambda rows: np.asarray(array[rows]), array.shape, array.dtype)


def _write_array(folder: Path, array: np.ndarray | Blocks) -> None:
    """One array of the Zarr specification, version 3: its description, and the chunks that hold values, each checked."""
    full = bool(array.size and array.ndim)
    chunks = chunk_shape(array.shape, array.dtype) if full else tuple(max(1, n) for n in array.shape)
    folder.mkdir()
    (folder / "zarr.json").write_bytes(_array_json(array.shape, array.dtype, chunks))
    if isinstance(array, Blocks):
        pieces = array.chunks(chunks[0])
    elif full:
        pieces = ((start, array[start : start + chunks[0]]) for start in range(0, len(array), chunks[0]))
    else:
        pieces = [(0, array)] if array.size else ()
    for start, piece in pieces:
        _write_chunk(_chunk_file(folder, start // chunks[0] if full else None, array.ndim), piece, chunks)


def _array_json(shape: tuple[int, ...], dtype: np.dtype, chunks: tuple[int, ...]) -> bytes:
    endian = {"configuration": {"endian": "little"}} if dtype.itemsize > 1 else {}
    return _described(
        {
            "shape": list(shape),
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0.0 if dtype.kind == "f" else 0,
            "codecs": [{"name": "bytes", **endian}, {"name": "crc32c"}],
            "attributes": {},
            "zarr_format": 3,
            "node_type": "array",
            "storage_transformers": [],
        }
    )


def _described(metadata: Mapping[str, Any]) -> bytes:
    return json.dumps(metadata, indent=2).encode()


def _chunk_file(folder: Path, number: int | None, dimensions: int) -> Path:
    """Chunk `number` along the first axis, all of the others; None is the one of a single value."""
    place = () if number is None else (str(number), *("0" for _ in range(dimensions - 1)))
    return folder.joinpath("c", *place)


def _write_chunk(file: Path, piece: np.ndarray, chunks: tuple[int, ...]) -> None:
    """The values little-endian, zeros where the last chunk has fewer rows than others, and their checksum."""
    values = np.ascontiguousarray(piece, piece.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    padding = bytes(math.prod(chunks) * piece.dtype.itemsize - len(values))
    checksum = google_crc32c.extend(google_crc32c.value(values), padding)
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as target:
        target.writelines((values.data, padding, checksum.to_bytes(_CHECKSUM, "little")))


def _checked_rows(folder: Path) -> RawRows | None:
    """The chunks of an array that lies as we write it, each with one checksum; None leaves it to the library."""
    described = json.loads(plain(folder / "zarr.json").read_bytes())
    ours = described.get("node_type") == "array" and described.get("zarr_format") == 3
    if not ours or _plain_codecs(described["codecs"]) != _CHECKSUM or not described["shape"]:
        return None
    return _rows_described(folder, described)


def _chunk(rows: RawRows, number: int) -> np.ndarray:
    """The values of a chunk. Raises ValueError where they do not have their checksum, OSError where the file ends early."""
    file = rows.chunks[number].path
    content = np.fromfile(plain(file), np.uint8)
    values, checksum = content[:-_CHECKSUM], content[-_CHECKSUM:].tobytes()
    if google_crc32c.value(values) != int.from_bytes(checksum, "little"):
        raise ValueError(f"chunk {file} does not have the checksum it was written with")
    return values.view(rows.dtype).reshape(-1, *rows.shape[1:])[: rows.shape[0] - number * rows.rows]


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
    return _rows_described(folder, json.loads(plain(folder / "zarr.json").read_bytes()))


def _rows_described(folder: Path, described: dict[str, Any]) -> RawRows | None:
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
        chunks.append(Chunk(_chunk_file(folder, number, len(shape)), 0))
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
    return _CHECKSUM * len(others) if little and all(codec["name"] == "crc32c" for codec in others) else None
