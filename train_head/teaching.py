"""A trained run as the teacher of a head: what it scores on the same features is learnt beside the pairs.

So a head with one vector a video, which an index can hold, comes nearer to heads that look at every pair (TeachCLIP, Tian et
al., CVPR 2024). B captions and as many videos a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.store import Store
from glscl.common.errors import UsageError
from glscl.train_head.checkpoint import load_run, read_run
from glscl.train_head.distributed import gather_items
from glscl.train_head.heads import head_class, recorded_head_class
from glscl.train_head.heads.base import Head
from glscl.train_head.run_cache import check_cache
from glscl.train_head.settings import TrainSettings


class Teacher:
    """A trained head whose choices among a batch another one learns.

    Args:
        head: stays as it is.
        weight: of `glscl.train_head.losses.distillation_loss` beside the loss of the pairs.
        about: what run.json says of it.
    """

    def __init__(self, head: Head, weight: float, about: dict[str, Any] | None = None) -> None:
        self.head, self.weight, self.about = head.eval().requires_grad_(False), weight, about or {}

    @torch.no_grad()
    def logits(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """(B, B) τ · S of the whole batch, from this process' share of it."""
        self.head.to(video.frame_features.device)
        with torch.autocast(video.frame_features.device.type, enabled=False):
            encoded = gather_items(self.head.encode_text(text)), gather_items(self.head.encode_video(video))
            return self.head.score(*encoded) * self.head.logit_scale.exp()


def load_teacher(settings: TrainSettings, store: Store, note: Callable[[str], None]) -> Teacher | None:
    """The run that the settings name, to learn from on the features of a cache; None where they name none.

    Raises:
        UsageError: its backbone was fine-tuned with it, so that these features are not its own.
        FingerprintError, NotFoundError, CheckpointError: as `check_cache` and `load_run`.
    """
    if settings.teacher is None:
        return None
    head, run = load_run(settings.teacher)
    if run.get("weights"):
        raise UsageError(
            f"{settings.teacher} has a backbone of its own; as a `teacher` it needs the features of this cache",
            hint="Extract with that backbone, train a head on that cache and take it as the teacher there",
        )
    for line in check_cache(Path(settings.teacher), run, store):
        note(f"the teacher {settings.teacher} was trained on other data than {store.place} gives: {line}")
    weights = (run.get("checkpoints") or {}).get("best", {}).get("sha256", "")
    return Teacher(
        head, settings.teacher_weight, {"run": str(settings.teacher), "head": run["head"], "sha256": weights}
    )


def reads_padding(settings: TrainSettings) -> bool:
    """Whether the head of a training reads padding. Raises UsageError where its teacher does otherwise."""
    padded = not settings.options.get("mask_padding", True)
    if settings.teacher is not None:
        taught = not read_run(Path(settings.teacher))["options"].get("mask_padding", True)
        if taught != padded:
            raise UsageError(
                f"{settings.teacher} and the head are not given the same features: their `mask_padding` differs"
            )
    return padded


def reads_tokens(settings: TrainSettings) -> bool:
    """Whether a training reads token features, for its head or for the teacher.

    Raises:
        NotFoundError, CheckpointError: the teacher cannot be read.
    """
    if head_class(settings.head).needs_tokens or settings.teacher is None:
        return head_class(settings.head).needs_tokens
    return recorded_head_class(read_run(Path(settings.teacher))["head"], settings.teacher).needs_tokens
