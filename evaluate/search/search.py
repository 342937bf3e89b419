"""A head on a table of features, one query at a time: the videos of a sentence, the captions of a video, normalised or not.

V videos, T texts, F frames, D embed_dim; G is V or T.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.common.devices import arithmetic
from glscl.common.errors import Hint, InputError, NonFiniteError, UsageError
from glscl.evaluate.hubness import ONLINE, online
from glscl.evaluate.query_banks import Banks
from glscl.evaluate.search.answers import CaptionHit
from glscl.train_head.heads.base import Head

BATCH = 512


class Ranked(NamedTuple):
    """Rows of a table, best first, with their scores and, where they are normalised, what they are ordered by."""

    rows: list[int]
    scores: list[float]
    normalised: Sequence[float | None]


class Search:
    """Answers of one head from one table, one query at a time.

    The gallery is encoded at the first query and kept, and so is what a normalisation learns from its bank.

    Args:
        head: used in evaluation mode.
        table: what is searched, on the head's device.
        normalise: None, or one of `glscl.evaluate.hubness.ONLINE`.
        train: gives the table that the bank is taken from; called once, and only to normalise.

    Raises:
        UsageError: no such normalisation, or no table for its bank.
    """

    def __init__(
        self,
        head: Head,
        table: FeatureTable,
        *,
        normalise: str | None = None,
        train: Callable[[], FeatureTable] | None = None,
    ) -> None:
        if normalise is not None and normalise not in ONLINE:
            raise UsageError(
                f"`normalise` is {normalise!r}; one query at a time can be normalised by {', '.join(ONLINE)}"
            )
        if normalise is not None and train is None:
            raise UsageError(f"{normalise} needs a bank of training queries")
        self.head, self.table, self.normalise, self._train = head.eval(), table, normalise, train
        self._banks: Banks | None = None
        self._galleries: dict[str, list[Any]] = {}
        self._normalisers: dict[str, Callable[[Tensor], Tensor]] = {}

    @property
    def bank(self) -> str:
        """What scores were normalised with; "none" before the first query and without a normalisation."""
        return self._banks.description if self._banks is not None else "none"

    @torch.inference_mode()
    def similarity(self, text: TextFeatures) -> Tensor:
        """(T, V) float32: each sentence against each video of the table. Raises InputError where it holds no videos."""
        table = self.table
        if not table.num_videos:
            raise InputError("there are no videos to search: none of the cache gave frames")
        with arithmetic(table.device):
            encoded = self.head.encode_text(text)
            gallery = self._gallery(
                "text_to_video", lambda span: self.head.encode_video(table.videos(span)), table.num_videos
            )
            return torch.cat([self.head.score(encoded, part) for part in gallery], dim=1)

    @torch.inference_mode()
    def videos(self, text: TextFeatures, *, top: int = 10) -> Ranked:
        """The videos of the table that fit one sentence best.

        Args:
            text: features of exactly one caption: (1, D), and (1, L, D) tokens where the head needs them.
            top: how many; fewer where the table is smaller. Ties keep the table's order.

        Raises:
            InputError: the table holds no videos.
            NonFiniteError: a score is NaN or infinite.
        """
        return self._best(self.similarity(text)[0], "text_to_video", top)

    @torch.inference_mode()
    def captions(self, video: VideoFeatures, *, top: int = 10) -> list[CaptionHit]:
        """The captions of the table that fit one video, (1, F, D), best; see `videos`."""
        table = self.table
        if not table.num_texts:
            raise InputError(
                "there are no captions to search: the cache holds videos only",
                hint=Hint(
                    "Extract with captions (docs/datasets.md), or search the videos", "search", {"": "a sentence"}
                ),
            )
        with arithmetic(table.device):
            encoded = self.head.encode_video(video)
            gallery = self._gallery(
                "video_to_text", lambda span: self.head.encode_text(table.texts(span)), table.num_texts
            )
            scores = torch.cat([self.head.score(part, encoded)[:, 0] for part in gallery])
        best = self._best(scores, "video_to_text", top)
        owners = table.video_of_text.cpu()[best.rows].tolist()
        return [
            CaptionHit(rank, table.captions[row], table.video_ids[owner], score, normalised)
            for rank, (row, owner, score, normalised) in enumerate(zip(best.rows, owners, *best[1:]), 1)
        ]

    def _gallery(self, direction: str, encode: Callable[[slice], Any], size: int) -> list[Any]:
        """The encoded gallery of a direction, in batches."""
        if direction not in self._galleries:
            self._galleries[direction] = [encode(slice(start, start + BATCH)) for start in range(0, size, BATCH)]
        return self._galleries[direction]

    def _best(self, scores: Tensor, direction: str, top: int) -> Ranked:
        """The rows of the `top` best of scores (G,)."""
        if not torch.isfinite(scores).all():
            raise NonFiniteError(f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} scores are NaN or infinite")
        ordered_by = scores if self.normalise is None else self._normaliser(direction)(scores)
        rows = torch.argsort(ordered_by, descending=True, stable=True)[:top]
        values = [None] * len(rows) if self.normalise is None else ordered_by[rows].tolist()
        return Ranked(rows.tolist(), scores[rows].tolist(), values)

    def _normaliser(self, direction: str) -> Callable[[Tensor], Tensor]:
        """The normalisation of a direction, fitted once."""
        if direction not in self._normalisers:
            assert self._train is not None and self.normalise is not None
            if self._banks is None:
                self._banks = Banks(self.head, self.table, self._train())
            bank = self._banks.scores(direction, ["bank"])["bank"]
            self._normalisers[direction] = online(self.normalise, bank, direction=direction)
        return self._normalisers[direction]
