"""Every stored frame of a cache, to be searched: exact cosines with a query, and the videos whose frames fit best.

V videos, R frames of all of them together, D embed_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.cache.library import Library
from glscl.cache.reading import in_pieces, ragged_rows, read_arrays, unique_numbers
from glscl.cache.schema import Status
from glscl.cache.store import Store
from glscl.cache.table import stored_tensor
from glscl.common.errors import InputError, NonFiniteError

BEST_FRAMES = (
    1  # of a video make its score: on the built-in corpus R@1 is 33.6 with one, 28.7 with two, 22.7 with three
)
BLOCK = 1 << 16  # rows a product
WORTH_THREADS = 1 << 27  # products, some 30 ms of one thread: 260,000 frames of 512 dimensions
AT_ONCE = 1 << 15  # frames whose features are read, and made float32, at once
CHUNK = 128  # videos whose exact scores are taken at once, at most
# A product of unit vectors rounded to bfloat16 (8 bits), summed in float32 and rounded once more, is off by at most this:
# 2 · 2⁻⁹ for the factors, by Cauchy-Schwarz, their product, and 2⁻⁹ for the result.
ROUNDING = 3 * 2.0**-9 + 2.0**-16


class Rows(Protocol):
    """Where the features of frames are: in memory, or in the cache."""

    def of(self, videos: np.ndarray) -> list[Tensor]:
        """(n, D) each, as stored: the frames of some videos of the index."""
        ...


class Candidates(NamedTuple):
    """Videos that may be an answer, best first.

    Attributes:
        videos: (m,) numbers in the index.
        scores: (m,) float32 that the exact ones exceed by at most `ROUNDING`.
    """

    videos: np.ndarray
    scores: np.ndarray


class Finder(Protocol):
    """Finds candidates: by looking at every frame, or in an approximate index."""

    def candidates(self, query: Tensor, *, best: int, among: np.ndarray | None, enough: int) -> Candidates:
        """For a query (D,): all videos, or at least `enough` of those that `among` (V,) bool admits, as far as there are any.

        Raises:
            NonFiniteError: the query or a frame is NaN or infinite.
        """
        ...


@dataclass(frozen=True, repr=False)
class FrameIndex:
    """Frames of some videos of a list.

    Attributes:
        entries: (V,) int64, rows of the list, of videos that have frames.
        offsets: (V + 1,) int64, frames of video i are the rows from `offsets[i]` to `offsets[i + 1]`.
        times: (R,) float32, seconds from the start of the file.
        durations: (V,) float32 seconds of the file, or of the part of it; 0 where unknown.
        rows: gives their features.
        finder: finds what may fit a query.
        chosen: (V,) bool, which videos may be an answer; None: all.
    """

    entries: np.ndarray
    offsets: np.ndarray
    times: np.ndarray
    durations: np.ndarray
    rows: Rows
    finder: Finder
    chosen: np.ndarray | None = None

    @classmethod
    def load(cls, store: Store, entries: np.ndarray | None = None, *, device: torch.device | str = "cpu") -> FrameIndex:
        """Read the frames of some entries of a list, all of them by default; each item once, however often it is listed.

        Args:
            entries: (n,) int64 rows of the list, rising.

        Raises:
            InputError: none of them has frames.
            CacheIncompleteError, CacheCorruptError: see `Store.arrays`.
        """
        listed = Listed.read(store, entries, with_values=True)
        assert listed.values is not None
        features = listed.values
        rows = ragged_rows(listed.first, listed.counts)
        if len(rows) != len(features) or (np.diff(rows) != 1).any():  # several entries share an item
            features = features[torch.from_numpy(rows)]
        held = HeldRows(features.to(device), listed.offsets)
        return cls(listed.entries, listed.offsets, listed.times, listed.durations, held, Scan(held))

    def __repr__(self) -> str:
        return f"FrameIndex({self.num_videos} videos, {self.num_frames} frames, by {self.finder})"

    @property
    def num_videos(self) -> int:
        """That may be an answer."""
        return len(self.entries) if self.chosen is None else int(self.chosen.sum())

    @property
    def num_frames(self) -> int:
        """Of the videos that may be an answer."""
        return len(self.times) if self.chosen is None else int(np.diff(self.offsets)[self.chosen].sum())

    @property
    def is_exact(self) -> bool:
        """Whether every frame is looked at."""
        return isinstance(self.finder, Scan)

    def among(self, entries: np.ndarray) -> FrameIndex:
        """The same frames, of which only those of some entries (n,) are answers. Raises InputError where none has frames."""
        chosen = np.isin(self.entries, entries)
        if not chosen.any():
            raise InputError("there are no videos to search: none of those chosen gave frames")
        return replace(self, chosen=chosen)

    def times_of(self, video: int) -> np.ndarray:
        """(n,) float32 seconds of the frames of a video."""
        return self.times[int(self.offsets[video]) : int(self.offsets[video + 1])]

    def features_of(self, video: int) -> Tensor:
        """(n, D) as stored: float16, bfloat16 or float32."""
        return self.rows.of(np.array([video]))[0]

    def features(self, videos: np.ndarray) -> Iterator[Tensor]:
        """Those of some videos, in their order, read some at a time."""
        for part in in_pieces(videos, np.diff(self.offsets)[videos], AT_ONCE):
            yield from self.rows.of(part)

    @torch.inference_mode()
    def cosines(self, query: Tensor, videos: np.ndarray) -> list[np.ndarray]:
        """Exact cosines (n,) float32 of a query (D,) with the frames of each of some videos (numbers in the index)."""
        counts, cosines = np.diff(self.offsets)[videos], list[np.ndarray]()
        for part in in_pieces(videos, counts, AT_ONCE):
            frames = torch.cat(self.rows.of(part))
            with _threads_for(frames.numel()):
                frames = frames.float()
                lengths = torch.linalg.vector_norm(frames, dim=-1).clamp_min(1e-12)
                found = frames @ F.normalize(query.to(frames.device).float(), dim=-1) / lengths
            cosines.append(found.cpu().numpy())
        return np.split(np.concatenate(cosines), np.cumsum(counts)[:-1]) if cosines else []

    def search(self, query: Tensor, *, top: int, best: int = BEST_FRAMES, minimum: float = -np.inf) -> list[FoundVideo]:
        """The videos whose frames fit a query (D,) best, by exact scores, best first; equals keep the list's order.

        Exact scores are taken of the videos that come first by the finder, until its rounding can bring no further one
        into the answer. With a `Scan` every frame is looked at.

        Args:
            top: how many at most.
            best: the score of a video is the mean cosine of so many of its frames, see `best_frames`.
            minimum: only videos with at least this score.
        """
        videos, nearly = self.finder.candidates(query, best=best, among=self.chosen, enough=top)
        found: list[FoundVideo] = []
        chunk = min(CHUNK, 2 * top)
        for start in range(0, len(videos), chunk):
            bound = nearly[start] + ROUNDING  # of what follows
            if bound < minimum or (len(found) == top and found[-1].score > bound):
                break
            part = videos[start : start + chunk]
            found += [FoundVideo(v, best_frames(c, best), c) for v, c in zip(part.tolist(), self.cosines(query, part))]
            found = sorted((each for each in found if each.score >= minimum), key=lambda f: (-f.score, f.video))[:top]
        return found


class FoundVideo(NamedTuple):
    """A video of an index that fits a query.

    Attributes:
        video: number of it in the index.
        score: of the whole video.
        cosines: (n,) float32, of its frames.
    """

    video: int
    score: float
    cosines: np.ndarray


class Listed(NamedTuple):
    """Videos of a list that have frames, and where among the items read each one's rows are.

    Attributes:
        entries: (V,) rows of the list. offsets: (V + 1,), times: (R,), durations: (V,): as in `FrameIndex`.
        numbers: (V,) int64, of each entry's item in the library.
        first, counts: (V,) int64, where the rows of each entry begin in `values`, and how many they are.
        values: rows of the items, each item once, as stored; None where they were not asked for.
    """

    entries: np.ndarray
    offsets: np.ndarray
    times: np.ndarray
    durations: np.ndarray
    numbers: np.ndarray
    first: np.ndarray
    counts: np.ndarray
    values: Tensor | None

    @classmethod
    def read(cls, store: Store, entries: np.ndarray | None = None, *, with_values: bool = False) -> Listed:
        """See `FrameIndex.load`."""
        store.require_complete()
        entries = np.arange(store.num_items["video"]) if entries is None else entries
        entries = entries[np.isin(store.status()[entries], [status for status in Status if status.usable])]
        numbers = store.numbers["video"][entries]
        items, place = unique_numbers(numbers)
        names = ["offsets", "times", "duration", *(["values"] if with_values else [])]
        found = read_arrays(store.library, "video", names, items)
        place = np.arange(len(entries)) if place is None else place
        first, counts = found["offsets"][:-1][place], np.diff(found["offsets"])[place]
        there = counts > 0
        if not there.any():
            raise InputError("there are no videos to search: none of those chosen gave frames")
        first, counts = first[there], counts[there]
        return cls(
            entries[there],
            np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            found["times"][ragged_rows(first, counts)],
            found["duration"][place][there],
            numbers[there],
            first,
            counts,
            stored_tensor(found["values"], store.dtype) if with_values else None,
        )


class HeldRows:
    """Features in memory.

    Args:
        features: (R, D) as stored: float16, bfloat16 or float32.
        offsets: (V + 1,), as in `FrameIndex`.
    """

    def __init__(self, features: Tensor, offsets: np.ndarray) -> None:
        self.features, self.offsets = features, offsets

    def of(self, videos: np.ndarray) -> list[Tensor]:
        return [self.features[int(self.offsets[video]) : int(self.offsets[video + 1])] for video in videos]


class StoredRows:
    """Features that stay in the cache, and are read of those videos that are needed.

    Args:
        numbers: (V,) of each video's item in the library.
    """

    def __init__(self, library: Library, numbers: np.ndarray, device: torch.device | str) -> None:
        self._library, self._numbers, self._device = library, numbers, device

    def of(self, videos: np.ndarray) -> list[Tensor]:
        items, place = unique_numbers(self._numbers[videos])
        found = read_arrays(self._library, "video", ["values", "offsets"], items)
        rows = stored_tensor(found["values"], self._library.dtype).to(self._device)
        each = rows.split(np.diff(found["offsets"]).tolist())
        return [each[at] for at in (range(len(videos)) if place is None else place)]


class Scan:
    """Looks at every frame: rows of length 1, in bfloat16 where the processor multiplies it, else in float32."""

    def __init__(self, rows: HeldRows) -> None:
        self.offsets, self.units = rows.offsets, units_of(rows.features)

    def __repr__(self) -> str:
        return "every frame"

    @torch.inference_mode()
    def cosines(self, query: Tensor) -> np.ndarray:
        """(R,) float32 cosines of a query (D,) with every frame, each within `ROUNDING` of the exact one.

        Raises:
            NonFiniteError: the query or a frame is NaN or infinite.
        """
        with _threads_for(self.units.numel()):
            unit = F.normalize(query.to(self.units.device).float(), dim=-1).to(self.units.dtype)
            found = torch.cat([part @ unit for part in self.units.split(BLOCK)]).float()
            finite = bool(torch.isfinite(found).all())
        if not finite:
            raise NonFiniteError(f"{int((~torch.isfinite(found)).sum())} of {len(found)} cosines are NaN or infinite")
        return found.cpu().numpy()

    def candidates(self, query: Tensor, *, best: int, among: np.ndarray | None, enough: int) -> Candidates:
        nearly = _best_of_each(self.cosines(query), self.offsets, best)  # (V,)
        order = np.argsort(-nearly, kind="stable")
        order = order if among is None else order[among[order]]
        return Candidates(order, nearly[order])


@contextmanager
def _threads_for(products: int) -> Iterator[None]:
    """One thread where a second is not worth waiting for: where others compute too, that is a hundred milliseconds."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if products >= WORTH_THREADS else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best_frames(cosines: np.ndarray, count: int = BEST_FRAMES) -> float:
    """Mean of the `count` highest cosines of a video's frames: it is found by its best moment, not by one stray frame."""
    count = min(count, len(cosines))
    return float(np.partition(cosines, len(cosines) - count)[-count:].mean())


def _best_of_each(cosines: np.ndarray, offsets: np.ndarray, count: int) -> np.ndarray:
    """(V,) `best_frames` of the cosines (R,) of each video."""
    left, starts = cosines.copy(), offsets[:-1]
    frames = np.diff(offsets)
    total = np.zeros(len(frames), np.float32)
    for step in range(count):
        most = np.maximum.reduceat(left, starts)
        total += np.where(step < frames, most, 0)
        if step + 1 < count:
            highest = np.flatnonzero(left == np.repeat(most, frames))
            video = np.searchsorted(offsets, highest, side="right") - 1
            left[highest[np.flatnonzero(np.diff(video, prepend=-1))]] = -np.inf  # of equals the first
    return total / np.minimum(frames, count)


def units_of(features: Tensor) -> Tensor:
    """Rows (R, D) made as long as 1, in the dtype that the device multiplies fastest."""
    dtype = torch.bfloat16 if features.device.type == "cuda" or _multiplies_bfloat16() else torch.float32
    out = torch.empty(features.shape, dtype=dtype, device=features.device)
    for part, into in zip(features.split(BLOCK), out.split(BLOCK)):
        into.copy_(F.normalize(part.float(), dim=-1))
    return out


def _multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it; elsewhere it would be slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
