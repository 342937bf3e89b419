"""An approximate index of all frames of a cache, for a million of them and more: cells of faiss beside the cache.

    <cache>/index/index.json          what counts: the cells, and how many of them a query looks into; replaced last of all
                  <cells>.faiss       the cells, learned once, without frames
                  <segment>.faiss     frames in their cells, each in D bytes
                  <segment>.npz       `keys` (n, 16) of the items whose frames these are, and `offsets` (n + 1,) of their rows

Segments are never changed: what the cache gained since is a further one. Nothing here is needed to read a cache; the folder
may be deleted. Sentences lie far from the frames that show what they say, so how many cells a query looks into is chosen with
sentences, and measured with others.

R frames, Q queries, D embed_dim.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.cache.additions import KeyIndex
from glscl.cache.files import (
    dump_json,
    load_json,
    refuse_links,
    remove,
    storage_errors,
    sync_directory,
    write_atomically,
)
from glscl.cache.library import Library, open_library
from glscl.cache.lock import hold_folder
from glscl.cache.reading import in_pieces, read_arrays
from glscl.cache.schema import DEPTH, Status
from glscl.cache.store import Store
from glscl.cache.table import stored_tensor
from glscl.common.errors import (
    CacheCorruptError,
    CacheError,
    GlsclError,
    Hint,
    InputError,
    NonFiniteError,
    UsageError,
    first_line,
)
from glscl.common.versions import versions
from glscl.evaluate.parts import Workers
from glscl.evaluate.search.frame_index import Candidates, FrameIndex, Listed, StoredRows, units_of

SCHEMA = "glscl.index/1"
FOLDER = "index"
SEGMENT = 1 << 22  # frames of one at most: what is held in memory while it is made
SAMPLE = 64  # frames a cell that cells are learned from; faiss wants 39 at least
AGAIN = 8  # times as many frames as the cells were learned for: they are learned anew
QUERIES = 256  # half of them choose, the other half measure
TOP = 10  # videos whose recall is measured
FramesTold = Callable[[int], None]


class Segment(msgspec.Struct, frozen=True):
    """Frames that were added together."""

    name: str
    items: int
    frames: int


class IndexRecord(msgspec.Struct, frozen=True):
    """What index.json says.

    Attributes:
        fingerprint: of the cache.
        cells: name of the file of cells. count: how many there are. probes: how many a query looks into.
        learned_for, tuned_for: frames that there were when the cells were learned, and when `probes` was chosen.
        recall: of the best ten videos with other queries, 0 to 1. queries: what they were.
        milliseconds, exact_milliseconds: a query, with the index and by looking at every frame in memory.
    """

    fingerprint: str
    cells: str
    count: int
    learned_for: int
    segments: tuple[Segment, ...] = ()
    probes: int = 1
    tuned_for: int = 0
    recall: float = 0.0
    queries: str = ""
    milliseconds: float = 0.0
    exact_milliseconds: float = 0.0
    versions: dict[str, str] = {}
    schema: str = SCHEMA

    @property
    def frames(self) -> int:
        return sum(each.frames for each in self.segments)

    def as_dict(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)


def faiss_module() -> Any:
    """Raises UsageError where faiss is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise UsageError("An index needs faiss, which is not installed", hint="pip install 'glscl[index]'") from error


# --- searching -----------------------------------------------------------------------------------------------------------


def index_of(store: Store, *, device: torch.device | str = "cpu") -> FrameIndex | None:
    """The approximate index of a list; None where its cache has none.

    Raises:
        UsageError: there is one, but no faiss.
        CacheError: it cannot be used: it lacks videos of the list, or is damaged; says how to make it again.
    """
    folder = store.path / FOLDER
    if store.library.is_flat or not (folder / "index.json").is_file():
        return None
    cells = _opened(folder)
    if cells.about.fingerprint != store.fingerprint:
        raise CacheCorruptError(f"{folder} is of another cache", hint=_again(store.path))
    listed = Listed.read(store)
    wanted, where = np.unique(listed.numbers, return_inverse=True)
    counts = np.zeros(len(wanted), np.int64)
    counts[where] = listed.counts
    place = cells.places_of(store.library.stream("video").keys[wanted], counts)
    lacking = int((place[where] < 0).sum())
    if lacking:
        raise CacheError(
            f"the index of {store.place} lacks {lacking:,} of {len(where):,} videos",
            hint=Hint("Add them", "index", {"": store.path}),
        )
    finder = Approximate(cells, place[where])
    rows = StoredRows(store.library, listed.numbers, device)
    return FrameIndex(listed.entries, listed.offsets, listed.times, listed.durations, rows, finder)


