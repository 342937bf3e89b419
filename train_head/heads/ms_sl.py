"""MS-SL: a long video is found by the stretch of it that fits, at any of many lengths.

T texts, V videos, L tokens, F frames, U units, C clips (stretches of units), D embed_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import UsageError
from glscl.train_head.heads.aggregator import initialise_like_clip, position_rows
from glscl.train_head.heads.base import Head, VectorSide, require_at_least, tokens_of
from glscl.train_head.heads.layers import ResidualBlock, identity_linear
from glscl.train_head.heads.pooling import masked_softmax


class Untrimmed(NamedTuple):
    """clips (V, C, D) L2-normalised, clip_mask (V, C); guided (V, C or 1, D) frames as a clip sees them, L2-normalised;
    clip_weight (V,), the share of the clips in the score."""

    clips: Tensor
    clip_mask: Tensor
    guided: Tensor
    clip_weight: Tensor


class MsSl(Head):
    """`S = a · max_c n(q)·n(clip_c) + (1 − a) · n(q)·n(r)`, r the frames as the best clip attends them (Dong et al. 2022).

    q pools the tokens by learned weights. Frames are averaged to U units; clips are all stretches of them, of 1 to U units;
    `r = Σ_f softmax_f(W clip · x'_f / √D) x'_f`. Units and frames each pass a transformer block first. Both parts have a loss of
    their own, and a hinge over all negatives beside it.

    Args:
        embed_dim: D.
        units: most units a video is averaged to; a shorter one has one a frame.
        clip_weight: a.
        triplet: weight of the hinge; `margin` is its margin, of cosines.
        heads: attention heads; None = max(1, D // 64).
        frame_positions: longest video the learned positions allow.
    """

    needs_tokens = True

    def __init__(
        self,
        *,
        embed_dim: int,
        units: int = 32,
        clip_weight: float = 0.7,
        triplet: float = 1.0,
        margin: float = 0.2,
        heads: int | None = None,
        frame_positions: int = 128,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_at_least("units", units, 1)
        if not 0 <= clip_weight <= 1:
            raise UsageError(f"clip_weight must be between 0 and 1, found {clip_weight}")
        self.units, self.clip_weight, self.triplet, self.margin = units, clip_weight, triplet, margin
        self.token_map = identity_linear(embed_dim)
        self.token_scorer = nn.Linear(embed_dim, 1, bias=False)
        nn.init.zeros_(self.token_scorer.weight)
        self.make_branches(max(1, embed_dim // 64) if heads is None else heads, frame_positions)

    def make_branches(self, heads: int, frame_positions: int) -> None:
        """The modules that videos pass."""
        width = self.embed_dim
        self.clip_branch = Branch([ResidualBlock(width, heads)], width, self.units)
        self.frame_branch = Branch([ResidualBlock(width, heads)], width, frame_positions)
        self.guide = identity_linear(width, bias=False)

    def text_side(self, text: TextFeatures) -> VectorSide:
        tokens, mask = tokens_of(text)
        mapped = self.token_map(tokens)  # (T, L, D)
        weights = masked_softmax(self.token_scorer(mapped).squeeze(-1).to(self.dtype), mask, -1)
        return VectorSide(F.normalize(torch.einsum("tl,tld->td", weights, mapped.to(self.dtype)), dim=-1))

    def video_side(self, video: VideoFeatures) -> Untrimmed:
        units, unit_mask = mean_units(video.frame_features, video.frame_mask, self.units)
        clips, clip_mask = stretches(self.clip_branch(units, unit_mask), unit_mask)
        frames = self.frame_branch(video.frame_features, video.frame_mask)  # (V, F, D)
        logits = self.guide(clips) @ frames.transpose(1, 2) / self.embed_dim**0.5  # (V, C, F)
        guided = masked_softmax(logits.to(self.dtype), video.frame_mask.unsqueeze(1), -1) @ frames.to(self.dtype)
        return self.encoded(clips, clip_mask, guided)

    def encoded(self, clips: Tensor, clip_mask: Tensor, guided: Tensor) -> Untrimmed:
        weight = clips.new_full((len(clips),), self.clip_weight, dtype=self.dtype)
        return Untrimmed(F.normalize(clips, dim=-1), clip_mask, F.normalize(guided, dim=-1), weight)

    def pair_scores(self, text: VectorSide, video: Untrimmed) -> Tensor:
        cosines = torch.einsum("td,vcd->tvc", text.vectors, video.clips)
        by_clip, best = cosines.masked_fill(~video.clip_mask, torch.finfo(cosines.dtype).min).max(2)  # (T, V)
        by_frames = torch.einsum("td,vcd->tvc", text.vectors, video.guided)  # (T, V, C or 1)
        by_frames = by_frames[..., 0] if by_frames.shape[2] == 1 else by_frames.gather(2, best.unsqueeze(2))[..., 0]
        return video.clip_weight * by_clip + (1 - video.clip_weight) * by_frames

    def contrasts(self, text: VectorSide, video: Untrimmed) -> list[Tensor]:
        return [self.score(text, video._replace(clip_weight=torch.full_like(video.clip_weight, a))) for a in (1.0, 0.0)]

    def auxiliary_losses(self, text: VectorSide, video: Untrimmed) -> dict[str, Tensor]:
        """`triplet`: by how much negatives come nearer than `margin` to the pair, both ways, mean, of both parts."""
        if self.triplet == 0 or len(text.vectors) < 2:
            return {}
        losses = [triplet_loss(each, self.margin) for each in self.contrasts(text, video)]
        return {"triplet": self.triplet * (losses[0] + losses[1])}

    def pair_bytes(self, text: VectorSide, video: Untrimmed) -> int:
        return 6 * video.clips.shape[1] * video.clips.element_size()


class Branch(nn.Module):
    """`x + mean_k block_k(x + P)` with learned positions P."""

    def __init__(self, blocks: list[ResidualBlock], width: int, positions: int) -> None:
        super().__init__()
        self.positions, self.blocks = nn.Embedding(positions, width), nn.ModuleList(blocks)
        initialise_like_clip(self.positions, self.blocks)

    def forward(self, entries: Tensor, mask: Tensor) -> Tensor:
        """(V, S, D), mask (V, S) → (V, S, D)."""
        placed = entries + position_rows(self.positions, entries.shape[1])
        made = [block(placed, mask) for block in self.blocks]
        return entries + torch.stack(made).mean(0)


def mean_units(frames: Tensor, mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Frames of each video averaged, in order, to as many units as it has frames, at most so many: (V, U, D) and (V, U).

    Args:
        frames: (V, F, D).
        mask: (V, F) bool, real frames first.
        most: U is no larger.
    """
    count = mask.sum(1, keepdim=True)  # (V, 1)
    units, width = count.clamp(max=most), min(most, frames.shape[1])
    unit = torch.arange(frames.shape[1], device=mask.device) * units // count.clamp(min=1)  # (V, F)
    member = (unit.unsqueeze(1) == torch.arange(width, device=mask.device)[:, None]) & mask.unsqueeze(1)  # (V, U, F)
    weights = member.to(frames.dtype)
    unit_mask = torch.arange(width, device=mask.device) < units
    return weights / weights.sum(2, keepdim=True).clamp(min=1) @ frames, unit_mask


def stretches(units: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Means of all stretches of consecutive units, (V, U (U + 1) / 2, D), and which lie within the real ones."""
    first, last = torch.triu_indices(units.shape[1], units.shape[1], device=units.device)  # (C,)
    sums = F.pad(units.masked_fill(~mask.unsqueeze(-1), 0.0).cumsum(1), (0, 0, 1, 0))  # (V, U + 1, D)
    return (sums[:, last + 1] - sums[:, first]) / (last - first + 1).unsqueeze(-1), mask[:, last]


def triplet_loss(similarity: Tensor, margin: float) -> Tensor:
    """`mean_{i≠j} relu(margin + S_ij − S_ii) + mean_{i≠j} relu(margin + S_ij − S_jj)` of a square batch, two pairs at least."""
    own = similarity.diagonal()
    hinge = F.relu(margin + similarity - own.unsqueeze(1)) + F.relu(margin + similarity - own)
    itself = torch.eye(len(own), dtype=torch.bool, device=own.device)
    return hinge.masked_fill(itself, 0.0).sum() / (len(own) * (len(own) - 1))
