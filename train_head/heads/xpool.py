"""X-Pool: every caption pools the frames it attends to, through one small transformer layer.

T texts, V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.base import Head, require_dropout
from glscl.train_head.heads.dropout import Dropout
from glscl.train_head.heads.layers import identity_linear
from glscl.train_head.heads.pooling import attend_frames, gram_matrix


class XpoolText(NamedTuple):
    """vectors (T, D) L2-normalised; queries (T, D) of the attention."""

    vectors: Tensor
    queries: Tensor


class XpoolVideo(NamedTuple):
    """keys (V, F, D) of the attention; values (V, F, D), already through the output map; frame_mask (V, F)."""

    keys: Tensor
    values: Tensor
    frame_mask: Tensor


class CrossAttention(Head):
    """The layers of X-Pool, and z of every pair; a base of heads.

    Args:
        embed_dim: D.
        dropout: on `W_l h`.
    """

    tall_tiles = True

    def __init__(self, *, embed_dim: int, dropout: float = 0.3, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_dropout(dropout)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.norm3 = nn.LayerNorm(embed_dim)
        self.query = identity_linear(embed_dim)
        self.key = identity_linear(embed_dim)
        self.value = identity_linear(embed_dim)
        self.out = identity_linear(embed_dim)
        self.linear = identity_linear(embed_dim)
        self.dropout = Dropout(dropout)

    def attended(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """normed (V, F, D) and weights (V, F, T): h of a pair is `Σ weights_f normed_f + β`, β of the second norm.

        Args:
            queries: (T, D).
            keys, values: (V, F, D).
            mask: (V, F) bool.
        """
        _, weights = attend_frames(queries, keys, mask, self.embed_dim**0.5)  # (V, F, T)
        # The first norm without making a vector for any pair: C u = Σ a_f C v_f, C takes the mean over channels off, and
        # its variance is aᵀ gram(C v) a / D. What is left of the norm is linear, so W_l, too, may come before the sum.
        centred = values - values.mean(-1, keepdim=True)  # (V, F, D)
        variance = quadratic(centred, weights).clamp(min=0) / self.embed_dim  # (V, T)
        weights = weights / (variance + self.norm2.eps).sqrt().unsqueeze(1)  # (V, F, T), a / σ
        return centred * self.norm2.weight, weights

    def vectors(self, normed: Tensor, weights: Tensor) -> Tensor:
        """(V, T, D): z of every pair."""
        weights = weights.transpose(1, 2)  # (V, T, F)
        changed = normed @ self.linear.weight.T  # (V, F, D)
        hidden = torch.baddbmm(self.norm2.bias.view(1, 1, -1), weights, normed)  # (V, T, D)
        change = torch.baddbmm(self.linear(self.norm2.bias).view(1, 1, -1), weights, changed)  # (V, T, D)
        return self.norm3(hidden + self.dropout(change))


class Xpool(CrossAttention):
    """`S = n(t) · n(z)`, z the frames pooled by cross-attention from the caption (Gorti et al. 2022).

    `a = softmax_f(W_q t̃ · W_k x̃_f / √D)`, `h = LN2(W_o Σ_f a_f W_v x̃_f)`, `z = LN3(h + Dropout(W_l h))`; t̃ and x̃
    are LN1 of text and frames. The five maps start as the identity.

    Args:
        embed_dim: D.
        dropout: on `W_l h`.
    """

    def text_side(self, text: TextFeatures) -> XpoolText:
        return XpoolText(F.normalize(text.text_features, dim=-1), self.query(self.norm1(text.text_features)))

    def video_side(self, video: VideoFeatures) -> XpoolVideo:
        frames = self.norm1(video.frame_features)  # (V, F, D)
        # the weights sum to 1, so the output map may come before the sum: once a frame instead of once a pair
        return XpoolVideo(self.key(frames), self.out(self.value(frames)), video.frame_mask)

    def pair_scores(self, text: XpoolText, video: XpoolVideo) -> Tensor:
        normed, weights = self.attended(text.queries, *video)
        if self.training and self.dropout.p > 0:
            return self._scores_by_vectors(text.vectors, normed, weights).T
        return self._scores_by_gram(text.vectors, normed, weights).T

    def _scores_by_vectors(self, text: Tensor, normed: Tensor, weights: Tensor) -> Tensor:
        """(V, T) with a vector for every pair: dropout needs it."""
        pooled = self.vectors(normed, weights)
        return (pooled * text).sum(-1) / pooled.norm(dim=-1).clamp(min=1e-12)

    def _scores_by_gram(self, text: Tensor, normed: Tensor, weights: Tensor) -> Tensor:
        """(V, T) the same without dropout, and without a vector for any pair.

        But for its divisor the last norm is linear as well, so all that the score needs is linear or quadratic in the F
        weights: with `m_f` and `k` what `I + W_l` makes of `normed_f` and β, their means taken off, `y = Σ a_f m_f + k`.
        """
        size = self.embed_dim
        change = self.linear.weight + torch.eye(size, dtype=self.dtype, device=normed.device)  # I + W_l
        moved = normed @ change.T
        moved = moved - moved.mean(-1, keepdim=True)  # (V, F, D), m
        constant = change @ self.norm2.bias + self.linear.bias
        constant = constant - constant.mean()  # (D,), k
        scale, shift = self.norm3.weight, self.norm3.bias
        scaled, scaled_constant = moved * scale, constant * scale

        def linear(per_frame: Tensor) -> Tensor:
            return (weights * per_frame.unsqueeze(-1)).sum(1)  # (V, T)

        variance = quadratic(moved, weights) + 2 * linear(moved @ constant)
        deviation = ((variance + constant.square().sum()).clamp(min=0) / size + self.norm3.eps).sqrt()  # (V, T)
        dots = (scaled.flatten(0, 1) @ text.T).view(*weights.shape)  # (V, F, T)
        product = ((weights * dots).sum(1) + text @ scaled_constant) / deviation + text @ shift
        squared = quadratic(scaled, weights) + 2 * linear(scaled @ scaled_constant)
        squared = (squared + scaled_constant.square().sum()) / deviation.square()
        cross = linear(scaled @ shift) + scaled_constant @ shift
        squared = squared + 2 * cross / deviation + shift.square().sum()
        return product / squared.clamp(min=1e-24).sqrt()

    def pair_bytes(self, text: XpoolText, video: XpoolVideo) -> int:
        frames = video.keys.shape[1]
        dense = 6 * self.embed_dim if self.training else 0
        return (14 * frames + 16 + dense) * video.keys.element_size()


def quadratic(vectors: Tensor, weights: Tensor) -> Tensor:
    """(V, T) squared lengths of `Σ_f w_f x_f` for x (V, F, D) and weights (V, F, T)."""
    return (weights * (gram_matrix(vectors) @ weights)).sum(1)
