"""One self-contained HTML page about some evaluated runs: what `glscl report` and `glscl demo` write.

This file decides what is shown; templates/report.html says how, templates/report.css how it looks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from glscl.cache.files import write_atomically
from glscl.common.errors import InputError
from glscl.evaluate.evaluated_run import RunForReport, with_distinct_names
from glscl.evaluate.report.examples import Pictures, Thumbnails, examples_context, has_examples
from glscl.evaluate.report.figures import DIRECTIONS
from glscl.evaluate.report.tables import MORE, backbone_name, groups_of
from glscl.evaluate.result_tables import SHOWN, minus, number, p_value, signed

_LONG_CAPTION = 240  # characters shown before the rest is folded away
_FAILURES_SHOWN = 100
_SELECTIONS = {
    "validation": "videos held out of training, or a split of their own",
    "last": "nothing: the last one",
    "test": "the test split itself, so its numbers are optimistic",
}


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
    groups = groups_of(runs, chance, resamples=resamples, seed=seed)
    pictures = Pictures(thumbnails)
    context = {
        "title": title or "Text-video retrieval: " + "; ".join(group.title for group in groups),
        "groups": groups,
        "shown": SHOWN,
        "more": MORE,
        "directions": DIRECTIONS,
        "examples": [examples_context(run, pictures) for run in runs if run.closeup and has_examples(run.closeup)],
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
        ("Backbone", backbone_name(result)),
        ("Cache", result.get("cache")),
        ("Fingerprint", result.get("cache_fingerprint")),
        ("Cache made", run.extraction.get("created")),
        ("Trained on", _trained_on(trained)),
        ("Epoch selected on", _SELECTIONS[result["selection"]] if trained or result.get("runs") else None),
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
    of = trained.get("training") or {}
    return f"{of['texts']:,} captions of {of['videos']:,} videos" if {"texts", "videos"} <= of.keys() else None


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(of)}" for name, of in value.items())
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
    environment.filters |= {"number": lambda value: minus(number(value)), "p_value": p_value, "signed": signed}
    return environment


def _printable(page: str) -> str:
    """Control characters, which HTML forbids, made visible."""
    bad = {c for c in set(page) if unicodedata.category(c) == "Cc" and c not in "\n\t"}
    return page.translate({ord(c): "\N{REPLACEMENT CHARACTER}" for c in bad})