class Cells:
    """Segments of an index, mapped from their files."""

    def __init__(self, folder: Path, about: IndexRecord) -> None:
        faiss = faiss_module()
        self.about = about
        self.segments = [faiss.read_index(str(folder / f"{s.name}.faiss"), faiss.IO_FLAG_MMAP) for s in about.segments]
        kept = [_kept(folder, segment) for segment in about.segments]
        self.keys = np.concatenate([keys for keys, _ in kept]) if kept else np.zeros((0, 16), np.uint8)
        self.counts = np.concatenate([np.diff(offsets) for _, offsets in kept]) if kept else np.zeros(0, np.int64)
        self.offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.counts)])
        self.first = np.cumsum([0, *(segment.frames for segment in about.segments)])[:-1].tolist()
        for index, segment in zip(self.segments, about.segments):
            if index.ntotal != segment.frames:
                raise ValueError(f"{segment.name} has {index.ntotal} frames instead of {segment.frames}")

    def places_of(self, keys: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Where items (n,) stand here, −1 for those that do not, or with another number of frames."""
        found = KeyIndex(self.keys, np.zeros(len(self.keys), np.uint8)).find(keys)
        return np.where((found >= 0) & (self.counts[np.maximum(found, 0)] == counts), found, -1) if len(
            self.keys
        ) else np.full(len(keys), -1)  # fmt: skip

    def nearest(
        self, query: np.ndarray, count: int, *, probes: int, admitted: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The frames nearest to a query (D,) of length 1: cosines (k,) float32, and (k,) int64, whose items they are.

        Args:
            admitted: (n,) bool, items; None: all.
        """
        faiss = faiss_module()
        scores, rows = [], []
        for index, first in zip(self.segments, self.first):
            told: dict[str, Any] = {"nprobe": min(probes, index.nlist)}
            if admitted is not None:
                mask = np.repeat(admitted, self.counts)[first : first + index.ntotal]
                told["sel"] = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
            found, ids = index.search(query[None], count, params=faiss.SearchParametersIVF(**told))
            there = ids[0] >= 0
            scores.append(found[0][there])
            rows.append(ids[0][there] + first)
        row = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        return np.concatenate(scores) if scores else np.zeros(0, np.float32), (
            np.searchsorted(self.offsets, row, side="right") - 1
        )


class Approximate:
    """Finds candidates in cells.

    Args:
        place: (V,) int64, where the item of each video of the index stands in the cells.
    """

    def __init__(self, cells: Cells, place: np.ndarray) -> None:
        self.cells, self.place = cells, place

    def __repr__(self) -> str:
        return "an approximate index"

    def candidates(self, query: Tensor, *, best: int, among: np.ndarray | None, enough: int) -> Candidates:
        """Of so many cells that the index has its recall; of more where fewer of the frames may be answers."""
        unit = F.normalize(query.float(), dim=-1).cpu().numpy()
        if not np.isfinite(unit).all():
            raise NonFiniteError("the query is NaN or infinite")
        cells, chosen = self.cells, self.place if among is None else self.place[among]
        admitted = np.zeros(len(cells.counts), bool)
        admitted[chosen] = True
        total = int(cells.counts.sum())
        frames = int(cells.counts[admitted].sum())
        probes = cells.about.probes if frames == total else -(-cells.about.probes * total // max(1, frames))
        enough, count = min(2 * enough, int(admitted.sum())), max(256, 16 * enough)
        while True:
            count = min(count, frames)
            found, items = cells.nearest(unit, count, probes=probes, admitted=None if frames == total else admitted)
            if len(np.unique(items)) >= enough or (len(items) < count and probes >= cells.about.count):
                break
            if len(items) < count:
                probes *= 4  # these cells hold no more
            elif count == frames:
                break
            else:
                count *= 4
        nearly = np.full(len(cells.counts), -np.inf, np.float32)
        np.maximum.at(nearly, items, found)
        scores = nearly[self.place]
        videos = np.flatnonzero(np.isfinite(scores) if among is None else np.isfinite(scores) & among)
        order = videos[np.argsort(-scores[videos], kind="stable")]
        return Candidates(order, scores[order])


# --- making --------------------------------------------------------------------------------------------------------------


def make_index(
    library: Library,
    *,
    recall: float,
    encode: Callable[[Sequence[str]], Tensor],
    added: FramesTold = lambda _: None,
    workers: Workers | None = None,
) -> IndexRecord:
    """Make an index of all frames of a cache, or add to it those that it lacks.

    Args:
        recall: share of the exact best ten videos that the index shall find.
        encode: sentences → (Q, D), for caches without captions.
        added: told how many frames were added.
        workers: who makes segments, such as a `glscl.common.ray_cluster.RayCluster` whose machines reach the cache; None
            makes them here. They are the same.

    Raises:
        UsageError: no faiss, or a flat file. InputError: no frames.
        BusyError: somebody else makes it. StorageError: it cannot be written, or a link stands in the cache.
    """
    faiss_module()
    if library.is_flat:
        raise UsageError(f"{library.place} is one file; an index stands in the folder of a cache")
    refuse_links(library.path, depth=DEPTH)
    folder = library.path / FOLDER
    items, counts = items_with_frames(library)
    if not counts.sum():
        raise InputError(f"{library.place} has no frames")
    with hold_folder(folder, what="index"):
        about = _growing(library, folder, int(counts.sum()))
        if about is None:
            about = _learn(library, folder, items, counts)
        keys = library.stream("video").keys
        lacking = Cells(folder, about).places_of(keys[items], counts) < 0
        there, made = about.segments, {}
        pieces = [*in_pieces(items[lacking], counts[lacking], SEGMENT)]
        for number, segment in _segments(library, folder, about, [keys[piece] for piece in pieces], added, workers):
            made[number] = segment
            about = msgspec.structs.replace(about, segments=(*there, *(made[each] for each in sorted(made))))
            _write(folder, about)
        if about.frames > 1.1 * about.tuned_for:
            about = _tuned(library, folder, about, recall, encode)
            _write(folder, about)
        _remove_others(folder, about)
    return about


def items_with_frames(library: Library) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (n,) of items, each key's best one, and how many frames (n,) each has; rising."""
    stream = library.stream("video")
    usable = np.isin(stream.status, [status for status in Status if status.usable])
    numbers = np.unique(stream.index.find(stream.keys[usable]))
    counts = np.diff(read_arrays(library, "video", ["offsets"], numbers)["offsets"])
    return numbers[counts > 0], counts[counts > 0]


def _again(cache: Path) -> Hint:
    return Hint("Make it again", "index", {"": cache})


def _opened(folder: Path) -> Cells:
    """Raises CacheCorruptError, UsageError where faiss is missing."""
    faiss_module()
    try:
        about = msgspec.convert(load_json(folder / "index.json", "index"), IndexRecord)
        names = [about.cells, *(segment.name for segment in about.segments)]
        if about.schema != SCHEMA or not all(name.isalnum() for name in names):
            raise ValueError(f"it is {about.schema}, not {SCHEMA}")
        return Cells(folder, about)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, GlsclError) as error:
        raise CacheCorruptError(f"{folder} cannot be read: {first_line(error)}", hint=_again(folder.parent)) from error


def _write(folder: Path, about: IndexRecord) -> None:
    write_atomically(folder / "index.json", dump_json(about.as_dict()))


def _kept(folder: Path, segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / f"{segment.name}.npz", allow_pickle=False) as found:
        keys, offsets = found["keys"], found["offsets"]
    if keys.shape != (segment.items, 16) or offsets.shape != (segment.items + 1,) or offsets[-1] != segment.frames:
        raise ValueError(f"{segment.name}.npz does not fit index.json")
    return keys, offsets


def _growing(library: Library, folder: Path, frames: int) -> IndexRecord | None:
    """The index that is there, to be grown; None where it is damaged, or its cells were learned for much fewer frames."""
    try:
        about = _opened(folder).about
    except CacheCorruptError:
        return None
    return about if about.fingerprint == library.fingerprint and frames <= AGAIN * about.learned_for else None


def _blocks(
    library: Library, items: np.ndarray, counts: np.ndarray | None = None
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Frames of items as they stand, (r, D) float32 of length 1, and the boundaries of the items in it."""
    if counts is None:
        counts = np.diff(read_arrays(library, "video", ["offsets"], items)["offsets"])
    for numbers in in_pieces(items, counts, 1 << 15):
        found = read_arrays(library, "video", ["values", "offsets"], numbers)
        rows = F.normalize(stored_tensor(found["values"], library.dtype).float(), dim=-1)
        if not torch.isfinite(rows).all():
            raise NonFiniteError(f"{library.place} has frames with NaN or infinity")
        yield rows, found["offsets"]


def _learn(library: Library, folder: Path, items: np.ndarray, counts: np.ndarray) -> IndexRecord:
    """Cells for the frames there are, learned from a part of them."""
    faiss = faiss_module()
    frames = int(counts.sum())
    cells = int(np.clip(2 * frames**0.5, 1, max(1, frames // 39)))
    order = np.random.default_rng(0).permutation(len(items))
    chosen = np.sort(order[: int(np.searchsorted(np.cumsum(counts[order]), SAMPLE * cells)) + 1])
    sample = torch.cat([rows for rows, _ in _blocks(library, items[chosen], counts[chosen])]).numpy()
    sample = sample[np.linspace(0, len(sample), min(len(sample), SAMPLE * cells), endpoint=False).astype(int)]
    index = faiss.index_factory(library.embed_dim, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed, index.cp.spherical = 1, True
    index.train(sample)
    data = faiss.serialize_index(index).tobytes()
    name = hashlib.sha256(data).hexdigest()[:16]
    write_atomically(folder / f"{name}.faiss", data)
    return IndexRecord(library.fingerprint, name, cells, frames, versions=versions() | {"faiss": faiss.__version__})


def _segments(
    library: Library,
    folder: Path,
    about: IndexRecord,
    pieces: Sequence[np.ndarray],
    added: FramesTold,
    workers: Workers | None,
) -> Iterator[tuple[int, Segment]]:
    """Further segments as they are made, each of the frames of some items, given by their keys (n, 16)."""
    cells = folder / f"{about.cells}.faiss"
    if workers is None:
        made = ((n, _segment(keys, library, cells.read_bytes(), added)) for n, keys in enumerate(pieces))
    else:
        made = workers.map(_segment_there, pieces, library.place, cells.read_bytes())
    for number, (index, offsets) in made:
        keys = pieces[number]
        name = hashlib.sha256(about.cells.encode() + keys.tobytes()).hexdigest()[:16]
        buffer = io.BytesIO()
        np.savez(buffer, keys=keys, offsets=offsets)
        write_atomically(folder / f"{name}.npz", buffer.getvalue())
        _write_index(folder / f"{name}.faiss", index)
        if workers is not None:
            added(int(offsets[-1]))
        yield number, Segment(name, len(keys), int(offsets[-1]))


def _segment(
    keys: np.ndarray, library: Library, cells: bytes, added: FramesTold = lambda _: None
) -> tuple[Any, np.ndarray]:
    """faiss's index of the frames of some items, and the boundaries (n + 1,) of the items in it."""
    faiss = faiss_module()
    index, counts = faiss.deserialize_index(np.frombuffer(cells, np.uint8)), []
    for rows, offsets in _blocks(library, library.stream("video").index.find(keys)):
        index.add(rows.numpy())
        counts.append(np.diff(offsets))
        added(len(rows))
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))])
    return index, offsets


