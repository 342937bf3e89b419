"""What the tables of a report hold: runs of one dataset and split, marked, with intervals, tests and published rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from glscl.evaluate.compare.comparison import Against, compare_runs
from glscl.evaluate.evaluated_run import RunForReport
from glscl.evaluate.metrics import rsum
from glscl.evaluate.report.figures import DIRECTIONS, figures_of, hubs_of
from glscl.evaluate.report.plots import Plot
from glscl.evaluate.result_tables import (
    NOT_COMPARABLE,
    OURS,
    SHOWN,
    THEIRS,
    coverage_notes,
    interval,
    number,
    published_rows,
    result_notes,
)

MORE = ("R@50", "Rsum")  # metrics that stand in a folded table


class Line(NamedTuple):
    """One line of a table of results: a run, a normalisation of it, a published method, or chance."""

    name: str
    kind: str  # "run", "under" (belongs to the run above), "chance" or "published"
    chips: tuple[tuple[str, str], ...]  # text and class
    cells: tuple[tuple[str, str, bool], ...]  # value, interval, best of its column


class Section(NamedTuple):
    """Lines of a table below a title."""

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Group:
    """What is shown of the runs of one dataset and split."""

    key: str
    title: str
    summary: str
    notes: tuple[str, ...]
    tables: dict[str, tuple[Section, ...]]  # direction -> sections
    more: dict[str, tuple[Section, ...]]  # the same lines, with the columns `MORE`
    published: dict[str, tuple[Section, ...]]
    tags: tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]] | None
    first: str
    against: tuple[Against, ...]
    figures: tuple[tuple[str, tuple[Plot, ...]], ...]
    neighbours: int  # of the hubs
    hubs: dict[str, tuple[tuple[str, ...], ...]]  # direction -> name, skewness, most often, never


def groups_of(
    runs: Sequence[RunForReport], chance: Mapping[str, Any] | None, *, resamples: int, seed: int
) -> list[Group]:
    """Runs by dataset and split, in the order given; `chance`, where given, is that of the first group, else it is computed."""
    keys = list(dict.fromkeys((run.result["dataset"], run.result["split"]) for run in runs))
    groups = []
    for i, (dataset, split) in enumerate(keys):
        members = [run for run in runs if (run.result["dataset"], run.result["split"]) == (dataset, split)]
        given = chance if i == 0 and chance is not None else _chance(members[0].result)
        comparison = compare_runs(members, published=False, top=3, resamples=resamples, seed=seed)
        suffix = "" if len(keys) == 1 else f"-{i + 1}"
        groups.append(
            Group(
                key=f"g{i + 1}",
                title=f"{dataset}, {split}" if dataset else str(split),
                summary=_summary(members),
                notes=_group_notes(members, comparison.notes),
                tables={direction: _sections(members, direction, given) for direction in DIRECTIONS},
                more={
                    direction: _with_warnings_only(_sections(members, direction, given, MORE))
                    for direction in DIRECTIONS
                },
                published={direction: _published_sections(dataset, direction, members) for direction in DIRECTIONS},
                tags=_tags(members),
                first=members[0].name,
                against=tuple(comparison.against),
                figures=figures_of(members, [run.name for run in runs], suffix),
                neighbours=max((run.closeup.neighbours for run in members if run.closeup is not None), default=0),
                hubs=hubs_of(members),
            )
        )
    return groups


def _chance(result: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What random orders score on average: a rank is uniform over the gallery."""
    sizes = {"text_to_video": result["counts"]["videos"], "video_to_text": result["video_to_text"]["queries"]}
    return {
        direction: {
            **{f"R@{k}": 100 * min(k, size) / size for k in (1, 5, 10, 50)},
            **dict.fromkeys(("MdR", "MnR"), (size + 1) / 2),
        }
        for direction, size in sizes.items()
    }


def _summary(members: Sequence[RunForReport]) -> str:
    counts = [run.result["counts"] for run in members]
    sizes = dict.fromkeys(f"{of['texts']:,} captions and {of['videos']:,} videos" for of in counts)
    backbones = dict.fromkeys(backbone_name(run.result) for run in members)
    return f"{' or '.join(sizes)}; backbone {', '.join(backbones)}."


def backbone_name(result: Mapping[str, Any]) -> str:
    """Architecture, with the tag of the weights where there is one."""
    pretrained = result.get("pretrained")
    return f"{result['backbone']} ({pretrained})" if pretrained else str(result["backbone"])


def _group_notes(members: Sequence[RunForReport], from_comparison: Sequence[str]) -> tuple[str, ...]:
    named = [(run.name, run.result) for run in members]
    notes = [*coverage_notes(named), *(note for name, result in named for note in result_notes(name, result))]
    if len({bool(run.result["frozen_backbone"]) for run in members}) > 1:
        notes.append(NOT_COMPARABLE)
    own = {f"{run.name}: {note}" for run in members for note in run.notes}
    return tuple(dict.fromkeys([*notes, *(note for note in from_comparison if note not in own)]))


