"""The second pass: backbone and head trained together, from the pixels of the videos a cache was made of.

The cache gives captions, splits, ids and where the videos lie; its features only say what was encoded. What comes out is a
run as `train-head` leaves it, and the backbone:

    backbone.safetensors        of the selected epoch; an extraction takes it as `pretrained`
    backbone-last.safetensors   of the last epoch
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import set_seed

from glscl.cache.lock import hold_folder
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.common.errors import CheckpointError, Hint, UsageError
from glscl.common.launch import launch
from glscl.extract.backbone.encoder import backbone_of_cache, load_backbone
from glscl.train_head.checkpoint import load_run
from glscl.train_head.finetuning.backbone_and_head import EndToEnd
from glscl.train_head.finetuning.pixel_learner import PixelLearner, encode_table
from glscl.train_head.finetuning.pixels import DecodedFrames, items_of
from glscl.train_head.finetuning.settings import FinetuneSettings
from glscl.train_head.finetuning.towers import FILES, unfreeze, vision_tower
from glscl.train_head.heads.base import Head
from glscl.train_head.loop import fit_learner
from glscl.train_head.recipes import AUGMENTED
from glscl.train_head.reports import Reporter
from glscl.train_head.run_cache import check_cache
from glscl.train_head.settings import precision_on
from glscl.train_head.tracking import tracked
from glscl.train_head.train import (
    LoadedSplits,
    TrainingData,
    TrainResult,
    Validate,
    begun_as,
    choose_data,
    earlier_run,
    finished,
    run_record,
    start_head,
    trained,
)


def finetune(
    store: Store,
    out: Path | str,
    settings: FinetuneSettings,
    *,
    device: torch.device | str = "cpu",
    validate: Validate | None = None,
    reporter: Reporter | None = None,
    resume: bool = False,
    command: str = "",
) -> TrainResult:
    """Train backbone and head on the split `train` of a cache, from pixels.

    Where the vision tower is frozen and frames are not augmented, its features are taken from the cache, and no video is read.
    Which part validates is decided as in `glscl.train_head.train.train`; its features are made anew at every validation.

    Args:
        store: an open cache that was extracted from videos.
        settings: from `resolve_finetune`.
        The others: see `glscl.train_head.train.train`.

    Raises:
        FingerprintError: the run to start from belongs to another cache, or the backbone's weights are not those of the cache.
        NotFoundError: videos are missing.
        DecodeError: a video gives other frames than at extraction.
        Others: see `train`, `unfreeze`, `fit_learner`.
    """
    if settings.teacher is not None:
        raise UsageError("`teacher` is for heads on cached features, not for a second pass", hint="Leave it out")
    started = time.perf_counter()
    reporter = reporter if reporter is not None and launch().speaks else Reporter()
    out = Path(out)
    with hold_folder(out, what="finetune"):
        earlier = earlier_run(out, store, settings, resume)
        if earlier and earlier.get("complete"):
            return finished(out, earlier, reporter)
        if settings.augment == "none" and settings.freeze != "vision" and settings.head in AUGMENTED:
            reporter.note(
                f"{settings.head}'s published numbers used RandAugment on training frames: `augment=randaugment`"
            )
        data = choose_data(LoadedSplits(store), settings, validate is not None, reporter)
        head = _started_head(store, settings, data, reporter)
        model, parameters = _trainable(store, settings, head, reporter)
        record = {
            **run_record(settings, head, store, data, device, command),
            "frozen_backbone": False,
            "start": None if settings.start is None else str(settings.start),
            "backbone_parameters_trained": parameters,
        }
        record = begun_as(out, earlier, record)
        frames = _frames(store, settings, model, data, reporter)
        with frames or contextlib.nullcontext():
            judge = None
            if validate is not None and data.validation is not None:
                precision = precision_on(torch.device(device).type, settings.precision)
                judge = partial(
                    _judge_from_pixels, validate, model, data.validation, store, frames, precision=precision
                )
            fitted = fit_learner(
                PixelLearner(model, data.train, store, frames, settings),
                settings,
                device=device,
                validate=judge,
                reporter=tracked(reporter, settings, out, record, validate),
                out=out,
                record=record,
                resume=resume,
            )
    return trained(out, record, fitted, started)


def _started_head(store: Store, settings: FinetuneSettings, data: TrainingData, reporter: Reporter) -> Head:
    """The head of the run to start from, or a fresh one."""
    if settings.start is None:
        return start_head(settings, store, data, reporter)
    head, run = load_run(settings.start)
    for line in check_cache(settings.start, run, store):
        reporter.note(f"{settings.start} was trained on other data than {store.place} gives: {line}")
    if (settings.loss or head.loss) == "sigmoid" and head.logit_bias is None:
        raise UsageError(
            f"`loss=sigmoid` needs a bias, which the head of {settings.start} was trained without",
            hint="Train the head with that loss first, or leave `loss` out",
        )
    return head


def _trainable(store: Store, settings: FinetuneSettings, head: Head, reporter: Reporter) -> tuple[EndToEnd, int]:
    """The head on the backbone of the cache, unfrozen as the settings say, and how many of its parameters are trained.

    On the host: of several processes each has its own GPU, which `fit_learner` knows.
    """
    backbone = backbone_of_cache(
        store.configuration, store.path, settings.pretrained, precision="fp32", across_frames=True
    )
    set_seed(settings.seed)  # low-rank additions begin at random
    unfreeze(backbone, settings)
    for parameter in backbone.model.parameters():
        if parameter.ndim == 4:  # convolutions over pictures, which are up to twice as fast so
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    total = sum(p.numel() for p in backbone.model.parameters())
    unfrozen = sum(p.numel() for p in backbone.model.parameters() if p.requires_grad)
    reporter.note(f"{backbone.name}: {unfrozen:,} of {total:,} parameters are trained")
    return EndToEnd(backbone, head, loss=settings.loss), unfrozen


def _frames(
    store: Store, settings: FinetuneSettings, model: EndToEnd, data: TrainingData, reporter: Reporter
) -> DecodedFrames | None:
    """Where pixels come from; None where the features of the cache do."""
    if settings.augment == "none" and not any(p.requires_grad for p in vision_tower(model.towers).parameters()):
        reporter.note("the vision tower is frozen: its features are taken from the cache, and no video is read")
        return None
    return DecodedFrames(
        store,
        items_of(store, *(table for table in (data.train, data.validation) if table is not None)),
        model.backbone.transform,
        settings,
    )


def _judge_from_pixels(
    validate: Validate,
    model: EndToEnd,
    table: FeatureTable,
    store: Store,
    frames: DecodedFrames | None,
    head: Head,
    *,
    precision: str,
) -> Mapping[str, Mapping[str, float]]:
    """What `validate` says of a table whose features are made anew by the backbone as it is now."""
    return validate(
        head, encode_table(model, table, store, frames, device=head.logit_scale.device, precision=precision)
    )


def tuned_table(
    run: Path,
    store: Store,
    split: str,
    *,
    which: str = "best",
    videos: Path | None = None,
    workers: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Head, FeatureTable]:
    """The head of a second pass, and a split of the cache it began from with the features its own backbone gives.

    Args:
        run: folder of a run that `finetune` made.
        store: the cache the run was trained on, or another one of videos.
        which: "best" or "last" weights.
        videos, workers: see `finetune`.

    Raises:
        UsageError: the run has no backbone of its own.
        CheckpointError: the backbone is not the one that run.json tells of.
        Others: see `load_run`, `DecodedFrames`.
    """
    head, record = load_run(run, which, device=device)
    if which not in record.get("weights", {}):
        raise UsageError(
            f"{run} trained no backbone, so pixels say no more than the cache", hint=Hint("Do", "eval", {"run": run})
        )
    made = record["cache_configuration"]["backbone"]
    backbone = load_backbone(
        made["name"],
        str(run / FILES[which]),
        words=made["words"],
        device=device,
        precision="fp32",
        preprocess=made["preprocessing"].get("method", "open_clip"),
        across_frames=True,
    )
    if record.get("complete") and backbone.description.weights != record["weights"][which]["weights"]:
        raise CheckpointError(
            f"{run / FILES[which]} is not the backbone that {run / 'run.json'} tells of: its weights are "
            f"{backbone.description.weights}, expected {record['weights'][which]['weights']}"
        )
    seen = {name: value for name, value in record["settings"].items() if name in ("max_frames", "frame_position")}
    settings = FinetuneSettings(**{"max_frames": None, **seen}, videos=videos, workers=workers, frame_memory=0)
    table = FeatureTable.load(
        store,
        split,
        max_frames=settings.max_frames,
        frame_position=settings.frame_position,
        tokens=head.needs_tokens,
        padded=not head.mask_padding,
    )
    with DecodedFrames(store, items_of(store, table), backbone.transform, settings) as frames:
        return head, encode_table(EndToEnd(backbone, head), table, store, frames, device=device)
