"""What the HDF5 library must not be asked to read.

It trusts what a file says of its chunks: where a chunk stores, or unpacks to, fewer bytes than it should, the library reads
on behind them, gives what lies there as numbers, or crashes. So every chunk is measured before.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import h5py

from glscl.common.archive_limits import check_unpacked

_FLETCHER, _SHUFFLE, _DEFLATE, _LZF = (
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_LZF,
)


def check_dataset(dataset: h5py.h5d.DatasetID, *, texts: bool = False) -> None:
    """Raise ValueError for a dataset that may not be read.

    That is one of anything but plain numbers (with `texts`, strings of one length too); whose numbers lie in other files;
    that claims far more than it stores (`check_unpacked`); or with a chunk that is packed in an unknown way or does not
    hold what it should.
    """
    dtype, plan = dataset.dtype, dataset.get_create_plist()
    layout = plan.get_layout()
    if dtype.kind not in ("fiuS" if texts else "fiu"):
        raise ValueError(f"it holds {'Python objects' if dtype.kind == 'O' else dtype}, expected numbers")
    if layout == h5py.h5d.VIRTUAL or plan.get_external_count():
        raise ValueError("its numbers lie in other files")
    check_unpacked(math.prod(dataset.shape or ()) * dtype.itemsize, dataset.get_storage_size())
    if layout != h5py.h5d.CHUNKED:
        return
    filters = [plan.get_filter(i) for i in range(plan.get_nfilters())]
    size = math.prod(plan.get_chunk()) * dataset.get_type().get_size()
    with open(os.fsdecode(h5py.Dataset(dataset).file.filename), "rb") as file:
        for info in chunks(dataset):
            check_unpacked(size, info.size)
            _check_chunk(file, info, filters, size)


def chunks(dataset: h5py.h5d.DatasetID) -> list[Any]:
    """`chunk_offset`, `filter_mask`, `byte_offset` and `size` of every chunk that is stored."""
    if not hasattr(dataset, "chunk_iter"):  # built without it
        return [dataset.get_chunk_info(i) for i in range(dataset.get_num_chunks())]
    found: list[Any] = []
    dataset.chunk_iter(found.append)
    return found


def _check_chunk(file: BinaryIO, info: Any, filters: list[tuple[Any, ...]], size: int) -> None:
    """Raise ValueError unless a chunk becomes `size` bytes when its filters are undone, the last one first."""
    applied = [each for i, each in enumerate(filters) if not info.filter_mask >> i & 1]
    where, stored = info.byte_offset, info.size
    if where is None or where + stored > os.fstat(file.fileno()).st_size:
        raise ValueError(f"its chunk {info.chunk_offset} lies beyond the end of the file")
    length, packed = stored, False
    for number, _, values, name in reversed(applied):
        if number == _FLETCHER:
            length -= 4
        elif number in _LENGTHS and not packed:
            file.seek(where)
            length, packed = _LENGTHS[number](file.read(max(0, length)), size, values), True
        elif number != _SHUFFLE:
            called = name.decode(errors="replace")[:40] or number
            raise ValueError(f"it is packed by the filter {called}; repack it with h5repack -f GZIP=4")
        if length < 0:
            break
    if length != size:
        raise ValueError(f"its chunk {info.chunk_offset} holds {max(0, length)} bytes, expected {size}")


def _deflated(data: bytes, limit: int, _: tuple[int, ...]) -> int:
    """Bytes that a zlib stream becomes; one more than `limit` where they are more."""
    stream, length = zlib.decompressobj(), 0
    while data and not stream.eof and length <= limit:
        try:
            length += len(stream.decompress(data, min(1 << 20, limit + 1 - length)))
        except zlib.error as error:
            raise ValueError(f"a chunk cannot be unpacked: {error}") from None
        data = stream.unconsumed_tail
    return length if stream.eof or length > limit else -1


def _lzf(data: bytes, limit: int, values: tuple[int, ...]) -> int:
    """Bytes that a stream of LZF becomes: runs of literals, and copies of what came before."""
    if len(values) < 3 or values[2] != limit:  # the buffer that the filter makes
        return -1
    at, length, end = 0, 0, len(data)
    while at < end and length <= limit:
        control = data[at]
        if control < 32:
            at, length = at + control + 2, length + control + 1
        else:
            long = control >> 5 == 7
            length += (control >> 5) + 2 + (data[at + 1] if long and at + 1 < end else 0)
            at += 3 if long else 2
    return length if at == end else -1


_LENGTHS: dict[int, Callable[[bytes, int, tuple[int, ...]], int]] = {_DEFLATE: _deflated, _LZF: _lzf}
