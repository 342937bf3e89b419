"""Which captions make a batch: all of an epoch at once, from nothing but a seed and the number of the epoch.

T texts, V videos, S steps an epoch, B batch size.
"""

from __future__ import annotations

import numpy as np

from glscl.cache.schema import SAME_VIDEO
from glscl.common.errors import Hint, InputError, UsageError

_SEATED = 0.9  # a batch size that leaves more than a tenth of the captions out of an epoch is too large


class CaptionSampler:
    """Batches of captions.

    What happens to two captions of one video:

        separate   they never meet in a batch, and are spread over the epoch: one falls into each n-th part of it
        mask       they may meet; the loss takes neither as a negative of the other's video
        negative   they may meet, and each counts as a negative of the other's video, as in the public programs

    An epoch shows every caption at most once, in batches of one size. The captions that do not fill a last batch wait
    for another epoch (fewer than `batch_size`, drawn anew each time). Where keeping the videos of a batch apart, or
    filling a last batch, would leave out more than a tenth of the captions, the size below that compares the most pairs
    an epoch is taken instead: 10 videos with 20 captions each give 20 batches of 10, 100 captions in batches of at most
    60 give 2 of 50. Captions of a video that has more of them than there are batches wait for another epoch.

    Args:
        video_of_text: (T,) integers, the video of each caption.
        batch_size: captions a batch, at most.
        seed: with the number of the epoch it decides the batches.
        same_video: see above.
        captions_per_video: draw this many captions of each video an epoch; None takes all.
        multiple_of: the batch size is a multiple of it (processes that share a batch).

    Attributes:
        batch_size: B, captions in every batch.
        steps: S, batches an epoch.

    Raises:
        InputError: there are no captions.
        UsageError: an unknown `same_video`, sizes below 1, fewer distinct videos (captions) than `multiple_of`, or batches
            in which no caption has a negative: of one caption, or of one video's.
    """

    def __init__(
        self,
        video_of_text: np.ndarray,
        batch_size: int,
        *,
        seed: int = 0,
        same_video: str = "separate",
        captions_per_video: int | None = None,
        multiple_of: int = 1,
    ) -> None:
        if same_video not in SAME_VIDEO:
            raise UsageError(f"same_video is {same_video!r}; expected one of {', '.join(SAME_VIDEO)}")
        if batch_size < 1 or (captions_per_video is not None and captions_per_video < 1):
            raise UsageError(f"batch_size {batch_size} and captions_per_video {captions_per_video} must be at least 1")
        video = np.asarray(video_of_text, np.int64)
        if not len(video):
            raise InputError(
                "There are no captions to train on: the split train has none whose video gave frames",
                hint=Hint("See why", "inspect", {"": "CACHE"}),
            )
        _, self._video, counts = np.unique(video, return_inverse=True, return_counts=True)
        self._counts = counts if captions_per_video is None else np.minimum(counts, captions_per_video)  # (V,)
        self._limit = None if captions_per_video is None or captions_per_video >= counts.max() else captions_per_video
        self._seed = seed
        self._separate = same_video == "separate"
        self.batch_size, self.steps = self._sizes(batch_size, multiple_of)
        if self.batch_size < 2 or (len(counts) < 2 and same_video != "negative"):
            raise UsageError(
                f"Nothing can be learnt from batches of {self.batch_size} out of {counts.sum()} captions of {len(counts)} "
                "videos: a caption needs that of another video beside it",
                hint="Take a larger `batch_size`, or train on more videos",
            )

    def epoch(self, number: int) -> np.ndarray:
        """Rows of the captions of each batch of one epoch, (S, B) int64."""
        random = np.random.default_rng([self._seed, number])
        rows = self._draw(random)
        if not self._separate:
            return random.permutation(rows)[: self.steps * self.batch_size].reshape(self.steps, self.batch_size)
        rows = self._seatable(rows, random)
        order, first, counts = _by_video(self._video[rows], len(self._counts), random)
        rows = rows[order]  # one video after another, the captions of each in random order
        within = np.arange(len(rows)) - np.repeat(first, counts)
        share = np.repeat(counts, counts)
        keys = (within + random.random(len(rows))) / share  # caption i of n falls into the i-th n-th of the epoch
        if counts.max() == 1:
            return rows[np.argsort(keys, kind="stable")].reshape(self.steps, self.batch_size)
        return self._seat(rows, keys, first, counts)

    def _draw(self, random: np.random.Generator) -> np.ndarray:
        """The captions of this epoch: all, or `captions_per_video` of each video."""
        if self._limit is None:
            return np.arange(len(self._video))
        order, first, counts = _by_video(self._video, len(self._counts), random)
        within = np.arange(len(order)) - np.repeat(first, counts)
        return np.sort(order[within < self._limit])

    def _seatable(self, rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """`steps · batch_size` of the captions, at most `steps` of each video."""
        if self._counts.max() > self.steps:
            order, first, counts = _by_video(self._video[rows], len(self._counts), random)
            within = np.arange(len(order)) - np.repeat(first, counts)
            rows = rows[order[within < self.steps]]
        surplus = len(rows) - self.steps * self.batch_size
        return np.delete(rows, random.choice(len(rows), surplus, replace=False)) if surplus else rows

    def _seat(self, rows: np.ndarray, keys: np.ndarray, first: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Fill one batch after another with the videos whose next caption is due first.

        A video that has as many captions left as there are batches goes first of all. There are S·B captions and no
        video has more than S, so at every step at most B videos are that urgent and at least B have captions left:
        every batch is filled.
        """
        S, B = self.steps, self.batch_size
        batches = np.empty((S, B), np.int64)
        upcoming, left = first.copy(), counts.copy()
        keys = np.append(keys, np.inf)
        due = np.where(left > 0, keys[upcoming], np.inf)  # (V,)
        for step in range(S):
            urgent = left >= S - step
            wanted = np.where(urgent, -1.0, due)
            chosen = np.argpartition(wanted, B - 1)[:B]
            batches[step] = rows[upcoming[chosen]]
            upcoming[chosen] += 1
            left[chosen] -= 1
            due[chosen] = np.where(left[chosen] > 0, keys[upcoming[chosen]], np.inf)
        return batches

    def _sizes(self, asked: int, multiple: int) -> tuple[int, int]:
        """Batch size and number of batches: as asked where that seats nearly all captions, else what compares most pairs."""
        total = int(self._counts.sum())
        most = min(asked, len(self._counts) if self._separate else total)
        most -= most % multiple
        if most < 1:
            raise UsageError(
                f"Batches of at most {asked} from {total} captions of {len(self._counts)} videos cannot be shared by "
                f"{multiple} processes"
            )
        steps = self._full_batches(most)
        if steps * most >= _SEATED * total:
            return most, steps
        sizes = [size for size in range(most, 0, -multiple) if size > 1] or [most]  # of one caption nothing is learnt
        plans = [(size, self._full_batches(size)) for size in sizes]
        return max(plans, key=lambda plan: plan[0] ** 2 * plan[1])

    def _full_batches(self, size: int) -> int:
        """How many batches of `size` can be filled."""
        steps = int(self._counts.sum()) // size
        while self._separate and (seats := int(np.minimum(self._counts, steps).sum())) < steps * size:
            steps = seats // size
        return steps


def _by_video(
    video: np.ndarray, num_videos: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An order (n,) that puts the captions of a video side by side, in random order; where each begins (V,); counts (V,)."""
    shuffled = random.permutation(len(video))
    order = shuffled[np.argsort(video[shuffled], kind="stable")]
    counts = np.bincount(video, minlength=num_videos)
    return order, np.cumsum(counts) - counts, counts
