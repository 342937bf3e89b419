"""progress.json in the run folder: how far a training is, for scripts that watch it.

    {"schema": "glscl.progress/1", "state": "training", "epoch": 2, "epochs": 5, "step": 340, "steps": 1400,
     "done": 1740, "total": 7000, "captions_per_second": 5120.0, "seconds_left": 131.5, "losses": [4.21, 4.05],
     "reason": null, "updated": "2026-11-28T12:00:00Z", "host": "gpu3", "process": 4711}

`state` is training, validating, stopped, failed or finished; `losses` are the means of the last reports. The file is replaced
in one step, every few seconds at most, and left behind as it was last: of a training that was killed, `updated` stands still.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import Any

from glscl.cache.files import dump_json, write_atomically
from glscl.common.errors import StorageError

FILE = "progress.json"
SCHEMA = "glscl.progress/1"
SECONDS = 2.0  # between two of them while nothing but the step changes
_LOSSES = 10


class Heartbeat:
    """Writes the file; where it cannot be written the training goes on without.

    Args:
        folder: of the run; None writes nothing.
        epochs, steps: of the training, and of an epoch.
        done: steps that were done before.
        batch_size: captions a step.
    """

    def __init__(self, folder: Path | None, *, epochs: int, steps: int, done: int, batch_size: int) -> None:
        self._file = None if folder is None else folder / FILE
        self._about = {"epochs": epochs, "steps": steps, "total": epochs * steps}
        self._first, self._batch_size = done, batch_size
        self._began = time.monotonic()
        self._written = -SECONDS
        self._losses: list[float] = []

    def beat(self, state: str, *, epoch: int, step: int, loss: float | None = None, reason: str | None = None) -> None:
        """Say how far it is, unless that was just said and only the step is another.

        Args:
            epoch, step: done within the epoch, counted from 0 and 1.
            loss: mean of the steps since the last one that was given.
            reason: why it stopped or failed.
        """
        if loss is not None:
            self._losses = [*self._losses, loss][-_LOSSES:]
        now = time.monotonic()
        if self._file is None or (state == "training" and now - self._written < SECONDS):
            return
        self._written, done = now, epoch * self._about["steps"] + step
        rate = (done - self._first) / max(1e-9, now - self._began)
        told: dict[str, Any] = {
            "schema": SCHEMA,
            "state": state,
            "epoch": min(epoch + 1, self._about["epochs"]),
            "step": step if epoch < self._about["epochs"] else self._about["steps"],
            **self._about,
            "done": done,
            "captions_per_second": round(rate * self._batch_size, 1),
            "seconds_left": round((self._about["total"] - done) / rate, 1) if rate else None,
            "losses": self._losses,
            "reason": reason,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": socket.gethostname(),
            "process": os.getpid(),
        }
        with contextlib.suppress(StorageError):
            write_atomically(self._file, dump_json(told), durable=False)
