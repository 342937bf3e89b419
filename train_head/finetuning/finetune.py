"""The second pass: backbone and head trained together, from the pixels of the videos a cache was made of.

The cache gives captions, splits, ids and where the videos lie; its features only say what was encoded. What comes out is a
run as `train-head` leaves it, with the backbone beside the head:

    backbone.safetensors        of the selected epoch; `glscl extract --pretrained` takes it
    backbone-last.safetensors   of the last epoch
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.common.errors import UsageError
from glscl.extract.backbone.encoder import backbone_of_cache, load_backbone
from glscl.train_head.checkpoint import check_cache, load_run, read_run
from glscl.train_head.finetuning.model import EndToEnd
from glscl.train_head.finetuning.pixel_learner import PixelLearner, encode_table
from glscl.train_head.finetuning.pixels import Frames, items_of
from glscl.train_head.finetuning.settings import FinetuneSettings
from glscl.train_head.finetuning.towers import FILES, unfreeze
from glscl.train_head.heads import head_class
from glscl.train_head.heads.base import Head
from glscl.train_head.reports import Reporter
from glscl.train_head.train import (
    TrainResult,
    Validate,
    choose_parts,
    earlier_run,
    finished,
    fit_run,
    run_record,
    start_head,
)


def finetune(
    store: Store,
    out: Path,
    settings: FinetuneSettings,
    *,
    start: Path | None = None,
    pretrained: str | None = None,
    videos: Path | None = None,
    workers: int | None = None,
    frame_memory: float = 4.0,
    checkpoint_every: int = 500,
    device: torch.device | str = "cpu",
    validate: Validate | None = None,
    reporter: Reporter | None = None,
    resume: bool = False,
    tracker: str = "none",
    command: str = "",
    log_every: int = 10,
) -> TrainResult:
    """Train backbone and head on the split `train` of a cache, from pixels.

    Where the vision tower is frozen and frames are not augmented, its features are taken from the cache, and no video is read.
    Which part validates is decided as in `glscl.train_head.train.train`; its features are made anew at every validation.

    Args:
        store: an open cache that was extracted from videos.
        out: the run folder; it must hold no run, unless `resume`.
        settings: from `resolve_finetune`.
        start: run of the head to start from, trained on this cache; None starts with a fresh one.
        pretrained: weights of the cache's backbone, where it was extracted with weights from a file.
        videos: folder with the videos; None is where extraction found them. Not read where the cache stores frames.
        workers: decoding processes of each training process; None shares the cores among them.
        frame_memory: GB (1e9 bytes) of decoded frames that each process keeps.
        checkpoint_every: steps after which the run can be resumed.
        The others: see `glscl.train_head.train.train`.

    Raises:
        FingerprintError: `start` belongs to another cache, or the backbone's weights are not those of the cache.
        NotFoundError: videos are missing.
        DecodeError: a video gives other frames than at extraction.
        Others: see `train`, `unfreeze`, `fit`.
    """
    started = time.perf_counter()
    processes, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    if reporter is None or rank > 0:
        reporter = Reporter()  # of several processes the first one speaks
    out = Path(out)
    earlier = earlier_run(out, store, settings, resume)
    if earlier and earlier.get("complete"):
        return finished(out, earlier, reporter)

    def load(split: str) -> FeatureTable:
        return FeatureTable.load(
            store,
            split,
            max_frames=settings.max_frames,
            frame_position=settings.frame_position,
            tokens=head_class(settings.head).needs_tokens,
        )

    table, validation, selection = choose_parts(store, settings, load, validate is not None, reporter)
    if start is None:
        head = start_head(settings, store, [table] if validation is None else [table, validation], reporter)
    else:
        head = load_run(start)[0]
        for line in check_cache(start, read_run(start), store):
            reporter.note(f"{store.path} is not the cache {start} was trained on: {line}")
    # On the host: of several processes each has its own GPU, which `fit` knows.
    backbone = backbone_of_cache(store.configuration, store.path, pretrained, precision="fp32", across_frames=True)
    set_seed(settings.seed)  # low-rank additions begin at random
    unfreeze(
        backbone,
        freeze=settings.freeze,
        freeze_layers=settings.freeze_layers,
        patch_embedding=settings.patch_embedding,
        lora_rank=settings.lora_rank,
        gradient_checkpointing=settings.gradient_checkpointing,
    )
    for parameter in backbone.model.parameters():
        if parameter.ndim == 4:  # convolutions over pictures, which are up to twice as fast so
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    model = EndToEnd(backbone, head)
    trained = sum(p.numel() for p in backbone.model.parameters() if p.requires_grad)
    reporter.note(
        f"{backbone.name}: {trained:,} of {sum(p.numel() for p in backbone.model.parameters()):,} parameters are trained"
    )
    run = {
        **run_record(settings, head, store, table, validation, selection, device, command),
        "frozen_backbone": False,
        "start": None if start is None else str(start),
        "backbone_parameters_trained": trained,
    }
    frames = None
    if settings.augment != "none" or any(p.requires_grad for p in backbone.model.visual.parameters()):
        frames = Frames(
            store,
            transform=backbone.transform,
            items=items_of(store, table, *([] if validation is None else [validation])),
            videos=videos,
            width=settings.max_frames,
            position=settings.frame_position,
            workers=workers or max(1, len(os.sched_getaffinity(0)) // processes),
            memory=frame_memory * 1e9,
        )
    else:
        reporter.note("the vision tower is frozen: its features are taken from the cache, and no video is read")
    with frames or contextlib.nullcontext():
        learner = PixelLearner(
            model,
            table,
            store,
            frames,
            backbone_lr_scale=settings.backbone_lr_scale,
            micro_batch=settings.micro_batch,
            augment=settings.augment,
        )

        def judged(head: Head) -> Any:
            now = encode_table(model, validation, store, frames, device=next(head.parameters()).device)
            return validate(head, now)

        return fit_run(
            head,
            table,
            settings,
            out=out,
            run=run,
            started=started,
            learner=learner,
            device=device,
            validate=None if validation is None else judged,
            log_every=log_every,
            resume=resume,
            tracker=tracker,
            reporter=reporter,
            checkpoint_every=checkpoint_every,
            patience=settings.patience,
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
        Others: see `load_run`, `Frames`.
    """
    head, record = load_run(run, which, device=device)
    if which not in record.get("weights", {}):
        raise UsageError(
            f"{run} trained no backbone, so pixels say no more than the cache", mend=f"Do: glscl eval --run {run}"
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
    settings = record["settings"]
    table = FeatureTable.load(
        store,
        split,
        max_frames=settings.get("max_frames"),
        frame_position=settings.get("frame_position", "uniform"),
        tokens=head.needs_tokens,
    )
    frames = Frames(
        store,
        transform=backbone.transform,
        items=items_of(store, table),
        videos=videos,
        width=settings.get("max_frames"),
        position=settings.get("frame_position", "uniform"),
        workers=workers,
        memory=0,
    )
    with frames:
        return head, encode_table(EndToEnd(backbone, head), table, store, frames, device=device)
