"""The nearest neighbours of every query, in both directions, and how often an item is one: hubness.

T texts, V videos, k neighbours; a tile is t texts by v videos.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from glscl.evaluate.similarity import Pairs, PairsDone, Scoring, scoring


class Neighbours(NamedTuple):
    """The best of each query, best first; k is smaller where the gallery is.

    Attributes:
        videos: (T, k) int64, video rows of every text. video_scores: (T, k) float32.
        texts: (V, k) int64, text rows of every video. text_scores: (V, k) float32.
    """

    videos: np.ndarray
    video_scores: np.ndarray
    texts: np.ndarray
    text_scores: np.ndarray


def nearest_neighbours(
    head: Scoring,
    table: Pairs,
    k: int = 10,
    *,
    device: torch.device | str | None = None,
    max_bytes: int | None = None,
    progress: PairsDone | None = None,
) -> Neighbours:
    """The k best videos of every text and the k best texts of every video, one tile of scores in memory at a time.

    Args:
        head, table, device, max_bytes, progress: as in `glscl.evaluate.similarity.similarity_matrix`.
        k: neighbours kept; memory for them is k · (T + V) numbers, whatever T · V is.

    Raises:
        NonFiniteError, InputError: as `similarity_matrix`.
    """
    T, V = table.num_texts, table.num_videos
    best_videos = _Best(T, min(k, V))
    best_texts = _Best(V, min(k, T))
    with scoring(head, table, device=device, max_bytes=max_bytes, progress=progress) as scorer:
        for texts in scorer.text_spans:
            rows = (
                torch.arange(*texts) if scorer.pairing.order is None else torch.from_numpy(scorer.pairing.rows(texts))
            )
            for videos in scorer.video_spans:
                scores, columns = scorer.tile(texts, videos), torch.arange(*videos)
                best_videos.push(rows, columns, scores)
                best_texts.push(columns, rows, scores.T)
    return Neighbours(
        best_videos.items.numpy(), best_videos.scores.numpy(), best_texts.items.numpy(), best_texts.scores.numpy()
    )


def occurrences(neighbours: np.ndarray, gallery: int) -> np.ndarray:
    """(G,) int64: of how many queries each gallery item is a neighbour, N_k. Their mean is k · queries / gallery.

    Args:
        neighbours: (Q, k) gallery rows.
        gallery: G.
    """
    return np.bincount(np.asarray(neighbours).ravel(), minlength=gallery)


def skewness(values: np.ndarray) -> float:
    """Third standardised moment; of N_k, the usual measure of hubness: 0 is none, large is few items for most queries."""
    values = np.asarray(values, np.float64)
    spread = values.std()
    return float(((values - values.mean()) ** 3).mean() / spread**3) if spread > 0 else 0.0


class _Best:
    """The k best items of every query, from tiles."""

    def __init__(self, queries: int, k: int) -> None:
        self.scores = torch.full((queries, k), -torch.inf)
        self.items = torch.full((queries, k), -1, dtype=torch.int64)

    def push(self, queries: Tensor, items: Tensor, scores: Tensor) -> None:
        """`scores` (q, i) of these queries with these items."""
        k = self.scores.shape[1]
        top = scores.topk(min(k, scores.shape[1]), dim=1)
        found = torch.cat([self.scores[queries], top.values.cpu()], 1)
        names = torch.cat([self.items[queries], items[top.indices.cpu()]], 1)
        order = torch.argsort(found, dim=1, descending=True, stable=True)[:, :k]
        self.scores[queries], self.items[queries] = found.gather(1, order), names.gather(1, order)
