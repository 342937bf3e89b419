"""Video-ColBERT: every token looks for its best frame, before and after frames know of each other.

T texts, V videos, L tokens, F frames, E expansion tokens, D embed_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.aggregator import TransformerAggregator
from glscl.train_head.heads.base import Head, require_at_least, tokens_of


class Vectors(NamedTuple):
    """vectors (N, S, D) L2-normalised; mask (N, S). Of captions, or of one level of the videos."""

    vectors: Tensor
    mask: Tensor


class TwoLevels(NamedTuple):
    """frames (V, F, D) and states (V, E + F, D), L2-normalised, with their masks."""

    frames: Tensor
    frame_mask: Tensor
    states: Tensor
    state_mask: Tensor


class VideoColbert(Head):
    """`S = MMS(w, x) + MMS(w, x')`, `MMS(w, x) = mean_l max_f n(w_l)·n(x_f)` (Reddy et al. 2025, arXiv 2503.19009).

    x' comes from a transformer over learned expansion tokens and the frames; they stay in x'. Captions are lengthened by
    learned tokens too: in the paper pad tokens that pass the text tower, here vectors beside its outputs, which are cached.
    Each level has a sigmoid loss of its own; the paper's has a scale and a bias a level, here both share them. Any index of
    several vectors a video can hold it.

    Args:
        embed_dim: D.
        aggregator_layers: blocks of the transformer.
        aggregator_heads: attention heads; None = max(1, D // 64).
        frame_positions: longest clip the learned positions allow.
        video_expansion: E.
        query_expansion: learned tokens behind a caption.
    """

    needs_tokens = True
    loss = "sigmoid"

    def __init__(
        self,
        *,
        embed_dim: int,
        aggregator_layers: int = 4,
        aggregator_heads: int | None = None,
        frame_positions: int = 77,
        video_expansion: int = 2,
        query_expansion: int = 2,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_at_least("video_expansion", video_expansion, 0)
        require_at_least("query_expansion", query_expansion, 0)
        positions = frame_positions + video_expansion
        self.aggregator = TransformerAggregator(
            embed_dim, layers=aggregator_layers, heads=aggregator_heads, positions=positions
        )
        self.video_tokens = nn.Parameter(torch.empty(video_expansion, embed_dim))
        self.query_tokens = nn.Parameter(torch.empty(query_expansion, embed_dim))
        for learned in (self.video_tokens, self.query_tokens):
            nn.init.normal_(learned, std=embed_dim**-0.5)

    def text_side(self, text: TextFeatures) -> Vectors:
        tokens, mask = tokens_of(text)
        return Vectors(*_normalised(*_led_by(self.query_tokens, tokens, mask)))

    def video_side(self, video: VideoFeatures) -> TwoLevels:
        sequence, mask = _led_by(self.video_tokens, video.frame_features, video.frame_mask)
        states = self.aggregator(sequence, mask)  # (V, E + F, D)
        return TwoLevels(*_normalised(video.frame_features, video.frame_mask), *_normalised(states, mask))

    def pair_scores(self, text: Vectors, video: TwoLevels | Vectors) -> Tensor:
        if isinstance(video, Vectors):
            return mean_of_best(text, video)
        frames, states = _levels(video)
        return mean_of_best(text, frames) + mean_of_best(text, states)

    def contrasts(self, text: Vectors, video: TwoLevels) -> list[Tensor]:
        return [self.score(text, level) for level in _levels(video)]

    def pair_bytes(self, text: Vectors, video: TwoLevels | Vectors) -> int:
        entries = sum(field.shape[1] for field in video if field.is_floating_point())
        return 3 * text.mask.shape[1] * entries * text.vectors.element_size()


def mean_of_best(text: Vectors, video: Vectors) -> Tensor:
    """(T, V): the cosine of each real token with the real entry of a video that is nearest to it, their mean."""
    cosines = torch.einsum("tld,vfd->tlvf", text.vectors, video.vectors)
    best = cosines.masked_fill(~video.mask, torch.finfo(cosines.dtype).min).amax(3)  # (T, L, V)
    weights = text.mask.to(best.dtype)
    return torch.einsum("tlv,tl->tv", best, weights / weights.sum(1, keepdim=True))


def _levels(video: TwoLevels) -> tuple[Vectors, Vectors]:
    return Vectors(video.frames, video.frame_mask), Vectors(video.states, video.state_mask)


def _led_by(learned: Tensor, entries: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Learned tokens (E, D) in front of (N, S, D), where padding behind moves nothing, and the mask of both."""
    leading = learned.to(entries.dtype).expand(len(entries), -1, -1)
    real = mask.new_ones(len(mask), len(learned))
    return torch.cat((leading, entries), 1), torch.cat((real, mask), 1)


def _normalised(entries: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return F.normalize(entries, dim=-1), mask
