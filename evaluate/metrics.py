"""Retrieval metrics: every number that is made of ranks, one entry each in `METRICS`.

N queries, U distinct ranks. What ranks are, and of which directions there are any, says `glscl.evaluate.ranks`.

An entry is all that a metric needs: it then stands in result files with its bootstrap interval, in the tables of a
terminal, in Markdown, CSV and LaTeX, in the paired tests of `compare` and on the page of `report`. Mean reciprocal rank:

    METRICS["MRR"] = Metric(lambda ranks, counts: (counts / ranks).sum(-1) / counts.sum(-1), digits=3,
                            bounds=(0, 1), meaning="mean of 1 / rank")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from glscl.common.errors import InputError, UsageError
from glscl.common.tables import Cell, Measured
from glscl.evaluate.ranks import retrieval_ranks

CUTOFFS = (1, 5, 10, 50)


@dataclass(frozen=True)
class Metric:
    """An entry of `METRICS`.

    Attributes:
        function: (U,) distinct ranks, rising, and (…, U) how many queries have each -> (…) the metric; a bootstrap asks
            for many counts at once. None for one that is made of others (`of_metrics`): tables show it, files do not
            hold it.
        better: whether more is better or less.
        bounds: the least and the largest value there can be.
        digits: decimals that are printed.
        interval: whether it has a bootstrap interval.
        main: whether it stands in every table; else in that of `eval` and in the folded ones of a report.
        always: whether every result file has it; a file that was written before a metric was thought of has not.
        meaning: what it is, for the notes of a report.
        of_metrics: the metrics of one direction -> the value, for one without `function`.
        chance: gallery items -> what random orders score, where it is not simply the function of ranks 1 to G.
    """

    function: Callable[[np.ndarray, np.ndarray], Any] | None
    better: Literal["higher", "lower"] = "higher"
    bounds: tuple[float, float] = (-1e12, 1e12)
    digits: int = 1
    interval: bool = True
    main: bool = True
    always: bool = False
    meaning: str = ""
    of_metrics: Callable[[Mapping[str, float]], float] | None = None
    chance: Callable[[int], float] | None = None


def recall(cutoff: int) -> Callable[[np.ndarray, np.ndarray], Any]:
    """R@K: percent of queries ranked at K or above."""
    return lambda ranks, counts: (
        counts[..., : np.searchsorted(ranks, cutoff, side="right")].sum(-1) / counts.sum(-1) * 100
    )


def median_rank(ranks: np.ndarray, counts: np.ndarray) -> Any:
    """MdR: the middle rank, or the mean of the two in the middle."""
    upto = np.cumsum(counts, -1)
    queries = upto[..., -1:]
    lower, upper = ((upto <= place).sum(-1) for place in ((queries - 1) // 2, queries // 2))
    return (ranks[lower] + ranks[upper]) / 2


def mean_rank(ranks: np.ndarray, counts: np.ndarray) -> Any:
    """MnR."""
    return (counts * ranks).sum(-1) / counts.sum(-1)


def rsum(metrics: Mapping[str, float]) -> float:
    """R@1 + R@5 + R@10 of one direction, as `summarise` gives it; 300 is perfect."""
    return metrics["R@1"] + metrics["R@5"] + metrics["R@10"]


def partially_relevant(ranks: np.ndarray) -> dict[str, float]:
    """R@100 and SumR, R@1 + R@5 + R@10 + R@100, which partially relevant retrieval reports; of (N,) ranks, 400 is perfect."""
    distinct, counts = np.unique(ranks, return_counts=True)
    found = {cutoff: recall(cutoff)(distinct, counts) for cutoff in (1, 5, 10, 100)}
    return {"R@100": found[100], "SumR": sum(found.values())}


def as_mteb(ranks: np.ndarray, cutoff: int = 10) -> float:
    """nDCG@10 in percent where each query has one right answer, which MTEB reports: mean of 1 / log2(1 + rank), 0 beyond the tenth."""
    return float(100 * np.where(ranks <= cutoff, 1 / np.log2(1 + ranks), 0.0).mean())


def _recall(cutoff: int, **options: Any) -> Metric:
    chance = lambda gallery: 100 * min(cutoff, gallery) / gallery  # noqa: E731
    return Metric(recall(cutoff), bounds=(0, 100), always=True, chance=chance, **options)


METRICS: dict[str, Metric] = {
    "R@1": _recall(1),
    "R@5": _recall(5),
    "R@10": _recall(10),
    "R@50": _recall(50, main=False),
    "MdR": Metric(median_rank, better="lower", bounds=(1, 1e12), always=True),
    "MnR": Metric(mean_rank, better="lower", bounds=(1, 1e12), always=True),
    "Rsum": Metric(None, bounds=(0, 300), interval=False, main=False, meaning="R@1 + R@5 + R@10", of_metrics=rsum),
}


def stored_metrics() -> tuple[str, ...]:
    """The metrics that result files hold, in the order of `METRICS`."""
    return tuple(name for name, metric in METRICS.items() if metric.function is not None)


def main_metrics() -> tuple[str, ...]:
    """The metrics that every table shows."""
    return tuple(name for name, metric in METRICS.items() if metric.main)


def further_metrics() -> tuple[str, ...]:
    """The metrics that stand beside the main ones where there is room."""
    return tuple(name for name, metric in METRICS.items() if not metric.main)


def retrieval_metrics(
    similarity: Any, video_of_text: Any = None, *, conventions: Sequence[str] = ("group", "caption")
) -> dict[str, dict[str, float]]:
    """All metrics of a similarity matrix.

    Args:
        similarity: (T, V) numpy array or tensor of a floating dtype; larger means more alike.
        video_of_text: (T,) integers, the column of each text's video; None for a square matrix whose diagonal holds the
            pairs.
        conventions: which of "group" and "caption" to give for video to text.

    Returns:
        `{"text_to_video": {...}, "video_to_text": {...group...}, "video_to_text_caption": {...}}`; each as `summarise`.

    Raises:
        InputError: empty or misshapen input, or a text whose video is not a column.
        NonFiniteError: NaN or infinity in the matrix.
    """
    ranks = retrieval_ranks(similarity, video_of_text, conventions=conventions)
    return {direction: summarise(values) for direction, values in ranks.items()}


def summarise(ranks: Any) -> dict[str, float]:
    """Metrics of the ranks of some queries.

    Args:
        ranks: (N,) ranks, from 1.

    Returns:
        `R@1`, `R@5`, `R@10`, `R@50` in percent (share of queries ranked at K or above), `MdR` median rank, `MnR` mean
        rank, whatever else `METRICS` holds, and `queries`, N.
    """
    ranks = np.asarray(ranks, np.float64)
    if ranks.ndim != 1 or not len(ranks):
        raise InputError(f"metrics need a list of ranks of at least one query, found shape {ranks.shape}")
    names, values = stored_metrics(), values_of(*np.unique(ranks, return_counts=True))
    return {**dict(zip(names, values.tolist())), "queries": len(ranks)}


def values_of(ranks: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(…, M) float64: the stored metrics of (U,) distinct ranks, rising, that (…, U) counts of queries have.

    Raises:
        UsageError: the function of a metric gives another shape, as one that sums over all counts at once.
    """
    values = np.empty((*counts.shape[:-1], len(stored_metrics())))
    for i, name in enumerate(stored_metrics()):
        value = np.asarray(METRICS[name].function(ranks, counts))  # pyright: ignore[reportOptionalCall]
        if value.shape != counts.shape[:-1]:
            raise UsageError(
                f"the function of the metric {name} gives shape {value.shape} for counts of shape {counts.shape}, "
                f"expected {counts.shape[:-1]}; sum over the last axis, as in counts.sum(-1)"
            )
        values[..., i] = value
    return values


