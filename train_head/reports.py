"""What a training tells while it goes, and in the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The steps since the last report. Epochs and steps count from 1; losses are means over them.

    Attributes:
        losses: what `loss` is the sum of, by name: "contrastive" and the head's auxiliary losses, weighted.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    learning_rate: float
    captions_per_second: float
    losses: Mapping[str, float] = field(default_factory=dict)


class Reporter:
    """Hears how training goes. This one says nothing; override what is wanted."""

    def begin(self) -> None:
        """The training is set up, and begins or goes on."""

    def note(self, text: str) -> None:
        """A line that people should read."""

    def step(self, report: StepReport) -> None:
        """Some steps are done."""

    def epoch(self, row: Mapping[str, Any], *, best: bool) -> None:
        """An epoch is done; `row` is what stands in history.jsonl, `best` says whether its weights were kept as best."""

    def end(self, *, finished: bool) -> None:
        """The training is over, as it should be (`finished`) or by an error or an interrupt."""


@dataclass(kw_only=True)
class FitResult:
    """What came of a loop.

    Attributes:
        losses: of every step made in this process.
        history: one row an epoch: epoch, step, loss, learning_rate, logit_scale, seconds, captions_per_second, and
            where it was validated "validation" with both directions.
        best: the row whose weights are the best; None where nothing was validated.
        doubts: why the numbers may be none: a loss that did not fall, scores that are all alike, …; a line each.
    """

    losses: list[float] = field(default_factory=list, repr=False)
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    best: dict[str, Any] | None = None
    doubts: list[str] = field(default_factory=list)
