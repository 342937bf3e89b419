"""CLIP4Clip's seqLSTM: frames pass an LSTM before mean pooling.

V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any

from glscl.cache.schema import VideoFeatures
from glscl.train_head.heads.aggregator import LstmAggregator
from glscl.train_head.heads.base import VectorHead, VectorSide
from glscl.train_head.heads.pooling import mean_of_normalised


class SeqLstm(VectorHead):
    """`mean_pool` of `X + LSTM(X)` (Luo et al. 2022, sequential type)."""

    def __init__(self, *, embed_dim: int, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        self.aggregator = LstmAggregator(embed_dim)

    def video_side(self, video: VideoFeatures) -> VectorSide:
        frames = self.aggregator(video.frame_features, video.frame_mask)  # (V, F, D)
        return VectorSide(mean_of_normalised(frames, video.frame_mask))
