"""What the tables of a report hold: runs of one dataset and split, marked, with intervals, tests and published rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from glscl.common.tables import Difference, Table, TableRow, amount, number
from glscl.evaluate.evaluated_run import EvaluatedRun
from glscl.evaluate.judged_lists import by_judged_data, list_notes
from glscl.evaluate.metrics import (
    METRICS,
    best_values,
    chance,
    further_metrics,
    main_metrics,
    metric_cells,
)
from glscl.evaluate.paired_runs import Against, against_first
from glscl.evaluate.ranks import DIRECTIONS, TEXT_TO_VIDEO, VIDEO_TO_TEXT, VIDEO_TO_TEXT_CAPTION
from glscl.evaluate.report.examination import examination_of
from glscl.evaluate.report.figures import TITLES, figures_of, hub_tables
from glscl.evaluate.report.plots import Plot
from glscl.evaluate.result_tables import NOT_COMPARABLE, OURS, THEIRS, coverage_notes, published_rows, result_notes
from glscl.evaluate.run_names import seen_in_training


@dataclass(frozen=True)
class Group:
    """What is shown of the runs of one dataset and split; tables by direction."""

    key: str
    title: str
    summary: str
    notes: tuple[str, ...]
    tables: dict[str, Table]
    more: dict[str, Table]  # the same rows, with the metrics that are folded away
    published: dict[str, Table]
    tags: Table | None
    first: str
    differences: dict[str, Table]
    moved: tuple[tuple[Against, tuple[Table, ...]], ...]
    figures: tuple[tuple[str, tuple[Plot, ...]], ...]
    neighbours: int  # of the hubs
    hubs: dict[str, Table]

    def __repr__(self) -> str:
        return f"Group({self.title!r})"


def groups_of(
    runs: Sequence[EvaluatedRun], given_chance: Mapping[str, Any] | None, *, resamples: int, seed: int
) -> list[Group]:
    """Runs by dataset, split and what these hold, in the order given.

    Args:
        given_chance: what chance scores on the first group; None computes it, as for the others.
        resamples, seed: of the paired tests.
    """
    judged, groups = by_judged_data([run.result for run in runs]), []
    for i, data in enumerate(judged):
        members = [runs[row] for row in data.members]
        dataset = members[0].result["dataset"]
        random = given_chance if i == 0 and given_chance is not None else _chance(members[0].result)
        tested = against_first(members, top=3, resamples=resamples, seed=seed)
        suffix = "" if len(judged) == 1 else f"-{i + 1}"
        further = further_metrics()
        examined = [found for run in members if (found := examination_of(run)) is not None]
        groups.append(
            Group(
                key=f"g{i + 1}",
                title=data.title,
                summary=_summary(members),
                notes=_group_notes(members, tested.notes),
                tables={direction: _results(members, direction, random, main_metrics()) for direction in DIRECTIONS},
                more={
                    direction: _with_warnings_only(_results(members, direction, random, further))
                    for direction in DIRECTIONS
                },
                published={direction: _published(dataset, direction, members) for direction in DIRECTIONS},
                tags=_tags(members),
                first=members[0].name,
                differences={direction: _differences(tested.against, direction) for direction in DIRECTIONS},
                moved=tuple((other, _moved(members[0].name, other)) for other in tested.against),
                figures=figures_of(members, [run.name for run in runs], suffix),
                neighbours=max((examination.neighbours for examination in examined), default=0),
                hubs=hub_tables(members),
            )
        )
    return groups


def _chance(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What random orders score on average: a rank is uniform over the gallery."""
    sizes = {TEXT_TO_VIDEO: result["counts"]["videos"], VIDEO_TO_TEXT: result[VIDEO_TO_TEXT]["queries"]}
    return {direction: chance(size) for direction, size in sizes.items()}


def _summary(members: Sequence[EvaluatedRun]) -> str:
    counts = [run.result["counts"] for run in members]
    sizes = dict.fromkeys(
        f"{amount(each['texts'], 'caption')} and {amount(each['videos'], 'video')}" for each in counts
    )
    backbones = dict.fromkeys(backbone_name(run.result) for run in members)
    return f"{' or '.join(sizes)}; backbone {', '.join(backbones)}."


def backbone_name(result: Mapping[str, Any]) -> str:
    """Architecture, with the tag of the weights where there is one."""
    pretrained = result.get("pretrained")
    return f"{result['backbone']} ({pretrained})" if pretrained else str(result["backbone"])


def _group_notes(members: Sequence[EvaluatedRun], from_tests: Sequence[str]) -> tuple[str, ...]:
    named = [(run.name, run.result) for run in members]
    notes = [*list_notes(named), *coverage_notes(named)]
    notes += [note for name, result in named for note in result_notes(name, result)]
    if len({bool(run.result["frozen_backbone"]) for run in members}) > 1:
        notes.append(NOT_COMPARABLE)
    own = {f"{run.name}: {note}" for run in members for note in run.notes}
    return tuple(dict.fromkeys([*notes, *(note for note in from_tests if note not in own)]))


