"""Several processes that share a batch make the same steps as one process that has it to itself."""

from __future__ import annotations

from pathlib import Path

import pytest

# Each case is a head, its options and what two captions of one video in a batch are to each other. The heads differ in
# where their parameters sit: before the gather, behind it, or both.
SCRIPT = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
from conftest import planted_table
from glscl.train_head.heads import build_head
from glscl.train_head.settings import TrainSettings
from glscl.train_head.train import fit

CASES = {
    "glscl": (dict(queries=2, decoder_layers=1, aggregator_layers=1, dropout=0.0), "separate"),
    "projection": ({}, "mask"),
    "dicosa": (dict(aggregator_layers=1), "separate"),
    "wti": (dict(aggregator="none"), "negative"),
}
table = planted_table(videos=16, captions=2)
weights = {}
for name, (options, same_video) in CASES.items():
    torch.manual_seed(0)
    head = build_head(name, embed_dim=16, **options)
    losses = fit(head, table, TrainSettings(epochs=2, batch_size=8, lr=1e-3, same_video=same_video)).losses
    weights[name] = {**head.state_dict(), "losses": torch.tensor(losses)}
if int(__import__("os").environ.get("RANK", 0)) == 0:
    torch.save(weights, sys.argv[1])
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_make_the_same_steps_as_one(tmp_path, launched, same_weights):
    here = Path(__file__).parent
    one, two = launched(SCRIPT, tmp_path, 1, here), launched(SCRIPT, tmp_path, 2, here)
    assert one.keys() == two.keys() and len(one) == 4
    for head, weights in one.items():
        same_weights(two[head], weights)
