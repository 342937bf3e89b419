"""GMMFormer: frames attend their neighbours at several distances, so clips of several lengths need not be cut.

V videos, F frames, U units, D embed_dim, H attention heads, S sequence length.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.schema import VideoFeatures
from glscl.train_head.heads.layers import ResidualBlock
from glscl.train_head.heads.ms_sl import Branch, MsSl, Untrimmed, mean_units
from glscl.train_head.heads.packing import Packing
from glscl.train_head.heads.pooling import masked_softmax

WIDTHS = (0.5, 1.0, 5.0, float("inf"))  # of the Gaussians, in entries


class GmmFormer(MsSl):
    """`S = a · max_u n(q)·n(u) + (1 − a) · n(q)·n(Σ_f w_f x'_f)`, w learned attention (Wang et al. 2024, arXiv 2310.05195).

    Units u and frames x' each come from four blocks, averaged, whose attention logits are multiplied by a Gaussian of the
    distance between entries, `exp(−(i − j)² / σ²) / 2π`, σ of `WIDTHS`. Options are those of `MsSl`.
    """

    def make_branches(self, heads: int, frame_positions: int) -> None:
        width = self.embed_dim

        def blocks() -> list[ResidualBlock]:
            return [GaussianBlock(width, heads, sigma) for sigma in WIDTHS]

        self.clip_branch = Branch(blocks(), width, self.units)
        self.frame_branch = Branch(blocks(), width, frame_positions)
        self.frame_scorer = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.frame_scorer.weight)

    def video_side(self, video: VideoFeatures) -> Untrimmed:
        units, unit_mask = mean_units(video.frame_features, video.frame_mask, self.units)
        frames = self.frame_branch(video.frame_features, video.frame_mask)  # (V, F, D)
        weights = masked_softmax(self.frame_scorer(frames).squeeze(-1).to(self.dtype), video.frame_mask, -1)
        pooled = torch.einsum("vf,vfd->vd", weights, frames.to(self.dtype))
        return self.encoded(self.clip_branch(units, unit_mask), unit_mask, pooled.unsqueeze(1))


class GaussianBlock(ResidualBlock):
    """A `ResidualBlock` whose attention logits are multiplied by a Gaussian of the distance.

    Args:
        width: D.
        heads: H.
        sigma: width of the Gaussian, in entries; infinity weighs all distances alike.
    """

    def __init__(self, width: int, heads: int, sigma: float) -> None:
        super().__init__(width, heads)
        self.sigma = sigma

    def forward(self, x: Tensor, mask: Tensor, *, packing: Packing = Packing.NONE) -> Tensor:
        """(V, S, D), mask (V, S) → (V, S, D)."""
        attn, normed = self.attn, self.ln_1(x)
        projected = F.linear(normed, attn.in_proj_weight, attn.in_proj_bias).unflatten(-1, (3, attn.heads, -1))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (V, H, S, D/H)
        place = torch.arange(x.shape[1], device=x.device, dtype=torch.float32)
        near = torch.exp(-((place[:, None] - place) / self.sigma).square()) / (2 * torch.pi)  # (S, S)
        logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5 * near.to(query.dtype)
        weights = masked_softmax(logits, mask[:, None, None], -1)
        return self.feed_forward(x + attn.out_proj((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)))
