"""What stands in a result file (docs/result.schema.json), as types: it may be damaged, old, or anybody's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from glscl.cache.records import Count, checked
from glscl.evaluate.metrics import METRICS
from glscl.evaluate.ranks import RANKINGS

MOST = 10**12  # queries; more is no evaluation

Size = Annotated[int, Meta(ge=1, le=MOST)]
Metrics = dict[str, Any]  # by the names of `METRICS`, which may have grown since: `_metrics_problem` looks at them
End = Annotated[float, Meta(ge=-MOST, le=MOST)]


class Sizes(Struct):
    texts: Size
    videos: Size
    texts_without_video: Count = 0
    videos_failed: Count = 0
    expected_texts: Count | None = None
    expected_videos: Count | None = None
    videos_seen_in_training: Count | None = None


class Normalised(Struct):
    bank: str = ""
    transductive: bool = False
    text_to_video: Metrics | None = None
    video_to_text: Metrics | None = None
    video_to_text_caption: Metrics | None = None


class ResultRecord(Struct, kw_only=True):
    """The fields of a result file that a reader uses. Results of earlier versions do not say their list."""

    dataset: str
    split: str
    head: str
    backbone: str
    selection: Literal["validation", "last", "test"]
    frozen_backbone: bool
    counts: Sizes
    text_to_video: Metrics
    video_to_text: Metrics
    video_to_text_caption: Metrics | None = None
    run: str | None = None
    runs: Sequence[str] | None = None
    combine: str | None = None
    pretrained: str | None = None
    cache: str | None = None
    cache_fingerprint: str | None = None
    list: str | None = None
    list_hash: str | None = None
    annotations: str | None = None
    split_annotations: str | None = None
    confidence_95: dict[str, dict[str, tuple[End, End]]] | None = None
    tags: dict[str, Metrics] | None = None
    normalised: dict[str, Normalised] | None = None
    seconds: dict[str, Annotated[float, Meta(ge=0, le=MOST)]] | None = None
    settings: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    command: str | None = None


def result_problem(result: Mapping[str, Any]) -> str | None:
    """What in the content of a result file is not as it should be, in words; None where nothing is."""
    try:
        record = checked(ResultRecord, result)
    except (ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        return str(error)
    judged = {direction: getattr(record, direction) for direction in RANKINGS}
    judged |= {f"tag {tag[:40]}": metrics for tag, metrics in (record.tags or {}).items()}
    for name, found in (record.normalised or {}).items():
        judged |= {f"{name[:40]}, {direction}": getattr(found, direction) for direction in RANKINGS}
    problems = (_metrics_problem(metrics, where) for where, metrics in judged.items() if metrics is not None)
    return next(filter(None, problems), None)


def _metrics_problem(metrics: Metrics, where: str) -> str | None:
    expected = [name for name, metric in METRICS.items() if metric.always or (metric.function and name in metrics)]
    wrong = [name for name in expected if not _number(metrics.get(name), *METRICS[name].bounds)]
    if not isinstance(metrics.get("queries"), int) or not _number(metrics["queries"], 1, MOST):
        wrong.append("queries")
    return f"{where} has no number for {', '.join(wrong)}" if wrong else None


def _number(value: Any, low: float, high: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and math.isfinite(value)
    )