def _segment_there(keys: np.ndarray, place: str, cells: bytes) -> tuple[bytes, np.ndarray]:
    index, offsets = _segment(keys, _library_at(place), cells)
    return faiss_module().serialize_index(index).tobytes(), offsets


def _write_index(path: Path, index: Any) -> None:
    """An index of faiss, or the bytes of one."""
    faiss, aside = faiss_module(), path.with_name(f".{path.name}.00000000.tmp")
    with storage_errors(path):
        try:
            with open(aside, "wb") as file:  # faiss's own writer takes no notice of a disk that is full when it closes
                if isinstance(index, bytes):
                    file.write(index)
                else:
                    faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
        sync_directory(path.parent)


@lru_cache(1)
def _library_at(place: str) -> Library:
    return open_library(place)


def _remove_others(folder: Path, about: IndexRecord) -> None:
    """What earlier cells had."""
    names = {about.cells, *(segment.name for segment in about.segments)}
    others = [path for kind in ("faiss", "npz") for path in folder.glob(f"*.{kind}") if path.stem not in names]
    for path in others:
        remove(path, folder.parent)


# --- measuring -----------------------------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """The exact answers: (Q, TOP) items of the index, and the seconds that looking at every frame takes a query."""

    items: np.ndarray
    seconds: float


