"""What the sections of `benchmarks/gpu.py` measure with: sizes, clocks, and lines of results that are there at once."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from common import synchronise

FRAMES, WORDS = 12, 32
LONG_ENOUGH = 2.0  # seconds that repeats of one measurement take at most, about


@dataclass(frozen=True)
class Sizes:
    """How large everything is; the defaults are those of the note, `SMALL` a look at whether it runs."""

    product: int = 8192
    copied: int = 4 << 30
    attention: int = 128  # items
    repeats: int = 50
    batch: int = 128
    window: int = 10  # steps
    dim: int = 512
    head_options: dict[str, Any] = field(default_factory=dict)
    step_heads: tuple[str, ...] = ("glscl", "seq_transf", "xpool")
    recipe: tuple[int, int, int] = (9000, 20, 5)  # videos, captions of each, epochs
    encoders: tuple[str, ...] = ("ViT-B-32", "ViT-B-16", "ViT-L-14")
    encoder_batches: tuple[int, ...] = (128, 512)
    frame_counts: tuple[int, ...] = (128, 127, 101, 77, 64, 50, 33, 20, 7, 1)
    other_frame_counts: tuple[int, ...] = (126, 100, 76, 63, 49, 32, 19, 6)
    caption_widths: tuple[int, ...] = (5, 8, 11, 14, 17, 20, 26, 32)
    other_caption_widths: tuple[int, ...] = (6, 9, 12, 15, 18, 21, 27, 31)
    captions: int = 256
    compared: int = 64
    tuned: str = "ViT-B-32"
    tuned_steps: int = 8
    demo_videos: int = 120
    scored: tuple[int, ...] = (1000, 10_000)
    searched: int = 1_000_000


SMALL = Sizes(
    product=128,
    copied=1 << 20,
    attention=2,
    repeats=2,
    batch=4,
    window=1,
    dim=64,
    head_options={"queries": 2, "decoder_layers": 1, "aggregator_layers": 1},
    step_heads=("glscl", "xpool"),
    recipe=(12, 2, 2),
    encoders=("demo",),
    encoder_batches=(2,),
    frame_counts=(2, 1),
    other_frame_counts=(3,),
    caption_widths=(5, 8),
    other_caption_widths=(6,),
    captions=4,
    compared=2,
    tuned="demo",
    tuned_steps=1,
    demo_videos=20,
    scored=(20,),
    searched=1000,
)


class NotMeasured(Exception):
    """Why something cannot be measured here."""


class TimeLimit(BaseException):
    """A section's time is over; no `except Exception` on the way holds it up."""


class DeviceLost(BaseException):
    """The device answers no more; only a new process helps."""


@dataclass
class Bench:
    """What a section measures on, and where its lines go.

    Attributes:
        write: takes a line of the results.
        earlier: all lines of the results so far.
        deadline: `time.monotonic()` at which the section under way has to be through.
        folder: for files that nobody needs afterwards.
    """

    device: torch.device
    sizes: Sizes
    write: Callable[[dict[str, Any]], None]
    earlier: Callable[[], list[dict[str, Any]]]
    folder: Path
    section: str = ""
    deadline: float = float("inf")

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds that the section under way still has."""
        return self.deadline - time.monotonic()

    def row(self, table: str, **columns: Any) -> None:
        """A line of a table; a float is written with three digits."""
        self.write({"section": self.section, "table": table, "row": columns})

    def say(self, text: str) -> None:
        self.write({"section": self.section, "text": text})

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """What fails inside is said to be not measured, and the section goes on."""
        try:
            yield
        except Exception as error:
            reason = str(error) if isinstance(error, NotMeasured) else f"{type(error).__name__}: {error}"
            self.write({"section": self.section, "what": what, "not_measured": short(reason)})
        if self.cuda:
            try:  # also the random numbers, which a recording that failed leaves unusable
                torch.rand(1, device=self.device)
                synchronise(self.device)
            except RuntimeError as error:
                raise DeviceLost(short(str(error))) from error

    def require(self, seconds: float) -> None:
        """Raise NotMeasured where less time is left on a GPU than something takes."""
        if self.cuda and self.left < seconds:
            raise NotMeasured(f"{max(self.left, 0):.0f} s were left, and it takes about {seconds:.0f}")

    def seconds(self, function: Callable[[], Any], *, repeats: int | None = None, burn_in: int = 2) -> float:
        """Mean seconds of a call among many, which may overlap on the device."""
        repeats = repeats or self.sizes.repeats
        for _ in range(burn_in):
            function()
        synchronise(self.device)
        if repeats > 1:
            repeats = max(2, min(repeats, int(LONG_ENOUGH / max(self.once(function), 1e-9))))
        started = time.perf_counter()
        for _ in range(repeats):
            function()
        synchronise(self.device)
        return (time.perf_counter() - started) / repeats

    def once(self, function: Callable[..., Any], *arguments: Any) -> float:
        """Seconds of one call, waited for."""
        return self.seconds(functools.partial(function, *arguments), repeats=1, burn_in=0)

    def twice(self, function: Callable[..., Any], *arguments: Any) -> tuple[float, float]:
        """Seconds of a first and of a second call."""
        return self.once(function, *arguments), self.once(function, *arguments)


def short(text: str, length: int = 300) -> str:
    """The first line that says something, without colours."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines() if line.strip()]
    return (lines[0] if lines else "no reason given")[:length]


@contextlib.contextmanager
def products(tf32: bool) -> Iterator[None]:
    """float32 products and convolutions in TF32, or full; as before afterwards."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
