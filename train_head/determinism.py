"""What makes a training give the same numbers again: seeds of steps and deterministic kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def step_seed(seed: int, epoch: int, step: int, process: int) -> int:
    """The seed of all that is random in one step of one process, so that a training taken up goes on alike."""
    return int(np.random.SeedSequence([seed, epoch, step, process]).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, ask torch for its deterministic kernels: they cost nothing measurable there."""
    if device.type != "cpu":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    switches: Any = torch.utils.deterministic  # torch gives this module its property at run time
    fill = switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        switches.fill_uninitialized_memory = fill
