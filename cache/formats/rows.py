"""Rows of arrays on disk: straight from the raw bytes where they lie plainly in a file, else through the format's library."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

DENSE = 1 / 8  # of a span of rows: when more are wanted, reading all of them takes less time than finding each


class RowReader(Protocol):
    """Reads rows of one array on disk, and no others. `shape` and `dtype` are those of the whole array.

    Raises of all methods: OSError where the file is shorter than it should be; whatever a library raises.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows [start, stop), a new array."""
        ...

    def read_into(self, start: int, out: np.ndarray) -> None:
        """Rows [start, start + len(out)) into `out`, which is C-contiguous and of this dtype."""

    def map(self) -> np.ndarray:
        """The whole array: a read-only map where its bytes lie in one piece, else in memory."""
        ...


class Chunk(NamedTuple):
    """Where the raw bytes of a chunk begin."""

    path: Path
    offset: int


class RawRows:
    """Rows straight from the bytes of uncompressed chunks. Holds no file open; can be sent to other processes."""

    def __init__(self, chunks: list[Chunk], rows: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.chunks, self.rows, self.shape, self.dtype = chunks, rows, shape, dtype
        self.row_bytes = int(np.prod(shape[1:])) * dtype.itemsize

    def read(self, start: int, stop: int) -> np.ndarray:
        _require_within(start, stop, self.shape[0])
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.read_into(start, out)
        return out

    def read_into(self, start: int, out: np.ndarray) -> None:
        stop = start + len(out)
        _require_within(start, stop, self.shape[0])
        view = out.reshape(-1).view(np.uint8).data
        row = start
        while row < stop:
            chunk = self.chunks[row // self.rows]
            upto = min(stop, (row // self.rows + 1) * self.rows)
            part = view[(row - start) * self.row_bytes : (upto - start) * self.row_bytes]
            with open(chunk.path, "rb", buffering=0) as file:
                file.seek(chunk.offset + row % self.rows * self.row_bytes)
                if _fill(file, part) != len(part):
                    raise OSError(f"{chunk.path} ends early")
            row = upto

    def map(self) -> np.ndarray:
        if len(self.chunks) != 1 or self.rows < self.shape[0]:
            return self.read(0, self.shape[0])
        return np.memmap(self.chunks[0].path, self.dtype, "r", offset=self.chunks[0].offset, shape=self.shape)


class LibraryRows:
    """Rows through the library of the format: for chunks that are compressed or lie elsewhere."""

    def __init__(self, read: Callable[[slice], np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._read, self.shape, self.dtype = read, shape, dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        _require_within(start, stop, self.shape[0])
        return self._read(slice(start, stop))

    def read_into(self, start: int, out: np.ndarray) -> None:
        out[:] = self.read(start, start + len(out))

    def map(self) -> np.ndarray:
        return self.read(0, self.shape[0])


def take(reader: RowReader, rows: np.ndarray, out: np.ndarray) -> None:
    """The given rows, (k,) int64, k > 0 and never falling, into `out` (k, …): from one read, or from a map where they are few."""
    first, stop = int(rows[0]), int(rows[-1]) + 1
    span = reader.read(first, stop) if len(rows) > DENSE * (stop - first) else reader.map()[first:stop]
    # "clip" writes to `out` directly; the rows are in bounds, for the first and the last of them are
    np.take(span, rows - first, axis=0, out=out, mode="clip")


def _require_within(start: int, stop: int, length: int) -> None:
    if not 0 <= start <= stop <= length:
        raise IndexError(f"rows {start}:{stop} of {length}")


def _fill(file: io.FileIO, part: memoryview) -> int:
    """Read until `part` is full or the file ends; the number of bytes read."""
    done = 0
    while done < len(part):
        count = file.readinto(part[done:])
        if not count:
            break
        done += count
    return done
