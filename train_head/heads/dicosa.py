"""DiCoSA: texts and caption-conditioned videos are compared chunk by chunk, each chunk weighted by an MLP.

T texts, V videos, F frames, D embed_dim, C chunks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import UsageError
from glscl.train_head.heads.aggregator import AggregatingHead
from glscl.train_head.heads.base import require_at_least, require_positive
from glscl.train_head.heads.pooling import attend_frames, masked_softmax


class DicosaText(NamedTuple):
    """text_features (T, D) raw; hidden (T, 4D), the text's share of the MLP's hidden layer, chunk by chunk."""

    text_features: Tensor
    hidden: Tensor


class DicosaVideo(NamedTuple):
    """frame_features (V, F, D) aggregated, raw; frame_mask (V, F)."""

    frame_features: Tensor
    frame_mask: Tensor


class Dicosa(AggregatingHead):
    """`S = Σ_c MLP([t_c; g_c]) · cos(t_c, g_c)` over C chunks of the features (Jin et al. 2023).

    `g = Σ_f softmax_f(t · x'_f / temperature) x'_f` is the video as the caption sees it. The MLP, 2D/C → 4D/C → ReLU
    → 1, is shared over chunks and reads raw inputs; its output starts near 1/C, so that the score starts as a mean of
    cosines.

    Args:
        embed_dim: D.
        chunks: C; must divide D.
        temperature: of the softmax over frames.
        alpha: weight of the diagonal in `chunk_decorrelation`.
        beta: weight of its other entries.
        correlation_divisor: its divisor, the words a caption is padded to in the public program.
        **common: see `AggregatingHead`.
    """

    tall_tiles = True

    def __init__(
        self,
        *,
        embed_dim: int,
        chunks: int = 8,
        temperature: float = 3.0,
        alpha: float = 0.01,
        beta: float = 0.005,
        correlation_divisor: float = 32.0,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_at_least("chunks", chunks, 1)
        require_positive("temperature", temperature)
        if embed_dim % chunks:
            raise UsageError(f"features of size {embed_dim} cannot be cut into {chunks} equal chunks")
        self.chunks = chunks
        require_positive("correlation_divisor", correlation_divisor)
        self.temperature = temperature
        self.alpha = alpha
        self.beta = beta
        self.correlation_divisor = correlation_divisor
        width = embed_dim // chunks
        self.chunk_hidden = nn.Linear(2 * width, 4 * width)
        self.chunk_weight = nn.Linear(4 * width, 1)
        for layer in (self.chunk_hidden, self.chunk_weight):
            nn.init.normal_(layer.weight, std=0.02)
        nn.init.zeros_(self.chunk_hidden.bias)
        nn.init.constant_(self.chunk_weight.bias, 1 / chunks)

    def text_side(self, text: TextFeatures) -> DicosaText:
        # [t_c; g_c] is never made: the first layer of the MLP is linear, so texts and frames may pass it instead of pairs
        chunks = text.text_features.unflatten(-1, (self.chunks, -1))  # (T, C, D/C)
        half, _ = self.chunk_hidden.weight.chunk(2, dim=1)
        with torch.autocast(device_type=chunks.device.type, enabled=False):  # a part of the score
            return DicosaText(text.text_features, F.linear(chunks, half, self.chunk_hidden.bias).flatten(1))

    def video_side(self, video: VideoFeatures) -> DicosaVideo:
        return DicosaVideo(self.aggregator(video.frame_features, video.frame_mask), video.frame_mask)

    def pair_scores(self, text: DicosaText, video: DicosaVideo) -> Tensor:
        frames = video.frame_features
        _, weights = attend_frames(text.text_features, frames, video.frame_mask, self.temperature)  # (V, F, T)
        weights = weights.transpose(1, 2)  # (V, T, F)
        chunks = text.text_features.unflatten(-1, (self.chunks, -1))  # (T, C, D/C)
        pooled = (weights @ frames).unflatten(-1, (self.chunks, -1))  # (V, T, C, D/C)
        norms = pooled.norm(dim=-1).clamp(min=1e-12) * chunks.norm(dim=-1).clamp(min=1e-12)
        cosine = (pooled * chunks).sum(-1) / norms  # (V, T, C)
        _, half = self.chunk_hidden.weight.chunk(2, dim=1)
        (texts, length), width = weights.shape[1:], pooled.shape[-1]
        if texts * (width - length) > length * width:  # fewer products by frames than by pairs
            of_frames = F.linear(frames.unflatten(-1, (self.chunks, -1)), half).flatten(2)  # (V, F, 4D)
            hidden = torch.baddbmm(text.hidden.unsqueeze(0), weights, of_frames)  # (V, T, 4D)
        else:
            hidden = F.linear(pooled, half).flatten(2) + text.hidden  # (V, T, 4D)
        weight = self.chunk_weight(F.relu(hidden, inplace=True).unflatten(-1, (self.chunks, -1))).squeeze(-1)
        return (weight * cosine).sum(-1).T  # (T, V)

    def auxiliary_losses(self, text: DicosaText, video: DicosaVideo) -> dict[str, Tensor]:
        """`chunk_decorrelation` of the captions and of their own videos as these see them.

        Raises:
            ValueError: there are not as many texts as videos.
        """
        if (self.alpha == 0 and self.beta == 0) or self.embed_dim == self.chunks:
            return {}
        texts, videos = len(text.text_features), len(video.frame_features)
        if texts != videos:
            raise ValueError(f"chunk decorrelation needs pairs: found {texts} texts and {videos} videos")
        logits = torch.einsum("bd,bfd->bf", text.text_features, video.frame_features) / self.temperature
        pooled = torch.einsum("bf,bfd->bd", masked_softmax(logits, video.frame_mask, -1), video.frame_features)
        left, right = (standardised(side.unflatten(-1, (self.chunks, -1))) for side in (text.text_features, pooled))
        correlation = torch.einsum("bcw,bew->ce", left, right) / (texts * self.correlation_divisor)  # (C, C)
        diagonal = correlation.diagonal()
        others = correlation.square().sum() - diagonal.square().sum()
        loss = self.alpha * (diagonal - 1).square().sum() + self.beta * others
        return {"chunk_decorrelation": loss}

    def pair_bytes(self, text: DicosaText, video: DicosaVideo) -> int:
        dense = 16 if torch.is_grad_enabled() else 7
        floats = 4 * video.frame_features.shape[1] + dense * self.embed_dim
        return floats * video.frame_features.element_size()


def standardised(chunks: Tensor) -> Tensor:
    """(B, C, W) with mean 0 and variance 1 over the W numbers of every chunk."""
    variance, mean = torch.var_mean(chunks, -1, keepdim=True)
    return (chunks - mean) / variance.clamp(min=1e-12).sqrt()
