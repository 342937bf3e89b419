"""A shard as one HDF5 file: plain datasets at the root, uncompressed, checksummed by fletcher32, mappable."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

MAX_CHUNK_BYTES = 48 << 20


class Hdf5Shards:
    """Reads and writes `.h5` shards. See `glscl.cache.store.ShardFormat`."""

    name = "hdf5"
    suffix = ".h5"

    @staticmethod
    def prepare_root(root: Path, streams: tuple[str, ...]) -> None:
        pass

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, str]) -> None:
        with h5py.File(path, "w", alignment_threshold=4096, alignment_interval=4096) as file:
            file.attrs.update(attributes)
            for name, array in arrays.items():
                if array.size == 0:
                    file.create_dataset(name, shape=array.shape, dtype=array.dtype)
                else:
                    file.create_dataset(name, data=array, chunks=chunk_shape(array), fletcher32=True)

    @staticmethod
    def read(path: Path, name: str) -> np.ndarray:
        with h5py.File(path, "r") as file:
            return file[name][...]

    @staticmethod
    def map(path: Path, names: list[str]) -> dict[str, np.ndarray]:
        out = {}
        with h5py.File(path, "r") as file:
            for name in names:
                dataset = file[name]
                out[name] = _map_dataset(path, dataset)
        return out


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
