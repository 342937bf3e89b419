"""Parameter groups, the schedule and the bound of the logit scale."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from glscl.train_head.heads import build_head
from glscl.train_head.optim import build_optimizer, clamp_logit_scale, parameter_groups, warmup_cosine


def test_matrices_decay_and_biases_norms_and_the_logit_scale_do_not():
    head = build_head("glscl", embed_dim=16, decoder_layers=1, aggregator_layers=1, adapter="mlp")
    decayed, kept = parameter_groups(head, weight_decay=0.2)
    names = {id(p): name for name, p in head.named_parameters()}
    assert decayed["weight_decay"] == 0.2 and kept["weight_decay"] == 0
    assert {names[id(p)] for p in decayed["params"]}.isdisjoint(names[id(p)] for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)
    for parameter in kept["params"]:
        assert any(part in names[id(parameter)] for part in ("bias", "norm", "ln_", "ratio", "logit_scale"))
    assert "queries" in {names[id(p)] for p in decayed["params"]}


def test_what_is_not_trained_is_not_stepped():
    head = build_head("tight_transf", embed_dim=16, layers=1)
    assert not head.logit_scale.requires_grad
    optimizer = build_optimizer(parameter_groups(head, weight_decay=0.1), lr=1e-3, betas=(0.9, 0.98), eps=1e-6)
    assert not any(head.logit_scale is p for group in optimizer.param_groups for p in group["params"])


def test_the_schedule_rises_linearly_to_one_and_falls_to_zero_without_a_dip():
    factors = [warmup_cosine(step, total=100, warmup=0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factors[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))
    assert 0 < factors[-1] < 1e-3


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_a_schedule_of_few_steps_still_moves(total, warmup):
    factors = [warmup_cosine(step, total=total, warmup=warmup) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)


def test_tau_is_at_most_one_hundred():
    scale = torch.nn.Parameter(torch.tensor(9.0))
    clamp_logit_scale(scale)
    assert scale.exp().item() == pytest.approx(100)
    low = torch.nn.Parameter(torch.tensor(-1.0))
    clamp_logit_scale(low)
    assert low.item() == -1
