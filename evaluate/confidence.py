"""How sure a metric is: bootstrap intervals over queries, by video where a video has several captions.

N queries, U distinct ranks, C clusters (queries that are drawn together), M stored metrics, B resamples.

Captions of one video rise and fall together, so drawing them one by one would make the intervals too narrow: whole
videos are drawn instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from glscl.common.errors import InputError, UsageError
from glscl.evaluate.metrics import METRICS, stored_metrics, values_of
from glscl.evaluate.ranks import TEXT_TO_VIDEO, as_integers


def confidence_95(
    ranks: Any, cluster: Any = None, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, list[float]]:
    """Percentile bootstrap interval of every metric of `METRICS` that has one.

    Args:
        ranks: (N,) ranks, from 1.
        cluster: (N,) integers, equal for queries that are drawn together (the video of a caption); None draws queries.
        resamples: B.
        seed: of the draws; the same seed gives the same intervals.
        level: share of the resampled metrics inside the interval.

    Returns:
        Metric -> [low, high]. A single query, or a single cluster, gives low = high.
    """
    if resamples < 1 or not 0 < level < 1:
        raise UsageError(f"resamples must be at least 1 and level within (0, 1), found {resamples} and {level}")
    drawn = resampled_metrics(ranks, cluster, resamples=resamples, seed=seed)  # (B, M)
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return {name: [float(low[i]), float(high[i])] for i, name in enumerate(stored_metrics()) if METRICS[name].interval}


def confidence_of_directions(
    ranks: Mapping[str, np.ndarray], video_of_text: Any = None, *, resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """`confidence_95` of each direction of `glscl.evaluate.metrics.retrieval_ranks`.

    Args:
        video_of_text: (T,) the video of each text, by which text to video is drawn. Video to text draws videos anyway.
    """
    video = None if video_of_text is None else as_integers(video_of_text)
    return {
        direction: confidence_95(values, video if direction == TEXT_TO_VIDEO else None, resamples=resamples, seed=seed)
        for direction, values in ranks.items()
    }


def resampled_metrics(ranks: Any, cluster: Any = None, *, resamples: int, seed: int) -> np.ndarray:
    """(B, M) float64: the stored metrics of each of B resamples of the clusters, each as large as the original in clusters."""
    ranks, cluster, clusters = check_queries(ranks, cluster)
    distinct, rank_of_query = np.unique(ranks, return_inverse=True)
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        times = np.bincount(rng.integers(0, clusters, clusters), minlength=clusters)  # (C,) how often drawn
        return np.bincount(rank_of_query, times[cluster], minlength=len(distinct)).astype(np.int64)

    return np.concatenate([values_of(distinct, counts) for counts in in_blocks(draw, resamples)])


def in_blocks(draw: Callable[[], np.ndarray], resamples: int) -> Iterator[np.ndarray]:
    """(b, U) arrays of what `draw` gives, (U,) at a time, `resamples` times in all; b as large as a few megabytes hold."""
    first = draw()
    size = max(1, 2**19 // len(first))
    for start in range(0, resamples, size):
        rows = range(start, min(start + size, resamples))
        yield np.stack([draw() if row else first for row in rows])


def check_queries(ranks: Any, cluster: Any) -> tuple[np.ndarray, np.ndarray, int]:
    """Ranks (N,) as float64, clusters (N,) numbered from 0, and how many clusters there are.

    Raises:
        InputError: no queries, a rank below 1 or not finite, or a number of cluster entries other than N.
    """
    ranks = np.asarray(ranks, np.float64)
    if ranks.ndim != 1 or not len(ranks):
        raise InputError(f"a bootstrap needs the ranks of at least one query, found shape {ranks.shape}")
    if not np.all(np.isfinite(ranks) & (ranks >= 1)):
        wrong = int(np.flatnonzero(~(np.isfinite(ranks) & (ranks >= 1)))[0])
        raise InputError(f"the rank of query {wrong} is {ranks[wrong]}; ranks are finite and start at 1")
    if cluster is None:
        return ranks, np.arange(len(ranks)), len(ranks)
    cluster = np.asarray(cluster)
    if cluster.shape != ranks.shape:
        raise InputError(f"cluster has shape {cluster.shape}, expected one entry for each of {len(ranks)} queries")
    names, numbers = np.unique(cluster, return_inverse=True)
    return ranks, numbers, len(names)
