"""What all scores of an evaluation have in common, seen in passing: no metric tells when it is a head that says nothing.

T texts, V videos; a tile is t texts by v videos.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from glscl.evaluate.ranks import Span
from glscl.evaluate.similarity import Scoring
from glscl.train_head.doubts import ScoreSummary


class Watched:
    """A head whose scores are looked at as `glscl.evaluate.similarity` makes them; all else is the head's own."""

    def __init__(self, head: Scoring) -> None:
        self._head = head
        self._ends: list[Tensor] = []  # least and largest score of a tile
        self._first: dict[Span, tuple[Tensor, Tensor]] = {}  # texts → their best scores so far, and of which videos

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    @property
    def unwatched(self) -> Scoring:
        return self._head

    def watch(self, scores: Tensor, texts: Span, videos: Span) -> None:
        """Look at the (t, v) scores of a tile; a tile that comes again changes nothing."""
        best, at = scores.max(1)
        self._ends.append(torch.stack([scores.amin(), best.amax()]))
        self._take(texts, best, at + videos[0])

    def seen(self) -> tuple[Tensor, dict[Span, tuple[Tensor, Tensor]]]:
        """What `add` of another takes, on the CPU."""
        return torch.stack(self._ends).cpu(), {
            texts: (best.cpu(), at.cpu()) for texts, (best, at) in self._first.items()
        }

    def add(self, seen: tuple[Tensor, dict[Span, tuple[Tensor, Tensor]]]) -> None:
        """Take what was seen elsewhere, of other tiles of the same spans of texts."""
        ends, first = seen
        self._ends.extend(ends)
        for texts, (best, at) in first.items():
            self._take(texts, best, at)

    def _take(self, texts: Span, best: Tensor, at: Tensor) -> None:
        """Of several videos with one score the first counts, in whichever order they come."""
        if texts in self._first:
            known, where = self._first[texts]
            better = (best > known) | ((best == known) & (at < where))
            best, at = torch.where(better, best, known), torch.where(better, at, where)
        self._first[texts] = best, at

    def summary(self, gallery: int) -> ScoreSummary:
        """Of all tiles; `gallery` is V."""
        ends = torch.stack(self._ends)
        found = torch.cat([at for _, at in self._first.values()])
        hits = torch.bincount(found, minlength=gallery)
        hub = int(hits.argmax())
        return ScoreSummary(float(ends[:, 0].min()), float(ends[:, 1].max()), len(found), gallery, hub, int(hits[hub]))
