"""Which process of a launch this is, as `accelerate launch`, `torchrun` and their like tell it in the environment.

The only place that reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from glscl.common.errors import UsageError


class Launch(NamedTuple):
    """Attributes:
    rank: 0 for the process that speaks.
    world: processes of the whole launch, on all machines.
    local_rank, local_world: the same on this machine alone; `local_rank` numbers its GPUs.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def speaks(self) -> bool:
        """Whether this is the process that prints, validates and writes."""
        return self.rank == 0


def launch() -> Launch:
    """The launch that this process belongs to. Without WORLD_SIZE it is one process alone, whatever else is set.

    What half a launch left in the environment is removed then, so that libraries that look there see the same.

    Raises:
        UsageError: a variable is no number, or RANK is no process of WORLD_SIZE.
    """
    world = _number("WORLD_SIZE", 1)
    if world <= 1:
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)
        return Launch()
    rank = _number("RANK", None)
    if not rank < world:
        raise UsageError(f"RANK is {rank} of WORLD_SIZE {world} processes; expected 0 to {world - 1}")
    local_world = max(1, _number("LOCAL_WORLD_SIZE", world))
    return Launch(rank, world, _number("LOCAL_RANK", rank % local_world), local_world)


def _number(name: str, default: int | None) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.strip().isascii() or not text.strip().isdigit():
        found = "not set" if text is None else repr(text)
        raise UsageError(f"{name} is {found} in the environment; expected a number, as a launcher sets it")
    return int(text)
