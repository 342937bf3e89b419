"""Dropout whose masks cost a fraction of what they cover.

On a CPU torch draws a mask entry by entry, one core at a time: a step of `xpool` and `tmass`, which drop entries of every pair,
takes an eighth and a sixth longer with its masks. Here 64 random bits decide over four entries, so the probability is a multiple of 2⁻¹⁶ (0.1 becomes 0.100006),
and what is kept is scaled by that, so that expectations stay exact. Elsewhere and in compiled code it is torch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16


class Dropout(nn.Module):
    """`torch.nn.Dropout` with cheap masks.

    Args:
        p: probability of a zero, at least 0 and below 1.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout(x: Tensor, p: float) -> Tensor:
    """Zeros with probability `p`, the rest divided by the probability to stay."""
    if p == 0:
        return x
    return _Dropped.apply(x, p) if _by_hand(x) else F.dropout(x, p)


def _by_hand(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def _drawn(x: Tensor, p: float) -> tuple[Tensor, float]:
    """A mask in the shape of `x`, uint8, 1 where it stays, and what that is to be multiplied with."""
    dropped = min(round(p * LEVELS), LEVELS - 1)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)
    mask = (bits[: x.numel()] >= dropped - LEVELS // 2).view(torch.uint8).view(x.shape)
    return mask, LEVELS / (LEVELS - dropped)


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask, ctx.scale = _drawn(x, p)
        ctx.save_for_backward(mask)
        return mask.to(x.dtype).mul_(ctx.scale).mul_(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (mask,) = ctx.saved_tensors
        return mask.to(gradient.dtype).mul_(ctx.scale).mul_(gradient), None
