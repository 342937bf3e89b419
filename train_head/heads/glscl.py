"""GLSCL: a parameter-free global match and a local match of concepts read by shared queries (Zhang et al. 2024).

T texts, V videos, L tokens, F frames, D embed_dim, Q queries.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import UsageError
from glscl.train_head.heads.aggregator import AggregatingHead
from glscl.train_head.heads.base import (
    require_at_least,
    require_choice,
    require_dropout,
    require_positive,
    tokens_of,
)
from glscl.train_head.heads.layers import Decoder
from glscl.train_head.heads.pooling import conditioned_cosine, conditioned_cosine_floats, gram_matrix

DECODER_HEADS = 8
DECODER_FEEDFORWARD = 2048
DIVERSITY_MARGIN = 0.1
CONSISTENCY_TARGET = 0.75


class GlsclText(NamedTuple):
    """text_features (T, D) raw; concepts (T, Q, D) L2-normalised query outputs."""

    text_features: Tensor
    concepts: Tensor


class GlsclVideo(NamedTuple):
    """frame_features (V, F, D) aggregated, raw; frame_mask (V, F); gram (V, F, F) of the frames; concepts (V, Q, D)."""

    frame_features: Tensor
    frame_mask: Tensor
    gram: Tensor
    concepts: Tensor


class Glscl(AggregatingHead):
    """`S = n(t)·n(g) + local_weight · mean over q of n(N_q)·n(P_q)` (Zhang et al. 2024).

    `g = Σ_f w_f x'_f` with `w = softmax_f(t · x'_f / temperature)` is the video as the caption sees it; `P` and `N` are
    what Q learned queries read from the frames and from the tokens through one decoder.

    Args:
        embed_dim: D; a multiple of the decoder's 8 heads.
        queries: Q.
        decoder_layers: post-norm layers of the decoder.
        temperature: of the softmax over frames; smaller is sharper.
        local_weight: weight of the local match.
        alpha: weight of the intra-diversity loss.
        beta: weight of the per-query part of the inter-consistency loss.
        share_queries: one set of queries for frames and tokens.
        share_decoder: one decoder for frames and tokens.
        dropout: of the decoder.
        mask_padding: keep the decoder off padded frames and tokens. False reads them, as the public program does.
        consistency_scale: "batch" divides the query products by the batch size, so that the target 0.75 is a mean
            cosine; "queries" divides by Q, as the public program does, which ties the target to the batch size.
        **common: see `AggregatingHead`.
    """

    needs_tokens = True

    def __init__(
        self,
        *,
        embed_dim: int,
        queries: int = 8,
        decoder_layers: int = 3,
        temperature: float = 3.0,
        local_weight: float = 0.5,
        alpha: float = 1e-4,
        beta: float = 0.005,
        share_queries: bool = True,
        share_decoder: bool = True,
        dropout: float = 0.1,
        mask_padding: bool = True,
        consistency_scale: str = "batch",
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_dropout(dropout)
        require_at_least("queries", queries, 1)
        require_at_least("decoder_layers", decoder_layers, 1)
        require_positive("temperature", temperature)
        require_choice("consistency_scale", consistency_scale, ("batch", "queries"))
        if embed_dim % DECODER_HEADS:
            raise UsageError(f"the glscl decoder has {DECODER_HEADS} attention heads, which do not divide {embed_dim}")
        self.temperature = temperature
        self.local_weight = local_weight
        self.alpha = alpha
        self.beta = beta
        self.mask_padding = mask_padding
        self.consistency_scale = consistency_scale

        def new_decoder() -> Decoder:
            return Decoder(
                embed_dim, decoder_layers, heads=DECODER_HEADS, feedforward=DECODER_FEEDFORWARD, dropout=dropout
            )

        self.queries = nn.Parameter(torch.rand(queries, embed_dim))
        self.text_queries = None if share_queries else nn.Parameter(torch.rand(queries, embed_dim))
        self.decoder = new_decoder()
        self.text_decoder = None if share_decoder else new_decoder()

    def text_side(self, text: TextFeatures) -> GlsclText:
        queries = self.queries if self.text_queries is None else self.text_queries
        decoder = self.decoder if self.text_decoder is None else self.text_decoder
        tokens, mask = tokens_of(text)
        concepts = decoder(queries, tokens, mask if self.mask_padding else None)  # (T, Q, D)
        return GlsclText(text.text_features, F.normalize(concepts, dim=-1))

    def video_side(self, video: VideoFeatures) -> GlsclVideo:
        frames = self._aggregated(video)
        concepts = self.decoder(self.queries, frames, video.frame_mask if self.mask_padding else None)  # (V, Q, D)
        return GlsclVideo(frames, video.frame_mask, gram_matrix(frames), F.normalize(concepts, dim=-1))

    def both_sides(self, text: TextFeatures, video: VideoFeatures) -> tuple[GlsclText, GlsclVideo]:
        """One pass of a shared decoder on a GPU, where launches cost more than padding; elsewhere one a side."""
        separate = self.text_queries is not None or self.text_decoder is not None
        if separate or self.queries.device.type != "cuda" or torch.compiler.is_compiling():
            return super().both_sides(text, video)
        frames = self._aggregated(video)
        tokens, token_mask = tokens_of(text)
        masks = (token_mask, video.frame_mask)
        if not self.mask_padding:
            masks = tuple(torch.ones_like(mask) for mask in masks)
        longest = max(tokens.shape[1], frames.shape[1])
        memory = torch.cat([F.pad(each, (0, 0, 0, longest - each.shape[1])) for each in (tokens, frames)])
        mask = torch.cat([F.pad(each, (0, longest - each.shape[1])) for each in masks])  # (T + V, M)
        concepts = F.normalize(self.decoder(self.queries, memory, mask), dim=-1)  # (T + V, Q, D)
        of_text, of_video = concepts.split([len(tokens), len(frames)])
        return (
            GlsclText(text.text_features, of_text),
            GlsclVideo(frames, video.frame_mask, gram_matrix(frames), of_video),
        )

    def _aggregated(self, video: VideoFeatures) -> Tensor:
        """(V, F, D)"""
        return self.aggregator(video.frame_features, video.frame_mask, padding_is_read=not self.mask_padding)

    def pair_scores(self, text: GlsclText, video: GlsclVideo) -> Tensor:
        return self.global_scores(text, video) + self.local_weight * self.local_scores(text, video)

    def global_scores(self, text: GlsclText, video: GlsclVideo) -> Tensor:
        """(T, V): `n(t) · n(Σ_f w_f x'_f)`, without making a video vector for each pair."""
        return conditioned_cosine(
            text.text_features, video.frame_features, video.frame_mask, video.gram, temperature=self.temperature
        )

    def local_scores(self, text: GlsclText, video: GlsclVideo) -> Tensor:
        """(T, V): mean over queries of the cosine between what they read from the tokens and from the frames."""
        return text.concepts.flatten(1) @ video.concepts.flatten(1).T / text.concepts.shape[1]

    def pair_bytes(self, text: GlsclText, video: GlsclVideo) -> int:
        floats = conditioned_cosine_floats(video.frame_features.shape[1]) + 2
        return floats * video.frame_features.element_size()

    def auxiliary_losses(self, text: GlsclText, video: GlsclVideo) -> dict[str, Tensor]:
        """`intra_diversity` keeps queries apart, `inter_consistency` keeps both sides of a query together.

        Raises:
            ValueError: there are not as many texts as videos.
        """
        texts, videos = len(text.concepts), len(video.concepts)
        if texts != videos:
            raise ValueError(f"the consistency loss needs pairs: found {texts} texts and {videos} videos")
        return {
            "intra_diversity": self.alpha * intra_diversity(video.concepts),
            "inter_consistency": self.inter_consistency(text.concepts, video.concepts),
        }

    def inter_consistency(self, text_concepts: Tensor, video_concepts: Tensor) -> Tensor:
        """`MSE(mean_v P, mean_t N) + β Σ_q (K_qq - 0.75)²`, K_qq the summed cosines of query q, scaled."""
        count = len(text_concepts) if self.consistency_scale == "batch" else text_concepts.shape[1]
        cosines = torch.einsum("bqd,bqd->q", video_concepts, text_concepts) / count  # (Q,)
        distance = F.mse_loss(video_concepts.mean(0), text_concepts.mean(0))
        return distance + self.beta * (cosines - CONSISTENCY_TARGET).square().sum()


def intra_diversity(concepts: Tensor) -> Tensor:
    """Hinge that keeps the queries of a video apart, in both directions, unweighted.

    `M = mean over videos of P Pᵀ`; `Σ_{i≠j} [relu(0.1 + M_ij - M_ii) + relu(0.1 + M_ij - M_jj)] / (Q (Q - 1))`.

    Args:
        concepts: (V, Q, D) L2-normalised.
    """
    queries = concepts.shape[1]
    if queries == 1:
        return concepts.new_zeros(())
    similarity = torch.einsum("vid,vjd->ij", concepts, concepts) / len(concepts)  # (Q, Q)
    own = similarity.diagonal()
    hinge = F.relu(DIVERSITY_MARGIN + similarity - own.unsqueeze(1)) + F.relu(DIVERSITY_MARGIN + similarity - own)
    others = ~torch.eye(queries, dtype=torch.bool, device=concepts.device)
    return (hinge * others).sum() / (queries * (queries - 1))
