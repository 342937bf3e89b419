"""A shard as one HDF5 file: plain datasets at the root, uncompressed, checksummed by fletcher32, mappable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

MAX_CHUNK_BYTES = 48 << 20
_ALIGNED = {"alignment_threshold": 4096, "alignment_interval": 4096}


class Hdf5Shards:
    """Reads and writes `.h5` shards. See `glscl.cache.store.ShardFormat`."""

    name = "hdf5"
    suffix = ".h5"

    @staticmethod
    def prepare_root(root: Path, streams: tuple[str, ...]) -> None:
        pass

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str]) -> None:
        with h5py.File(path, "w", **_ALIGNED) as file:
            file.attrs.update(attributes)
            _write_arrays(file, arrays)

    @staticmethod
    def write_groups(path: Path, groups: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        with h5py.File(path, "w", **_ALIGNED) as file:
            for name, arrays in groups.items():
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
            return {name: _map_dataset(file, opened[group][name]) for name in names}


def _write_arrays(group: h5py.Group, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.size == 0 or array.ndim == 0:
            group.create_dataset(name, data=array)
        else:
            group.create_dataset(name, data=array, chunks=chunk_shape(array), fletcher32=True)


def _inside(path: Path) -> tuple[Path, str]:
    """A path may go on inside a file, to a group: `shared.h5/video` is the group `video` of `shared.h5`."""
    file = path
    while not file.exists() and file != file.parent:
        file = file.parent
    if not file.is_file():
        raise FileNotFoundError(path)
    return file, path.relative_to(file).as_posix() if path != file else "/"


def chunk_shape(array: np.ndarray) -> tuple[int, ...]:
    """One chunk an array while it stays below 48 MB, else as many whole rows as fit."""
    rows = max(1, min(len(array), MAX_CHUNK_BYTES // max(1, array[:1].nbytes)))
    return (rows, *array.shape[1:])


def _map_dataset(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """The raw bytes of an uncompressed one-chunk dataset as a read-only map; else what the library reads."""
    if dataset.size and dataset.chunks == dataset.shape and dataset.compression is None and not dataset.shuffle:
        if dataset.id.get_num_chunks() == 1:
            info = dataset.id.get_chunk_info(0)
            checksum = 4 if dataset.fletcher32 and not info.filter_mask else 0
            if info.byte_offset is not None and info.size == dataset.nbytes + checksum:
                return np.memmap(path, dataset.dtype, "r", offset=info.byte_offset, shape=dataset.shape)
        elif dataset.id.get_num_chunks() == 0:
            raise OSError(f"dataset {dataset.name} of {path} has no data")
    return dataset[...]
