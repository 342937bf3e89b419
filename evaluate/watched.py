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

    def watch(self, scores: Tensor, texts: Span, videos: Span) -> None:
        """Look at the (t, v) scores of a tile; a tile that comes again changes nothing."""
        best, at = scores.max(1)
        self._ends.append(torch.stack([scores.amin(), best.amax()]))
        known = self._first.get(texts)
        at = at + videos[0]
        if known is not None:
            better = best > known[0]
            best, at = torch.where(better, best, known[0]), torch.where(better, at, known[1])
        self._first[texts] = best, at

    def summary(self, gallery: int) -> ScoreSummary:
        """Of all tiles; `gallery` is V. Of several videos with one score the first counts as found."""
        ends = torch.stack(self._ends)
        found = torch.cat([at for _, at in self._first.values()])
        hits = torch.bincount(found, minlength=gallery)
        hub = int(hits.argmax())
        return ScoreSummary(float(ends[:, 0].min()), float(ends[:, 1].max()), len(found), gallery, hub, int(hits[hub]))
