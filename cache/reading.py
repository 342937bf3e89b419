"""Items of many shards as one array: allocated once, then filled by several threads straight from the files.

n items asked for, R rows of all of them together, D embed_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import numpy as np

from glscl.cache.formats.rows import RawRows, take
from glscl.cache.library import Library
from glscl.cache.schema import PAD, Status
from glscl.cache.shard_arrays import LAYOUT, numpy_dtype
from glscl.cache.shards import Shard
from glscl.common.memory import require_memory

# Reading waits for the disk, or for the system to find and copy pages: it is not the interpreter that works.
THREADS = 4
PIECE_BYTES = 8 << 20  # one thread's share
LARGE_BYTES = 64 << 20  # from which on it is asked whether there is so much
SMALL_BYTES = 1 << 20  # below it, handing work to a thread costs more than the work

Numbers = range | np.ndarray  # numbers of items in a library: a run, or (n,) int64 that rise


class _Share(NamedTuple):
    """What a shard gives to the items asked for: those in `local`, as it counts its own."""

    shard: Shard
    local: slice | np.ndarray
    bounds: dict[str, tuple[np.ndarray, np.ndarray]]  # first row and number of rows of each of these items

    def rows(self, name: str) -> slice | np.ndarray:
        """The rows of an array that belong to these items, as the shard counts them."""
        spec = LAYOUT[self.shard.commit.stream][name]
        if not spec.boundaries:
            return self.local
        first, lengths = self.bounds[spec.boundaries]
        if isinstance(self.local, slice):
            start = int(first[0]) if len(first) else 0
            return slice(start, start + int(lengths.sum()))
        return ragged_rows(first, lengths)


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


def read_arrays(library: Library, stream: str, names: list[str], numbers: Numbers) -> dict[str, np.ndarray]:
    """name → array over some committed items, in the dtypes on disk, boundaries made to fit.

    Raises:
        CacheCorruptError: a shard contradicts its commit.
        KeyError: an item that is not committed.
        OutOfMemoryError: they are more than can be held.
    """
    shares = list(_shares(library, stream, names, numbers))
    found = {}
    with _Filling() as filling:
        for name in names:
            spec = LAYOUT[stream][name]
            if spec.along == "boundaries":
                lengths = [share.bounds[name][1] for share in shares]
                found[name] = np.concatenate([np.zeros(1, np.int64), *lengths])
                np.cumsum(found[name], out=found[name])
                continue
            rows = [share.rows(name) for share in shares]
            columns = (library.embed_dim,) if spec.columns else ()
            found[name] = _room((sum(map(_count, rows)), *columns), numpy_dtype(spec, library.dtype), library, stream)
            at = 0
            for share, wanted in zip(shares, rows):
                stop = at + _count(wanted)
                _read(share.shard, name, wanted, found[name][at:stop], filling)
                at = stop
    return found


def without_padding(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of captions, `values`, `offsets` and `token_ids` among them, without the rows of what stands behind captions."""
    real = found["token_ids"] != PAD  # (R,)
    rows = {name: found[name][real] for name in ("values", "token_ids")}
    return {**found, **rows, "offsets": np.append(0, real.cumsum())[found["offsets"]]}


def read_entries(library: Library, stream: str, names: list[str], numbers: np.ndarray) -> dict[str, np.ndarray]:
    """`read_arrays` for items in any order, each as often as it stands there; each is read once.

    Args:
        numbers: (n,) int64; negative for an entry without an item, which has no rows, status MISSING and zeros.
    """
    wanted, place = unique_numbers(numbers)
    layout = LAYOUT[stream]
    boundaries = {spec.boundaries for name in names if (spec := layout[name]).boundaries}
    found = read_arrays(library, stream, sorted({*names, *boundaries}), wanted)
    if place is not None:
        found = _expanded(found, stream, place)
    return {name: found[name] for name in {*names, *boundaries}}


