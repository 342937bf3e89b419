"""Losses of the first steps, pinned: a change of loss, sampler, schedule, optimizer or head shows here.

After a change that is meant, record them anew and say why in the changelog:
GLSCL_WRITE_GOLDEN=1 pytest tests/train_head/test_train_golden.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from glscl.cache.table import FeatureTable
from glscl.train_head.heads import build_head
from glscl.train_head.settings import TrainSettings
from glscl.train_head.train import fit

GOLDEN = Path(__file__).with_name("golden_losses.json")
HEADS = {
    "mean_pool": {},
    "projection": {},
    "seq_lstm": {},
    "seq_transf": {"aggregator_layers": 2},
    "glscl": {"queries": 4, "decoder_layers": 2, "aggregator_layers": 2, "dropout": 0.0},
}


def losses_of(name: str, table: FeatureTable) -> list[float]:
    """Losses of two epochs of three steps; weights and features come from numpy, whose streams never change."""
    head = build_head(name, embed_dim=16, **HEADS[name])
    random = np.random.RandomState(5)
    with torch.no_grad():
        for key, value in sorted(head.named_parameters()):
            if value.ndim < 2 or "map" in key:
                continue  # norms, biases and the maps that start as identity stay as they start
            value.copy_(torch.from_numpy(random.standard_normal(value.shape) * 0.05))
    return fit(head, table, TrainSettings(epochs=2, batch_size=16, lr=1e-3, clip=1.0, seed=2)).losses


@pytest.mark.parametrize("name", HEADS)
def test_the_first_losses_are_the_recorded_ones(planted, name):
    losses = losses_of(name, planted(videos=16, captions=3))
    recorded = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("GLSCL_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps({**recorded, name: losses}, indent=1) + "\n")
        pytest.skip(f"recorded in {GOLDEN.name}, not compared")
    assert losses == pytest.approx(recorded[name], rel=1e-4)