def _tuned(
    library: Library,
    folder: Path,
    about: IndexRecord,
    wanted: float,
    encode: Callable[[Sequence[str]], Tensor],
) -> IndexRecord:
    """The same index with as many cells a query as the recall takes, and what is measured then."""
    queries, what = _queries(library, encode)
    cells = Cells(folder, about)
    truth = _truth(library, cells, queries)
    half = len(queries) // 2
    probes = 1
    while _recall(cells, queries[:half], truth.items[:half], probes) < wanted and probes < about.count:
        probes = min(about.count, probes + max(1, probes // 2))
    began = time.perf_counter()
    recall = _recall(cells, queries[half:], truth.items[half:], probes)
    seconds = (time.perf_counter() - began) / len(queries[half:])
    return msgspec.structs.replace(
        about,
        probes=probes,
        tuned_for=about.frames,
        recall=round(recall, 4),
        queries=f"{len(queries) - half} other {what}",
        milliseconds=round(1e3 * seconds, 3),
        exact_milliseconds=round(1e3 * truth.seconds, 3),
    )


def _queries(library: Library, encode: Callable[[Sequence[str]], Tensor]) -> tuple[Tensor, str]:
    """(Q, D) of length 1, in random order: captions of the cache, or sentences where it has too few."""
    usable = np.flatnonzero(library.stream("text").status == int(Status.OK))
    rng = np.random.default_rng(0)
    if len(usable) >= QUERIES // 8:
        chosen = np.sort(rng.permutation(usable)[:QUERIES])
        pooled = read_arrays(library, "text", ["pooled"], chosen)["pooled"]
        found, what = stored_tensor(pooled, library.dtype), "captions"
    else:
        found, what = encode([f"{who} {does}" for who in WHO for does in DOES]).cpu(), "sentences"
    return F.normalize(found.float(), dim=-1)[rng.permutation(len(found))], what


def _truth(library: Library, cells: Cells, queries: Tensor) -> Truth:
    best = torch.full((len(queries), TOP), -torch.inf)
    where = torch.full((len(queries), TOP), -1)
    seconds = 0.0
    numbers = library.stream("video").index.find(cells.keys)
    order = np.argsort(numbers, kind="stable")  # in which they are read; those that are gone come first
    order, done = order[numbers[order] >= 0], 0
    for rows, offsets in _blocks(library, numbers[order], cells.counts[order]):
        units = units_of(rows)
        query = queries[0].to(units.dtype)
        began = time.perf_counter()
        _ = units @ query
        seconds += time.perf_counter() - began
        cosines = (queries.to(units.dtype) @ units.T).float().numpy()
        found = torch.from_numpy(np.maximum.reduceat(cosines, offsets[:-1], axis=1))  # (Q, n)
        items = torch.from_numpy(order[done : done + len(offsets) - 1])
        best, place = torch.cat([best, found], 1).topk(TOP, dim=1)
        where = torch.cat([where, items.expand(len(queries), -1)], 1).gather(1, place)
        done += len(items)
    return Truth(where.numpy(), seconds)


def _recall(cells: Cells, queries: Tensor, truth: np.ndarray, probes: int) -> float:
    """Share of the exact best that are among the best of the index, 0 to 1."""
    found = wanted = 0
    for query, exact in zip(queries.numpy(), truth):
        scores, items = cells.nearest(query, min(256, int(cells.offsets[-1])), probes=probes)
        first = items[np.argsort(-scores, kind="stable")]
        best = list(dict.fromkeys(first.tolist()))[: 2 * TOP]  # as many are looked at exactly, see `Approximate`
        exact = exact[exact >= 0]
        found, wanted = found + len(np.intersect1d(best, exact)), wanted + len(exact)
    return found / max(1, wanted)


WHO = ("a man", "a woman", "a child", "some people", "a dog", "a cat", "a bird", "a car", "somebody", "a team", "a crowd", "a hand")  # fmt: skip
DOES = ("is running outside", "in the water", "in front of a house", "on a stage", "in a kitchen", "at night", "in the snow", "seen from above")  # fmt: skip
