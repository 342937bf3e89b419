"""DRL's token-wise interaction: every word finds its frame and every frame its word, plain (`ti`) or weighted (`wti`).

T texts, V videos, L tokens, F frames, D embed_dim, B pairs of a training batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.aggregator import AggregatingHead
from glscl.train_head.heads.base import tokens_of
from glscl.train_head.heads.layers import entry_scorer
from glscl.train_head.heads.pooling import masked_softmax


class Entries(NamedTuple):
    """Tokens or frames: vectors (N, S, D) L2-normalised, mask (N, S), weights (N, S) that sum to 1."""

    vectors: Tensor
    mask: Tensor
    weights: Tensor


class Ti(AggregatingHead):
    """`S = ½ [Σ_l p_l max_f M_lf + Σ_f q_f max_l M_lf]`, `M = n(W) n(X')ᵀ`, p and q uniform (Wang et al. 2022, TI).

    Args:
        embed_dim: D.
        decorrelation: weight of the channel decorrelation loss.
        alpha1: within it, weight of matched channels, which shall correlate.
        alpha2: within it, weight of different channels, which shall not.
        **common: see `AggregatingHead`.
    """

    needs_tokens = True

    def __init__(
        self,
        *,
        embed_dim: int,
        decorrelation: float = 0.0,
        alpha1: float = 0.11,
        alpha2: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        self.decorrelation = decorrelation
        self.alpha1 = alpha1
        self.alpha2 = alpha2

    def token_logits(self, tokens: Tensor) -> Tensor:
        """(T, L) logits of p for raw tokens (T, L, D)."""
        return tokens.new_zeros(tokens.shape[:-1])

    def frame_logits(self, frames: Tensor) -> Tensor:
        """(V, F) logits of q for raw aggregated frames (V, F, D)."""
        return frames.new_zeros(frames.shape[:-1])

    def text_side(self, text: TextFeatures) -> Entries:
        tokens, mask = tokens_of(text)
        weights = masked_softmax(self.token_logits(tokens).to(self.dtype), mask, dim=-1)
        return Entries(F.normalize(tokens, dim=-1), mask, weights)

    def video_side(self, video: VideoFeatures) -> Entries:
        frames = self.aggregator(video.frame_features, video.frame_mask)  # (V, F, D)
        weights = masked_softmax(self.frame_logits(frames).to(self.dtype), video.frame_mask, dim=-1)
        return Entries(F.normalize(frames, dim=-1), video.frame_mask, weights)

    def pair_scores(self, text: Entries, video: Entries) -> Tensor:
        cosines = torch.einsum("tld,vfd->tlvf", text.vectors, video.vectors)
        lowest = torch.finfo(cosines.dtype).min
        best_frame = cosines.masked_fill(~video.mask, lowest).amax(3)  # (T, L, V)
        best_token = cosines.masked_fill(~text.mask[:, :, None, None], lowest).amax(1)  # (T, V, F)
        by_tokens = torch.einsum("tlv,tl->tv", best_frame, text.weights)
        by_frames = torch.einsum("tvf,vf->tv", best_token, video.weights)
        return 0.5 * (by_tokens + by_frames)  # (T, V)

    def pair_bytes(self, text: Entries, video: Entries) -> int:
        length, frames = text.mask.shape[1], video.mask.shape[1]
        return (4 * length * frames + 3 * (length + frames)) * text.vectors.element_size()

    def auxiliary_losses(self, text: Entries, video: Entries) -> dict[str, Tensor]:
        """`channel_decorrelation` of each pair's entries with the entries they matched.

        Raises:
            ValueError: there are not as many texts as videos.
        """
        if self.decorrelation == 0:
            return {}
        if len(text.vectors) != len(video.vectors):
            raise ValueError(
                f"channel decorrelation needs pairs: found {len(text.vectors)} texts and {len(video.vectors)} videos"
            )
        cosines = torch.einsum("bld,bfd->blf", text.vectors, video.vectors)
        lowest = torch.finfo(cosines.dtype).min
        frame_of_token = cosines.masked_fill(~video.mask.unsqueeze(1), lowest).argmax(2)  # (B, L)
        token_of_frame = cosines.masked_fill(~text.mask.unsqueeze(2), lowest).argmax(1)  # (B, F)
        frames = take_entries(video.vectors, frame_of_token)  # (B, L, D)
        tokens = take_entries(text.vectors, token_of_frame)  # (B, F, D)
        loss = channel_decorrelation(
            [(text.vectors, frames, text.mask, text.weights), (video.vectors, tokens, video.mask, video.weights)],
            alpha1=self.alpha1,
            alpha2=self.alpha2,
        )
        return {"channel_decorrelation": self.decorrelation * loss}


class Wti(Ti):
    """`Ti` with `p = softmax_l(MLP_t(w_l))` and `q = softmax_f(MLP_v(x'_f))` (Wang et al. 2022, WTI).

    The MLPs are D → D → ReLU → 1 and read raw features. The channel decorrelation loss is on by default; the options are
    those of `Ti`.
    """

    def __init__(self, *, embed_dim: int, decorrelation: float = 1e-3, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, decorrelation=decorrelation, **common)
        self.token_scorer = entry_scorer(embed_dim)
        self.frame_scorer = entry_scorer(embed_dim)

    def token_logits(self, tokens: Tensor) -> Tensor:
        return self.token_scorer(tokens).squeeze(-1)

    def frame_logits(self, frames: Tensor) -> Tensor:
        return self.frame_scorer(frames).squeeze(-1)


def take_entries(vectors: Tensor, index: Tensor) -> Tensor:
    """(B, S, D) and (B, N) positions along S → (B, N, D)."""
    return vectors.gather(1, index.unsqueeze(-1).expand(-1, -1, vectors.shape[-1]))


def channel_decorrelation(
    matched: list[tuple[Tensor, Tensor, Tensor, Tensor]], *, alpha1: float, alpha2: float
) -> Tensor:
    """`α1 Σ_d (c_dd - 1)² + α2 Σ_{d≠e} c_de²`, c the mean of a cross-correlation matrix a direction (Wang et al. 2022).

    `c = Σ weight · z(a) z(b)ᵀ / B`, where z standardises each channel over all real entries of the batch.

    Args:
        matched: for each direction entries a (B, S, D), what they matched b (B, S, D), mask (B, S), weights (B, S).
        alpha1: weight of the diagonal.
        alpha2: weight of the rest; 0 saves the full matrix.
    """
    diagonal = matched[0][0].new_zeros(())
    total = matched[0][0].new_zeros(())
    for entries, partners, mask, weights in matched:
        left = standardise(entries, mask) * (weights / len(weights)).unsqueeze(-1)
        right = standardise(partners, mask)
        diagonal = diagonal + (left * right).sum((0, 1)) / len(matched)  # (D,)
        if alpha2:
            total = total + torch.einsum("bsd,bse->de", left, right) / len(matched)  # (D, D)
    loss = alpha1 * (diagonal - 1).square().sum()
    if alpha2:
        loss = loss + alpha2 * (total.square().sum() - diagonal.square().sum())
    return loss


def standardise(entries: Tensor, mask: Tensor) -> Tensor:
    """Every channel of (B, S, D) with mean 0 and variance 1 over the real entries; masked ones become 0."""
    real = mask.unsqueeze(-1).to(entries.dtype)
    count = real.sum()
    centred = (entries - (entries * real).sum((0, 1)) / count) * real
    variance = centred.square().sum((0, 1)) / (count - 1).clamp(min=1)
    return centred / variance.clamp(min=1e-12).sqrt()
