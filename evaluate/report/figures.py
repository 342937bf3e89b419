"""Which figures a report has: recall, ranks, hubness and training, those there is data for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glscl.common.tables import Table, TableRow, minus
from glscl.evaluate.evaluated_run import EvaluatedRun
from glscl.evaluate.neighbours import skewness
from glscl.evaluate.ranks import TEXT_TO_VIDEO, VIDEO_TO_TEXT
from glscl.evaluate.report import plots
from glscl.evaluate.report.examination import Examination, examination_of
from glscl.evaluate.report.plots import Plot

TITLES = {TEXT_TO_VIDEO: "Text to video", VIDEO_TO_TEXT: "Video to text"}
_GALLERY = {TEXT_TO_VIDEO: "videos", VIDEO_TO_TEXT: "groups of captions"}


def figures_of(
    members: Sequence[EvaluatedRun], order: Sequence[str], suffix: str
) -> tuple[tuple[str, tuple[Plot, ...]], ...]:
    """Heading -> figures, only those there is data for."""
    sections = {
        "Recall": [_recall(members, direction, order, suffix) for direction in TITLES],
        "Ranks": [_ranks(members, direction, order, suffix) for direction in TITLES],
        "Hubness": [_hubness(members, direction, order, suffix) for direction in TITLES],
        "Training": [
            _training(
                members, "loss", "Training loss", "Mean loss of an epoch", lambda row: row.get("loss"), order, suffix
            ),
            *(
                _training(
                    members,
                    f"validation-{direction.replace('_', '-')}",
                    f"Validation, {title.lower()}",
                    "Validation R@1 (%)",
                    lambda row, d=direction: ((row.get("validation") or {}).get(d) or {}).get("R@1"),
                    order,
                    suffix,
                )
                for direction, title in TITLES.items()
            ),
        ],
    }
    kept = {heading: tuple(plot for plot in found if plot is not None) for heading, found in sections.items()}
    return tuple((heading, found) for heading, found in kept.items() if found)


def _gallery(run: EvaluatedRun, direction: str) -> int:
    result = run.result
    return int(result["counts"]["videos"] if direction == TEXT_TO_VIDEO else result[direction]["queries"])


def _recall(members: Sequence[EvaluatedRun], direction: str, order: Sequence[str], suffix: str) -> Plot:
    rows = []
    for run in members:
        confidence = (run.result.get("confidence_95") or {}).get(direction)
        rows.append((run.name, run.result[direction], None if run.ranks is None else run.ranks[direction], confidence))
    return plots.recall_curve(
        f"recall-{direction.replace('_', '-')}{suffix}",
        f"Recall, {TITLES[direction].lower()}",
        rows,
        gallery=max(_gallery(run, direction) for run in members),
        item=_GALLERY[direction],
        order=order,
    )


def _ranks(members: Sequence[EvaluatedRun], direction: str, order: Sequence[str], suffix: str) -> Plot | None:
    rows = [(run.name, run.ranks[direction]) for run in members if run.ranks is not None]
    if not rows:
        return None
    return plots.rank_histogram(
        f"ranks-{direction.replace('_', '-')}{suffix}",
        f"Ranks, {TITLES[direction].lower()}",
        rows,
        gallery=max(_gallery(run, direction) for run in members),
        order=order,
    )


def _hubness(members: Sequence[EvaluatedRun], direction: str, order: Sequence[str], suffix: str) -> Plot | None:
    examined = [(run.name, found) for run in members if (found := examination_of(run)) is not None]
    if not examined:
        return None
    rows = [(name, _occurrences(examination, direction)) for name, examination in examined]
    first = examined[0][1]
    sizes = len(first.text_occurrences), len(first.video_occurrences)
    queries, gallery = sizes if direction == TEXT_TO_VIDEO else sizes[::-1]
    return plots.hubness(
        f"hubness-{direction.replace('_', '-')}{suffix}",
        f"Hubness, {TITLES[direction].lower()}",
        rows,
        neighbours=min(first.neighbours, gallery),
        item="videos" if direction == TEXT_TO_VIDEO else "captions",
        queries=queries,
        order=order,
    )


def _occurrences(examination: Examination, direction: str) -> np.ndarray:
    return examination.video_occurrences if direction == TEXT_TO_VIDEO else examination.text_occurrences


def hub_tables(members: Sequence[EvaluatedRun]) -> dict[str, Table]:
    """By direction, of each run: skewness of N₁₀, its largest value, percent of items that are near to no query."""
    rows: dict[str, list[TableRow]] = {direction: [] for direction in TITLES}
    for run in members:
        examination = examination_of(run)
        if examination is not None:
            for direction in rows:
                counts = _occurrences(examination, direction)
                never = float((counts == 0).mean() * 100)
                cells = (minus(f"{skewness(counts):.2f}"), f"{counts.max():,}", f"{never:.1f} %")
                rows[direction].append(TableRow("", (run.name, *cells)))
    columns = ("Method", "Skewness", "Most often", "Never found")
    return {direction: Table(TITLES[direction], columns, tuple(found)) for direction, found in rows.items()}


def _training(
    members: Sequence[EvaluatedRun],
    key: str,
    title: str,
    label: str,
    value: Callable[[Any], Any],
    order: Sequence[str],
    suffix: str,
) -> Plot | None:
    rows = []
    for run in members:
        points = [(row.get("epoch"), value(row)) for row in run.history]
        points = [(epoch, y) for epoch, y in points if isinstance(epoch, int) and isinstance(y, (int, float))]
        if points:
            rows.append((run.name, [epoch for epoch, _ in points], [y for _, y in points]))
    return plots.training_curve(f"{key}{suffix}", title, rows, label=label, order=order) if rows else None
