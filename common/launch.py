"""Which process of a launch this is, as `accelerate launch`, `torchrun` and their like tell it in the environment."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # that ask a process to stop


class Processes(NamedTuple):
    """Attributes:
    rank: 0 for the process that speaks.
    world: processes of the whole launch, on all machines.
    local_rank, local_world: the same on this machine alone; `local_rank` numbers its GPUs.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1


def processes() -> Processes:
    """The launch this process belongs to; one process alone where the environment says nothing sensible."""
    rank, world = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < world:
        return Processes()
    local_world = max(1, _number("LOCAL_WORLD_SIZE", world))
    return Processes(rank, world, _number("LOCAL_RANK", rank % local_world), local_world)


def _number(name: str, default: int) -> int:
    try:
        return max(0, int(os.environ.get(name, default)))
    except ValueError:
        return default
