"""Which figures a report has: recall, ranks, hubness and training, those there is data for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from glscl.evaluate.evaluated_run import RunForReport
from glscl.evaluate.neighbours import skewness
from glscl.evaluate.report import plots
from glscl.evaluate.report.closeup import CloseUp
from glscl.evaluate.report.plots import Plot
from glscl.evaluate.result_tables import minus

DIRECTIONS = {"text_to_video": "Text to video", "video_to_text": "Video to text"}
_GALLERY = {"text_to_video": "videos", "video_to_text": "groups of captions"}


def figures_of(
    members: Sequence[RunForReport], order: Sequence[str], suffix: str
) -> tuple[tuple[str, tuple[Plot, ...]], ...]:
    """Heading -> figures, only those there is data for."""
    sections = {
        "Recall": [_recall(members, direction, order, suffix) for direction in DIRECTIONS],
        "Ranks": [_ranks(members, direction, order, suffix) for direction in DIRECTIONS],
        "Hubness": [_hubness(members, direction, order, suffix) for direction in DIRECTIONS],
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
                for direction, title in DIRECTIONS.items()
            ),
        ],
    }
    kept = {heading: tuple(plot for plot in of if plot is not None) for heading, of in sections.items()}
    return tuple((heading, of) for heading, of in kept.items() if of)


def _gallery(run: RunForReport, direction: str) -> int:
    result = run.result
    return int(result["counts"]["videos"] if direction == "text_to_video" else result[direction]["queries"])


def _recall(members: Sequence[RunForReport], direction: str, order: Sequence[str], suffix: str) -> Plot:
    rows = []
    for run in members:
        confidence = (run.result.get("confidence_95") or {}).get(direction)
        rows.append((run.name, run.result[direction], None if run.ranks is None else run.ranks[direction], confidence))
    return plots.recall_curve(
        f"recall-{direction.replace('_', '-')}{suffix}",
        f"Recall, {DIRECTIONS[direction].lower()}",
        rows,
        gallery=max(_gallery(run, direction) for run in members),
        item=_GALLERY[direction],
        order=order,
    )


def _ranks(members: Sequence[RunForReport], direction: str, order: Sequence[str], suffix: str) -> Plot | None:
    rows = [(run.name, run.ranks[direction]) for run in members if run.ranks is not None]
    if not rows:
        return None
    return plots.rank_histogram(
        f"ranks-{direction.replace('_', '-')}{suffix}",
        f"Ranks, {DIRECTIONS[direction].lower()}",
        rows,
        gallery=max(_gallery(run, direction) for run in members),
        order=order,
    )


def _hubness(members: Sequence[RunForReport], direction: str, order: Sequence[str], suffix: str) -> Plot | None:
    rows = [(run.name, _occurrences(run.closeup, direction)) for run in members if run.closeup is not None]
    if not rows:
        return None
    closeup = next(run.closeup for run in members if run.closeup is not None)
    sizes = len(closeup.text_occurrences), len(closeup.video_occurrences)
    queries, gallery = sizes if direction == "text_to_video" else sizes[::-1]
    return plots.hubness(
        f"hubness-{direction.replace('_', '-')}{suffix}",
        f"Hubness, {DIRECTIONS[direction].lower()}",
        rows,
        neighbours=min(closeup.neighbours, gallery),
        item="videos" if direction == "text_to_video" else "captions",
        queries=queries,
        order=order,
    )


def _occurrences(closeup: CloseUp, direction: str) -> np.ndarray:
    return closeup.video_occurrences if direction == "text_to_video" else closeup.text_occurrences


def hubs_of(members: Sequence[RunForReport]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """By direction, of each run: its name, skewness of N₁₀, its largest value, percent of items nobody is near to."""
    rows: dict[str, list[tuple[str, ...]]] = {direction: [] for direction in DIRECTIONS}
    for run in members:
        if run.closeup is not None:
            for direction, of in rows.items():
                counts = _occurrences(run.closeup, direction)
                never = float((counts == 0).mean() * 100)
                of.append((run.name, minus(f"{skewness(counts):.2f}"), f"{counts.max():,}", f"{never:.1f} %"))
    return {direction: tuple(of) for direction, of in rows.items()}


def _training(
    members: Sequence[RunForReport],
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
        points = [(epoch, of) for epoch, of in points if isinstance(epoch, int) and isinstance(of, (int, float))]
        if points:
            rows.append((run.name, [epoch for epoch, _ in points], [of for _, of in points]))
    return plots.training_curve(f"{key}{suffix}", title, rows, label=label, order=order) if rows else None
