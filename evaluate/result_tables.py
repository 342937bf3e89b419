"""Tables of results: one's own and published ones, frozen and fine-tuned backbones apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from glscl.common.errors import UsageError
from glscl.common.tables import Cell, Measured, Table, TableRow, amount, p_value
from glscl.evaluate.judged_lists import by_judged_data, list_notes
from glscl.evaluate.metrics import METRICS, main_metrics, metric_cells
from glscl.evaluate.paired import Paired
from glscl.evaluate.published import FINE_TUNED, FROZEN, PUBLISHED, TEST_VIDEOS, Published
from glscl.evaluate.ranks import TEXT_TO_VIDEO, VIDEO_TO_TEXT
from glscl.evaluate.run_names import default_names, mark_notes

SHORT_NAMES = {TEXT_TO_VIDEO: "t2v", VIDEO_TO_TEXT: "v2t"}
OURS = {True: "Frozen backbone", False: "Fine-tuned backbone"}
THEIRS = {FROZEN: "Published, frozen backbone", FINE_TUNED: "Published, fine-tuned backbone"}
NOT_COMPARABLE = "A head on a frozen backbone and a model fine-tuned from pixels are not comparable."


def results_tables(
    results: Iterable[Mapping[str, Any]],
    *,
    published: bool = True,
    names: Sequence[str] | None = None,
    p_values: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Table]:
    """One table for each dataset and split, or several where these hold other videos or captions; frozen and fine-tuned backbones stand in sections of their own.

    Args:
        results: contents of `result.json` files.
        published: add the published rows of the dataset, in sections of their own.
        names: how to call each result; its head by default, with the run where a head occurs more than once.
        p_values: name -> direction -> p of R@1 against the first result; adds a column.

    Returns:
        Tables in the order in which datasets first occur, one row a method and direction. Every normalisation of a
        result has rows below it, and its extra data is named in the notes.
    """
    results = list(results)
    names = default_names(results) if names is None else list(names)
    if len(names) != len(results):
        raise UsageError(f"{len(names)} names for {len(results)} results")
    columns = ("Method", "Backbone", "Weights", "Direction", *main_metrics(), *(() if p_values is None else ("p",)))
    tables = []
    for data in by_judged_data(results):
        rows: list[TableRow] = []
        notes = ["t2v: text to video; v2t: video to text, group convention. R@K in percent."]
        if p_values is not None and 0 in data.members:
            notes.append(f"p: R@1 against {names[0]}, a permutation test paired by query.")
        members = [(names[i], results[i]) for i in data.members]
        notes += [*list_notes(members), *coverage_notes(members)]
        for name, result in members:
            ours, said = _result_rows(name, result, p_values)
            rows += ours
            notes += said
        normalised = [found for _, result in members for found in (result.get("normalised") or {}).values()]
        if any(found.get("transductive") for found in normalised):
            notes.append("*: not what a query gets that comes alone.")
        rows.sort(key=lambda row: list(OURS.values()).index(row.section))
        if published:
            theirs = published_rows(members[0][1]["dataset"], (result for _, result in members))
            rows += [row for kind, known in theirs for row in _published_rows(kind, known, p_values is not None)]
            protocols = dict.fromkeys(known.protocol for _, known in theirs)
            notes += [f"Published rows: protocol {name}." for name in protocols]
        if {FROZEN, FINE_TUNED} <= {row.cells[2] for row in rows}:
            notes.append(NOT_COMPARABLE)
        tables.append(Table(data.title, columns, tuple(rows), tuple(dict.fromkeys(notes))))
    return tables


def paired_table(
    before: str, after: str, tests: Mapping[str, Mapping[str, Paired]], notes: Sequence[str] = ()
) -> Table:
    """The outcome of `glscl.evaluate.paired.paired_test` for some directions.

    Args:
        before, after: names of the runs.
        tests: direction -> result of `paired_test`.
        notes: said below it too.
    """
    rows = tuple(
        TableRow(direction.replace("_", " "), (name, *_paired_cells(test, METRICS[name].digits), p_value(test.p)))
        for direction, metrics in tests.items()
        for name, test in metrics.items()
    )
    columns = ("Metric", before, after, "Difference", "95 % low", "95 % high", "p")
    how = "Permutation test and bootstrap, paired by query."
    return Table(f"{after} against {before}", columns, rows, (how, *notes))


def published_rows(dataset: str, results: Iterable[Mapping[str, Any]]) -> list[tuple[str, Published]]:
    """Published results on a dataset, each with "frozen" or "fine-tuned", to stand beside `results`.

    None where no result is of the published test set: another split, or another protocol (MSR-VTT's full test has 2,990
    videos, the published rows are of 1k-A). A gallery that lost videos counts as the one it should have been.
    """
    admitted = (None, TEST_VIDEOS.get(dataset))
    if not any(
        result["dataset"] == dataset
        and result["split"] == "test"
        and (result.get("counts") or {}).get("expected_videos") in admitted
        for result in results
    ):
        return []
    return [(kind, row) for kind, known in PUBLISHED.items() for row in known if row.dataset == dataset]


def coverage_notes(results: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """What of a split was not judged, by (name, result); said once for all results that it holds for."""
    found: dict[str, list[str]] = {}
    for name, result in results:
        counts = result.get("counts") or {}
        short = [
            f"{counts[have]:,} of {counts[expected]:,} published {what}"
            for have, expected, what in (
                ("videos", "expected_videos", "videos"),
                ("texts", "expected_texts", "captions"),
            )
            if counts.get(expected) is not None and counts[have] != counts[expected]
        ]
        if short:
            note = f"judged on {' and '.join(short)}, so not comparable with published numbers"
            found.setdefault(note, []).append(name)
        if counts.get("texts_without_video"):
            note = f"{amount(counts['texts_without_video'], 'caption')} lost their video and are no queries"
            found.setdefault(note, []).append(name)
    total = len(results)
    return [f"{'All' if len(names) == total > 1 else ', '.join(names)}: {note}." for note, names in found.items()]


def result_notes(name: str, result: Mapping[str, Any]) -> list[str]:
    """What must be said beside the numbers of a result: how it was selected, what it and its normalisations have seen."""
    notes = mark_notes(name, result)
    alike: dict[tuple[str, str, str], list[str]] = {}
    for normalisation, found in (result.get("normalised") or {}).items():
        if found.get("transductive"):
            said = ("sees", "see", "all test queries at once")
        else:
            said = ("uses", "use", f"extra data: {found.get('bank')}")
        alike.setdefault(said, []).append(normalisation)
    notes += [
        f"{name} + {', '.join(names)} {singular if len(names) == 1 else plural} {what}."
        for (singular, plural, what), names in alike.items()
    ]
    return notes


def _paired_cells(test: Paired, digits: int) -> list[Cell]:
    values = [test.before, test.after, test.difference, *test.interval_95]
    return [value if digits == 1 else Measured(value, digits=digits) for value in values]


def _result_rows(
    name: str, result: Mapping[str, Any], p_values: Mapping[str, Mapping[str, float]] | None
) -> tuple[list[TableRow], list[str]]:
    frozen, shown = bool(result["frozen_backbone"]), main_metrics()
    about = (result["backbone"], FROZEN if frozen else FINE_TUNED)
    rows = []
    for direction, short in SHORT_NAMES.items():
        spreads = (result.get("confidence_95") or {}).get(direction)
        cells = metric_cells(result[direction], spreads, names=shown)
        p: tuple[Cell, ...] = ()
        if p_values is not None:
            found = p_values.get(name, {}).get(direction)
            p = (None if found is None else p_value(found),)
        rows.append(TableRow(OURS[frozen], (name, *about, short, *cells, *p)))
    for normalisation, found in (result.get("normalised") or {}).items():
        for direction, short in SHORT_NAMES.items():
            if found.get(direction):
                star = " *" if found.get("transductive") else ""
                cells = metric_cells(found[direction], names=shown)
                row = (f"{name} + {normalisation}{star}", *about, short, *cells)
                rows.append(TableRow(OURS[frozen], (*row, *(() if p_values is None else (None,)))))
    return rows, result_notes(name, result)


def _published_rows(kind: str, row: Published, with_p: bool) -> list[TableRow]:
    end = (None,) if with_p else ()
    published = ((short, getattr(row, direction)) for direction, short in SHORT_NAMES.items())
    return [
        TableRow(
            THEIRS[kind],
            (row.method, row.backbone, kind, short, *metric_cells(metrics, names=main_metrics()), *end),
        )
        for short, metrics in published
        if metrics
    ]
