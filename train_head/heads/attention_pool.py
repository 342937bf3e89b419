"""TeachCLIP's attentional frame aggregation: learned frame weights that no caption changes, so videos can be indexed.

V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from glscl.cache.schema import VideoFeatures
from glscl.train_head.heads.base import VectorHead, VectorSide, require_positive
from glscl.train_head.heads.layers import entry_scorer
from glscl.train_head.heads.pooling import masked_softmax


class AttentionPool(VectorHead):
    """`n(t) · n(Σ_f w_f n(x_f))`, `w = softmax_f(Linear(ReLU(Linear(x_f))) / temperature)` (Tian et al. 2024, AFA).

    Args:
        embed_dim: D.
        temperature: of the softmax over frames.
    """

    def __init__(self, *, embed_dim: int, temperature: float = 0.1, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_positive("temperature", temperature)
        self.temperature = temperature
        self.frame_scorer: nn.Module = entry_scorer(embed_dim)

    def video_side(self, video: VideoFeatures) -> VectorSide:
        logits = self.frame_scorer(video.frame_features).squeeze(-1) / self.temperature  # (V, F)
        weights = masked_softmax(logits.to(self.dtype), video.frame_mask, dim=-1)
        pooled = torch.einsum("vf,vfd->vd", weights, F.normalize(video.frame_features, dim=-1))
        return VectorSide(F.normalize(pooled, dim=-1))
