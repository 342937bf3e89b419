"""The setting `cuda_graphs`: a step of training recorded on a GPU and replayed, which costs the host one launch.

A step of a small head is about a thousand operations of microseconds each, and Python takes longer to start them than a GPU to
run them. A recording holds what they were started with: tensors by their place in memory, Python's numbers as they were. So what
changes from step to step must be a tensor that stays where it is; shapes may not change, hence a recording for each padded width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from glscl.common.errors import UsageError, first_line
from glscl.common.memory import is_full

BEFORE = 3  # steps of a width that run as they are: libraries choose kernels and take their memory then


def why_not_recorded(
    device: torch.device, *, processes: int, precision: str, optimizer: str, compiled: bool
) -> str | None:
    """Why the steps of a training cannot be recorded; None where they can.

    Args:
        precision: "fp32", "tf32", "bf16" or "fp16".
        optimizer: "adamw" or "bert_adam".
        compiled: the step is compiled code.
    """
    if device.type != "cuda":
        return f"it needs a CUDA device, and this training runs on {device.type}"
    if processes > 1:
        return f"it is for one process, and {processes} share this training"
    if precision == "fp16":
        return "fp16 asks after every step whether a gradient overflowed"
    if optimizer != "adamw":
        return f"{optimizer} computes with the learning rate on the host"
    if compiled:
        return "`compile` records the compiled step itself"
    return None


class RecordedStep:
    """Calls `step`; from the fourth time that it has the same key on, replays what was recorded of it.

    Nothing runs while it is recorded, so each call is one step, and a training with and one without recordings take the same.

    Args:
        step: key and tensors of a batch → a tensor; all else that it reads and changes stays in its place.
        device: a CUDA device.
        note: hears why the steps are no longer recorded, where recording fails.
    """

    def __init__(
        self, step: Callable[..., Tensor], device: torch.device, *, note: Callable[[str], None] = lambda line: None
    ) -> None:
        self._step, self._note = step, note
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._seen: dict[Any, int] = {}
        self._recorded: dict[Any, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Tensor]] = {}
        self._given_up = False

    def __call__(self, key: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        """What the step gives; the next call may overwrite it."""
        if self._given_up:
            return self._step(key, *tensors)
        self._seen[key] = self._seen.get(key, 0) + 1
        if self._seen[key] <= BEFORE:
            return self._aside(key, tensors)
        if key not in self._recorded and not self._record(key, tensors):
            return self._step(key, *tensors)
        graph, inputs, result = self._recorded[key]
        for place, tensor in zip(inputs, tensors):
            place.copy_(tensor)
        graph.replay()
        return result

    def _aside(self, key: Any, tensors: tuple[Tensor, ...]) -> Tensor:
        """A step as it is, on the stream that is recorded later."""
        here = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            result = self._step(key, *tensors)
        here.wait_stream(self._stream)
        return result

    def _record(self, key: Any, tensors: tuple[Tensor, ...]) -> bool:
        """Whether it worked; where not, no step is recorded from here on."""
        inputs = tuple(tensor.clone() for tensor in tensors)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                result = self._step(key, *inputs)
        except Exception as error:
            if is_full(error):
                raise
            self._given_up = True
            self._recorded.clear()
            reason = first_line(error)
            try:
                torch.rand(1, device=self._stream.device)  # the random numbers, which a broken recording may hold
            except RuntimeError:
                raise UsageError(
                    f"`cuda_graphs`: the step cannot be recorded: {reason}", hint="Leave `cuda_graphs` out"
                ) from error
            self._note(f"the steps are not recorded as CUDA graphs: {reason}")
            return False
        self._recorded[key] = graph, inputs, result
        return True
