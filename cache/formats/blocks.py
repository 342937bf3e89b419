"""Arrays too large for memory, written block by block."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

MAX_CHUNK_BYTES = 48 << 20


class Blocks:
    """An array that comes in pieces, one after another along its first axis.

    Args:
        shape: of the whole array.
        dtype: of the whole array.
        make: gives the pieces in order; called anew for each pass.

    Attributes:
        crc32: of the raw bytes that the last pass of `chunks` gave out.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype | type, make: Callable[[], Iterator[np.ndarray]]
    ) -> None:
        self.shape, self.dtype, self._make = shape, np.dtype(dtype), make
        self.ndim, self.size = len(shape), int(np.prod(shape))
        self.crc32 = 0

    def chunks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, piece) with exactly `rows` rows each, the last fewer: one buffer is used again and again.

        Raises:
            ValueError: the pieces have more or fewer rows than `shape` says.
        """
        self.crc32 = 0
        buffer = np.empty((min(rows, self.shape[0]), *self.shape[1:]), self.dtype)
        start = filled = 0
        for block in self._make():
            while len(block):
                taken = block[: len(buffer) - filled]
                if start + filled + len(taken) > self.shape[0]:
                    raise ValueError(f"an array of {self.shape[0]} rows was given more")
                buffer[filled : filled + len(taken)] = taken
                filled, block = filled + len(taken), block[len(taken) :]
                if filled == len(buffer):
                    yield start, self._counted(buffer)
                    start, filled = start + filled, 0
        if filled:
            yield start, self._counted(buffer[:filled])
        if start + filled != self.shape[0]:
            raise ValueError(f"an array of {self.shape[0]} rows was given {start + filled}")

    def whole(self) -> np.ndarray:
        """All of it in memory."""
        pieces = [*self._make()]
        return np.concatenate(pieces) if pieces else np.zeros(self.shape, self.dtype)

    def _counted(self, piece: np.ndarray) -> np.ndarray:
        self.crc32 = zlib.crc32(piece.data, self.crc32)
        return piece


def chunk_shape(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """One chunk an array while it stays below 48 MB, else as few as may be, of whole rows and equal size.

    Equal, because the last chunk takes as much of the disk as the others however little of it is used.
    """
    row = max(1, int(np.prod(shape[1:])) * dtype.itemsize)
    most = max(1, MAX_CHUNK_BYTES // row)
    count = max(1, -(-shape[0] // most))
    return (max(1, -(-shape[0] // count)), *shape[1:])


Groups = Iterable[tuple[str, Mapping[str, np.ndarray | Blocks]]]  # of one file: name, arrays