def _results(members: Sequence[EvaluatedRun], direction: str, random: Mapping[str, Any], names: Sequence[str]) -> Table:
    best = best_values([run.result[direction] for run in members], names)
    rows = []
    if random.get(direction):
        rows.append(TableRow("", ("Chance", *metric_cells(random[direction], names=names)), "chance"))
    for frozen, title in OURS.items():
        rows += [
            row
            for run in members
            if bool(run.result["frozen_backbone"]) is frozen
            for row in _rows(run, direction, title, names, best)
        ]
    title = TITLES[direction] + (f", {' and '.join(names)}" if names != main_metrics() else "")
    return Table(title, ("Method", *names), tuple(rows))


def _with_warnings_only(table: Table) -> Table:
    """The same rows without what is said of them a table above, but for warnings."""
    rows = (row._replace(marks=tuple(mark for mark in row.marks if mark[1] == "warn")) for row in table.rows)
    return table._replace(rows=tuple(rows))


def _rows(
    run: EvaluatedRun, direction: str, section: str, names: Sequence[str], best: Mapping[str, float]
) -> list[TableRow]:
    result, spreads = run.result, run.result.get("confidence_95") or {}
    metrics = result[direction]
    cells = metric_cells(metrics, spreads.get(direction), names=names, best=best)
    rows = [TableRow(section, (run.name, *cells), "run", _marks(run))]
    by_caption = result.get(VIDEO_TO_TEXT_CAPTION)
    if direction == VIDEO_TO_TEXT and by_caption and by_caption != metrics:
        cells = metric_cells(by_caption, spreads.get(VIDEO_TO_TEXT_CAPTION), names=names)
        rows.append(TableRow(section, ("ranked among captions", *cells), "under"))
    for name, found in (result.get("normalised") or {}).items():
        if found.get(direction):
            seen = ("sees all test queries", "warn") if found.get("transductive") else ("extra data", "plain")
            cells = metric_cells(found[direction], names=names)
            rows.append(TableRow(section, (f"+ {name}", *cells), "under", (seen,)))
    return rows


def _marks(run: EvaluatedRun) -> tuple[tuple[str, str], ...]:
    result = run.result
    marks = [("frozen", "plain") if result["frozen_backbone"] else ("fine-tuned", "plain")]
    if result.get("run") is None and run.run is None and not result.get("runs"):
        marks.append(("untrained", "plain"))
    elif result["selection"] == "test":
        marks.append(("selected on test", "warn"))
    else:
        marks.append(("last epoch" if result["selection"] == "last" else f"selected on {result['selection']}", "plain"))
    if seen_in_training(result):
        marks.append(("seen in training", "warn"))
    return tuple(marks)


def _published(dataset: str, direction: str, members: Sequence[EvaluatedRun]) -> Table:
    names, rows = main_metrics(), []
    for kind, row in published_rows(dataset, [run.result for run in members]):
        metrics = getattr(row, direction)
        if metrics:
            marks = ((row.backbone, "plain"), (row.protocol, "plain"))
            cells = metric_cells(metrics, names=names)
            rows.append(TableRow(THEIRS[kind], (row.method, *cells), "published", marks))
    return Table(f"{TITLES[direction]}, published", ("Method", *names), tuple(rows))


def _differences(against: Sequence[Against], direction: str) -> Table:
    """What every later run has more or less than the first."""
    names = main_metrics()
    rows = []
    for other in against:
        tests = other.tests[direction]
        cells = [
            Difference(test.difference, test.interval_95[0], test.interval_95[1], test.p, METRICS[name].digits)
            for name in names
            if (test := tests.get(name)) is not None
        ]
        rows.append(TableRow("", (other.name, *cells)))
    return Table(TITLES[direction], ("Method", *names), tuple(rows))


def _moved(first: str, other: Against) -> tuple[Table, ...]:
    """The captions whose videos rank elsewhere, with both ranks; no table where there are none."""
    kinds = {
        "Improved most, ranks with either": other.most_improved,
        "Worsened most, ranks with either": other.most_worsened,
    }
    return tuple(
        Table(
            title,
            ("Caption", first, other.name),
            tuple(TableRow("", (each.caption or each.id, f"{each.before:g}", f"{each.after:g}")) for each in captions),
            left=(0,),
        )
        for title, captions in kinds.items()
        if captions
    )


def _tags(members: Sequence[EvaluatedRun]) -> Table | None:
    tags = list(dict.fromkeys(tag for run in members for tag in run.result.get("tags") or {}))
    if not tags:
        return None
    rows = []
    for run in members:
        found = run.result.get("tags") or {}
        cells = [number(found[tag]["R@1"]) if tag in found else "–" for tag in tags]
        rows.append(TableRow("", (run.name, *cells)))
    sizes = {tag: found["queries"] for run in members for tag, found in (run.result.get("tags") or {}).items()}
    columns = ("Method", *(f"{tag} ({sizes[tag]:,})" for tag in tags))
    return Table("Text-to-video R@1 (%), captions in brackets", columns, tuple(rows))
