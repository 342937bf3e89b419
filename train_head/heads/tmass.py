"""T-MASS: a caption is a ball of texts, as wide as its match with the video allows.

T texts, V videos, F frames, D embed_dim, M draws.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import UsageError
from glscl.train_head.heads.base import require_at_least, require_positive
from glscl.train_head.heads.xpool import CrossAttention
from glscl.train_head.losses import contrastive_loss


class TmassText(NamedTuple):
    """vectors (T, D) L2-normalised; queries (T, D) of the attention."""

    vectors: Tensor
    queries: Tensor


class SupportText(TmassText):
    """Texts whose support text is scored in their place."""


class TmassVideo(NamedTuple):
    """keys, values (V, F, D) and frame_mask (V, F) as in `xpool`; frames (V, F, D) L2-normalised."""

    keys: Tensor
    values: Tensor
    frame_mask: Tensor
    frames: Tensor


class Tmass(CrossAttention):
    """`S = max_m cos(n(t) + R ∘ ε_m, z)`, z the frames as X-Pool pools them for the caption (Wang et al. 2024, arXiv 2403.17998).

    `R = exp(W s + b)`, `s_f = n(t)·n(x_f)`. R belongs to the pair that is scored, in training and in evaluation: nothing knows
    which video is the caption's own. In training ε is drawn anew for each pair (M = 1); in evaluation the M draws are fixed ones,
    the same for all pairs. Beside the loss of S stands that of the support text `n(t) + R ∘ (z − n(t)) / ‖z − n(t)‖`.

    Args:
        embed_dim: D.
        draws: M in evaluation.
        radius: length that R ∘ ε has at start, n(t) having 1.
        support: weight of the support text's loss.
        max_frames: F of W; longer videos are refused.
        dropout: of z in training.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        draws: int = 20,
        radius: float = 0.1,
        support: float = 0.8,
        max_frames: int = 12,
        dropout: float = 0.3,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, dropout=dropout, **common)
        require_at_least("draws", draws, 1)
        require_at_least("max_frames", max_frames, 1)
        require_positive("radius", radius)
        self.draws, self.support = draws, support
        self.radius = nn.Linear(max_frames, embed_dim)
        nn.init.zeros_(self.radius.weight)
        nn.init.constant_(self.radius.bias, math.log(radius / embed_dim**0.5))
        noise = torch.randn(draws, embed_dim, generator=torch.Generator().manual_seed(0))
        self.noise: Tensor
        self.register_buffer("noise", noise, persistent=False)

    def text_side(self, text: TextFeatures) -> TmassText:
        return TmassText(F.normalize(text.text_features, dim=-1), self.query(self.norm1(text.text_features)))

    def video_side(self, video: VideoFeatures) -> TmassVideo:
        frames = video.frame_features.shape[1]
        if frames > self.radius.in_features:
            raise UsageError(f"{frames} frames do not fit a head built with max_frames={self.radius.in_features}")
        normed = self.norm1(video.frame_features)
        values = self.out(self.value(normed))
        return TmassVideo(self.key(normed), values, video.frame_mask, F.normalize(video.frame_features, dim=-1))

    def pair_scores(self, text: TmassText, video: TmassVideo) -> Tensor:
        pooled = F.normalize(
            self.vectors(*self.attended(text.queries, video.keys, video.values, video.frame_mask)), dim=-1
        )  # (V, T, D), n(z)
        match = torch.einsum("td,vfd->vtf", text.vectors, video.frames)
        match = match.masked_fill(~video.frame_mask.unsqueeze(1), 0.0)
        radius = F.linear(match, self.radius.weight[:, : match.shape[2]], self.radius.bias).exp()  # (V, T, D)
        if isinstance(text, SupportText):
            towards = F.normalize(pooled - text.vectors, dim=-1)
            return _cosine(text.vectors + radius * towards, pooled).T
        if self.training:
            return _cosine(text.vectors + radius * torch.randn_like(radius), pooled).T
        # cos(t + R∘ε, z) for all draws by products with them: no (V, T, M, D) is made
        noise = self.noise.to(radius.dtype)
        dots = (pooled * text.vectors).sum(-1, keepdim=True) + (radius * pooled) @ noise.T  # (V, T, M)
        squared = 1 + 2 * (radius * text.vectors) @ noise.T + radius.square() @ noise.square().T
        return (dots / squared.clamp(min=1e-12).sqrt()).amax(2).T

    def auxiliary_losses(self, text: TmassText, video: TmassVideo) -> dict[str, Tensor]:
        """`support`: the contrastive loss of the support texts."""
        if self.support == 0:
            return {}
        score = self.score(SupportText(*text), video)
        return {"support": self.support * contrastive_loss(score * self.logit_scale.exp())}

    def pair_bytes(self, text: TmassText, video: TmassVideo) -> int:
        dense = (16 if torch.is_grad_enabled() else 6) * self.embed_dim
        return (14 * video.keys.shape[1] + 4 * self.draws + dense) * video.keys.element_size()


def _cosine(texts: Tensor, pooled: Tensor) -> Tensor:
    """(V, T) cosines of (V, T, D) with (V, T, D) L2-normalised."""
    return (texts * pooled).sum(-1) / texts.norm(dim=-1).clamp(min=1e-12)
