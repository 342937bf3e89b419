"""Banks of training queries for hubness normalisation: their similarities with the gallery that is judged or searched.

T texts, V videos, N queries of a bank.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.devices import arithmetic
from glscl.common.errors import UsageError
from glscl.evaluate.ranks import TEXT_TO_VIDEO
from glscl.evaluate.similarity import Pairs, Scoring, similarity_matrix
from glscl.train_head.heads.base import VectorHead


class TableOnDevice(Pairs, Protocol):
    """Pairs whose features lie on a device."""

    @property
    def device(self) -> torch.device: ...


class _Crossed:
    """Some texts of one table beside some videos of another: as much of a table as similarity needs."""

    def __init__(self, texts: TableOnDevice, text_rows: Tensor, videos: TableOnDevice, video_rows: Tensor) -> None:
        self._texts, self._videos = texts, videos
        self._text_rows, self._video_rows = text_rows.to(texts.device), video_rows.to(videos.device)
        self.num_texts, self.num_videos = len(text_rows), len(video_rows)
        self.video_of_text = torch.zeros(len(text_rows), dtype=torch.int64)  # no pairs; similarity wants a mapping
        self.text_ids = [texts.text_ids[row] for row in text_rows.tolist()]
        self.video_ids = [videos.video_ids[row] for row in video_rows.tolist()]

    def texts(self, index: Any) -> TextFeatures:
        return self._texts.texts(self._text_rows[index])

    def videos(self, index: Any) -> tuple[Tensor, ...]:
        return self._videos.videos(self._video_rows[index])


class Banks:
    """Banks of training queries for both directions; each is made when it is first asked for."""

    def __init__(
        self,
        head: Scoring,
        table: TableOnDevice,
        train: TableOnDevice,
        *,
        device: torch.device | str | None = None,
        seconds: dict[str, float] | None = None,
    ) -> None:
        """Banks for a gallery; the head must be in evaluation mode.

        Args:
            table: what is judged or searched.
            train: gives the bank: the first caption of each of its videos, and those videos.
            device: where to compute; None is where the head is.
            seconds: time spent is added under "encode" and "score".

        Raises:
            UsageError: `train` has no captions.
        """
        video, first = np.unique(train.video_of_text.cpu().numpy(), return_index=True)
        if not len(video):
            raise UsageError("the training split has no captions, so there is no bank to normalise with")
        self.head, self.table, self.train, self.device = head, table, train, device
        self.seconds = {} if seconds is None else seconds
        self.texts, self.videos = torch.from_numpy(first), torch.from_numpy(video)
        self._made: dict[str, Tensor] = {}

    @property
    def description(self) -> str:
        return f"first caption of {len(self.texts):,} training videos; those videos for video to text"

    def scores(self, direction: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Banks of a direction by their keyword names, (N, gallery)."""
        kinds = {"bank": "queries", "query_bank": "queries", "gallery_bank": "items"}
        return {name: self._bank(direction, kinds[name]) for name in names}

    def _bank(self, direction: str, kind: str) -> Tensor:
        key = f"{direction} {kind}"
        if key not in self._made:
            make = self._queries if kind == "queries" else self._items
            self._made[key] = make(direction)
        return self._made[key]

    def _queries(self, direction: str) -> Tensor:
        """Training captions by the table's videos, or training videos by the table's texts."""
        if direction == TEXT_TO_VIDEO:
            return self._similarity(_Crossed(self.train, self.texts, self.table, torch.arange(self.table.num_videos)))
        return self._similarity(_Crossed(self.table, torch.arange(self.table.num_texts), self.train, self.videos)).T

    def _items(self, direction: str) -> Tensor:
        """Training videos by the table's videos, or training captions by its texts: one vector each."""
        head = self.head
        if not isinstance(head, VectorHead):
            raise UsageError(f"{type(head).__name__} makes no vector of a video, which this normalisation needs")
        started = time.perf_counter()
        with torch.no_grad():
            if direction == TEXT_TO_VIDEO:
                bank, gallery = (_vectors(head, t.videos, rows) for t, rows in self._sides(self.videos, "videos"))
            else:
                bank, gallery = (_vectors(head, t.texts, rows) for t, rows in self._sides(self.texts, "texts"))
            scores = (bank @ gallery.T).cpu()
        self.seconds["score"] = self.seconds.get("score", 0.0) + time.perf_counter() - started
        return scores

    def _sides(self, rows: Tensor, what: str) -> list[tuple[TableOnDevice, Tensor]]:
        count = self.table.num_videos if what == "videos" else self.table.num_texts
        return [(self.train, rows), (self.table, torch.arange(count))]

    def _similarity(self, crossed: _Crossed) -> Tensor:
        return similarity_matrix(self.head, crossed, device=self.device, seconds=self.seconds)


def _vectors(head: VectorHead, fetch: Callable[[Tensor], Any], rows: Tensor) -> Tensor:
    """(N, D) float32: one vector of each item in some rows."""
    parts, device = [], head.logit_scale.device
    for some in rows.split(512):
        features = fetch(some)
        features = type(features)(*(None if f is None else f.to(device) for f in features))
        with arithmetic(device):
            if isinstance(features, VideoFeatures):
                parts.append(head.video_vectors(head.encode_video(features)))
            else:
                parts.append(head.text_vectors(head.encode_text(features)))
    return torch.cat(parts).float()
