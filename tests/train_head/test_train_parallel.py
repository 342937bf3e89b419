"""Several processes that share a batch make the same steps as one process that has it to itself."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Each case is a head, its options and what two captions of one video in a batch are to each other. The heads differ in
# where their parameters sit: before the gather, behind it, or both.
SCRIPT = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
from conftest import planted_table
from glscl.train_head.heads import build_head
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
    losses = fit(head, table, epochs=2, batch_size=8, lr=1e-3, same_video=same_video).losses
    weights[name] = {**head.state_dict(), "losses": torch.tensor(losses)}
if int(__import__("os").environ.get("RANK", 0)) == 0:
    torch.save(weights, sys.argv[1])
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
"""


def launch(folder: Path, processes: int) -> dict[str, dict[str, torch.Tensor]]:
    script, out = folder / "shared.py", folder / f"{processes}.pt"
    script.write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(processes):
        place = {"OMP_NUM_THREADS": 1, "ACCELERATE_USE_CPU": "true"}
        if processes > 1:
            place |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
            place |= {"MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}}
        command = [sys.executable, str(script), str(out), str(Path(__file__).parent)]
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return torch.load(out, weights_only=True)


@pytest.mark.slow
def test_two_processes_make_the_same_steps_as_one(tmp_path):
    one, two = launch(tmp_path, 1), launch(tmp_path, 2)
    assert one.keys() == two.keys() and len(one) == 4
    for head, weights in one.items():
        for name, value in weights.items():
            torch.testing.assert_close(two[head][name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
