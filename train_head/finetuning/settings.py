"""Settings that `glscl finetune` has beside those of `glscl train-head`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from glscl.common.errors import UsageError
from glscl.common.settings import check, setting
from glscl.train_head.settings import TrainConfig, TrainSettings, resolve

FREEZE = ("none", "text", "vision")
PATCH_EMBEDDINGS = ("2d", "3d")
AUGMENTATIONS = ("none", "randaugment")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What of the backbone is trained, and how pixels are read. None means the default that the help names."""

    backbone_lr_scale: float | None = setting(
        None, "Learning rate of the backbone, in times that of the head. Default: 0.001.", group="Backbone", min=0
    )
    freeze: str | None = setting(None, "Tower that stays as it is. Default: none.", group="Backbone", choices=FREEZE)
    freeze_layers: int | None = setting(
        None,
        "Freeze the embeddings and the first N blocks of each tower. Default: 0, nothing.",
        group="Backbone",
        min=0,
    )
    patch_embedding: str | None = setting(
        None,
        "3d: patches are embedded with those of the two neighbouring frames; such a backbone cannot be extracted with. "
        "Default: 2d.",
        group="Backbone",
        choices=PATCH_EMBEDDINGS,
    )
    lora_rank: int | None = setting(
        None,
        "Train low-rank additions to the blocks (peft) at the head's rate, and nothing else of the backbone. Default: 0, off.",
        group="Backbone",
        min=0,
    )
    gradient_checkpointing: bool = setting(
        False,
        "Keep less for the backward pass and compute it again.",
        group="Memory",
        flag="--gradient-checkpointing",
    )
    micro_batch: int | None = setting(
        None,
        "Encode this many captions and videos at once; the loss still compares the whole batch. Default: all at once.",
        group="Memory",
        min=1,
    )
    frame_memory: float = setting(
        4.0, "GB of decoded frames kept in memory, so that later epochs need not decode them.", group="Pixels", min=0
    )
    workers: int | None = setting(None, "Decoding processes. Default: one a core.", group="Pixels", min=1)
    augment: str | None = setting(
        None,
        "Change training frames at random, all of a video alike. Default: none.",
        group="Pixels",
        choices=AUGMENTATIONS,
    )
    patience: int | None = setting(
        None, "Stop after N validations in a row without a better one. Default: never.", group="Selection", min=1
    )
    checkpoint_every: int | None = setting(
        None, "Steps after which the run can be resumed. Default: 500.", group="Training", min=1
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(TrainSettings):
    """A second pass without anything left open; stored in run.json. See `TuneConfig`."""

    backbone_lr_scale: float
    freeze: str
    freeze_layers: int
    patch_embedding: str
    lora_rank: int
    gradient_checkpointing: bool
    micro_batch: int | None
    augment: str
    patience: int | None


_DEFAULTS: dict[str, Any] = {
    "backbone_lr_scale": 1e-3,
    "freeze": "none",
    "freeze_layers": 0,
    "patch_embedding": "2d",
    "lora_rank": 0,
    "augment": "none",
}


def resolve_finetune(
    config: TrainConfig,
    tuning: TuneConfig,
    *,
    start: Mapping[str, Any] | None,
    dataset: str,
    device_type: str = "cpu",
    seed: int | None = None,
    stored: Mapping[str, Any] | None = None,
) -> FinetuneSettings:
    """Make every setting explicit.

    Args:
        config, tuning: what was asked for.
        start: run.json of the trained head to start from; its head, options and frames are taken over. None starts
            with a fresh head.
        dataset, device_type, seed, stored: as in `glscl.train_head.settings.resolve`.

    Raises:
        UsageError: values out of bounds or that contradict each other, `start` or `stored`.
    """
    check(tuning)
    mine = {field.name for field in dataclasses.fields(FinetuneSettings)} - {
        field.name for field in dataclasses.fields(TrainSettings)
    }
    if stored is not None:
        base = resolve(config, dataset=dataset, stored={k: v for k, v in stored.items() if k not in mine}, seed=seed)
        return _as_stored(tuning, base, stored, mine)
    if start is not None:
        config = _taken_over(config, start)
    base = resolve(config, dataset=dataset, device_type=device_type, seed=seed)
    values = vars(base) | ({"options": dict(start["options"])} if start is not None else {})
    asked = {name: getattr(tuning, name) for name in mine}
    settings = FinetuneSettings(
        **values, **{name: _DEFAULTS.get(name) if value is None else value for name, value in asked.items()}
    )
    _check_together(settings)
    return settings


def _taken_over(config: TrainConfig, start: Mapping[str, Any]) -> TrainConfig:
    """The configuration with what the trained head decides: its name and the frames it looks at."""
    if config.option or config.adapter:
        raise UsageError("--option and --adapter are of a fresh head; the one of --run keeps its own")
    if config.head not in (None, start["head"]):
        raise UsageError(f"--head is {config.head}; the run to start from has {start['head']}", mend="Leave --head out")
    settings = start["settings"]
    frames = settings.get("max_frames") or 0
    return dataclasses.replace(
        config,
        head=start["head"],
        max_frames=frames if config.max_frames is None else config.max_frames,
        frame_position=config.frame_position or settings.get("frame_position"),
    )


def _check_together(settings: FinetuneSettings) -> None:
    if settings.lora_rank and (settings.freeze_layers or settings.patch_embedding == "3d"):
        raise UsageError(
            "--lora-rank leaves the backbone as it is; --freeze-layers and --patch-embedding 3d mean its own weights"
        )
    if settings.patch_embedding == "3d" and settings.freeze == "vision":
        raise UsageError("--patch-embedding 3d starts as the plain one, and --freeze vision would leave it so")


def _as_stored(tuning: TuneConfig, base: TrainSettings, stored: Mapping[str, Any], mine: set[str]) -> FinetuneSettings:
    missing = sorted(mine - stored.keys())
    if missing:
        raise UsageError(f"the run to resume is no second pass: its settings lack {', '.join(missing)}")
    for name in sorted(mine):
        asked = getattr(tuning, name)
        if asked not in (None, False) and asked != stored[name]:
            raise UsageError(
                f"--{name.replace('_', '-')} is {asked!r}; the run to resume was begun with {stored[name]!r}",
                mend="Leave the option out, or train into another folder with --out",
            )
    return FinetuneSettings(**vars(base), **{name: stored[name] for name in mine})
