"""Pooling frames into what a score needs, with padded frames weighing exactly nothing.

T texts, V videos, F frames, D embed_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def masked_softmax(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    """Softmax along `dim` in which masked-out entries weigh exactly 0."""
    return logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(dim)


def mean_of_normalised(features: Tensor, mask: Tensor) -> Tensor:
    """CLIP4Clip's pooling (Luo et al. 2022): `n(mean over real entries of n(x))`.

    Args:
        features: (N, F, D).
        mask: (N, F) bool.

    Returns:
        (N, D), L2-normalised; zero where all features are zero.
    """
    weights = mask.to(features.dtype)
    weights = weights / weights.sum(-1, keepdim=True)
    pooled = torch.einsum("vf,vfd->vd", weights, F.normalize(features, dim=-1).to(weights.dtype))
    return F.normalize(pooled, dim=-1)


def attend_frames(text: Tensor, frames: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Dot products of texts with frames, and their softmax over the real frames.

    Args:
        text: (T, D) raw.
        frames: (V, F, D) raw.
        mask: (V, F) bool.
        temperature: divides the dot products.

    Returns:
        dots and weights, both (V, F, T): with the text last every step is one large or one batched matrix product.
    """
    videos, length, _ = frames.shape
    dots = (frames.flatten(0, 1) @ text.T).view(videos, length, len(text))  # (V, F, T)
    return dots, masked_softmax(dots / temperature, mask.unsqueeze(-1), dim=1)


def conditioned_cosine(text: Tensor, frames: Tensor, mask: Tensor, gram: Tensor, *, temperature: float) -> Tensor:
    """`n(t) · n(g)` for every pair, where `g = Σ_f w_f x_f` and `w = softmax_f(t · x_f / temperature)`.

    The (T, V, D) tensor of `g` is never made: `t · g = Σ_f w_f (t · x_f)` and `‖g‖² = wᵀ gram w`.

    Args:
        text: (T, D) raw.
        frames: (V, F, D) raw.
        mask: (V, F) bool.
        gram: (V, F, F), `gram_matrix(frames)`.
        temperature: of the softmax.

    Returns:
        (T, V).
    """
    dots, weights = attend_frames(text, frames, mask, temperature)
    product = (weights * dots).sum(1)  # (V, T)
    squared = (weights * (gram @ weights)).sum(1)  # (V, T)
    norm = squared.clamp(min=smallest_square(gram)).sqrt()
    text_norm = text.norm(dim=-1).clamp(min=1e-12)  # (T,)
    return (product / norm).T / text_norm.unsqueeze(1)  # (T, V)


def conditioned_cosine_floats(frames: int) -> int:
    """Numbers `conditioned_cosine` holds for one pair, backward included."""
    return 6 * frames + 4


def gram_matrix(frames: Tensor) -> Tensor:
    """(V, F, D) → (V, F, F) dot products of every two frames of a video, in full precision.

    `wᵀ gram w` is the squared length of the weighted sum `Σ_f w_f x_f`, which therefore need not be made.
    """
    with torch.autocast(device_type=frames.device.type, enabled=False):
        frames = frames.float() if frames.dtype in (torch.float16, torch.bfloat16) else frames
        return frames @ frames.transpose(1, 2)


def smallest_square(gram: Tensor) -> Tensor:
    """(V, 1): squared length below which a weighted sum of frames is only rounding error; keeps √ away from 0."""
    largest = gram.detach().diagonal(dim1=1, dim2=2).amax(1, keepdim=True)
    return (largest * torch.finfo(gram.dtype).eps).clamp(min=1e-24)
