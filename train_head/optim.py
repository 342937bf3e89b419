"""What steps the weights: parameter groups, AdamW, warm-up and cosine, the bound of the logit scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from glscl.train_head.heads.base import MAX_LOGIT_SCALE


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay, everything of fewer dimensions does not.

    Fewer dimensions have the biases, the gains of norms, the ratio of an adapter and the logit scale.
    """
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """AdamW over groups of parameters, such as `parameter_groups` makes; one fused kernel where the device has it.

    On a GPU its step may be recorded (`glscl.train_head.recording`).
    """
    device = groups[0]["params"][0].device.type
    fused, capturable = device in ("cuda", "cpu"), device == "cuda"
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused, capturable=capturable)


def set_learning_rate(group: dict[str, Any], value: float, *, in_place: bool) -> None:
    """The learning rate of a group of parameters.

    Args:
        in_place: in a tensor on the device of the parameters that stays where it is, for a step that is recorded.
    """
    if not in_place:
        group["lr"] = value
    elif isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(value)
    else:
        group["lr"] = torch.full((), value, device=group["params"][0].device)


def warmup_cosine(step: int, *, total: int, warmup: float) -> float:
    """Factor of the learning rate at one step: linear up to 1, then a half cosine down to 0 at the end.

    Args:
        step: from 0; the factor is that of the update about to be made, so the first one is not lost to a zero.
        total: updates in all.
        warmup: share of them that rises.
    """
    rising = round(total * warmup)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


@torch.no_grad()
def clamp_logit_scale(logit_scale: torch.Tensor) -> None:
    """Keep τ at 100 or below (Radford et al. 2021, 2.5)."""
    logit_scale.clamp_(max=MAX_LOGIT_SCALE)
