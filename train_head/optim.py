"""What steps the weights: parameter groups, AdamW or BERT's Adam, their schedules, the bound of the logit scale."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from glscl.train_head.heads.base import MAX_LOGIT_SCALE

DECAYS: dict[str, Callable[[str, nn.Parameter], bool]] = {  # which parameters decay, by name
    "matrices": lambda name, parameter: parameter.ndim >= 2,
    "weights": lambda name, parameter: "bias" not in name,  # gains of norms, too
    "all": lambda name, parameter: True,
}


def parameter_groups(
    module: nn.Module, *, weight_decay: float, decay: str = "matrices", logit_scale_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters in groups: those that decay first.

    Args:
        module: whose parameters.
        weight_decay: of those that decay.
        decay: key of `DECAYS`. Fewer than two dimensions have biases, gains of norms, the ratio of an adapter, the logit scale.
        logit_scale_rate: learning rate of the logit scale, in times that of the rest; a group's `lr_scale` says so.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            rate = logit_scale_rate if name.rpartition(".")[2] == "logit_scale" else 1.0
            groups.setdefault((not DECAYS[decay](name, parameter), rate), []).append(parameter)
    return [
        {"params": found, "weight_decay": 0.0 if kept else weight_decay, **({"lr_scale": rate} if rate != 1 else {})}
        for (kept, rate), found in sorted(groups.items(), key=lambda group: group[0])
    ]


def build_optimizer(
    groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, kind: str = "adamw"
) -> torch.optim.Optimizer:
    """ "adamw" or "bert_adam" over groups of parameters, such as `parameter_groups` makes.

    AdamW is one fused kernel where the device has it, and on a GPU its step may be recorded (`glscl.train_head.recording`).
    """
    if kind == "bert_adam":
        return BertAdam(groups, lr=lr, betas=betas, eps=eps)
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


class BertAdam(torch.optim.Optimizer):
    """Adam as BERT's program has it, which CLIP4Clip and its descendants train with: moments without bias correction.

    `w ← w − lr (m / (√v + ε) + decay · w)`; each tensor's gradient is clipped to norm 1 before. With betas .9 and .98 the
    first step is 0.71 of AdamW's, the tenth 1.52.
    """

    def __init__(self, groups: list[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            (first, second), eps = group["betas"], group["eps"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                nn.utils.clip_grad_norm_(parameter, 1.0)
                mean = state["exp_avg"].lerp_(parameter.grad, 1 - first)
                square = state["exp_avg_sq"].mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.addcdiv_(mean, square.sqrt().add_(eps), value=-group["lr"])
                state["step"] += 1


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


def public_cosine(step: int, *, total: int, warmup: float) -> float:
    """The schedule of BERT's Adam in the public programs: `½ (1 + cos πx)`, x = step / total, after a linear rise to 1.

    The cosine is not shifted by the warm-up, so the factor falls to .976 where a rise over a tenth ends; the first step has
    none; past `total` it rises again.
    """
    done = step / total
    return done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def clamp_logit_scale(logit_scale: torch.Tensor) -> None:
    """Keep τ at 100 or below (Radford et al. 2021, 2.5)."""
    logit_scale.clamp_(max=MAX_LOGIT_SCALE)
