"""One self-contained HTML page about some evaluated runs: for people who judge and for those who read.

This file decides what is shown; templates/report.html says how, templates/report.css how it looks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from glscl.cache.files import write_atomically
from glscl.cache.lock import hold_file, hold_folder
from glscl.common.errors import InputError
from glscl.common.recorded_commands import recorded_command
from glscl.common.tables import Difference, Measured, Table, TableRow, amount, cell_text, minus, number, p_value, signed
from glscl.evaluate.evaluated_run import EvaluatedRun, with_distinct_names
from glscl.evaluate.judged_lists import version_of
from glscl.evaluate.metrics import METRICS, directions_of_better, further_metrics, main_metrics
from glscl.evaluate.report.examples import Pictures, ThumbnailReader, examples_context
from glscl.evaluate.report.figures import TITLES
from glscl.evaluate.report.table_contents import backbone_name, groups_of

_LONG_CAPTION = 240  # characters shown before the rest is folded away
_FAILURES_SHOWN = 100
_SHORT_WORD = r"(?<![^\s-])[^\s-]{1,14}(?![^\s-])"
_JOINED = r"[^\s_/=,:-]{0,17}[_/=,:]"  # the end of a piece of a longer word
_SELECTIONS = {
    "validation": "videos held out of training, or a split of their own",
    "last": "nothing: the last one",
    "test": "the test split itself, so its numbers are optimistic",
}


def write_report(
    results: Sequence[EvaluatedRun],
    out: Path,
    *,
    title: str | None = None,
    chance: Mapping[str, Any] | None = None,
    thumbnails: ThumbnailReader | None = None,
    plots_dir: Path | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Path:
    """Write the page.

    Args:
        results: the runs; those of one split with the same videos and captions share tables and figures, and each later
            one is tested against the first. What a run lacks (ranks, history, cache, examination) is left out with a sentence that says so.
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
        BusyError: another process writes `out` or `plots_dir`.
        StorageError: the disk is full or failing.
    """
    if not results:
        raise InputError("there is nothing to report: no results were given")
    with hold_file(out, what="report"), hold_folder(plots_dir, what="report") if plots_dir else nullcontext():
        runs = with_distinct_names(results)
        groups = groups_of(runs, chance, resamples=resamples, seed=seed)
        pictures = Pictures(thumbnails)
        context = {
            "title": title or "Text-video retrieval: " + "; ".join(group.title for group in groups),
            "groups": groups,
            "directions": TITLES,
            "further": " and ".join(map(_explained, further_metrics())),
            "meanings": [(name, METRICS[name].meaning) for name in main_metrics() if METRICS[name].meaning],
            "better": directions_of_better(),
            "examples": examples_context(runs, pictures),
            "failures": _failures_context(runs),
            "provenance": [_provenance_context(run) for run in runs],
            "missing": [(run.name, note) for run in runs for note in run.notes] + pictures.notes(runs),
            "long_caption": _LONG_CAPTION,
        }
        page = _environment().get_template("report.html").render(context).lstrip()
        write_atomically(out, _printable(page).encode("utf-8", "replace"))
        if plots_dir is not None:
            for plot in (plot for group in groups for _, plots in group.figures for plot in plots):
                plot.write(plots_dir)
    return out


def _explained(name: str) -> str:
    return f"{name} ({METRICS[name].meaning})" if METRICS[name].meaning else name


# ---- failures and provenance -----------------------------------------------------------------------------------------


def _failures_context(runs: Sequence[EvaluatedRun]) -> list[dict[str, Any]]:
    """One entry a cache, list and split."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        if run.failures is None:
            continue
        result = run.result
        key = (result.get("cache_fingerprint"), result.get("list_hash"), result["dataset"], result["split"])
        found.setdefault(
            key,
            {
                "title": f"{result['dataset']}, {result['split']}",
                "listed": result["counts"]["videos"] + result["counts"].get("videos_failed", 0),
                "lost": result["counts"].get("videos_failed", 0),
                "table": _failures_table(f"{result['dataset']}, {result['split']}", run.failures[:_FAILURES_SHOWN]),
                "more": max(0, len(run.failures) - _FAILURES_SHOWN),
                "partial": sum(failure.get("status") == "partial" for failure in run.failures),
                "cache": result.get("cache"),
            },
        )
    return list(found.values())


