"""Evaluated runs tested against the first of them: which queries both ranked, what changed, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from glscl.common.errors import InputError
from glscl.evaluate.evaluated_run import EvaluatedRun, with_distinct_names
from glscl.evaluate.judged_lists import by_judged_data, version_of
from glscl.evaluate.paired import Change, Paired, common_queries, most_changed, paired_test
from glscl.evaluate.ranks import DIRECTIONS, TEXT_TO_VIDEO


class Moved(NamedTuple):
    """One caption whose video ranks elsewhere in another run; `caption` is None where the cache is not there."""

    id: str
    caption: str | None
    before: float
    after: float


class Against(NamedTuple):
    """One run against the first, over the queries that both ranked.

    Attributes:
        name: of the run.
        queries: direction -> how many queries both ranked.
        tests: direction -> metric -> `Paired`, all stored metrics of `glscl.evaluate.metrics.METRICS`.
        improved, worsened, unchanged: captions whose video ranks higher, lower and the same.
        most_improved, most_worsened: those that moved furthest.
    """

    name: str
    queries: dict[str, int]
    tests: dict[str, dict[str, Paired]]
    improved: int
    worsened: int
    unchanged: int
    most_improved: list[Moved]
    most_worsened: list[Moved]

    def __repr__(self) -> str:
        return f"Against({self.name!r}, {self.improved} improved, {self.worsened} worsened, {self.unchanged} unchanged)"


class PairedRuns(NamedTuple):
    """Runs under distinct names, the later ones against the first where they could be, and what must be said of it."""

    runs: list[EvaluatedRun]
    against: list[Against]
    notes: list[str]


def against_first(runs: Sequence[EvaluatedRun], *, top: int = 5, resamples: int = 2000, seed: int = 0) -> PairedRuns:
    """Test every later run against the first.

    Args:
        runs: at least one.
        top: captions listed of each kind.
        resamples: of the permutation test and the bootstrap.
        seed: of both.
    """
    if not runs:
        raise InputError("there are no runs to compare")
    first, *others = named = with_distinct_names(runs)
    notes = [f"{run.name}: {sentence}" for run in named for sentence in run.notes]
    against, partial = [], []
    for other in others:
        reason = _why_not(first, other)
        if first.ranks is None or other.ranks is None or reason is not None:
            notes.append(f"{other.name} was not tested against {first.name}: {reason}.")
            continue
        against.append(_against((first, first.ranks), (other, other.ranks), top=top, resamples=resamples, seed=seed))
        total = {direction: len(first.ranks[direction]) for direction in DIRECTIONS}
        queries = against[-1].queries
        if queries != total:
            common = ", ".join(f"{queries[d]:,} of {total[d]:,} {d.replace('_', ' ')}" for d in total)
            partial.append(f"{other.name} was tested against {first.name} on the queries both ranked: {common}.")
    return PairedRuns(named, against, list(dict.fromkeys([*notes, *partial])))


def _why_not(first: EvaluatedRun, other: EvaluatedRun) -> str | None:
    """Why two runs cannot be paired; None where they can."""
    for run in (first, other):
        if run.ranks is None:
            return f"the ranks of {run.name} are not there"
    ours, theirs = ((run.result["dataset"], run.result["split"]) for run in (first, other))
    if ours != theirs:
        return f"they were judged on {'/'.join(ours)} and {'/'.join(theirs)}"
    if len(by_judged_data([first.result, other.result])) > 1:
        lists = (version_of(run.result) for run in (first, other))
        return f"they were judged on other videos or captions, {' and '.join(lists)}"
    if not set(first.text_ids) & set(other.text_ids) or not set(first.video_ids) & set(other.video_ids):
        return "they share no query"
    return None


RankedRun = tuple[EvaluatedRun, Mapping[str, np.ndarray]]  # a run and its ranks, which are there


def _against(before: RankedRun, after: RankedRun, *, top: int, resamples: int, seed: int) -> Against:
    (first, ranks_before), (other, ranks_after) = before, after
    both: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # direction -> positions in either run of the common queries
    tests = {}
    for direction in DIRECTIONS:
        ids = [run.text_ids if direction == TEXT_TO_VIDEO else run.video_ids for run in (first, other)]
        here, there = both[direction] = common_queries(*ids)
        cluster = first.clusters(direction)
        tests[direction] = paired_test(
            ranks_before[direction][here],
            ranks_after[direction][there],
            None if cluster is None else np.asarray(cluster)[here],
            resamples=resamples,
            seed=seed,
        )
    here, there = both[TEXT_TO_VIDEO]
    changes = most_changed(ranks_before[TEXT_TO_VIDEO][here], ranks_after[TEXT_TO_VIDEO][there], top=top)

    def moved(change: Change) -> Moved:
        name = first.text_ids[int(here[change.query])]
        caption = first.captions.get(name, other.captions.get(name))
        return Moved(name, caption, change.before, change.after)

    return Against(
        other.name,
        {direction: len(positions) for direction, (positions, _) in both.items()},
        tests,
        changes.improved,
        changes.worsened,
        changes.unchanged,
        [moved(change) for change in changes.most_improved],
        [moved(change) for change in changes.most_worsened],
    )
