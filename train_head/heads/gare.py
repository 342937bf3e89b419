"""GARE: every pair has a small step of its own from the caption towards the video, which closes the gap of the modalities.

T texts, V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.aggregator import AggregatingHead
from glscl.train_head.heads.base import require_positive
from glscl.train_head.heads.layers import identity_linear
from glscl.train_head.heads.pooling import gram_matrix, masked_softmax, mean_of_normalised


class GareText(NamedTuple):
    """vectors (T, D) L2-normalised; queries (T, D), what they add to the query of a gap."""

    vectors: Tensor
    queries: Tensor


class GareVideo(NamedTuple):
    """vectors (V, D) L2-normalised; keys (V, F, D); logits (V, F) of the video's share of the gap; steps (V, F, D) that a
    frame adds; gram (V, F, F) of them; frame_mask (V, F)."""

    vectors: Tensor
    keys: Tensor
    logits: Tensor
    steps: Tensor
    gram: Tensor
    frame_mask: Tensor


class Gare(AggregatingHead):
    """`S = cos(n(t) + Δ, v)`, `Δ = Σ_f softmax_f(W_q (v − n(t)) · W_k n(x'_f) / temperature) W_v n(x'_f)` (Xiao et al. 2025,
    arXiv 2505.12499).

    v is `mean_pool` of the frames x' after the aggregator. W_v starts at zero, so the score starts as that of `seq_transf`. Two
    losses keep the steps in bounds: `trust_region`, the squared length of Δ above `radius`, and `direction_diversity`, the
    squared length of the mean direction of a caption's steps towards all videos.

    Args:
        embed_dim: D.
        temperature: of the softmax over frames.
        radius: length of a step that costs nothing; a caption has length 1.
        trust: weight of `trust_region`.
        diversity: weight of `direction_diversity`.
        **common: see `AggregatingHead`.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        temperature: float = 0.1,
        radius: float = 1.0,
        trust: float = 0.1,
        diversity: float = 0.01,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_positive("temperature", temperature)
        require_positive("radius", radius)
        self.temperature = temperature
        self.radius, self.trust, self.diversity = radius, trust, diversity
        self.query = identity_linear(embed_dim, bias=False)
        self.key = identity_linear(embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim, bias=False)
        nn.init.zeros_(self.value.weight)

    def text_side(self, text: TextFeatures) -> GareText:
        vectors = F.normalize(text.text_features, dim=-1)
        return GareText(vectors, self.query(vectors))

    def video_side(self, video: VideoFeatures) -> GareVideo:
        frames = self.aggregator(video.frame_features, video.frame_mask)
        vectors, frames = mean_of_normalised(frames, video.frame_mask), F.normalize(frames, dim=-1)
        keys = self.key(frames) / self.temperature
        steps = self.value(frames)
        logits = torch.einsum("vd,vfd->vf", self.query(vectors), keys)
        return GareVideo(vectors, keys, logits, steps, gram_matrix(steps), video.frame_mask)

    def attention(self, text: GareText, video: GareVideo) -> Tensor:
        """(V, F, T): the query is linear in the gap, so the video's share of the logits is made once a video."""
        dots = torch.einsum("vfd,td->vft", video.keys, text.queries)
        return masked_softmax(video.logits.unsqueeze(2) - dots, video.frame_mask.unsqueeze(2), 1)

    def pair_scores(self, text: GareText, video: GareVideo) -> Tensor:
        weights = self.attention(text, video)
        towards = torch.einsum("vd,vfd->vf", video.vectors, video.steps).unsqueeze(2)  # (V, F, 1)
        dots = video.vectors @ text.vectors.T + (weights * towards).sum(1)  # (V, T)
        along = (weights * torch.einsum("vfd,td->vft", video.steps, text.vectors)).sum(1)
        squared = 1 + 2 * along + self.squared_steps(weights, video)
        return (dots / squared.clamp(min=1e-6).sqrt()).T

    def squared_steps(self, weights: Tensor, video: GareVideo) -> Tensor:
        """(V, T): squared length of Δ, whose vector is not made."""
        return (weights * (video.gram @ weights)).sum(1).clamp(min=0)

    def auxiliary_losses(self, text: GareText, video: GareVideo) -> dict[str, Tensor]:
        """`trust_region` and `direction_diversity` over all pairs of the batch."""
        weights = self.attention(text, video)
        lengths = (self.squared_steps(weights, video) + 1e-8).sqrt()  # (V, T)
        directions = (weights / lengths.unsqueeze(1)).permute(2, 0, 1).flatten(1) @ video.steps.flatten(0, 1)  # (T, D)
        mean_direction = directions / len(video.vectors)
        return {
            "trust_region": self.trust * F.relu(lengths - self.radius).square().mean(),
            "direction_diversity": self.diversity * mean_direction.square().sum(1).mean(),
        }

    def pair_bytes(self, text: GareText, video: GareVideo) -> int:
        return (8 * video.keys.shape[1] + 8) * video.keys.element_size()
