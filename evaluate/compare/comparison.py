"""Runs side by side: all of them in one table, each against the first, and the captions they differ on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glscl.common.tables import Table, TableRow, amount
from glscl.evaluate.evaluated_run import EvaluatedRun
from glscl.evaluate.judged_lists import by_judged_data, list_notes
from glscl.evaluate.metrics import main_metrics
from glscl.evaluate.paired_runs import Against, against_first
from glscl.evaluate.ranks import DIRECTIONS, TEXT_TO_VIDEO
from glscl.evaluate.result_tables import paired_table, published_rows, results_tables
from glscl.evaluate.run_names import mark_notes, plain_name


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs under distinct names; every later one against the first, where both have ranks of the same split."""

    runs: list[EvaluatedRun]
    against: list[Against]
    notes: list[str]
    published: bool

    def __repr__(self) -> str:
        return f"Comparison({', '.join(run.name for run in self.runs)})"

    def tables(self) -> list[Table]:
        """The table of results, one of paired tests a later run, one of the captions it moved."""
        first, shown = self.runs[0].name, main_metrics()
        results = {run.name: run.result for run in self.runs}
        p_values = {
            other.name: {direction: metrics["R@1"].p for direction, metrics in other.tests.items()}
            for other in self.against
        }
        tables = results_tables(
            [*results.values()],
            published=self.published,
            names=[*results],
            p_values=p_values if len(self.runs) > 1 else None,
        )
        if self.notes:
            tables[0] = tables[0]._replace(notes=(*tables[0].notes, *self.notes))
        for other in self.against:
            marks = tuple(said for name in (first, other.name) for said in mark_notes(name, results[name]))
            tested = {
                direction: {name: metrics[name] for name in shown if name in metrics}
                for direction, metrics in other.tests.items()
            }
            moved, tests = _moved_table(first, other), paired_table(first, other.name, tested, marks)
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
            "first": plain_name(self.runs[0].name),
            "runs": {plain_name(run.name): run.result for run in self.runs},
            "against_first": {plain_name(other.name): _against_dict(other) for other in self.against},
            "published": [
                {
                    "weights": kind,
                    "method": row.method,
                    "dataset": row.dataset,
                    "protocol": row.protocol,
                    "backbone": row.backbone,
                    **{direction: getattr(row, direction) for direction in DIRECTIONS},
                    "source": row.source,
                }
                for dataset in datasets
                for kind, row in (published_rows(dataset, results) if self.published else ())
            ],
            "notes": [*self._list_notes(), *self.notes],
        }

    def _list_notes(self) -> list[str]:
        named = [(run.name, run.result) for run in self.runs]
        together = by_judged_data([result for _, result in named])
        return [note for data in together for note in list_notes([named[i] for i in data.members])]


def compare_runs(
    runs: Sequence[EvaluatedRun], *, published: bool = True, top: int = 5, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Put runs side by side.

    Args:
        runs: at least one; every later one is tested against the first.
        published: whether published results on the same datasets stand beside them.
        top: captions listed of each kind.
        resamples: of the permutation test and the bootstrap.
        seed: of both.
    """
    tested = against_first(runs, top=top, resamples=resamples, seed=seed)
    return Comparison(runs=tested.runs, against=tested.against, notes=tested.notes, published=published)


def _moved_table(first: str, other: Against) -> Table:
    total = other.queries[TEXT_TO_VIDEO]
    kinds = {
        f"Improved: {other.improved:,} of {total:,}": other.most_improved,
        f"Worsened: {other.worsened:,} of {total:,}": other.most_worsened,
    }
    rows = [
        TableRow(section, (moved.before, moved.after, moved.caption or "", moved.id))
        for section, captions in kinds.items()
        for moved in captions
    ]
    notes = (
        f"Text to video: {amount(other.improved, 'caption')} rank higher in {other.name}, {other.worsened:,} lower, "
        f"{other.unchanged:,} the same.",
    )
    title = f"Captions that {other.name} ranks otherwise than {first}"
    return Table(title, (f"Rank {first}", f"Rank {other.name}", "Caption", "Id"), tuple(rows), notes)


def _against_dict(other: Against) -> dict[str, Any]:
    tests = {d: {name: paired._asdict() for name, paired in metrics.items()} for d, metrics in other.tests.items()}
    moved = {key: [m._asdict() for m in getattr(other, key)] for key in ("most_improved", "most_worsened")}
    return {**other._asdict(), "tests": tests, **moved}
