"""CLIP4Clip's meanP: the mean of normalised frames against the caption. On frozen features this is zero-shot CLIP.

V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any

from glscl.cache.schema import VideoFeatures
from glscl.train_head.heads.base import VectorHead, VectorSide
from glscl.train_head.heads.pooling import mean_of_normalised


class MeanPool(VectorHead):
    """`n(t) · n(mean over real frames of n(x_f))` (Luo et al. 2022, parameter-free type). No parameter but τ."""

    def __init__(self, *, embed_dim: int, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, **common)

    def video_side(self, video: VideoFeatures) -> VectorSide:
        return VectorSide(mean_of_normalised(video.frame_features, video.frame_mask))
