"""What the tests of the second pass do again and again: extract, tune, stop a run, look at what it left."""

from __future__ import annotations

import signal
from pathlib import Path

import torch
from safetensors.torch import load_file

from glscl.cache.schema import Annotations
from glscl.cache.store import Store, open_store
from glscl.cache.table import FeatureTable
from glscl.evaluate.evaluation import validation_metrics
from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings
from glscl.train_head.finetuning.backbone_and_head import EndToEnd
from glscl.train_head.finetuning.finetune import finetune
from glscl.train_head.finetuning.pixels import DecodedFrames, items_of
from glscl.train_head.finetuning.settings import FinetuneSettings, resolve_finetune
from glscl.train_head.reports import Reporter
from glscl.train_head.train import TrainResult

SMALL_HEAD = dict(queries=2, decoder_layers=1, aggregator_layers=1, dropout=0.0, frame_positions=3)


def extracted(corpus: Annotations, out: Path, name: str = "demo", pretrained: str | None = None, **options) -> Store:
    """A float32 cache of the corpus, a frame a second."""
    backbone = load_backbone(name, pretrained)
    extract(corpus, out, ExtractSettings(dtype="float32", workers=1, **options), backbone=backbone)
    return open_store(out)


def load(store: Store, split: str = "train") -> FeatureTable:
    return FeatureTable.load(store, split, max_frames=3)


def frames_of(store: Store, table: FeatureTable, model: EndToEnd, **options) -> DecodedFrames:
    settings = FinetuneSettings(max_frames=3, workers=1, **options)
    return DecodedFrames(store, items_of(store, table), model.backbone.transform, settings)


def tune(store: Store, out: Path, start: Path | None, asked: dict | None = None, **options) -> TrainResult:
    """Two epochs of batches of four, from a trained head or a fresh `projection`."""
    fresh = {"head": "projection", "max_frames": 3} if start is None else {}
    usual = {"epochs": 2, "batch_size": 4, "lr": 1e-3, "backbone_lr_scale": 0.1, "workers": 1, "log_every": 1}
    kind = torch.device(options.get("device", "cpu")).type
    asked = {**usual, **fresh, **(asked or {}), "start": start}
    settings = resolve_finetune(asked, dataset="made", device_type=kind)
    return finetune(store, out, settings, validate=validation_metrics, **options)


class Stop(Reporter):
    """Interrupts a run at its n-th reported step."""

    def __init__(self, at: int) -> None:
        self.at, self.seen = at, 0

    def step(self, report) -> None:
        self.seen += 1
        if self.seen == self.at:
            signal.raise_signal(signal.SIGINT)


class Steps(Reporter):
    """Keeps every step that is reported."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def step(self, report) -> None:
        self.losses.append(report.loss)


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    """Of the last epoch: of the head as `last/NAME`, of the backbone as `backbone-last/NAME`."""
    return {f"{n}/{k}": v for n in ("last", "backbone-last") for k, v in load_file(folder / f"{n}.safetensors").items()}
