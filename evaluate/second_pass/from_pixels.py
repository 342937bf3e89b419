"""A second pass judged from pixels: its own backbone encodes the videos and captions of a split, and nothing is stored."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.evaluate.evaluation import Evaluation, JudgedHead, checked, judge, selection_of
from glscl.evaluate.settings import EvaluateSettings
from glscl.evaluate.similarity import PairsDone
from glscl.train_head.checkpoint import load_run


def evaluate_from_pixels(
    store: Store,
    run: Path,
    settings: EvaluateSettings | None = None,
    *,
    videos: Path | None,
    device: torch.device | str = "cpu",
    command: str = "",
    progress: PairsDone | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Judge a run of a second pass on a split of the cache it began from.

    Args:
        store: gives ids, captions and which frames of a video are taken; its features are not read.
        run: folder of the run.
        videos: folder with the videos; None is where extraction found them.
        The others: see `evaluate_run`.

    Raises:
        UsageError: the run trained no backbone, or an unknown normalisation.
        Others: see `glscl.train_head.finetuning.finetune.tuned_table`.
    """
    # needs open_clip and decoders, unlike the rest of this room
    from glscl.train_head.finetuning.finetune import tuned_table

    started, settings = time.perf_counter(), checked(settings)
    head, record = load_run(run, settings.weights, device=device)
    selection = selection_of(record, settings, note=note)

    def encoded(split: str) -> FeatureTable:
        return tuned_table(run, store, split, which=settings.weights, videos=videos, device=device)[1]

    facts = {"head": record["head"], "run": str(run), "selection": selection, "frozen_backbone": False}
    judged = JudgedHead(head, encoded, facts, (run,))
    evaluation = judge(
        judged, store, settings, started=started, device=device, command=command, progress=progress, note=note
    )
    backbone = record["weights"][settings.weights]["backbone"]
    return replace(evaluation, result={**evaluation.result, "pretrained": backbone})
