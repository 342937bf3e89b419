"""Padded sequences without their padding: what works entry by entry runs on the real entries alone.

N items, S sequence length, R real entries of all items, D width of any size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

WORTHWHILE = 0.95  # packing copies every row twice or so, which pays where at least a twentieth is padding


class Packing:
    """Moves (N, S, D) to its real rows (R, D) and back.

    Where half the frames are padding (clips of five seconds, twelve frames), a step of `seq_transf` takes half as long again
    without it on a CPU; where all is real, neither. Only where it pays: on a GPU the number of real entries would have to be asked for, which makes the host wait and
    changes the shapes from batch to batch; there, under `torch.compile` and where nearly all is real, `pack` and
    `unpack` give back what they get.

    Args:
        index: (R,) int64 rows of the flattened sequences that are real; None leaves everything as it is.
        shape: N and S.

    Attributes:
        NONE: the packing that leaves everything as it is.
    """

    NONE: ClassVar[Packing]

    def __init__(self, index: Tensor | None = None, shape: tuple[int, ...] = ()) -> None:
        self.index, self.shape = index, shape

    @classmethod
    def from_mask(cls, mask: Tensor | None) -> Packing:
        """The packing of a mask (N, S) bool, True = real; None = all are."""
        if mask is None or mask.device.type != "cpu" or torch.compiler.is_compiling():
            return cls.NONE
        index = mask.flatten().nonzero().squeeze(1)
        return cls(index, tuple(mask.shape)) if len(index) < WORTHWHILE * mask.numel() else cls.NONE

    def pack(self, padded: Tensor) -> Tensor:
        """(N, S, D) → (R, D)."""
        return padded if self.index is None else _Take.apply(padded.flatten(0, 1), self.index)

    def unpack(self, rows: Tensor) -> Tensor:
        """(R, D) → (N, S, D), zero where padded."""
        if self.index is None:
            return rows
        return _Put.apply(rows, self.index, self.shape[0] * self.shape[1]).unflatten(0, self.shape)


Packing.NONE = Packing()


class _Take(torch.autograd.Function):
    """Rows of a matrix, each at most once, so that the gradient is a copy and no sum."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.rows = len(matrix)
        return matrix.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        (index,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, gradient.shape[1]).index_copy_(0, index, gradient), None


class _Put(torch.autograd.Function):
    """The way back: rows at their place in a matrix of zeros."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(index)
        return rows.new_zeros(count, rows.shape[1]).index_copy_(0, index, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None
