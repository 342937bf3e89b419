"""A shard as one HDF5 file: plain datasets at the root, uncompressed, checksummed by fletcher32, mappable."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from glscl.cache.blocks import Blocks, Chunk, Groups, LibraryRows, RawRows, RowReader, chunk_shape

_ALIGNED = {"alignment_threshold": 4096, "alignment_interval": 4096}


class Hdf5Shards:
    """Reads and writes `.h5` shards. See `glscl.cache.store.ShardFormat`."""

    name = "hdf5"
    suffix = ".h5"

    @staticmethod
    def prepare_root(root: Path, streams: tuple[str, ...]) -> None:
        pass

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray | Blocks], attributes: Mapping[str, str]) -> None:
        _require_space(path.parent, arrays)
        with h5py.File(path, "w", **_ALIGNED) as file:
            file.attrs.update(attributes)
            _write_arrays(file, arrays)

    @staticmethod
    def write_groups(path: Path, groups: Groups) -> None:
        with h5py.File(path, "w", **_ALIGNED) as file:
            for name, arrays in groups:
                _write_arrays(file.require_group(name), arrays)

    @staticmethod
    def read(path: Path, name: str) -> np.ndarray:
        file, group = _inside(path)
        with h5py.File(file, "r") as opened:
            return opened[group][name][...]

    @staticmethod
    def map(path: Path, names: list[str]) -> dict[str, np.ndarray]:
        file, group = _inside(path)
        with h5py.File(file, "r") as opened:
            inside = opened[group]
            return {name: _map_dataset(file, inside[name]) for name in names}

    @staticmethod
    def blocks(path: Path, name: str) -> Iterator[np.ndarray]:
        file, group = _inside(path)
        with h5py.File(file, "r") as opened:
            dataset = opened[group][name]
            step = (dataset.chunks or chunk_shape(dataset.shape, dataset.dtype))[0]
            for start in range(0, len(dataset), step):
                yield dataset[start : start + step]

    @staticmethod
    def rows(path: Path, name: str) -> RowReader:
        file, group = _inside(path)
        with h5py.File(file, "r") as opened:
            dataset = opened[group][name]
            return _raw_rows(file, dataset) or LibraryRows(_slices(file, dataset.name), dataset.shape, dataset.dtype)


def _slices(file: Path, name: str) -> Callable[[slice], np.ndarray]:
    def read(rows: slice) -> np.ndarray:
        with h5py.File(file, "r") as opened:
            return opened[name][rows]

    return read


def _require_space(folder: Path, arrays: Mapping[str, np.ndarray | Blocks]) -> None:
    """Raise what a full disk would, before the library prints a line for every object that it then cannot close."""
    needed = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays.values())
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_arrays(group: h5py.Group, arrays: Mapping[str, np.ndarray | Blocks]) -> None:
    for name, array in arrays.items():
        if array.size == 0 or array.ndim == 0:
            group.create_dataset(name, array.shape, array.dtype, data=None if array.size == 0 else array)
            continue
        chunks = chunk_shape(array.shape, array.dtype)
        if isinstance(array, Blocks):
            dataset = group.create_dataset(name, array.shape, array.dtype, chunks=chunks, fletcher32=True)
            for start, piece in array.chunks(chunks[0]):
                dataset[start : start + len(piece)] = piece
        else:
            group.create_dataset(name, data=array, chunks=chunks, fletcher32=True)


def _inside(path: Path) -> tuple[Path, str]:
    """A path may go on inside a file, to a group: `shared.h5/video` is the group `video` of `shared.h5`."""
    file = path
    while not file.exists() and file != file.parent:
        file = file.parent
    if not file.is_file():
        raise FileNotFoundError(path)
    return file, path.relative_to(file).as_posix() if path != file else "/"


def _map_dataset(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """A read-only map of an uncompressed one-chunk dataset; of several chunks their bytes; else what the library reads."""
    layout, shape = dataset.id.get_create_plist(), dataset.shape  # one look; Dataset's own properties look anew each time
    filters = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
    if dataset.size and layout.get_layout() == h5py.h5d.CHUNKED and filters <= {h5py.h5z.FILTER_FLETCHER32}:
        count = dataset.id.get_num_chunks()
        if count == 0:
            raise OSError(f"dataset {dataset.name} of {path} has no data")
        if count == 1 and layout.get_chunk() == shape:
            info, dtype = dataset.id.get_chunk_info(0), dataset.dtype
            checksum = 4 if filters and not info.filter_mask else 0
            if info.byte_offset is not None and info.size == dtype.itemsize * math.prod(shape) + checksum:
                return np.memmap(path, dtype, "r", offset=info.byte_offset, shape=shape)
    raw = _raw_rows(path, dataset) if dataset.size else None
    return dataset[...] if raw is None else raw.read(0, len(dataset))


def _raw_rows(path: Path, dataset: h5py.Dataset) -> RawRows | None:
    """The chunks of an uncompressed dataset that is cut along its first axis only; None where they are anything else."""
    if not dataset.size:
        return RawRows([], 1, dataset.shape, dataset.dtype)
    if dataset.compression is not None or dataset.shuffle or dataset.chunks is None:
        return None
    rows, count = dataset.chunks[0], -(-len(dataset) // dataset.chunks[0])
    if dataset.chunks[1:] != dataset.shape[1:] or dataset.id.get_num_chunks() != count:
        return None
    infos = [dataset.id.get_chunk_info(i) for i in range(count)]
    infos.sort(key=lambda info: info.chunk_offset[0])
    expected = rows * int(np.prod(dataset.shape[1:])) * dataset.dtype.itemsize
    for info in infos:
        if info.byte_offset is None or info.size != expected + 4 * bool(dataset.fletcher32 and not info.filter_mask):
            return None
    return RawRows([Chunk(path, info.byte_offset) for info in infos], rows, dataset.shape, dataset.dtype)