def _failures_table(title: str, failures: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (failure.get("id", ""), (failure.get("status") or "").replace("_", " "), failure.get("reason") or "")
        for failure in failures
    ]
    return Table(title, ("Video", "Status", "Reason"), tuple(TableRow("", cells) for cells in rows))


def _provenance_context(run: EvaluatedRun) -> dict[str, Any]:
    result, trained = run.result, run.run or {}
    recorded = [
        ("Extraction", run.extraction.get("command")),
        ("Training", trained.get("command")),
        ("Evaluation", result.get("command")),
    ]
    commands = [  # a stranger's curl … | sh is not shown
        (stage, ours)
        for stage, command in recorded
        if command and (ours := recorded_command(str(command), None)) is not None
    ]
    facts = [
        ("Head", result["head"]),
        ("Run", result.get("run") or ", ".join(result.get("runs") or ()) or "none, untrained"),
        ("Backbone", backbone_name(result)),
        ("Cache", result.get("cache")),
        ("Fingerprint", result.get("cache_fingerprint")),
        ("List", version_of(result)),
        ("Cache made", run.extraction.get("created")),
        ("Trained on", _trained_on(trained)),
        ("Judged videos seen in training", _seen(result) if trained or result.get("runs") else None),
        ("Epoch selected on", _SELECTIONS[result["selection"]] if trained or result.get("runs") else None),
        ("Parameters", f"{trained['parameters']:,}" if isinstance(trained.get("parameters"), int) else None),
        ("Device", trained.get("device")),
        ("Seconds", ", ".join(f"{stage} {spent:.2f}" for stage, spent in (result.get("seconds") or {}).items())),
    ]
    versions = dict(result.get("versions") or {})
    others = []
    for stage, found in (("training", trained.get("versions")), ("extraction", run.extraction.get("versions"))):
        different = {name: version for name, version in (found or {}).items() if versions.get(name) != version}
        if different:
            others.append(f"{stage}: " + ", ".join(f"{name} {version}" for name, version in different.items()))
    options = {**(trained.get("settings") or {}), "options": trained.get("options") or {}} if trained else {}
    return {
        "name": run.name,
        "commands": commands,
        "facts": [(name, str(value)) for name, value in facts if value not in (None, "")],
        "versions": list(versions.items()),
        "other_versions": others,
        "settings": [(name, _setting(value)) for name, value in options.items()],
    }


def _trained_on(trained: Mapping[str, Any]) -> str | None:
    sizes = trained.get("training") or {}
    known = {"texts", "videos"} <= sizes.keys()
    of = f", of the list {version_of(trained)}" if trained.get("list_hash") else ""
    return f"{amount(sizes['texts'], 'caption')} of {amount(sizes['videos'], 'video')}{of}" if known else None


def _seen(result: Mapping[str, Any]) -> str:
    seen = result["counts"].get("videos_seen_in_training")
    return "not known" if seen is None else f"{seen:,}"


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_setting, value))
    return "–" if value is None else str(value)


# ---- page ------------------------------------------------------------------------------------------------------------


@cache  # a template is compiled once
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": lambda value, digits: minus(number(value, digits)), "text": cell_text}
    environment.filters |= {"pieces": _pieces, "p_value": p_value, "signed": signed}
    environment.tests |= {
        "measured": lambda cell: isinstance(cell, Measured),
        "difference": lambda cell: isinstance(cell, Difference),
    }
    return environment


def _pieces(name: str) -> list[str]:
    """A name of a run in pieces between which a line may end: words that are long are cut behind a joint, or else every 18 characters."""
    return re.findall(rf"(?:{_SHORT_WORD}|[\s-])+|{_JOINED}|[^\s-]{{1,18}}-*", name)


def _printable(page: str) -> str:
    """Control characters, which HTML forbids, made visible."""
    bad = {c for c in set(page) if unicodedata.category(c) == "Cc" and c not in "\n\t"}
    return page.translate({ord(c): "\N{REPLACEMENT CHARACTER}" for c in bad})
