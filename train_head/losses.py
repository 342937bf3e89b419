"""The contrastive loss all heads train with.

B texts and as many videos; text i belongs to video i.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrastive_loss(similarity_times_scale: Tensor, *, exclude: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy over a square batch: `½ [CE over rows + CE over columns]`, targets on the diagonal.

    Args:
        similarity_times_scale: (B, B), τ · S with texts on rows; computed in float32 or wider.
        exclude: (B, B) bool, pairs that are no negatives (two captions of one video); its diagonal is ignored.

    Returns:
        A scalar.

    Raises:
        ValueError: the matrix is not square or empty, or `exclude` has another shape.

    Source: InfoNCE in both directions, Radford et al. 2021, figure 3; `NCE` in GLSCL (Zhang et al. 2024).
    """
    logits = similarity_times_scale
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or logits.shape[0] == 0:
        shape = " x ".join(map(str, logits.shape))
        raise ValueError(f"the contrastive loss needs as many texts as videos, at least one: found {shape}")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if exclude is not None:
        if exclude.shape != logits.shape:
            found, expected = tuple(exclude.shape), tuple(logits.shape)
            raise ValueError(f"exclude has shape {found}, the similarity {expected}")
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        logits = logits.masked_fill(exclude.bool() & ~own, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
