"""A second pass judged from pixels: its own backbone encodes the videos and captions of a split, and nothing is stored."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.evaluate.evaluation import Evaluation, judge
from glscl.evaluate.similarity import Progress
from glscl.train_head.checkpoint import load_run


def evaluate_from_pixels(
    store: Store,
    run: Path,
    *,
    videos: Path | None,
    which: str = "best",
    split: str = "test",
    normalise: Sequence[str] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
    save_similarity: Path | None = None,
    command: str = "",
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Judge a run of `glscl finetune` on a split of the cache it began from.

    Args:
        store: gives ids, captions and which frames of a video are taken; its features are not read.
        run: folder of the run.
        videos: folder with the videos; None is where extraction found them.
        The others: see `evaluate_run`.

    Raises:
        UsageError: the run trained no backbone, or an unknown normalisation.
        Others: see `glscl.train_head.finetuning.finetune.tuned_table`.
    """
    from glscl.train_head.finetuning.finetune import (
        tuned_table,  # needs open_clip and decoders, unlike the rest of this room
    )

    started = time.perf_counter()
    head, record = load_run(run, which, device=device)
    selection = record.get("selection", "last") if which == "best" else "last"
    if selection == "test" and split == "test":
        note("warning: the epoch was selected on the test split, so these numbers are optimistic")

    def encoded(split: str) -> FeatureTable:
        return tuned_table(run, store, split, which=which, videos=videos, device=device)[1]

    of_head = {"head": record["head"], "run": str(run), "selection": selection, "frozen_backbone": False}
    evaluation = judge(
        head,
        store,
        encoded,
        of_head,
        split=split,
        started=started,
        command=command,
        normalise=normalise,
        seed=seed,
        device=device,
        save_similarity=save_similarity,
        progress=progress,
    )
    return replace(evaluation, result={**evaluation.result, "pretrained": record["weights"][which]["backbone"]})
