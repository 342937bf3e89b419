"""A head and its backbone as the training loop sees them: batches of pixels, and features made anew to validate on.

S steps an epoch, B captions and as many videos a batch, T texts, V videos, L tokens, F frames, R token rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glscl.cache.schema import VideoFeatures
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.common.devices import arithmetic
from glscl.extract.backbone.feeding import Feed, fetched_later
from glscl.train_head.finetuning.backbone_and_head import Captions, Clips, EndToEnd
from glscl.train_head.finetuning.gradients import backward_in_chunks
from glscl.train_head.finetuning.pixels import DecodedFrames, items_of
from glscl.train_head.finetuning.settings import FinetuneSettings
from glscl.train_head.finetuning.towers import export_backbone
from glscl.train_head.learner import WIDTHS, Learner, moved
from glscl.train_head.optim import parameter_groups

_CHANGES, _MAGNITUDE = 4, 21  # of RandAugment: timm's rand-m7-n4 of ten levels, on torchvision's 31


class PixelTable:
    """What a table of features does not know: token ids of its captions and item numbers of its videos.

    Args:
        model: gives the tokenizer.
        table: some captions and videos of `store`.
        store: the cache.

    Attributes:
        items: (V,) item number in the cache of each video of the table.
        ids, lengths: token ids (T, W) and how many are real (T,), int64 on the host.
        kept: (T,) int64, of how many the head has features: the real ones, or all W where it reads padding.
        width: F, frames that features are padded to.
    """

    def __init__(self, model: EndToEnd, table: FeatureTable, store: Store) -> None:
        self.items = np.array(items_of(store, table), np.int64)
        tokens = model.backbone.tokenize(table.captions)
        self.ids, self.lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
        self.kept = self.lengths if model.head.mask_padding else torch.full_like(self.lengths, self.ids.shape[1])
        self.width = table.frame_features.shape[1]

    def captions(self, rows: Tensor, device: torch.device, *, width: int | None = None) -> Captions:
        """Captions of the table's rows; features are cut to `width`, None to the longest of them, or on a GPU little behind it."""
        lengths = self.lengths[rows]
        width = int(lengths.max()) if width is None else width
        if device.type == "cuda":
            width = min(-(-width // WIDTHS) * WIDTHS, self.ids.shape[1])
        return Captions(moved(self.ids[rows], device), moved(lengths, device), width)


class PixelLearner(Learner):
    """Trains head and backbone on the pixels of a table's videos.

    Args:
        model: head on backbone.
        table: what to train on.
        store: the cache it is from.
        frames: where pixels come from; None takes the features of the table, for a vision tower that is frozen.
        settings: `backbone_lr_scale` (low-rank additions have the head's rate), `micro_batch` and `augment`.
    """

    def __init__(
        self,
        model: EndToEnd,
        table: FeatureTable,
        store: Store,
        frames: DecodedFrames | None,
        settings: FinetuneSettings,
    ) -> None:
        super().__init__(model.head, table)
        self.module = self.model = model
        self.large = True
        self.step = model.step
        self.pixels = PixelTable(model, table, store)
        self._frames, self._settings = frames, settings

    def begin(self, device: torch.device) -> nn.Module:
        self.model.backbone.device = device
        return self.model

    @property
    def feed(self) -> Feed | None:
        return self.model.backbone.feed if self.model.backbone.device.type == "cuda" else None

    def why_not_recorded(self) -> str | None:
        return "the pixels of a batch come from the host"

    def groups(self, **decay: Any) -> list[dict[str, Any]]:
        low_rank = nn.ParameterList(p for name, p in self.model.towers.named_parameters() if "lora_" in name)
        own = nn.ParameterList(p for name, p in self.model.towers.named_parameters() if "lora_" not in name)
        return [
            *parameter_groups(self.head, **decay),
            *parameter_groups(low_rank, **decay),
            *({**group, "lr_scale": self._settings.backbone_lr_scale} for group in parameter_groups(own, **decay)),
        ]

    def batches(self, rows: np.ndarray, *, start: int, share: slice, mask: bool) -> _PixelBatches:
        return _PixelBatches(self, rows, start=start, share=share, mask=mask)

    def backward(self, accelerator: Any, step_module: nn.Module, batch: tuple[Any, ...]) -> Tensor:
        micro_batch = self._settings.micro_batch
        if micro_batch is None or micro_batch >= len(batch[0].ids):
            return super().backward(accelerator, step_module, batch)
        return backward_in_chunks(self.model, *batch, micro_batch=micro_batch, accelerator=accelerator)

    def smaller(self) -> str:
        return "Set `micro_batch` or lower it, use `gradient_checkpointing`, or lower `max_frames` or `batch_size`"

    def doubts(self, size: int) -> list[str]:
        return []  # its scores need all pixels anew; the loss is looked at

    def save_backbone(self, folder: Path, which: str) -> dict[str, Any]:
        return export_backbone(folder, which, self.model.backbone)

    def augmented(self, clips: Clips) -> Clips:
        """The clips as `augment` says, every frame of a video changed alike, by torch's own random numbers."""
        if self._settings.augment == "none":
            return clips
        from torchvision.transforms.v2 import InterpolationMode, RandAugment  # the first asks a GPU about every picture

        change = RandAugment(_CHANGES, _MAGNITUDE, interpolation=InterpolationMode.BILINEAR)
        videos = clips.frames.permute(0, 3, 1, 2).split(clips.counts)  # (F, 3, S, S) each
        changed = torch.cat([change(video) for video in videos])
        return clips._replace(frames=changed.permute(0, 2, 3, 1))


class _PixelBatches:
    """The batches of one epoch from a step on, taken in order; their frames are made ready ahead."""

    def __init__(self, learner: PixelLearner, rows: np.ndarray, *, start: int, share: slice, mask: bool) -> None:
        self._learner, self._rows, self._share, self._mask = learner, torch.from_numpy(rows), share, mask
        self._videos = learner.table.video_of_text.cpu()[self._rows]  # (S, B)
        self._ahead: Iterator[list[np.ndarray]] | None = None
        if learner._frames is not None:
            items = learner.pixels.items[self._videos[start:, share].numpy()]
            self._ahead = learner._frames.ahead(items.tolist())

    def on(self, device: torch.device, step: int) -> tuple[Captions, Clips | VideoFeatures, Tensor | None]:
        """What `EndToEnd` takes; all processes pad to the longest caption of the whole batch."""
        pixels, rows, videos = self._learner.pixels, self._rows[step], self._videos[step]
        width = int(pixels.lengths[rows].max())
        captions = pixels.captions(rows[self._share], device, width=width)
        if self._ahead is None:
            clips = VideoFeatures(*(moved(each, device) for each in self._learner.table.videos(videos[self._share])))
        else:
            clips = self._learner.augmented(
                Clips.from_frames(next(self._ahead), pixels.width, device, self._learner.feed)
            )
        exclude = moved(videos[:, None] == videos, device) if self._mask else None  # (B, B)
        return captions, clips, exclude


@torch.no_grad()
def encode_table(
    model: EndToEnd,
    table: FeatureTable,
    store: Store,
    frames: DecodedFrames | None,
    *,
    device: torch.device | str,
    precision: str = "fp32",
    batch: int = 32,
) -> FeatureTable:
    """The table with the features that the backbone gives now, float32 on the host.

    Args:
        model: head on backbone; left in evaluation mode.
        table: some captions and videos of `store`.
        frames: where pixels come from; None keeps the table's own frame features, of a vision tower that is frozen.
        precision: "fp32", "tf32", "bf16" or "fp16".
        batch: videos encoded at once; of captions eight times as many.
    """
    device = torch.device(device)
    model.to(device).eval()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    with arithmetic(device, tf32=precision == "tf32"), torch.autocast(device.type, half, enabled=half is not None):
        return _encoded(model, table, store, frames, device=device, batch=batch)


def _encoded(
    model: EndToEnd,
    table: FeatureTable,
    store: Store,
    frames: DecodedFrames | None,
    *,
    device: torch.device,
    batch: int,
) -> FeatureTable:
    pixels = PixelTable(model, table, store)
    frame_features = table.frame_features.float().cpu()
    if frames is not None:
        videos = [pixels.items[start : start + batch].tolist() for start in range(0, table.num_videos, batch)]
        feed = Feed(device) if device.type == "cuda" else None
        clips = (Clips.from_frames(decoded, pixels.width, device, feed) for decoded in frames.ahead(videos))
        encoded = (model.video_features(some).frame_features for some in clips)
        if feed is None:
            frame_features = torch.cat([features.cpu() for features in encoded])
        else:  # the host goes on to the next frames meanwhile
            under_way = [fetched_later(features) for features in encoded]
            frame_features = torch.cat([torch.from_numpy(features()) for features in under_way])
    pooled = torch.empty((table.num_texts, table.embed_dim))
    tokens: list[Tensor | None] = [None] * table.num_texts
    order = torch.argsort(pixels.lengths, stable=True)
    for rows in order.split(8 * batch):
        text = model.text_features(pixels.captions(rows, device))
        pooled[rows] = text.text_features.cpu()
        if text.token_features is not None:
            lengths = pixels.kept[rows].tolist()
            for row, features, length in zip(rows.tolist(), text.token_features.cpu(), lengths):
                tokens[row] = features[:length]
    with_tokens = model.head.needs_tokens and table.num_texts > 0
    return replace(
        table,
        text_features=pooled,
        token_values=torch.cat([rows for rows in tokens if rows is not None]) if with_tokens else None,  # (R, D)
        token_first=pixels.kept.cumsum(0) - pixels.kept if with_tokens else None,
        token_count=pixels.kept if with_tokens else None,
        frame_features=frame_features,
        frame_mask=table.frame_mask.cpu(),
        frame_times=table.frame_times.cpu(),
        video_of_text=table.video_of_text.cpu(),
    )
