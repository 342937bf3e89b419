"""A patch embedding that sees a frame with its two neighbours (CLIP4Clip's "3d" linear patch).

n frames of several videos one after another, V videos, F frames, D width, S side in pixels, P side of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from glscl.common.errors import BackboneError


class TemporalPatchEmbedding(nn.Module):
    """Takes the place of a vision transformer's `conv1`: a convolution over three frames, stride 1, zeros at both ends.

    It starts with the kernel it replaces in the middle and zeros around, so that it first gives the same values.

    Args:
        plain: the (D, 3, P, P) convolution it takes the place of; its stride is the side of a patch.

    Attributes:
        weight: (D, 3, 3, P, P), the middle axis is time.
        lengths: frames of each video in the next call; None takes every frame as a video of its own.

    Source: Luo et al. 2021 (CLIP4Clip), "3D linear".
    """

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        kernel = torch.zeros(*plain.weight.shape[:2], 3, *plain.weight.shape[2:])
        kernel[:, :, 1] = plain.weight.detach()
        self.weight = nn.Parameter(kernel.to(plain.weight.device, plain.weight.dtype))
        self.bias = None if plain.bias is None else nn.Parameter(plain.bias.detach().clone())
        self.stride = (1, *plain.stride)
        self.lengths: Sequence[int] | None = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, 3, S, S) → (n, D, S / P, S / P)."""
        lengths = torch.as_tensor(self.lengths or [1] * len(pixels), device=pixels.device)  # (V,)
        real = torch.arange(int(lengths.max()), device=pixels.device) < lengths[:, None]  # (V, F)
        padded = pixels.new_zeros((*real.shape, *pixels.shape[1:]))
        padded[real] = pixels  # (V, F, 3, S, S)
        embedded = nn.functional.conv3d(
            padded.transpose(1, 2), self.weight, self.bias, stride=self.stride, padding=(1, 0, 0)
        )  # (V, D, F, S / P, S / P)
        return embedded.transpose(1, 2)[real]


def widen_patch_embedding(model: nn.Module) -> TemporalPatchEmbedding:
    """Replace the patch embedding of a vision transformer in place.

    Raises:
        BackboneError: the vision tower is no open_clip vision transformer.
    """
    visual = model.visual
    plain = getattr(visual, "conv1", None)
    if not isinstance(visual, nn.Module) or not hasattr(visual, "transformer") or not isinstance(plain, nn.Conv2d):
        raise BackboneError(
            f"A 3d patch embedding needs an open_clip vision transformer; this tower is a {type(visual).__name__}",
            hint="Use `patch_embedding=2d`, or a ViT backbone",
        )
    widened = TemporalPatchEmbedding(plain)
    visual.add_module("conv1", widened)
    return widened


def temporal_embedding(model: nn.Module) -> TemporalPatchEmbedding | None:
    """The 3d patch embedding of a model, None where it has the plain one."""
    found = getattr(model.visual, "conv1", None)
    return found if isinstance(found, TemporalPatchEmbedding) else None
