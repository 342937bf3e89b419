"""Frames from the host to a GPU while it computes on those before.

n frames, S side of the model's input in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

SLOTS = 2
ROWS = 32  # a new shape costs kernels to be chosen and memory


class Feed:
    """Pinned buffers that are copied to buffers on the device on a stream of their own.

    Args:
        device: a CUDA device.
        rows: batches are filled up to a multiple of it.
    """

    def __init__(self, device: torch.device, *, rows: int = ROWS) -> None:
        self._device, self._rows = device, rows
        self._copying = torch.cuda.Stream(device)
        self._pinned: list[Tensor] = []
        self._there: list[Tensor] = []
        self._copied: list[torch.cuda.Event] = []
        self._before: torch.cuda.Event | None = None  # all that was asked of the device before the last call
        self._next = 0

    def put(self, parts: Sequence[np.ndarray]) -> Tensor:
        """Arrays (…, S, S, 3) uint8, one after another, on the device and ready for its current stream, (n, S, S, 3).

        What comes back may be overwritten by the next call but one; behind it n is filled up by frames that mean nothing.
        """
        count = sum(map(len, parts))
        rows = -(-count // self._rows) * self._rows
        if not self._pinned or rows > len(self._pinned[0]) or self._pinned[0].shape[1:] != parts[0].shape[1:]:
            self._make(rows, parts[0].shape[1:])
        slot, self._next = self._next, (self._next + 1) % SLOTS
        pinned, there, copied = self._pinned[slot], self._there[slot], self._copied[slot]
        copied.synchronize()
        np.concatenate(parts, out=pinned.numpy()[:count])
        here = torch.cuda.current_stream(self._device)
        if self._before is not None:
            self._copying.wait_event(self._before)
        self._before = torch.cuda.Event()
        self._before.record(here)
        with torch.cuda.stream(self._copying):
            there[:count].copy_(pinned[:count], non_blocking=True)
            copied.record(self._copying)
        here.wait_event(copied)
        return there[:rows]

    def _make(self, rows: int, shape: tuple[int, ...]) -> None:
        torch.cuda.synchronize(self._device)
        self._pinned = [torch.zeros((rows, *shape), dtype=torch.uint8).pin_memory() for _ in range(SLOTS)]
        self._there = [each.to(self._device) for each in self._pinned]
        self._copied = [torch.cuda.Event() for _ in range(SLOTS)]
        torch.cuda.synchronize(self._device)


def fetched_later(features: Tensor) -> Callable[[], np.ndarray]:
    """Starts to copy a tensor of a CUDA device to the host; the call waits for it."""
    there = torch.empty(features.shape, dtype=features.dtype).pin_memory()
    there.copy_(features, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record(torch.cuda.current_stream(features.device))  # which need not be that of the current device

    def wait() -> np.ndarray:
        copied.synchronize()
        return there.numpy()

    return wait
