"""Training that is validated; where it is tracked: metrics as in any other, their intervals, and a page about the best epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.common.arguments import types_checked
from glscl.common.versions import versions
from glscl.evaluate.evaluation import Evaluation, evaluate_head, validation_metrics, write_result
from glscl.evaluate.judged_lists import about_list
from glscl.evaluate.ranks import DIRECTIONS
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head import train as training
from glscl.train_head.heads.base import Head
from glscl.train_head.run_cache import backbone_of
from glscl.train_head.settings import TrainSettings, resolve, tracker_names
from glscl.train_head.train import TrainResult

_RESULT, _PAGE = "validation.json", "validation.html"


@types_checked
def train(
    cache: Store, settings: TrainSettings | None, out: PathLike[str] | str, *, device: str | torch.device = "cpu"
) -> TrainResult:
    """Train a head on a cache, validate every epoch, and keep best and last in a run folder.

    Args:
        cache: from `open_cache`, at the list to train on.
        settings: what to train and how; None is `glscl` by the recipe of the cache's data set.
        out: the run folder; it must hold no run yet.
        device: where to train.

    Raises:
        UsageError: the folder holds a run, or settings that do not fit the cache.
        NonFiniteError: the loss became NaN or infinite.
    """
    settings = settings or resolve({}, dataset=cache.recipe)
    validate = validation_of(cache, settings, Path(out))
    return training.train(cache, Path(out), settings, device=device, validate=validate)


def validation_of(
    store: Store, settings: TrainSettings, out: Path
) -> Callable[[Head, FeatureTable], Mapping[str, Mapping[str, float]]]:
    """What validates a training on `store` into the folder `out`: `TrackedValidation` where it is tracked."""
    return TrackedValidation(store, settings, out) if tracker_names(settings.tracker) else validation_metrics


class TrackedValidation:
    """Metrics of a head on what validates, see `glscl.train_head.tracking.Documented`.

    Attributes:
        intervals: direction → metric → [low, high] of the latest validation.
    """

    def __init__(self, store: Store, settings: TrainSettings, out: Path) -> None:
        self._store, self._settings, self._out = store, settings, out
        self._latest: Evaluation | None = None
        self.intervals: Mapping[str, Mapping[str, list[float]]] = {}

    def __call__(self, head: Head, table: FeatureTable) -> Mapping[str, Mapping[str, float]]:
        found = evaluate_head(head, table, EvaluateSettings(seed=self._settings.seed))
        self._latest, self.intervals = found, found.result["confidence_95"]
        return {direction: found.result[direction] for direction in DIRECTIONS}

    def keep(self) -> None:
        """Write the latest validation as the result that the page is about, with its ranks."""
        if self._latest is None:
            return
        backbone, pretrained = backbone_of(self._store.configuration)
        about: dict[str, Any] = {
            "dataset": self._store.dataset,
            "split": "validation",
            "head": self._settings.head,
            "run": str(self._out),
            "selection": "test" if self._settings.select == "test" else "validation",
            "frozen_backbone": type(self._settings) is TrainSettings,
            "backbone": backbone,
            "pretrained": pretrained,
            "cache": str(self._store.path),
            "cache_fingerprint": self._store.fingerprint,
            **about_list(self._store.list),
        }
        made = {**about, **self._latest.result, "versions": versions(), "command": ""}
        write_result(self._out / _RESULT, replace(self._latest, result=made))

    def page(self) -> Path | None:
        """The page about the best epoch, written into the run folder; None where nothing was validated."""
        from glscl.evaluate.evaluated_run import read_evaluated
        from glscl.evaluate.report.page import write_report

        if not (self._out / _RESULT).is_file():
            return None
        title = f"{self._out.name}: {self._settings.head}, the epoch that was selected, on validation"
        return write_report([read_evaluated(self._out / _RESULT)], self._out / _PAGE, title=title)
