"""The losses of a batch of pairs: what pulls a caption to its own video and away from the others.

B texts and as many videos; text i belongs to video i. `logits` are τ · S (+ bias), with texts on rows, (B, B).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

HARDNESS = 0.25  # β of `hard_negative_loss`


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
    logits, left_out = _checked(similarity_times_scale, exclude)
    if left_out is not None:
        logits = logits.masked_fill(left_out, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def sigmoid_loss(logits: Tensor, *, exclude: Tensor | None = None) -> Tensor:
    """Each pair a decision of its own: `−(1/B) Σ_ij log σ(z_ij l_ij)`, z 1 on the diagonal and −1 elsewhere.

    The logits are `τ S + bias` with a bias far below zero at the start, since nearly all pairs are negatives
    (`Head.logit_bias`). Arguments and errors as in `contrastive_loss`.

    Source: SigLIP, Zhai et al. 2023 (arXiv 2303.15343), equation 3 and algorithm 1.
    """
    logits, left_out = _checked(logits, exclude)
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype, device=logits.device) - 1
    losses = -F.logsigmoid(sign * logits)
    if left_out is not None:
        losses = losses.masked_fill(left_out, 0.0)
    return losses.sum() / len(logits)


def hard_negative_loss(logits: Tensor, *, exclude: Tensor | None = None) -> Tensor:
    """InfoNCE whose negatives count as they are hard: `−½ Σ log [e^{l_ii} / (e^{l_ii} + Σ_{j≠i} w_ij e^{l_ij})]`, both ways.

    `w_ij = n_i e^{β l_ij} / Σ_{k≠i} e^{β l_ik}` over the n_i negatives of i: one on average, and without a gradient of their
    own. With β = 0 it is `contrastive_loss`. Arguments and errors as there.

    Source: HN-NCE, Radenovic et al. 2023 (arXiv 2301.02280) with α = 1, after Robinson et al. 2021; β is `HARDNESS`.
    """
    logits, left_out = _checked(logits, exclude)
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    hidden = own if left_out is None else own | left_out

    def one_way(rows: Tensor, hidden: Tensor) -> Tensor:
        hardness = (HARDNESS * rows.detach()).masked_fill(hidden, -torch.inf)
        count = (~hidden).sum(1, keepdim=True).to(rows.dtype)
        weights = torch.log(count.clamp(min=1)) + hardness - torch.logsumexp(hardness, 1, keepdim=True)  # log w
        weights = weights.masked_fill(hidden, -torch.inf)
        negatives = (rows + weights).masked_fill(hidden, -torch.inf)
        positives = rows.diagonal()
        return (torch.logaddexp(positives, torch.logsumexp(negatives, 1)) - positives).mean()

    return 0.5 * (one_way(logits, hidden) + one_way(logits.T, hidden.T))


def distillation_loss(logits: Tensor, teacher: Tensor, *, exclude: Tensor | None = None) -> Tensor:
    """How far the student's choice among a batch is from the teacher's: `½ Σ KL(softmax(teacher) ‖ softmax(logits)) / B`.

    Over rows and over columns. Raises as `contrastive_loss`; the teacher gets no gradient.

    Source: Hinton et al. 2015; for one vector a video after TeachCLIP (Tian et al., CVPR 2024).
    """
    logits, left_out = _checked(logits, exclude)
    teacher, _ = _checked(teacher.detach().to(logits.dtype), exclude)
    if teacher.shape != logits.shape:
        raise ValueError(
            f"the teacher's similarities have shape {tuple(teacher.shape)}, the student's {tuple(logits.shape)}"
        )
    if left_out is not None:
        least = torch.finfo(logits.dtype).min / 4  # -inf on both sides would make NaN of the divergence
        logits, teacher = logits.masked_fill(left_out, least), teacher.masked_fill(left_out, least)

    def one_way(student: Tensor, taught: Tensor) -> Tensor:
        return F.kl_div(student.log_softmax(1), taught.log_softmax(1), reduction="batchmean", log_target=True)

    return 0.5 * (one_way(logits, teacher) + one_way(logits.T, teacher.T))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "infonce": contrastive_loss,
    "sigmoid": sigmoid_loss,
    "hard_negatives": hard_negative_loss,
}


def _checked(logits: Tensor, exclude: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The logits in float32 or wider, and the pairs that are left out, none of them on the diagonal."""
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or logits.shape[0] == 0:
        shape = " x ".join(map(str, logits.shape))
        raise ValueError(f"the contrastive loss needs as many texts as videos, at least one: found {shape}")
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if exclude is None:
        return logits, None
    if exclude.shape != logits.shape:
        found, expected = tuple(exclude.shape), tuple(logits.shape)
        raise ValueError(f"exclude has shape {found}, the similarity {expected}")
    return logits, exclude.bool() & ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
