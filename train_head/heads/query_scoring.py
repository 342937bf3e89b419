"""CLIP-Hitchhiker's query scoring: a parameter-free mean of frames, weighted by the caption.

T texts, V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.base import Head, VectorSide, require_positive
from glscl.train_head.heads.pooling import conditioned_cosine, conditioned_cosine_floats, gram_matrix


class ScoredVideo(NamedTuple):
    """frames (V, F, D) L2-normalised; frame_mask (V, F); gram (V, F, F) of the frames."""

    frames: Tensor
    frame_mask: Tensor
    gram: Tensor


class QueryScoring(Head):
    """`n(t) · n(Σ_f w_f n(x_f))`, `w = softmax_f(n(t) · n(x_f) / temperature)` (Bain et al. 2022).

    Args:
        embed_dim: D.
        temperature: large is the mean over frames, small the best frame.
    """

    def __init__(self, *, embed_dim: int, temperature: float = 0.1, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_positive("temperature", temperature)
        self.temperature = temperature

    def text_side(self, text: TextFeatures) -> VectorSide:
        return VectorSide(F.normalize(text.text_features, dim=-1))

    def video_side(self, video: VideoFeatures) -> ScoredVideo:
        frames = F.normalize(video.frame_features, dim=-1)
        return ScoredVideo(frames, video.frame_mask, gram_matrix(frames))

    def pair_scores(self, text: VectorSide, video: ScoredVideo) -> Tensor:
        return conditioned_cosine(
            text.vectors, video.frames, video.frame_mask, video.gram, temperature=self.temperature
        )

    def pair_bytes(self, text: VectorSide, video: ScoredVideo) -> int:
        return conditioned_cosine_floats(video.frames.shape[1]) * video.frames.element_size()
