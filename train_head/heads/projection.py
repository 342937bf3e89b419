"""Mean pooling after one learned linear map a side: the smallest head that frozen features let learn anything.

T texts, V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.base import VectorHead, VectorSide
from glscl.train_head.heads.pooling import mean_of_normalised


class Projection(VectorHead):
    """`n(A t) · n(mean over real frames of n(B x_f))`; A and B are D×D and the identity at start."""

    def __init__(self, *, embed_dim: int, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        self.text_map = nn.Linear(embed_dim, embed_dim, bias=False)
        self.video_map = nn.Linear(embed_dim, embed_dim, bias=False)
        nn.init.eye_(self.text_map.weight)
        nn.init.eye_(self.video_map.weight)

    def text_side(self, text: TextFeatures) -> VectorSide:
        return VectorSide(F.normalize(self.text_map(text.text_features), dim=-1))

    def video_side(self, video: VideoFeatures) -> VectorSide:
        return VectorSide(mean_of_normalised(self.video_map(video.frame_features), video.frame_mask))
