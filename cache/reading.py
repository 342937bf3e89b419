"""A run of items over many shards as one array: allocated once, then filled by several threads straight from the files.

n items, R rows of all items together, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from glscl.cache.formats.rows import RawRows, RowReader, take
from glscl.cache.records import Commit
from glscl.cache.shard_arrays import LAYOUT, numpy_dtype

if TYPE_CHECKING:
    from glscl.cache.store import Store

THREADS = (
    4  # reading waits for the disk, or for the system to find and copy pages: it is not the interpreter that works
)
PIECE_BYTES = 8 << 20  # one thread's share
SMALL_BYTES = 1 << 20  # below it, handing work to a thread costs more than the work


class _Part(NamedTuple):
    """What a shard gives to a run of items."""

    commit: Commit
    readers: dict[str, RowReader]
    bounds: dict[str, np.ndarray]  # of its items alone, (n + 1,) int64, as the shard counts rows

    def span(self, name: str, items: range) -> tuple[int, int]:
        """First and last + 1 of the array's own rows."""
        spec = LAYOUT[self.commit.stream][name]
        if spec.along == "rows":
            return int(self.bounds[spec.boundaries][0]), int(self.bounds[spec.boundaries][-1])
        first = max(items.start, self.commit.items[0]) - self.commit.items[0]
        return first, min(items.stop, self.commit.items[1]) - self.commit.items[0]


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


def read_arrays(store: Store, stream: str, names: list[str], items: range) -> dict[str, np.ndarray]:
    """As `Store.arrays` with `raw`: name → array, in the dtypes on disk, boundaries made to fit."""
    layout = LAYOUT[stream]
    parts = list(_parts(store, stream, names, items))
    found = {}
    with _Filling() as filling:
        for name in names:
            spec = layout[name]
            if spec.along == "boundaries":
                lengths = [np.diff(part.bounds[name]) for part in parts]
                found[name] = np.concatenate([np.zeros(1, np.int64), *lengths])
                np.cumsum(found[name], out=found[name])
                continue
            spans = [part.span(name, items) for part in parts]
            columns = (store.embed_dim,) if spec.columns else ()
            total = sum(stop - start for start, stop in spans)
            found[name] = np.empty((total, *columns), numpy_dtype(spec, store.dtype))
            at = 0
            for part, (start, stop) in zip(parts, spans):
                _fill(store, part, name, start, found[name][at : at + stop - start], filling)
                at += stop - start
    return found


def read_rows(store: Store, stream: str, name: str, rows: np.ndarray, items: range) -> np.ndarray:
    """As `Store.take_rows`: (k, …) in the dtype on disk, of `rows` (k,) int64 that never fall."""
    spec = LAYOUT[stream][name]
    columns = (store.embed_dim,) if spec.columns else ()
    parts = list(_parts(store, stream, [name], items))
    out = np.empty((len(rows), *columns), numpy_dtype(spec, store.dtype))
    base = done = 0
    with _Filling() as filling:
        for part in parts:
            start, stop = part.span(name, items)
            upto = int(np.searchsorted(rows, base + stop - start))
            _take(store, part, name, rows[done:upto] - (base - start), out[done:upto], filling)
            base, done = base + stop - start, upto
    if done != len(rows):
        raise IndexError(f"row {rows[done]} of {base} {stream} rows")
    return out


def _parts(store: Store, stream: str, names: list[str], items: range) -> Iterator[_Part]:
    """The shards that hold the items, found and looked at before anything of their size is allocated."""
    layout, size = LAYOUT[stream], store.shard_items[stream]
    boundaries = {layout[name].boundaries or name for name in names if layout[name].along != "items"}
    for shard in range(items.start // size, -(-items.stop // size)) if len(items) else ():
        commit = store.committed(stream, shard)
        readers = store.readers(commit, sorted({*names, *boundaries}))
        part = _Part(commit, readers, {})
        first, last = part.span("status", items)
        for name in boundaries:
            part.bounds[name] = _boundaries(store, part, name)[first : last + 1]
        yield part


def _boundaries(store: Store, part: _Part, name: str) -> np.ndarray:
    """The boundaries of a whole shard. Raises CacheCorruptError where they do not cut up the rows that are there."""
    reader = part.readers[name]
    found = store.reading(part.commit, lambda where: reader.read(0, reader.shape[0]))
    ragged = next(n for n, spec in LAYOUT[part.commit.stream].items() if spec.boundaries == name)
    rows = part.commit.arrays[ragged]["shape"][0]
    if found[0] != 0 or found[-1] != rows or (found[1:] < found[:-1]).any():
        raise store.contradiction(part.commit, f"{name} does not rise from 0 to {rows}")
    return found


def _fill(store: Store, part: _Part, name: str, start: int, out: np.ndarray, filling: _Filling) -> None:
    """Rows from `start` on into `out`, cut into pieces where the bytes lie plainly."""
    reader = part.readers[name]
    row_bytes = max(1, out.nbytes // max(1, len(out)))
    step = max(1, PIECE_BYTES // row_bytes) if isinstance(reader, RawRows) else max(1, len(out))
    for first in range(0, len(out), step):
        piece = out[first : first + step]

        def read(first: int = first, piece: np.ndarray = piece) -> None:
            store.reading(part.commit, lambda where: reader.read_into(start + first, piece))
            if name == "video_index":
                _check_video_index(store, part.commit, piece)

        filling.add(read, bytes=piece.nbytes)


def _take(store: Store, part: _Part, name: str, rows: np.ndarray, out: np.ndarray, filling: _Filling) -> None:
    """Some rows, as the shard counts them, into `out`; all of them at once where they follow each other."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
        _fill(store, part, name, int(rows[0]), out, filling)
    elif len(rows):
        reader = part.readers[name]
        filling.add(lambda: store.reading(part.commit, lambda where: take(reader, rows, out)), bytes=out.nbytes)


def _check_video_index(store: Store, commit: Commit, found: np.ndarray) -> None:
    count = store.num_items["video"]
    if len(found) and not -1 <= found.min() <= found.max() < count:
        raise store.contradiction(
            commit, f"video_index names videos that are not there, {found.min()} to {found.max()} of {count}"
        )
