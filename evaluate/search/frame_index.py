"""Every stored frame of a cache, to be searched: exact cosines with a query, and the videos whose frames fit best.

V videos, R frames of all of them together, D embed_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.cache.reading import ragged_rows, read_arrays, unique_numbers
from glscl.cache.schema import Status
from glscl.cache.store import Store
from glscl.common.errors import InputError, NonFiniteError

BEST_FRAMES = (
    1  # of a video make its score: on the built-in corpus R@1 is 33.6 with one, 28.7 with two, 22.7 with three
)
BLOCK = 1 << 16  # rows a product
CHUNK = 128  # videos whose exact scores are taken at once
# A product of unit vectors rounded to bfloat16 (8 bits), summed in float32 and rounded once more, is off by at most this:
# 2 · 2⁻⁹ for the factors, by Cauchy-Schwarz, their product, and 2⁻⁹ for the result.
ROUNDING = 3 * 2.0**-9 + 2.0**-16


@dataclass(frozen=True, repr=False)
class FrameIndex:
    """Frames of some videos of a list.

    Attributes:
        entries: (V,) int64, rows of the list, of videos that have frames.
        offsets: (V + 1,) int64, frames of video i are the rows from `offsets[i]` to `offsets[i + 1]`.
        features: (R, D) as stored: float16, bfloat16 or float32.
        times: (R,) float32, seconds from the start of the file.
        durations: (V,) float32 seconds of the file, or of the part of it; 0 where unknown.
        units: (R, D) rows of length 1 that the scan multiplies: bfloat16 where the processor multiplies it, else float32.
        chosen: (V,) bool, which videos may be an answer; None: all.
    """

    entries: np.ndarray
    offsets: np.ndarray
    features: Tensor
    times: np.ndarray
    durations: np.ndarray
    units: Tensor
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
        store.require_complete()
        entries = np.arange(store.num_items["video"]) if entries is None else entries
        usable = np.isin(store.status()[entries], [status for status in Status if status.usable])
        entries = entries[usable]
        items, place = unique_numbers(store.numbers["video"][entries])
        found = read_arrays(store.library, "video", ["values", "offsets", "times", "duration"], items)
        place = np.arange(len(entries)) if place is None else place
        first, counts = found["offsets"][:-1][place], np.diff(found["offsets"])[place]
        entries, place, first, counts = (each[counts > 0] for each in (entries, place, first, counts))
        if not len(entries):
            raise InputError("there are no videos to search: none of those chosen gave frames")
        rows = ragged_rows(first, counts)
        whole = len(rows) == len(found["values"]) and (np.diff(rows) == 1).all()
        values, times = (found[name] if whole else found[name][rows] for name in ("values", "times"))
        features = torch.from_numpy(values)
        features = features.view(torch.bfloat16) if store.dtype == "bfloat16" else features
        return cls(
            entries=entries,
            offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            features=features.to(device),
            times=times,
            durations=found["duration"][place],
            units=_units(features.to(device)),
        )

    def __repr__(self) -> str:
        return f"FrameIndex({self.num_videos} videos, {self.num_frames} frames, {self.features.shape[1]}-d)"

    @property
    def num_videos(self) -> int:
        return len(self.entries)

    @property
    def num_frames(self) -> int:
        return len(self.features)

    def among(self, entries: np.ndarray) -> FrameIndex:
        """The same frames, of which only those of some entries (n,) are answers. Raises InputError where none has frames."""
        chosen = np.isin(self.entries, entries)
        if not chosen.any():
            raise InputError("there are no videos to search: none of those chosen gave frames")
        return replace(self, chosen=chosen)

    def rows_of(self, video: int) -> slice:
        """Rows of the frames of a video."""
        return slice(int(self.offsets[video]), int(self.offsets[video + 1]))

    def times_of(self, video: int) -> np.ndarray:
        """(n,) float32 seconds of the frames of a video."""
        return self.times[self.rows_of(video)]

    @torch.inference_mode()
    def scan(self, query: Tensor) -> np.ndarray:
        """(R,) float32 cosines of a query (D,) with every frame, each within `ROUNDING` of the exact one.

        Raises:
            NonFiniteError: the query or a frame is NaN or infinite.
        """
        unit = F.normalize(query.to(self.units.device).float(), dim=-1).to(self.units.dtype)
        found = torch.cat([part @ unit for part in self.units.split(BLOCK)]).float()
        if not torch.isfinite(found).all():
            raise NonFiniteError(f"{int((~torch.isfinite(found)).sum())} of {len(found)} cosines are NaN or infinite")
        return found.cpu().numpy()

    @torch.inference_mode()
    def cosines(self, query: Tensor, videos: np.ndarray) -> list[np.ndarray]:
        """Exact cosines (n,) float32 of a query (D,) with the frames of each of some videos (numbers in the index)."""
        first, counts = self.offsets[videos], self.offsets[videos + 1] - self.offsets[videos]
        rows = torch.from_numpy(ragged_rows(first, counts)).to(self.features.device)
        frames = F.normalize(self.features[rows].float(), dim=-1)
        found = frames @ F.normalize(query.to(frames.device).float(), dim=-1)
        return np.split(found.cpu().numpy(), np.cumsum(counts)[:-1])

    def search(self, query: Tensor, *, top: int, best: int = BEST_FRAMES, minimum: float = -np.inf) -> list[Found]:
        """The videos whose frames fit a query (D,) best, by exact scores, best first; equals keep the list's order.

        Every frame is looked at. Exact scores are taken of the videos that come first by the scan, until the scan's
        rounding can bring no further one into the answer.

        Args:
            top: how many at most.
            best: the score of a video is the mean cosine of so many of its frames, see `best_frames`.
            minimum: only videos with at least this score.
        """
        nearly = _best_of_each(self.scan(query), self.offsets, best)  # (V,)
        order = np.argsort(-nearly, kind="stable")
        order = order if self.chosen is None else order[self.chosen[order]]
        found: list[Found] = []
        for start in range(0, len(order), CHUNK):
            bound = nearly[order[start]] + ROUNDING  # of what follows
            if bound < minimum or (len(found) == top and found[-1].score > bound):
                break
            videos = order[start : start + CHUNK]
            found += [Found(v, best_frames(c, best), c) for v, c in zip(videos.tolist(), self.cosines(query, videos))]
            found = sorted((each for each in found if each.score >= minimum), key=lambda f: (-f.score, f.video))[:top]
        return found


class Found(NamedTuple):
    """A video of an index that fits a query.

    Attributes:
        video: number of it in the index.
        score: of the whole video.
        cosines: (n,) float32, of its frames.
    """

    video: int
    score: float
    cosines: np.ndarray


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
        highest = np.flatnonzero(left == np.repeat(most, frames))
        video = np.searchsorted(offsets, highest, side="right") - 1
        left[highest[np.flatnonzero(np.diff(video, prepend=-1))]] = -np.inf  # of equals the first
    return total / np.minimum(frames, count)


def _units(features: Tensor) -> Tensor:
    dtype = torch.bfloat16 if features.device.type == "cuda" or _multiplies_bfloat16() else torch.float32
    out = torch.empty(features.shape, dtype=dtype, device=features.device)
    for part, into in zip(features.split(BLOCK), out.split(BLOCK)):
        into.copy_(F.normalize(part.float(), dim=-1))
    return out


def _multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it; elsewhere it would be slower than float32."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
