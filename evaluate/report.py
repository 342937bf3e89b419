"""One self-contained HTML page about some evaluated runs: what `glscl report` and `glscl demo` write.

This file decides what is shown; templates/report.html says how, templates/report.css how it looks.
"""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import numpy as np

from glscl.cache.files import write_atomically
from glscl.cache.schema import VideoItem
from glscl.errors import InputError
from glscl.evaluate import plots
from glscl.evaluate.closeup import CloseUp, Example
from glscl.evaluate.comparison import Against, compare_runs
from glscl.evaluate.neighbours import skewness
from glscl.evaluate.plots import Plot
from glscl.evaluate.runs import RunForReport, with_distinct_names
from glscl.evaluate.tables import (
    NOT_COMPARABLE,
    OURS,
    SHOWN,
    THEIRS,
    coverage_notes,
    interval,
    number,
    p_value,
    published_rows,
    result_notes,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# A video and seconds of its frames -> pictures of them, or None where the file cannot be had.
Thumbnails = Callable[[VideoItem, Sequence[float]], "Sequence[Image] | None"]

DIRECTIONS = {"text_to_video": "Text to video", "video_to_text": "Video to text"}
_GALLERY = {"text_to_video": "videos", "video_to_text": "groups of captions"}
_LONG_CAPTION = 240  # characters shown before the rest is folded away
_FRAMES_SHOWN = 12
_FAILURES_SHOWN = 100
_THUMBNAIL = 120  # pixels, the longer side


def write_report(
    results: Sequence[RunForReport],
    out: Path,
    *,
    title: str | None = None,
    chance: Mapping[str, Any] | None = None,
    thumbnails: Thumbnails | None = None,
    plots_dir: Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Path:
    """Write the page.

    Args:
        results: the runs; those of one dataset and split share tables and figures, and each later one is tested against
            the first. What a run lacks (ranks, history, cache, close-up) is left out with a sentence that says so.
        out: the HTML file.
        title: heading; by default what was judged.
        chance: a result, or just its "text_to_video" and "video_to_text", of a head that knows nothing, shown with the
            first dataset; computed from the number of videos by default.
        thumbnails: gives pictures of frames for the examples; None leaves them out.
        plots_dir: folder for the figures as PNG and PDF.
        resamples, seed: of the paired tests.

    Returns:
        `out`. The same arguments give the same bytes.

    Raises:
        InputError: there are no results.
        StorageError: the disk is full or failing.
    """
    if not results:
        raise InputError("there is nothing to report: no results were given")
    runs = with_distinct_names(results)
    groups = _groups(runs, chance, resamples=resamples, seed=seed)
    pictures = _Pictures(thumbnails)
    context = {
        "title": title or "Text-video retrieval: " + ", ".join(group.title for group in groups),
        "groups": groups,
        "shown": SHOWN,
        "directions": DIRECTIONS,
        "examples": [_examples_context(run, pictures) for run in runs if run.closeup and _has_examples(run.closeup)],
        "failures": _failures_context(runs),
        "provenance": [_provenance_context(run) for run in runs],
        "missing": [(run.name, note) for run in runs for note in run.notes] + pictures.notes(runs),
        "long_caption": _LONG_CAPTION,
    }
    page = _environment().get_template("report.html").render(context).lstrip()
    write_atomically(out, _printable(page).encode("utf-8", "replace"))
    if plots_dir is not None:
        for plot in (plot for group in groups for _, of in group.figures for plot in of):
            plot.write(plots_dir)
    return out


# ---- tables ----------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    """One line of a table of results: a run, a normalisation of it, a published method, or chance."""

    name: str
    kind: str  # "run", "under" (belongs to the run above), "chance" or "published"
    chips: tuple[tuple[str, str], ...]  # text and class
    cells: tuple[tuple[str, str, bool], ...]  # value, interval, best of its column


class Section(NamedTuple):
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
    published: dict[str, tuple[Section, ...]]
    tags: tuple[tuple[str, ...], tuple[tuple[str, tuple[str, ...]], ...]] | None
    first: str
    against: tuple[Against, ...]
    figures: tuple[tuple[str, tuple[Plot, ...]], ...]
    neighbours: int  # of the hubs
    hubs: dict[str, tuple[tuple[str, ...], ...]]  # direction -> name, skewness, most often, never


def _groups(
    runs: Sequence[RunForReport], chance: Mapping[str, Any] | None, *, resamples: int, seed: int
) -> list[Group]:
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
                published={direction: _published_sections(dataset, direction) for direction in DIRECTIONS},
                tags=_tags(members),
                first=members[0].name,
                against=tuple(comparison.against),
                figures=_figures(members, [run.name for run in runs], suffix),
                neighbours=max((run.closeup.neighbours for run in members if run.closeup is not None), default=0),
                hubs=_hubs(members),
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
    backbones = dict.fromkeys(_backbone(run.result) for run in members)
    return f"{' or '.join(sizes)}; backbone {', '.join(backbones)}."


def _backbone(result: Mapping[str, Any]) -> str:
    pretrained = result.get("pretrained")
    return f"{result['backbone']} ({pretrained})" if pretrained else str(result["backbone"])


def _group_notes(members: Sequence[RunForReport], from_comparison: Sequence[str]) -> tuple[str, ...]:
    named = [(run.name, run.result) for run in members]
    notes = [*coverage_notes(named), *(note for name, result in named for note in result_notes(name, result))]
    if len({bool(run.result["frozen_backbone"]) for run in members}) > 1:
        notes.append(NOT_COMPARABLE)
    own = {f"{run.name}: {note}" for run in members for note in run.notes}
    return tuple(dict.fromkeys([*notes, *(note for note in from_comparison if note not in own)]))


def _sections(members: Sequence[RunForReport], direction: str, chance: Mapping[str, Any]) -> tuple[Section, ...]:
    best = _best([run.result[direction] for run in members])
    sections = []
    if chance.get(direction):
        sections.append(Section("", (Line("Chance", "chance", (), _cells(chance[direction])),)))
    for frozen, title in OURS.items():
        lines = [
            line
            for run in members
            if bool(run.result["frozen_backbone"]) is frozen
            for line in _lines(run, direction, best)
        ]
        if lines:
            sections.append(Section(title, tuple(lines)))
    return tuple(sections)


def _lines(run: RunForReport, direction: str, best: Mapping[str, float]) -> list[Line]:
    result = run.result
    metrics, confidence = result[direction], (result.get("confidence_95") or {}).get(direction)
    lines = [Line(run.name, "run", _chips(run), _cells(metrics, confidence, best))]
    by_caption = result.get("video_to_text_caption")
    if direction == "video_to_text" and by_caption and by_caption != metrics:
        spread = (result.get("confidence_95") or {}).get("video_to_text_caption")
        lines.append(Line("ranked among captions", "under", (), _cells(by_caption, spread)))
    for name, of in (result.get("normalised") or {}).items():
        if of.get(direction):
            seen = ("sees all test queries", "warn") if of.get("transductive") else ("extra data", "plain")
            lines.append(Line(f"+ {name}", "under", (seen,), _cells(of[direction])))
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
) -> tuple[tuple[str, str, bool], ...]:
    cells = []
    for name in SHOWN:
        value = metrics.get(name)
        spread = (confidence or {}).get(name)
        cells.append(
            (
                "–" if value is None else number(value),
                interval(*spread) if spread else "",
                value is not None and best is not None and value == best.get(name),
            )
        )
    return tuple(cells)


def _best(all_metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The best value of each metric where there is something to choose from."""
    if len(all_metrics) < 2:
        return {}
    return {name: (max if "@" in name else min)(metrics[name] for metrics in all_metrics) for name in SHOWN}


def _published_sections(dataset: str, direction: str) -> tuple[Section, ...]:
    sections: dict[str, list[Line]] = {}
    for kind, row in published_rows(dataset):
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


# ---- figures ---------------------------------------------------------------------------------------------------------


def _figures(
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


def _hubs(members: Sequence[RunForReport]) -> dict[str, tuple[tuple[str, ...], ...]]:
    rows: dict[str, list[tuple[str, ...]]] = {direction: [] for direction in DIRECTIONS}
    for run in members:
        if run.closeup is not None:
            for direction, of in rows.items():
                counts = _occurrences(run.closeup, direction)
                never = float((counts == 0).mean() * 100)
                of.append((run.name, _minus(f"{skewness(counts):.2f}"), f"{counts.max():,}", f"{never:.1f} %"))
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


# ---- examples --------------------------------------------------------------------------------------------------------


class _Pictures:
    """Thumbnails as data URIs, each made once."""

    def __init__(self, make: Thumbnails | None) -> None:
        self._make = make
        self._made: dict[tuple[str, tuple[float, ...]], list[str]] = {}
        self._lost: set[str] = set()

    def of(self, video: VideoItem | None, times: tuple[float, ...]) -> list[str]:
        """One URI a frame; empty where there are none to be had."""
        if self._make is None or video is None:
            return []
        if (video.id, times) not in self._made:
            pictures = self._make(video, times)
            if pictures is None or len(pictures) != len(times):
                self._lost.add(video.id)
                pictures = []
            self._made[video.id, times] = [_data_uri(picture) for picture in pictures]
        return self._made[video.id, times]

    def notes(self, runs: Sequence[RunForReport]) -> list[tuple[str, str]]:
        if not any(run.closeup is not None and run.closeup.sources for run in runs):
            return []
        if self._make is None:
            return [
                ("Examples", "Without the videos there are no pictures of frames. Give their folder: --videos DIR.")
            ]
        if self._lost:
            some = ", ".join(sorted(self._lost)[:3])
            return [("Examples", f"{len(self._lost)} videos gave no pictures of frames, for example {some}.")]
        return []


def _data_uri(picture: Image) -> str:
    small = picture.convert("RGB")
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _has_examples(closeup: CloseUp) -> bool:
    return bool(closeup.best or closeup.worst)


def _examples_context(run: RunForReport, pictures: _Pictures) -> dict[str, Any]:
    closeup = run.closeup
    assert closeup is not None
    kinds = {"Found most clearly": closeup.best, "Furthest from found": closeup.worst}
    return {
        "run": run.name,
        "meaning": closeup.weights_meaning,
        "kinds": [
            (title, [_example_context(example, closeup, pictures) for example in of])
            for title, of in kinds.items()
            if of
        ],
    }


def _example_context(example: Example, closeup: CloseUp, pictures: _Pictures) -> dict[str, Any]:
    shares = closeup.weights_meaning[:6] != "cosine"
    answers = []
    for video in example.retrieved:
        count = len(video.times)
        kept = np.unique(np.linspace(0, count - 1, min(count, _FRAMES_SHOWN)).round().astype(int)) if count else []
        times, weights = (tuple(of[i] for i in kept) for of in (video.times, video.weights))
        uris = pictures.of(closeup.sources.get(video.id), times)
        largest = max((0.0, *weights)) or 1.0
        frames = [
            {
                "uri": uris[i] if uris else "",
                "time": f"{times[i]:.1f} s",
                "weight": f"{weights[i] * 100:.0f} %" if shares else _minus(f"{weights[i]:.2f}"),
                "height": round(max(0.0, weights[i]) / largest * 100, 1),
            }
            for i in range(len(times))
        ]
        answers.append(
            {
                "id": video.id,
                "rank": f"{video.rank:g}",
                "correct": video.correct,
                "score": _minus(f"{video.score:.3f}"),
                "frames": frames,
                "left_out": count - len(times),
            }
        )
    return {"caption": example.caption, "id": example.text_id, "rank": f"{example.rank:g}", "answers": answers}


# ---- failures and provenance -----------------------------------------------------------------------------------------


def _failures_context(runs: Sequence[RunForReport]) -> list[dict[str, Any]]:
    """One entry a cache and split."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        if run.failures is None:
            continue
        result = run.result
        key = (result.get("cache_fingerprint"), result["dataset"], result["split"])
        found.setdefault(
            key,
            {
                "title": f"{result['dataset']}, {result['split']}",
                "listed": result["counts"]["videos"] + result["counts"].get("videos_failed", 0),
                "lost": result["counts"].get("videos_failed", 0),
                "rows": list(run.failures)[:_FAILURES_SHOWN],
                "more": max(0, len(run.failures) - _FAILURES_SHOWN),
                "partial": sum(failure.get("status") == "partial" for failure in run.failures),
                "cache": result.get("cache"),
            },
        )
    return list(found.values())


def _provenance_context(run: RunForReport) -> dict[str, Any]:
    result, trained = run.result, run.run or {}
    commands = [
        ("Extraction", run.extraction.get("command")),
        ("Training", trained.get("command")),
        ("Evaluation", result.get("command")),
    ]
    facts = [
        ("Head", result["head"]),
        ("Run", result.get("run") or ", ".join(result.get("runs") or ()) or "none, untrained"),
        ("Backbone", _backbone(result)),
        ("Cache", result.get("cache")),
        ("Fingerprint", result.get("cache_fingerprint")),
        ("Cache made", run.extraction.get("created")),
        ("Trained on", _trained_on(trained)),
        ("Parameters", f"{trained['parameters']:,}" if isinstance(trained.get("parameters"), int) else None),
        ("Device", trained.get("device")),
        ("Seconds", ", ".join(f"{stage} {spent:.2f}" for stage, spent in (result.get("seconds") or {}).items())),
    ]
    versions = dict(result.get("versions") or {})
    others = []
    for stage, of in (("training", trained.get("versions")), ("extraction", run.extraction.get("versions"))):
        different = {name: version for name, version in (of or {}).items() if versions.get(name) != version}
        if different:
            others.append(f"{stage}: " + ", ".join(f"{name} {version}" for name, version in different.items()))
    options = {**(trained.get("settings") or {}), "options": trained.get("options") or {}} if trained else {}
    return {
        "name": run.name,
        "commands": [(stage, command) for stage, command in commands if command],
        "facts": [(name, str(value)) for name, value in facts if value not in (None, "")],
        "versions": list(versions.items()),
        "other_versions": others,
        "settings": [(name, _setting(value)) for name, value in options.items()],
    }


def _trained_on(trained: Mapping[str, Any]) -> str | None:
    of = trained.get("training")
    return f"{of['texts']:,} captions of {of['videos']:,} videos" if isinstance(of, Mapping) and "texts" in of else None


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(of)}" for name, of in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    return "–" if value is None else str(value)


# ---- page ------------------------------------------------------------------------------------------------------------


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": lambda value: _minus(number(value)), "p_value": p_value, "signed": _signed}
    return environment


def _signed(value: float) -> str:
    text = _minus(number(value))
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def _minus(text: str) -> str:
    """A number with a minus sign instead of a hyphen."""
    return text.replace("-", "−")


def _printable(page: str) -> str:
    """Control characters, which HTML forbids, made visible."""
    bad = {c for c in set(page) if unicodedata.category(c) == "Cc" and c not in "\n\t"}
    return page.translate({ord(c): "\N{REPLACEMENT CHARACTER}" for c in bad})