def _expanded(found: dict[str, np.ndarray], stream: str, place: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays over items → arrays over entries; `place` (n,) says which item each entry has, −1 none."""
    out = {}
    there = place >= 0
    for name, spec in LAYOUT[stream].items():
        if name not in found:
            continue
        if spec.along == "items":
            out[name] = np.zeros((len(place), *found[name].shape[1:]), found[name].dtype)
            out[name][there] = found[name][place[there]]
            if name == "status":
                out[name][~there] = int(Status.MISSING)
            continue
        bounds = found[spec.boundaries or name]
        first = np.where(there, bounds[np.maximum(place, 0)], 0)
        lengths = (
            np.where(there, bounds[np.maximum(place, 0) + 1], 0) - first if len(bounds) > 1 else np.zeros_like(place)
        )
        if spec.along == "boundaries":
            out[name] = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        else:
            out[name] = found[name][ragged_rows(first, lengths)]
    return out


def read_rows(library: Library, stream: str, name: str, rows: np.ndarray, numbers: Numbers) -> np.ndarray:
    """Some rows of a ragged array, (k, …) in the dtype on disk.

    Args:
        rows: (k,) int64 that never fall, numbered within the items `numbers`, as the boundaries of `read_arrays` are.
    """
    spec = LAYOUT[stream][name]
    columns = (library.embed_dim,) if spec.columns else ()
    out = _room((len(rows), *columns), numpy_dtype(spec, library.dtype), library, stream)
    base = done = 0
    with _Filling() as filling:
        for share in list(_shares(library, stream, [name], numbers)):
            first, lengths = share.bounds[spec.boundaries or ""]
            bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            upto = int(np.searchsorted(rows, base + bounds[-1]))
            wanted = rows[done:upto] - base
            item = np.searchsorted(bounds, wanted, side="right") - 1
            wanted = wanted - bounds[item] + first[item] if len(wanted) else wanted
            _read(share.shard, name, wanted, out[done:upto], filling)
            base, done = base + int(bounds[-1]), upto
    if done != len(rows):
        raise IndexError(f"row {rows[done]} of {base} {stream} rows")
    return out


def unique_numbers(numbers: np.ndarray) -> tuple[Numbers, np.ndarray | None]:
    """The items that entries lead to, each once and rising, and where among them each entry's is.

    Args:
        numbers: (n,) int64, negative where an entry has no item.

    Returns:
        Numbers of the items, a range where they follow each other; and (n,) int64, −1 for no item, or None where the
        entries are these items in this order.
    """
    if len(numbers) and numbers[0] >= 0 and (np.diff(numbers) == 1).all():
        return range(int(numbers[0]), int(numbers[-1]) + 1), None
    there = numbers >= 0
    wanted, inverse = np.unique(numbers[there], return_inverse=True)
    place = np.full(len(numbers), -1, np.int64)
    place[there] = inverse
    if len(wanted) and wanted[-1] - wanted[0] + 1 == len(wanted):
        return range(int(wanted[0]), int(wanted[-1]) + 1), place
    return wanted, place


def in_pieces(items: np.ndarray, counts: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Items (n,) in runs of at most `most` rows together, one item at least; `counts` (n,) are the rows of each."""
    part = (np.cumsum(counts) - 1) // most
    for number in np.unique(part):
        yield items[part == number]


def ragged_rows(first: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Rows (R,) int64 of ragged items: item i has `lengths[i]` of them, from `first[i]` on."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(first - (ends - lengths), lengths) + np.arange(total)


def _shares(library: Library, stream: str, names: list[str], numbers: Numbers) -> Iterator[_Share]:
    """The shards that hold the items, found and looked at before anything of their size is allocated."""
    layout, about = LAYOUT[stream], library.stream(stream)
    boundaries = {layout[name].boundaries or name for name in names if layout[name].along != "items"}
    if not len(numbers):
        return
    first, last = (int(np.searchsorted(about.starts, numbers[end], side="right")) - 1 for end in (0, -1))
    cuts = [] if isinstance(numbers, range) else np.searchsorted(numbers, about.starts[first : last + 2]).tolist()
    for position in range(first, last + 1):
        place = about.places[position]
        start = place.items.start
        if isinstance(numbers, range):
            local: slice | np.ndarray = slice(
                max(numbers.start, start) - start, min(numbers.stop, place.items.stop) - start
            )
        else:
            local = numbers[cuts[position - first] : cuts[position - first + 1]] - start
            if not len(local):
                continue
            if local[-1] - local[0] + 1 == len(local):
                local = slice(int(local[0]), int(local[-1]) + 1)
        shard = library.shard(stream, place)
        shard.readers(sorted({*names, *boundaries}))  # together, for the file is then opened once
        bounds = {}
        for name in boundaries:
            whole = shard.boundaries(name)
            bounds[name] = whole[:-1][local], np.diff(whole)[local]
        yield _Share(shard, local, bounds)


def _room(shape: tuple[int, ...], dtype: np.dtype, library: Library, stream: str) -> np.ndarray:
    """An array to fill, where there is memory for it: the system would give what it does not have, and end us later."""
    needed = math.prod(shape) * dtype.itemsize
    if needed > LARGE_BYTES:
        require_memory(
            needed,
            f"what is asked for of the {stream} features of {library.place}",
            hint="Free some, give the job more, or take fewer frames with `max_frames`",
        )
    return np.empty(shape, dtype)


def _count(rows: slice | np.ndarray) -> int:
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def _read(shard: Shard, name: str, rows: slice | np.ndarray, out: np.ndarray, filling: _Filling) -> None:
    """Some rows, as the shard counts them, into `out`; all of them at once where they follow each other."""
    if not isinstance(rows, slice):
        if not len(rows):
            return
        if rows[-1] - rows[0] + 1 != len(rows) or (np.diff(rows) != 1).any():
            reader = shard.readers([name])[name]
            filling.add(lambda: shard.read(lambda: take(reader, rows, out)), bytes=out.nbytes)
            return
        rows = slice(int(rows[0]), int(rows[-1]) + 1)
    _fill(shard, name, rows.start, out, filling)


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
