"""Parameter groups, the schedule and the bound of the logit scale."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from glscl.cache.sampler import CaptionSampler
from glscl.train_head.heads import build_head
from glscl.train_head.optim import build_optimizer, clamp_logit_scale, parameter_groups, public_cosine, warmup_cosine
from glscl.train_head.settings import resolve
from glscl.train_head.train import fit


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


def test_a_published_recipe_trains_as_a_slow_replica_of_the_public_program(planted):
    """30 steps, weights at the end within 0.3 % of their movement; dropout draws otherwise, so there is none."""
    table, options = planted(videos=20, captions=3), {"queries": 4, "decoder_layers": 1, "aggregator_layers": 1}
    settings = resolve(
        {"recipe": "activitynet-published", "batch_size": 12, "seed": 3, "select": "last", "epochs": 6}, dataset=""
    )
    settings = dataclasses.replace(settings, planned_epochs=4)
    torch.manual_seed(0)
    head = build_head("glscl", embed_dim=16, dropout=0.0, consistency_scale="queries", **options)
    replica, start = copy.deepcopy(head).train(), copy.deepcopy(head.state_dict())
    losses = fit(head, table, settings).losses
    assert len(losses) == 30

    sampler = CaptionSampler(table.video_of_text.numpy(), 12, seed=3, same_video="negative")
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in replica.named_parameters()}
    for step in range(30):
        rows = torch.from_numpy(sampler.epoch(step // 5)[step % 5])
        output = replica(table.texts(rows), table.videos(table.video_of_text[rows]))
        logits = output.similarity * replica.logit_scale.exp()
        target = torch.arange(12)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2 + sum(
            output.auxiliary.values()
        )
        assert loss.item() == pytest.approx(losses[step], rel=1e-4)
        replica.zero_grad()
        loss.backward()
        total = math.sqrt(sum(float(p.grad.square().sum()) for p in replica.parameters()))
        done = step / 20  # of the steps that were planned
        factor = done / 0.1 if done < 0.1 else 0.5 * (1 + math.cos(math.pi * done))
        with torch.no_grad():
            for name, p in replica.named_parameters():
                gradient = p.grad * min(1.0, 1 / (total + 1e-6))
                gradient = gradient * min(1.0, 1 / (float(gradient.norm()) + 1e-6))
                m, v = moments[name]
                m.copy_(0.9 * m + 0.1 * gradient)
                v.copy_(0.98 * v + 0.02 * gradient**2)
                change = m / (v.sqrt() + 1e-6) + (0.0 if "bias" in name else 0.2 * p)
                p -= (1e-7 if name == "logit_scale" else 1e-4) * factor * change
            replica.logit_scale.clamp_(max=math.log(100))
    found, expected = head.state_dict(), replica.state_dict()
    apart = sum(float((found[name] - value).square().sum()) for name, value in expected.items())
    moved = sum(float((start[name] - value).square().sum()) for name, value in expected.items())
    assert moved > 0 and math.sqrt(apart / moved) < 0.003


@pytest.mark.parametrize("planned", [100, 50])
def test_the_public_schedule_begins_at_nothing_is_not_shifted_and_rises_past_its_end(planned):
    factors = [public_cosine(step, total=planned, warmup=0.1) for step in range(101)]
    assert factors[0] == 0 and factors[planned // 10] == pytest.approx(0.9755, abs=1e-4)
    assert factors[planned] == pytest.approx(0) and factors[100] == pytest.approx(1.0 if planned == 50 else 0.0)
