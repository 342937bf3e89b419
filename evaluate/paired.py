"""Two runs side by side, query by query: paired tests on their ranks, and the queries they differ on.

N queries that both runs ranked, C clusters (queries drawn together), B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from glscl.common.errors import InputError, UsageError
from glscl.evaluate.confidence import check_queries, in_blocks, resampled_metrics
from glscl.evaluate.metrics import stored_metrics, summarise, values_of

_ROUNDING = 1e-9  # two exchanges that make the same difference may round it otherwise


class Paired(NamedTuple):
    """One metric of two runs on the same queries.

    Attributes:
        before, after: the metric of either run.
        difference: after − before; `METRICS[name].better` says whether more is better.
        interval_95: [low, high] of the difference, from a bootstrap that draws the same queries for both.
        p: two-sided probability of a difference at least as large if the runs were interchangeable.
    """

    before: float
    after: float
    difference: float
    interval_95: list[float]
    p: float


def paired_test(
    before: Any, after: Any, cluster: Any = None, *, resamples: int = 2000, seed: int = 0
) -> dict[str, Paired]:
    """Is one run better than the other, or did the test queries happen to suit it?

    A permutation test: under the null hypothesis either run could have produced either rank of a query, so the two
    are exchanged at random, cluster by cluster, and p = (1 + differences as large) / (1 + B). It never gives 0.

    Args:
        before, after: (N,) ranks of the same queries in the same order; see `common_queries`.
        cluster: (N,) the video of each query where several share one; None takes each query for itself.
        resamples: B, of both the permutations and the bootstrap.

    Returns:
        Metric -> `Paired`, for every stored metric of `glscl.evaluate.metrics.METRICS`.

    Raises:
        InputError: no queries, different numbers of them, or ranks that cannot be.
    """
    before, after, cluster, clusters = _check_pair(before, after, cluster)
    if resamples < 1:
        raise UsageError(f"resamples must be at least 1, found {resamples}")
    drawn = [resampled_metrics(ranks, cluster, resamples=resamples, seed=seed) for ranks in (before, after)]
    low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975], axis=0)  # same seed and clusters: the same draws

    # What an exchange leaves in place is counted once; of both runs together, it changes nothing.
    ranks, code = np.unique(np.concatenate([before, after]), return_inverse=True)
    code_before, code_after = code[: len(before)], code[len(before) :]
    changed = np.flatnonzero(code_before != code_after)
    together = np.bincount(code, minlength=len(ranks))
    unchanged = np.bincount(np.delete(code_before, changed), minlength=len(ranks))

    def differences(counts_before: np.ndarray) -> np.ndarray:
        return values_of(ranks, together - counts_before) - values_of(ranks, counts_before)

    observed = np.abs(differences(np.bincount(code_before, minlength=len(ranks))))
    code_before, code_after, cluster_changed = code_before[changed], code_after[changed], cluster[changed]
    rng = np.random.default_rng(seed)

    def exchange() -> np.ndarray:
        exchanged = rng.integers(0, 2, clusters, dtype=np.int8).astype(bool)[cluster_changed]
        return unchanged + np.bincount(np.where(exchanged, code_after, code_before), minlength=len(ranks))

    found = np.concatenate([np.abs(differences(counts)) for counts in in_blocks(exchange, resamples)])  # (B, M)
    p = (1 + (found >= observed - _ROUNDING).sum(0)) / (1 + resamples)

    first, second = summarise(before), summarise(after)
    return {
        name: Paired(
            first[name], second[name], second[name] - first[name], [float(low[i]), float(high[i])], float(p[i])
        )
        for i, name in enumerate(stored_metrics())
    }


class Change(NamedTuple):
    """A query whose rank differs: its position in the ranks, and the rank in either run."""

    query: int
    before: float
    after: float


class Changes(NamedTuple):
    """How many queries rank higher, lower and the same in the second run, and those that moved furthest."""

    improved: int
    worsened: int
    unchanged: int
    most_improved: list[Change]
    most_worsened: list[Change]


def most_changed(before: Any, after: Any, *, top: int = 10) -> Changes:
    """The queries on which two runs differ most, by places gained or lost; equal ones in the order of the queries.

    Args:
        before, after: (N,) ranks of the same queries in the same order.
        top: how many of each kind at most.
    """
    before, after, _, _ = _check_pair(before, after, None)
    gained = before - after

    def furthest(order: np.ndarray) -> list[Change]:
        return [Change(int(i), float(before[i]), float(after[i])) for i in order[:top]]

    order = np.argsort(-gained, kind="stable")
    reverse = np.argsort(gained, kind="stable")
    improved, worsened = int((gained > 0).sum()), int((gained < 0).sum())
    return Changes(
        improved,
        worsened,
        len(gained) - improved - worsened,
        furthest(order[:improved]),
        furthest(reverse[:worsened]),
    )


def common_queries(before: Sequence[str], after: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Positions in both lists of the ids that both have, int64, in the order of the first.

    Runs on caches in which other videos failed have ranked other queries; only common ones can be compared.

    Raises:
        InputError: an id stands twice in a list, or the lists share none.
    """
    for which, ids in (("first", before), ("second", after)):
        if len(set(ids)) != len(ids):
            twice = next(name for i, name in enumerate(ids) if name in set(ids[:i]))
            raise InputError(f"query {twice!r} stands twice in the {which} run")
    position = {name: i for i, name in enumerate(after)}
    pairs = [(i, position[name]) for i, name in enumerate(before) if name in position]
    if not pairs:
        raise InputError(f"the runs share no query: {len(before)} and {len(after)} queries with different ids")
    first, second = np.array(pairs, np.int64).T
    return first, second


def _check_pair(before: Any, after: Any, cluster: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    before, cluster, clusters = check_queries(before, cluster)
    after, _, _ = check_queries(after, None)
    if before.shape != after.shape:
        raise InputError(
            f"the runs ranked {len(before)} and {len(after)} queries; a paired comparison needs the same ones"
        )
    return before, after, cluster, clusters