def _sections(
    members: Sequence[RunForReport], direction: str, chance: Mapping[str, Any], shown: Sequence[str] = SHOWN
) -> tuple[Section, ...]:
    best = _best([run.result[direction] for run in members], shown)
    sections = []
    if chance.get(direction):
        sections.append(Section("", (Line("Chance", "chance", (), _cells(chance[direction], shown=shown)),)))
    for frozen, title in OURS.items():
        lines = [
            line
            for run in members
            if bool(run.result["frozen_backbone"]) is frozen
            for line in _lines(run, direction, best, shown)
        ]
        if lines:
            sections.append(Section(title, tuple(lines)))
    return tuple(sections)


def _with_warnings_only(sections: Sequence[Section]) -> tuple[Section, ...]:
    """The same lines without what is said of them a table above, but for warnings."""
    return tuple(
        section._replace(
            lines=tuple(
                line._replace(chips=tuple(chip for chip in line.chips if chip[1] == "warn")) for line in section.lines
            )
        )
        for section in sections
    )


def _lines(run: RunForReport, direction: str, best: Mapping[str, float], shown: Sequence[str]) -> list[Line]:
    result = run.result
    metrics, confidence = result[direction], (result.get("confidence_95") or {}).get(direction)
    lines = [Line(run.name, "run", _chips(run), _cells(metrics, confidence, best, shown))]
    by_caption = result.get("video_to_text_caption")
    if direction == "video_to_text" and by_caption and by_caption != metrics:
        spread = (result.get("confidence_95") or {}).get("video_to_text_caption")
        lines.append(Line("ranked among captions", "under", (), _cells(by_caption, spread, shown=shown)))
    for name, of in (result.get("normalised") or {}).items():
        if of.get(direction):
            seen = ("sees all test queries", "warn") if of.get("transductive") else ("extra data", "plain")
            lines.append(Line(f"+ {name}", "under", (seen,), _cells(of[direction], shown=shown)))
    return lines


def _chips(run: RunForReport) -> tuple[tuple[str, str], ...]:
    result = run.result
    chips = [("frozen", "plain") if result["frozen_backbone"] else ("fine-tuned", "plain")]
    if result.get("run") is None and run.run is None and not result.get("runs"):
        chips.append(("untrained", "plain"))
    elif result["selection"] == "test":
        chips.append(("selected on test", "warn"))
    else:
        chips.append(("last epoch" if result["selection"] == "last" else f"selected on {result['selection']}", "plain"))
    return tuple(chips)


def _cells(
    metrics: Mapping[str, float],
    confidence: Mapping[str, Sequence[float]] | None = None,
    best: Mapping[str, float] | None = None,
    shown: Sequence[str] = SHOWN,
) -> tuple[tuple[str, str, bool], ...]:
    cells = []
    for name in shown:
        value = _value(metrics, name)
        spread = (confidence or {}).get(name)
        cells.append(
            (
                "–" if value is None else number(value),
                interval(*spread) if spread else "",
                value is not None and best is not None and value == best.get(name),
            )
        )
    return tuple(cells)


def _value(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric, or the sum of the first three recalls; None where it was not published."""
    return rsum(metrics) if name == "Rsum" else metrics.get(name)


def _best(all_metrics: Sequence[Mapping[str, float]], shown: Sequence[str]) -> dict[str, float]:
    """The best value of each metric where there is something to choose from."""
    if len(all_metrics) < 2:
        return {}
    return {
        name: (max if name.startswith("R") else min)(_value(metrics, name) for metrics in all_metrics) for name in shown
    }


def _published_sections(dataset: str, direction: str, members: Sequence[RunForReport]) -> tuple[Section, ...]:
    sections: dict[str, list[Line]] = {}
    for kind, row in published_rows(dataset, [run.result for run in members]):
        metrics = getattr(row, direction)
        if metrics:
            chips = ((row.backbone, "plain"), (row.protocol, "plain"))
            sections.setdefault(THEIRS[kind], []).append(Line(row.method, "published", chips, _cells(metrics)))
    return tuple(Section(title, tuple(lines)) for title, lines in sections.items())


def _tags(members: Sequence[RunForReport]) -> Any:
    tags = list(dict.fromkeys(tag for run in members for tag in run.result.get("tags") or {}))
    if not tags:
        return None
    rows = []
    for run in members:
        found = run.result.get("tags") or {}
        rows.append((run.name, tuple(number(found[tag]["R@1"]) if tag in found else "–" for tag in tags)))
    sizes = {tag: of["queries"] for run in members for tag, of in (run.result.get("tags") or {}).items()}
    return tuple(f"{tag} ({sizes[tag]:,})" for tag in tags), tuple(rows)
