"""Backbone and head as one module, from pixels and token ids to the loss.

B captions and as many videos a batch, L tokens, F frames, n frames of all videos together, D embed_dim, S side in pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import UsageError
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.backbone.feeding import Feed
from glscl.extract.backbone.patch_embedding import temporal_embedding
from glscl.train_head.finetuning.towers import freeze_statistics
from glscl.train_head.heads.base import Head
from glscl.train_head.learner import ContrastiveStep, moved


class Captions(NamedTuple):
    """Token ids (B, W) int64, how many are real (B,) int64, and the width L ≤ W that features are cut to."""

    ids: Tensor
    lengths: Tensor
    width: int

    def part(self, start: int, stop: int) -> Captions:
        return Captions(self.ids[start:stop], self.lengths[start:stop], self.width)


class Clips(NamedTuple):
    """Frames of all videos one after another (n, S, S, 3) uint8, how many each has, and the mask (B, F) of real ones.

    `rows` (n,) int64 are the places of the frames in the flattened mask, so that nobody has to ask the device for them.
    """

    frames: Tensor
    counts: tuple[int, ...]
    mask: Tensor
    rows: Tensor

    @classmethod
    def from_frames(cls, videos: list[np.ndarray], width: int, device: torch.device, feed: Feed | None = None) -> Clips:
        """From the frames of each video, (F, S, S, 3) uint8; features are padded to `width`.

        Args:
            feed: of a GPU; what goes through it is overwritten by the next batch but one.
        """
        counts = tuple(len(frames) for frames in videos)
        mask = torch.arange(width) < torch.tensor(counts)[:, None]  # (B, F)
        rows = mask.flatten().nonzero().squeeze(1)  # (n,)
        frames = torch.from_numpy(np.concatenate(videos)) if feed is None else feed.put(videos)[: len(rows)]
        return cls(frames.to(device), counts, moved(mask, device), moved(rows, device))

    def part(self, start: int, stop: int) -> Clips:
        first, last = sum(self.counts[:start]), sum(self.counts[:stop])
        rows = self.rows[first:last] - start * self.mask.shape[1]
        return Clips(self.frames[first:last], self.counts[start:stop], self.mask[start:stop], rows)


class EndToEnd(nn.Module):
    """A head on a backbone. Calling it gives the loss of a batch; its features are what extraction would store.

    In training mode the backbone's batch norms keep their statistics; dropout, if it has any, acts.

    Attributes:
        towers: the open_clip model.
        head: the head.
    """

    def __init__(self, backbone: Backbone, head: Head, *, loss: str | None = None) -> None:
        super().__init__()
        if not head.mask_padding and temporal_embedding(backbone.model) is not None:
            raise UsageError(
                "`patch_embedding=3d` sees the frames beside a frame, padding has none: set `mask_padding=true`"
            )
        self.towers, self.head = backbone.model, head
        self._backbone, self._step = [backbone], [ContrastiveStep(head, loss=loss)]  # in lists: no modules of this one

    @property
    def backbone(self) -> Backbone:
        return self._backbone[0]

    @property
    def step(self) -> ContrastiveStep:
        """Gives the losses of a batch of features."""
        return self._step[0]

    def train(self, mode: bool = True) -> EndToEnd:
        super().train(mode)
        freeze_statistics(self.towers)
        return self

    def text_features(self, captions: Captions) -> TextFeatures:
        """Pooled (B, D), tokens (B, L, D) and their mask, float32; all words where the head reads padding."""
        if not self.head.mask_padding:
            pooled, states = self.backbone.text_tower.padded_states(captions.ids, captions.lengths)
            return TextFeatures(pooled.float(), states.float(), torch.ones_like(captions.ids, dtype=torch.bool))
        pooled, states = self.backbone.text_states(captions.ids, captions.width)
        if states is None or not self.head.needs_tokens:
            return TextFeatures(pooled.float())
        mask = torch.arange(captions.width, device=states.device) < captions.lengths[:, None]  # (B, L)
        return TextFeatures(pooled.float(), states[:, : captions.width].float() * mask[..., None], mask)

    def video_features(self, clips: Clips | VideoFeatures) -> VideoFeatures:
        """Frame features (B, F, D) float32, padded with zeros or as the head reads it; what is features already stays."""
        if isinstance(clips, VideoFeatures):
            return clips
        across = temporal_embedding(self.towers)
        if across is not None:
            across.lengths = clips.counts
        features = self.backbone.image_features(clips.frames).float()  # (n, D)
        padded = features.new_zeros((clips.mask.numel(), features.shape[-1]))
        if not self.head.mask_padding:
            padded = padded + self.backbone.padded_frame().float()
        padded = padded.index_copy(0, clips.rows, features).view(*clips.mask.shape, -1)
        return VideoFeatures(padded, clips.mask)

    def loss(self, text: TextFeatures, video: VideoFeatures, exclude: Tensor | None) -> Tensor:
        """As `ContrastiveStep`."""
        return self.step(text, video, exclude)

    def forward(self, captions: Captions, clips: Clips | VideoFeatures, exclude: Tensor | None = None) -> Tensor:
        """Scalar loss of this process' share of a batch against the whole batch."""
        return self.loss(self.text_features(captions), self.video_features(clips), exclude)
