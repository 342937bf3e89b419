"""What `glscl compare` says: several runs in one table, each against the first, and the captions they differ on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from glscl.common.errors import InputError
from glscl.evaluate.compare.paired import Change, Paired, common_queries, most_changed, paired_test
from glscl.evaluate.evaluated_run import RunForReport, clusters_of, with_distinct_names
from glscl.evaluate.metrics import TEXT_TO_VIDEO
from glscl.evaluate.result_tables import (
    DAGGER,
    DIRECTIONS,
    SHOWN,
    Row,
    Table,
    paired_table,
    published_rows,
    results_tables,
    selection_note,
)


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
        tests: direction -> metric -> `Paired`, all metrics of `glscl.evaluate.metrics.summarise`.
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


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs under distinct names; every later one against the first, where both have ranks of the same split."""

    runs: list[RunForReport]
    against: list[Against]
    notes: list[str]
    published: bool

    def tables(self) -> list[Table]:
        """The table of results, one of paired tests a later run, one of the captions it moved."""
        p_values = {
            of.name: {direction: metrics["R@1"].p for direction, metrics in of.tests.items()} for of in self.against
        }
        tables = results_tables(
            [run.result for run in self.runs],
            published=self.published,
            names=[run.name for run in self.runs],
            p_values=p_values if len(self.runs) > 1 else None,
        )
        if self.notes:
            tables[0] = tables[0]._replace(notes=(*tables[0].notes, *self.notes))
        for of in self.against:
            shown = {direction: {name: metrics[name] for name in SHOWN} for direction, metrics in of.tests.items()}
            pair = (self.runs[0].name, of.name)
            marks = tuple(selection_note(name) for name in pair if name.endswith(DAGGER))
            moved, tests = _moved_table(self.runs[0].name, of), paired_table(*pair, shown, marks)
            if moved.rows:
                tables += [tests, moved._replace(notes=(*moved.notes, *marks))]
            else:  # nothing moved, or none was asked for
                tables.append(tests._replace(notes=(*tests.notes, *moved.notes)))
        return tables

    def as_dict(self) -> dict[str, Any]:
        """Everything, JSON-able."""
        results = [run.result for run in self.runs]
        datasets = dict.fromkeys(result["dataset"] for result in results)
        return {
            "first": self.runs[0].name.removesuffix(DAGGER),
            "runs": {run.name.removesuffix(DAGGER): run.result for run in self.runs},
            "against_first": {of.name.removesuffix(DAGGER): _against_dict(of) for of in self.against},
            "published": [
                {
                    "weights": kind,
                    "method": row.method,
                    "dataset": row.dataset,
                    "protocol": row.protocol,
                    "backbone": row.backbone,
                    **{direction: getattr(row, direction) for direction in DIRECTIONS.values()},
                    "source": row.source,
                }
                for dataset in datasets
                for kind, row in (published_rows(dataset, results) if self.published else ())
            ],
            "notes": self.notes,
        }


def compare_runs(
    runs: Sequence[RunForReport], *, published: bool = True, top: int = 5, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Put runs side by side.

    Args:
        runs: at least one; every later one is tested against the first.
        published: whether published results on the same datasets stand beside them.
        top: captions listed of each kind.
        resamples: of the permutation test and the bootstrap.
        seed: of both.
    """
    if not runs:
        raise InputError("there are no runs to compare")
    runs = with_distinct_names(runs)
    notes = [f"{run.name}: {sentence}" for run in runs for sentence in run.notes]
    against = []
    for other in runs[1:]:
        reason = _why_not(runs[0], other)
        if reason is None:
            against.append(_against(runs[0], other, top=top, resamples=resamples, seed=seed))
        else:
            notes.append(f"{other.name} was not tested against {runs[0].name}: {reason}.")
    for of in against:
        first = {direction: len(runs[0].ranks[direction]) for direction in of.queries}  # type: ignore[index]
        if of.queries != first:
            common = ", ".join(f"{of.queries[d]:,} of {first[d]:,} {d.replace('_', ' ')}" for d in first)
            notes.append(f"{of.name} was tested against {runs[0].name} on the queries both ranked: {common}.")
    return Comparison(runs=runs, against=against, notes=list(dict.fromkeys(notes)), published=published)


def _why_not(first: RunForReport, other: RunForReport) -> str | None:
    """Why two runs cannot be paired; None where they can."""
    for run in (first, other):
        if run.ranks is None:
            return f"the ranks of {run.name} are not there"
    ours, theirs = ((run.result["dataset"], run.result["split"]) for run in (first, other))
    if ours != theirs:
        return f"they were judged on {'/'.join(ours)} and {'/'.join(theirs)}"
    if not set(first.text_ids) & set(other.text_ids) or not set(first.video_ids) & set(other.video_ids):
        return "they share no query"
    return None


def _against(first: RunForReport, other: RunForReport, *, top: int, resamples: int, seed: int) -> Against:
    tests, queries = {}, {}
    for direction in DIRECTIONS.values():
        ids = [run.text_ids if direction == TEXT_TO_VIDEO else run.video_ids for run in (first, other)]
        here, there = common_queries(*ids)
        before, after = first.ranks[direction][here], other.ranks[direction][there]  # type: ignore[index]
        cluster = clusters_of(first, direction)
        cluster = None if cluster is None else np.asarray(cluster)[here]
        tests[direction] = paired_test(before, after, cluster, resamples=resamples, seed=seed)
        queries[direction] = len(here)
        if direction == TEXT_TO_VIDEO:
            changes, places = most_changed(before, after, top=top), here

    def moved(change: Change) -> Moved:
        name = first.text_ids[places[change.query]]
        caption = first.captions.get(name, other.captions.get(name))
        return Moved(name, caption, change.before, change.after)

    return Against(
        other.name,
        queries,
        tests,
        changes.improved,
        changes.worsened,
        changes.unchanged,
        [moved(change) for change in changes.most_improved],
        [moved(change) for change in changes.most_worsened],
    )


def _moved_table(first: str, of: Against) -> Table:
    total = of.queries[TEXT_TO_VIDEO]
    kinds = {
        f"Improved: {of.improved:,} of {total:,}": of.most_improved,
        f"Worsened: {of.worsened:,} of {total:,}": of.most_worsened,
    }
    rows = [
        Row(section, (moved.before, moved.after, moved.caption or "", moved.id))
        for section, of_kind in kinds.items()
        for moved in of_kind
    ]
    notes = (
        f"Text to video: {of.improved:,} captions rank higher in {of.name}, {of.worsened:,} lower, "
        f"{of.unchanged:,} the same.",
    )
    title = f"Captions that {of.name} ranks otherwise than {first}"
    return Table(title, (f"Rank {first}", f"Rank {of.name}", "Caption", "Id"), tuple(rows), notes)


def _against_dict(of: Against) -> dict[str, Any]:
    tests = {d: {name: paired._asdict() for name, paired in metrics.items()} for d, metrics in of.tests.items()}
    moved = {key: [m._asdict() for m in getattr(of, key)] for key in ("most_improved", "most_worsened")}
    return {**of._asdict(), "tests": tests, **moved}
