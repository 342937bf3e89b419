"""CLIP4Clip's tightTransf: a transformer reads caption and frames together, once for every pair.

T texts, V videos, F frames, D embed_dim, N pairs, S = 1 + F.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.aggregator import copy_text_transformer, initialise_like_clip, position_rows
from glscl.train_head.heads.base import Head, Initialisation, require_at_least, require_dropout
from glscl.train_head.heads.dropout import Dropout
from glscl.train_head.heads.joint import attend_from_first, attend_jointly
from glscl.train_head.heads.layers import ResidualBlock, quick_gelu


class TightText(NamedTuple):
    """text_features (T, D) raw."""

    text_features: Tensor


class TightVideo(NamedTuple):
    """frame_features (V, F, D) raw; frame_mask (V, F)."""

    frame_features: Tensor
    frame_mask: Tensor


class TightTransf(Head):
    """`Linear(QuickGELU(Linear(LN(Transformer([t; x_1 … x_F] + P))_0)))` (Luo et al. 2022, tight type).

    The score is a free number, no cosine: it has no temperature (`logit_scale` stays 0). It costs T·V transformer
    passes.

    Args:
        embed_dim: D.
        layers: blocks of the transformer.
        heads: attention heads.
        positions: longest sequence, 1 + F, the learned positions allow.
        dropout: on the sum of features and positions.
    """

    has_logit_scale = False
    autocast_pairs = True
    tall_tiles = True

    def __init__(
        self,
        *,
        embed_dim: int,
        layers: int = 4,
        heads: int = 8,
        positions: int = 77,
        dropout: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_dropout(dropout)
        require_at_least("layers", layers, 1)
        require_at_least("positions", positions, 2)
        self.positions = nn.Embedding(positions, embed_dim)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(ResidualBlock(embed_dim, heads) for _ in range(layers))
        self.pool_norm = nn.LayerNorm(embed_dim, eps=1e-12)
        self.pool = nn.Linear(embed_dim, embed_dim)
        self.similarity = nn.Linear(embed_dim, 1)
        initialise_like_clip(self.positions, self.blocks)
        for layer in (self.pool, self.similarity):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def text_side(self, text: TextFeatures) -> TightText:
        return TightText(text.text_features)

    def video_side(self, video: VideoFeatures) -> TightVideo:
        return TightVideo(video.frame_features, video.frame_mask)

    def pair_scores(self, text: TightText, video: TightVideo) -> Tensor:
        texts, (videos, frames, _) = len(text.text_features), video.frame_features.shape
        positions = position_rows(self.positions, 1 + frames)  # (S, D)
        first, rest = text.text_features + positions[0], video.frame_features + positions[1:]  # (T, D), (V, F, D)
        mask = torch.cat((video.frame_mask.new_ones(videos, 1), video.frame_mask), dim=1)  # (V, S)
        mask = mask.expand(texts, -1, -1).flatten(0, 1)  # (N, S)
        blocks = [block for block in self.blocks if isinstance(block, ResidualBlock)]  # all of them are
        if len(blocks) > 1 and not (self.training and self.dropout.p > 0):
            state = attend_jointly(blocks[0], first, rest, video.frame_mask)  # (T, V, S, D)
            state = blocks.pop(0).feed_forward(state.flatten(0, 1))  # (N, S, D)
        else:  # dropout makes every pair's sequence another one
            first = first[:, None, None].expand(-1, videos, -1, -1)  # (T, V, 1, D)
            state = torch.cat((first, rest.expand(texts, -1, -1, -1)), dim=2).flatten(0, 1)
            state = self.dropout(state)  # (N, S, D)
        *middle, last = blocks
        for block in middle:
            state = block(state, mask)
        # nothing reads the other outputs of the last block
        state = last.feed_forward(state[:, 0] + attend_from_first(last.attn, last.ln_1(state), mask))  # (N, D)
        pooled = quick_gelu(self.pool(self.pool_norm(state)))
        return self.similarity(pooled).view(texts, videos).to(self.dtype)

    def pair_bytes(self, text: TightText, video: TightVideo) -> int:
        layers = len(self.blocks) if torch.is_grad_enabled() else 1
        floats = (1 + video.frame_features.shape[1]) * self.embed_dim * (3 + 18 * layers)
        return floats * video.frame_features.element_size()

    def initialise_from_backbone(self, tensors: Mapping[str, Tensor]) -> Initialisation:
        return copy_text_transformer(tensors, self.positions, self.blocks)
