"""Whether the content of a result file is one (docs/result.schema.json): it may be damaged, old, or anybody's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from glscl.evaluate.metrics import METRICS
from glscl.evaluate.ranks import DIRECTIONS, VIDEO_TO_TEXT_CAPTION

_STRINGS = ("dataset", "split", "head", "backbone", "selection")
_SELECTIONS = ("validation", "last", "test")
_STRINGS_OR_NULL = ("run", "pretrained", "cache", "cache_fingerprint", "command", "combine")


def result_problem(result: Mapping[str, Any]) -> str | None:
    """What is not as it should be, in words; None where nothing is."""
    lacking = [key for key in (*_STRINGS, "frozen_backbone", "counts", *DIRECTIONS) if key not in result]
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    for key in (*_STRINGS, *_STRINGS_OR_NULL):
        if not isinstance(result.get(key), str) and (key in _STRINGS or result.get(key) is not None):
            return f"{key} is not a string"
    if result["selection"] not in _SELECTIONS:
        return f"selection is none of {', '.join(_SELECTIONS)}"
    if not isinstance(result["frozen_backbone"], bool):
        return "frozen_backbone is neither true nor false"
    return (
        _counts(result["counts"])
        or next(filter(None, (_metrics(result[direction], direction) for direction in DIRECTIONS)), None)
        or (
            _metrics(result[VIDEO_TO_TEXT_CAPTION], VIDEO_TO_TEXT_CAPTION)
            if result.get(VIDEO_TO_TEXT_CAPTION) is not None
            else None
        )
        or _optional(result)
    )


def _counts(counts: Any) -> str | None:
    if not isinstance(counts, dict):
        return "counts is not an object"
    for key, value in counts.items():
        low = 1 if key in ("texts", "videos") else 0
        if not (value is None and low == 0) and not _number(value, low, 1e12, whole=True):
            return f"counts has no whole number from {low} for {key[:40]}"
    return next((f"counts lacks {key}" for key in ("texts", "videos") if key not in counts), None)


def _metrics(metrics: Any, where: str) -> str | None:
    if not isinstance(metrics, dict):
        return f"{where} is not an object"
    expected = [name for name, metric in METRICS.items() if metric.always or (metric.function and name in metrics)]
    wrong = [name for name in expected if not _number(metrics.get(name), *METRICS[name].bounds)]
    if not _number(metrics.get("queries"), 1, 1e12, whole=True):
        wrong.append("queries")
    return f"{where} has no number for {', '.join(wrong)}" if wrong else None


def _optional(result: Mapping[str, Any]) -> str | None:
    for key in ("confidence_95", "tags", "normalised", "seconds", "settings", "versions"):
        if not isinstance(result.get(key), dict | None):
            return f"{key} is not an object"
    for direction, spreads in (result.get("confidence_95") or {}).items():
        if not isinstance(spreads, dict) or not all(_interval(spread) for spread in spreads.values()):
            return f"confidence_95 of {direction[:40]} is not made of intervals"
    for tag, metrics in (result.get("tags") or {}).items():
        if problem := _metrics(metrics, f"tag {tag[:40]}"):
            return problem
    for name, found in (result.get("normalised") or {}).items():
        if not isinstance(found, dict) or not isinstance(found.get("bank", ""), str):
            return f"normalised {name[:40]} is not an object with a bank"
        for direction in (*DIRECTIONS, VIDEO_TO_TEXT_CAPTION):
            if found.get(direction) is not None and (
                problem := _metrics(found[direction], f"{name[:40]}, {direction}")
            ):
                return problem
    if not all(_number(spent, 0, 1e12) for spent in (result.get("seconds") or {}).values()):
        return "seconds are not numbers"
    if not all(isinstance(version, str) for version in (result.get("versions") or {}).values()):
        return "versions are not strings"
    runs = result.get("runs")
    if runs is not None and not (isinstance(runs, list) and all(isinstance(run, str) for run in runs)):
        return "runs is not a list of strings"
    return None


def _interval(spread: Any) -> bool:
    return isinstance(spread, list) and len(spread) == 2 and all(_number(end, -1e12, 1e12) for end in spread)


def _number(value: Any, low: float, high: float, *, whole: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        return False
    return low <= value <= high and (isinstance(value, int) or math.isfinite(value))
