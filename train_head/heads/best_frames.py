"""A video's best cosine with the caption, or the mean of its best: it is found by the moment that fits, however long it is.

T texts, V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import UsageError
from glscl.train_head.heads.base import Head, VectorSide


class NormalisedFrames(NamedTuple):
    """frames (V, F, D) L2-normalised; frame_mask (V, F)."""

    frames: Tensor
    frame_mask: Tensor


class BestFrames(Head):
    """`mean of the count largest n(t) · n(x_f) over real frames f`; of fewer frames their mean. No parameter but τ.

    The frame-wise scoring that re-ranking by frames uses (arXiv 2401.08449), with `count` frames in place of one.

    Args:
        embed_dim: D.
        count: 1 is the best frame alone; more are steadier where what is looked for lasts.
    """

    def __init__(self, *, embed_dim: int, count: int = 1, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        if count < 1:
            raise UsageError(f"count must be at least 1, found {count}")
        self.count = count

    def text_side(self, text: TextFeatures) -> VectorSide:
        return VectorSide(F.normalize(text.text_features, dim=-1))

    def video_side(self, video: VideoFeatures) -> NormalisedFrames:
        return NormalisedFrames(F.normalize(video.frame_features, dim=-1), video.frame_mask)

    def pair_scores(self, text: VectorSide, video: NormalisedFrames) -> Tensor:
        cosines = torch.einsum("td,vfd->tvf", text.vectors, video.frames)
        cosines = cosines.masked_fill(~video.frame_mask, -torch.inf)
        best = cosines.topk(min(self.count, cosines.shape[2]), dim=2).values  # (T, V, k), padding last
        real = video.frame_mask.sum(1).clamp(max=best.shape[2])  # (V,)
        return best.where(best > -torch.inf, 0).sum(2) / real

    def pair_bytes(self, text: VectorSide, video: NormalisedFrames) -> int:
        return 3 * video.frames.shape[1] * video.frames.element_size()
