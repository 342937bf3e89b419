"""CLIP4Clip's seqTransf: frames pass a small transformer before mean pooling.

V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any

from glscl.cache.schema import VideoFeatures
from glscl.train_head.heads.aggregator import TransformerAggregator
from glscl.train_head.heads.base import VectorHead, VectorSide
from glscl.train_head.heads.pooling import mean_of_normalised


class SeqTransf(VectorHead):
    """`mean_pool` of `X + Transformer(X + P)` (Luo et al. 2022, sequential type).

    Args:
        embed_dim: D.
        aggregator_layers: blocks of the transformer.
        aggregator_heads: attention heads; None = max(1, D // 64).
        frame_positions: longest clip the learned positions allow.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        aggregator_layers: int = 4,
        aggregator_heads: int | None = None,
        frame_positions: int = 77,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        self.aggregator = TransformerAggregator(
            embed_dim, layers=aggregator_layers, heads=aggregator_heads, positions=frame_positions
        )

    def video_side(self, video: VideoFeatures) -> VectorSide:
        frames = self.aggregator(video.frame_features, video.frame_mask)  # (V, F, D)
        return VectorSide(mean_of_normalised(frames, video.frame_mask))
