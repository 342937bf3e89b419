"""A shard as one HDF5 file: plain datasets at the root, uncompressed, checksummed by fletcher32, mappable."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import h5py
import numpy as np

from glscl.cache.formats.blocks import Blocks, Groups, chunk_shape
from glscl.cache.formats.hdf5_checks import check_dataset, chunks
from glscl.cache.formats.rows import Chunk, LibraryRows, RawRows, RowReader


class _OpenGroup:
    """See `glscl.cache.formats.OpenShard`."""

    def __init__(self, group: h5py.Group) -> None:
        self._group = group

    def _dataset(self, name: str) -> h5py.Dataset:
        dataset = _dataset(self._group, name)
        check_dataset(dataset.id)
        return dataset

    def read(self, name: str) -> np.ndarray:
        return self._dataset(name)[...]

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        dataset = self._dataset(name)
        step = (dataset.chunks or chunk_shape(dataset.shape, dataset.dtype))[0]
        for start in range(0, len(dataset), step):
            yield dataset[start : start + step]


class Hdf5Shards:
    """Reads and writes `.h5` shards. See `glscl.cache.formats.ShardFormat`."""

    name = "hdf5"
    suffix = ".h5"

    @staticmethod
    def prepare_root(root: Path, streams: tuple[str, ...]) -> None:
        pass

    @staticmethod
    def write(path: Path, arrays: Mapping[str, np.ndarray | Blocks], attributes: Mapping[str, str]) -> None:
        _require_space(path.parent, arrays)
        with _created(path) as file:
            file.attrs.update(attributes)
            _write_arrays(file, arrays)

    @staticmethod
    def write_groups(path: Path, groups: Groups) -> None:
        with _created(path) as file:
            for name, arrays in groups:
                _write_arrays(file.require_group(name), arrays)

    @staticmethod
    @contextlib.contextmanager
    def opened(path: Path) -> Iterator[_OpenGroup]:
        file, group = _inside(path)
        with h5py.File(file, "r") as opened:
            yield _OpenGroup(_group(opened, group))

    @staticmethod
    def rows(path: Path, names: list[str]) -> dict[str, RowReader]:
        file, group = _inside(path)
        with h5py.File(file, "r") as opened:
            inside = _group(opened, group)
            return {name: _raw_rows(file, inside, name) or _library_rows(file, inside, name) for name in names}


def _library_rows(file: Path, group: h5py.Group, name: str) -> LibraryRows:
    dataset, inside = _dataset(group, name), group.name or "/"
    check_dataset(dataset.id)

    def read(rows: slice) -> np.ndarray:
        with h5py.File(file, "r") as opened:
            return _dataset(_group(opened, inside), name)[rows]

    return LibraryRows(read, dataset.shape, dataset.dtype)


def _group(file: h5py.File, name: str) -> h5py.Group:
    found = file[name]
    if not isinstance(found, h5py.Group):
        raise TypeError(f"{name} is not a group")
    return found


def _dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise TypeError(f"{name} is not an array")
    return found


def _require_space(folder: Path, arrays: Mapping[str, np.ndarray | Blocks]) -> None:
    """Raise what a full disk would, before the library prints a line for every object that it then cannot close."""
    needed = sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays.values())
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def _created(path: Path) -> Iterator[h5py.File]:
    """A new file, handed to the system whole where this is left without an error.

    Where a write fails, the library tries again with every object that it closes, prints each failure, and may crash in
    the end. So its descriptor is led to where all of that succeeds; nobody looks at such a file again.

    Raises:
        OSError: it cannot be written.
    """
    file = h5py.File(path, "w", alignment_threshold=4096, alignment_interval=4096)
    try:
        yield file
        file.flush()
        file.close()
    except BaseException as error:
        if file.id.valid:
            _let_go(file)
        if type(error) is RuntimeError:  # the library's own, with the system's number in its text
            raise OSError(str(error)) from error
        raise


def _let_go(file: h5py.File) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    try:
        os.dup2(nowhere, file.id.get_vfd_handle(), inheritable=False)
    finally:
        os.close(nowhere)
    with contextlib.suppress(Exception):
        file.close()


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
            dataset = group.create_dataset(name, data=array, chunks=chunks, fletcher32=True)
        dataset.flush()  # now: what fails when a dataset is closed is printed and forgotten


def _inside(path: Path) -> tuple[Path, str]:
    """A path may go on inside a file, to a group: `shared.h5/video` is the group `video` of `shared.h5`."""
    file = path
    while not file.exists() and file != file.parent:
        file = file.parent
    if not file.is_file():
        raise FileNotFoundError(path)
    return file, path.relative_to(file).as_posix() if path != file else "/"


def _raw_rows(path: Path, group: h5py.Group, name: str) -> RawRows | None:
    """The chunks of an uncompressed dataset that is cut along its first axis only; None where they are anything else.

    Through the library's lower calls: its own Dataset looks everything up anew for each property.
    """
    dataset = h5py.h5d.open(group.id, name.encode())
    shape, dtype, layout = dataset.shape, dataset.dtype, dataset.get_create_plist()
    if not math.prod(shape):
        return RawRows([], 1, shape, dtype)
    filters = {layout.get_filter(i)[0] for i in range(layout.get_nfilters())}
    if layout.get_layout() != h5py.h5d.CHUNKED or not filters <= {h5py.h5z.FILTER_FLETCHER32}:
        return None
    chunk, infos = layout.get_chunk(), sorted(chunks(dataset), key=lambda info: info.chunk_offset)
    if not infos:
        raise OSError(f"dataset {name} of {path} has no data")
    if chunk[1:] != shape[1:] or len(infos) != -(-shape[0] // chunk[0]):
        return None
    expected = math.prod(chunk) * dtype.itemsize
    for info in infos:
        if info.byte_offset is None or info.size != expected + 4 * bool(filters and not info.filter_mask):
            return None
    return RawRows([Chunk(path, info.byte_offset) for info in infos], chunk[0], shape, dtype)
