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
    torch.distributed.barrier()  # who goes first may leave the other waiting
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_make_the_same_steps_as_one(tmp_path, launched, same_weights):
    here = Path(__file__).parent
    one, two = launched(SCRIPT, tmp_path, 1, here), launched(SCRIPT, tmp_path, 2, here)
    assert one.keys() == two.keys() and len(one) == 4
    for head, weights in one.items():
        same_weights(two[head], weights)


STOPPED = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[2])
from conftest import planted_table
from glscl.train_head.checkpoint import load_resume
from glscl.train_head.heads import build_head
from glscl.train_head.learner import Learner
from glscl.train_head.settings import TrainSettings
from glscl.train_head.train import fit

rank, table, backward, steps = int(os.environ["RANK"]), planted_table(videos=16, captions=2), Learner.backward, []
settings = TrainSettings(epochs=3, batch_size=4, lr=1e-3, log_every=3)

def stopping(self, *given):
    steps.append(0)
    if len(steps) == 4 and rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)  # one process alone is told, in the middle of a step
    return backward(self, *given)

def trained(name, **options):
    torch.manual_seed(0)
    head = build_head("projection", embed_dim=16)
    fit(head, table, settings, out=Path(sys.argv[1]).with_name(name), **options)
    return head.state_dict()

whole = trained("whole")
Learner.backward = stopping
try:
    trained("stopped")
    raise SystemExit("nobody stopped")
except KeyboardInterrupt:
    pass
Learner.backward = backward
torch.distributed.barrier()
at = load_resume(Path(sys.argv[1]).with_name("stopped")).state
resumed = trained("stopped", resume=True)
if rank == 0:
    torch.save({"whole": whole, "resumed": resumed, "at": torch.tensor([at["epoch"], at["step"]])}, sys.argv[1])
torch.distributed.barrier()  # who goes first may leave the other waiting
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_stop_together_where_one_is_told_to_and_go_on(tmp_path, launched, same_weights):
    found = launched(STOPPED, tmp_path, 2, Path(__file__).parent)
    assert found["at"].tolist() == [0, 6], "at the next report, two steps after it was told"
    same_weights(found["resumed"], found["whole"])