def value(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric of one direction of a result, or one that is made of others; None where the result has it not."""
    compose = METRICS[name].of_metrics
    if compose is None:
        return metrics.get(name)
    try:
        return compose(metrics)
    except KeyError:
        return None


def chance(gallery: int) -> dict[str, float]:
    """What random orders score on average: a rank is uniform over the gallery."""
    ranks, once = np.arange(1.0, gallery + 1), np.ones(gallery, np.int64)
    return {
        name: metric.chance(gallery) if metric.chance is not None else float(metric.function(ranks, once))
        for name, metric in METRICS.items()
        if metric.function is not None
    }


def best_values(several: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """The best value of each metric among several runs; nothing where there is one run alone."""
    if len(several) < 2:
        return {}
    found = {name: [v for metrics in several if (v := value(metrics, name)) is not None] for name in names}
    return {
        name: (max if METRICS[name].better == "higher" else min)(values) for name, values in found.items() if values
    }


def metric_cells(
    metrics: Mapping[str, float],
    confidence: Mapping[str, Sequence[float]] | None = None,
    *,
    names: Sequence[str],
    best: Mapping[str, float] | None = None,
) -> tuple[Cell, ...]:
    """Cells of a table: some metrics of one direction of a result, with their intervals.

    Args:
        metrics, confidence: as they stand in a result file.
        names: which metrics.
        best: metric -> the value that is marked as the best of its column.
    """
    cells: list[Cell] = []
    for name in names:
        found, spread = value(metrics, name), (confidence or {}).get(name)
        if found is None:
            cells.append(None)
            continue
        low, high = map(float, spread) if spread else (None, None)
        digits, marked = METRICS[name].digits, best is not None and found == best.get(name)
        plain = spread is None and digits == 1 and not marked
        cells.append(found if plain else Measured(float(found), low, high, digits, marked))
    return tuple(cells)


def directions_of_better() -> str:
    """Which metrics are better the larger they are, as a sentence: "For R@K more is better, for MdR and MnR less."."""

    def names(better: str) -> str:
        found = [name for name, metric in METRICS.items() if metric.main and metric.better == better]
        return " and ".join(dict.fromkeys("R@K" if name.startswith("R@") else name for name in found))

    return f"For {names('higher')} more is better, for {names('lower')} less."
