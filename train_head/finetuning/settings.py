"""Settings of the second pass: those of a training, and what is done to the backbone and how pixels are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glscl.common.errors import UsageError
from glscl.common.settings import setting
from glscl.train_head.heads import full_name, recorded_head_class
from glscl.train_head.settings import TrainSettings, resolve_fresh, resolve_stored

FREEZE = ("none", "text", "vision")
PATCH_EMBEDDINGS = ("2d", "3d")
AUGMENTATIONS = ("none", "randaugment")


@dataclass(frozen=True, kw_only=True, repr=False)
class FinetuneSettings(TrainSettings):
    """What to train of backbone and head, and how; stored in run.json. See `resolve_finetune`."""

    start: Path | None = setting(
        None,
        "Trained head to start from.",
        group="Data",
        name="run",
        default_from="a fresh head",
        affects_result=False,  # of a run that goes on, which has its own weights
    )
    videos: Path | None = setting(
        None,
        "Folder with the videos.",
        group="Data",
        default_from="where extraction found them",
        affects_result=False,
    )
    pretrained: str | None = setting(
        None,
        "Weights of the backbone, where the cache was made from a file.",
        group="Data",
        metavar="FILE",
        affects_result=False,  # they must be those of the cache
    )
    backbone_lr_scale: float = setting(
        1e-3,
        "Learning rate of the backbone, in times that of the head.",
        group="Backbone",
        min=0,
        default_from="0.001",
    )
    freeze: str = setting("none", "Tower that stays as it is.", group="Backbone", choices=FREEZE, default_from="none")
    freeze_layers: int = setting(
        0,
        "Freeze the embeddings and the first N blocks of each tower.",
        group="Backbone",
        min=0,
        default_from="0, nothing",
    )
    patch_embedding: str = setting(
        "2d",
        "3d: patches are embedded with those of the two neighbouring frames; such a backbone cannot be extracted with.",
        group="Backbone",
        choices=PATCH_EMBEDDINGS,
        default_from="2d",
    )
    lora_rank: int = setting(
        0,
        "Train low-rank additions to the blocks (peft) at the head's rate, and nothing else of the backbone.",
        group="Backbone",
        min=0,
        default_from="0, off",
    )
    gradient_checkpointing: bool = setting(
        False,
        "Keep less for the backward pass and compute it again.",
        group="Memory",
    )
    micro_batch: int | None = setting(
        None,
        "Encode this many captions and videos at once; the loss still compares the whole batch.",
        group="Memory",
        min=1,
        default_from="all at once",
    )
    frame_memory: float = setting(
        4.0,
        "GB of decoded frames kept in memory, so that later epochs need not decode them.",
        group="Pixels",
        min=0,
        affects_result=False,
    )
    workers: int | None = setting(
        None, "Decoding processes.", group="Pixels", min=1, default_from="one a core", affects_result=False
    )
    augment: str = setting(
        "none",
        "Change training frames at random, all of a video alike.",
        group="Pixels",
        choices=AUGMENTATIONS,
        default_from="none",
    )
    patience: int | None = setting(
        None,
        "Stop after N validations in a row without a better one.",
        group="Selection",
        min=1,
        default_from="never",
    )
    checkpoint_every: int | None = setting(
        500,
        "Steps after which the run can be resumed.",
        group="Training",
        min=1,
        default_from="500",
        affects_result=False,
    )
    teacher: Path | None = setting(None, "See `TrainSettings`; not for pixels.", option=False)
    teacher_weight: float = setting(1.0, "See `TrainSettings`; not for pixels.", option=False)
    compile: bool = setting(False, "See `TrainSettings`; not for pixels.", option=False, affects_result=False)
    cuda_graphs: bool = setting(False, "See `TrainSettings`; not for pixels.", option=False, affects_result=False)
    log_every: int = setting(10, "Steps between reports.", min=1, option=False, affects_result=False)

    @property
    def large_products(self) -> bool:
        return True


def resolve_finetune(
    asked: Mapping[str, Any],
    *,
    dataset: str,
    device_type: str = "cpu",
    stored: Mapping[str, Any] | None = None,
) -> FinetuneSettings:
    """The settings of a second pass: what was asked for, over what its start decides, over a recipe, over the defaults.

    A trained head to `start` from decides head and options, and which frames are looked at where nobody says otherwise.

    Args:
        asked, dataset, device_type, stored: as in `glscl.train_head.settings.resolve`.

    Raises:
        UsageError: values out of bounds or that contradict each other, `start` or `stored`.
        Others: see `read_run`, of `start`.
    """
    if stored is not None:
        mine = {f.name for f in dataclasses.fields(FinetuneSettings) if f.metadata.get("affects_result", True)}
        missing = sorted(mine - {f.name for f in dataclasses.fields(TrainSettings)} - stored.keys())
        if missing:
            raise UsageError(f"the run to resume is no second pass: its settings lack {', '.join(missing)}")
        return resolve_stored(FinetuneSettings, asked, stored)
    options = None
    if asked.get("start") is not None:
        from glscl.train_head.checkpoint import read_run  # here: settings are read to list options, without torch

        start = read_run(Path(asked["start"]))
        if asked.get("options") and asked["options"] != start["options"]:
            raise UsageError("`option` and `adapter` are of a fresh head; the one of `run` keeps its own")
        head = asked.get("head")
        if head is None:
            recorded_head_class(start["head"], asked["start"])
        elif full_name(head) != start["head"]:
            raise UsageError(f"`head` is {head}; the run to start from has {start['head']}", hint="Leave `head` out")
        seen = {name: start["settings"].get(name) for name in ("max_frames", "frame_position")}
        options = start["options"]
        asked = {
            **seen,
            **{k: v for k, v in asked.items() if v is not None or k == "max_frames"},
            "head": start["head"],
        }
    settings = resolve_fresh(FinetuneSettings, asked, dataset=dataset, device_type=device_type, options=options)
    _check_together(settings)
    return settings


def _check_together(settings: FinetuneSettings) -> None:
    if settings.lora_rank and (settings.freeze_layers or settings.patch_embedding == "3d"):
        raise UsageError(
            "`lora_rank` leaves the backbone as it is; `freeze_layers` and `patch_embedding=3d` mean its own weights"
        )
    if settings.patch_embedding == "3d" and settings.freeze == "vision":
        raise UsageError("`patch_embedding=3d` starts as the plain one, and `freeze=vision` would leave it so")
