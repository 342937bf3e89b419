"""A run of items over many shards as one array: allocated once, then filled by several threads straight from the files.

n items, R rows of all items together, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import numpy as np

from glscl.cache.formats.rows import RawRows, take
from glscl.cache.library import Library
from glscl.cache.shard_arrays import LAYOUT, numpy_dtype
from glscl.cache.shards import Shard, see_damage
from glscl.common.errors import CacheCorruptError

# Reading waits for the disk, or for the system to find and copy pages: it is not the interpreter that works.
THREADS = 4
PIECE_BYTES = 8 << 20  # one thread's share
SMALL_BYTES = 1 << 20  # below it, handing work to a thread costs more than the work


class _Share(NamedTuple):
    """What a shard gives to a run of items."""

    shard: Shard
    first: int  # of its own items
    stop: int
    bounds: dict[str, np.ndarray]  # of these items alone, (n + 1,) int64, as the shard counts rows

    def span(self, name: str) -> tuple[int, int]:
        """First and last + 1 of the array's own rows."""
        spec = LAYOUT[self.shard.commit.stream][name]
        if spec.boundaries:
            return int(self.bounds[spec.boundaries][0]), int(self.bounds[spec.boundaries][-1])
        return self.first, self.stop


class _Filling:
    """Work for threads. Leaving the block waits until all is done; the first error, in order, is raised."""

    def __enter__(self) -> _Filling:
        self._pool = ThreadPoolExecutor(THREADS)
        self._futures: list[Future[None]] = []
        return self

    def add(self, work: Callable[[], None], *, bytes: int) -> None:
        if bytes < SMALL_BYTES:
            work()
        else:
            self._futures.append(self._pool.submit(work))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for future in self._futures:
                    future.result()
        finally:
            self._pool.shutdown(cancel_futures=True)


def read_arrays(library: Library, stream: str, names: list[str], items: range) -> dict[str, np.ndarray]:
    """name → array over a run of items, in the dtypes on disk, boundaries made to fit.

    Raises:
        CacheIncompleteError: a shard that is needed is not committed.
        CacheCorruptError: a shard contradicts its commit.
    """
    shares = list(_shares(library, stream, names, items))
    found = {}
    with _Filling() as filling:
        for name in names:
            spec = LAYOUT[stream][name]
            if spec.along == "boundaries":
                lengths = [np.diff(share.bounds[name]) for share in shares]
                found[name] = np.concatenate([np.zeros(1, np.int64), *lengths])
                np.cumsum(found[name], out=found[name])
                continue
            spans = [share.span(name) for share in shares]
            columns = (library.embed_dim,) if spec.columns else ()
            total = sum(stop - start for start, stop in spans)
            found[name] = np.empty((total, *columns), numpy_dtype(spec, library.dtype))
            at = 0
            for share, (start, stop) in zip(shares, spans):
                _fill(share.shard, name, start, found[name][at : at + stop - start], filling)
                at += stop - start
    if "video_index" in found:
        _check_video_index(library, found["video_index"])
    return found


def read_rows(library: Library, stream: str, name: str, rows: np.ndarray, items: range) -> np.ndarray:
    """Some rows of a ragged array, (k, …) in the dtype on disk.

    Args:
        rows: (k,) int64 that never fall, numbered within `items`.
    """
    spec = LAYOUT[stream][name]
    columns = (library.embed_dim,) if spec.columns else ()
    shares = list(_shares(library, stream, [name], items))
    out = np.empty((len(rows), *columns), numpy_dtype(spec, library.dtype))
    base = done = 0
    with _Filling() as filling:
        for share in shares:
            start, stop = share.span(name)
            upto = int(np.searchsorted(rows, base + stop - start))
            _take(share.shard, name, rows[done:upto] - (base - start), out[done:upto], filling)
            base, done = base + stop - start, upto
    if done != len(rows):
        raise IndexError(f"row {rows[done]} of {base} {stream} rows")
    return out


def _shares(library: Library, stream: str, names: list[str], items: range) -> Iterator[_Share]:
    """The shards that hold the items, found and looked at before anything of their size is allocated."""
    layout, size = LAYOUT[stream], library.shard_items[stream]
    boundaries = {layout[name].boundaries or name for name in names if layout[name].along != "items"}
    for number in range(items.start // size, -(-items.stop // size)) if len(items) else ():
        shard = library.shard(stream, number)
        shard.readers(sorted({*names, *boundaries}))  # together, for the file is then opened once
        begin, end = shard.commit.items
        first, stop = max(items.start, begin) - begin, min(items.stop, end) - begin
        yield _Share(shard, first, stop, {name: shard.boundaries(name)[first : stop + 1] for name in boundaries})


def _fill(shard: Shard, name: str, start: int, out: np.ndarray, filling: _Filling) -> None:
    """Rows from `start` on into `out`, cut into pieces where the bytes lie plainly."""
    reader = shard.readers([name])[name]
    row_bytes = max(1, out.nbytes // max(1, len(out)))
    step = max(1, PIECE_BYTES // row_bytes) if isinstance(reader, RawRows) else max(1, len(out))
    for first in range(0, len(out), step):
        piece = out[first : first + step]

        def read(first: int = first, piece: np.ndarray = piece) -> None:
            shard.read(lambda: reader.read_into(start + first, piece))

        filling.add(read, bytes=piece.nbytes)


def _take(shard: Shard, name: str, rows: np.ndarray, out: np.ndarray, filling: _Filling) -> None:
    """Some rows, as the shard counts them, into `out`; all of them at once where they follow each other."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
        _fill(shard, name, int(rows[0]), out, filling)
    elif len(rows):
        reader = shard.readers([name])[name]
        filling.add(lambda: shard.read(lambda: take(reader, rows, out)), bytes=out.nbytes)


def _check_video_index(library: Library, found: np.ndarray) -> None:
    """Raise CacheCorruptError where a caption names a video that no shard can hold."""
    count = library.num_items["video"]
    if len(found) and not -1 <= found.min() <= found.max() < count:
        raise CacheCorruptError(
            f"{library.path}: video_index names videos that are not there, {found.min()} to {found.max()} of {count}",
            hint=see_damage(library.path),
        )
