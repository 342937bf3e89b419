"""What a training step costs: samples a second, the share of it in matrix products, peak memory; and a whole recipe.

    python benchmarks/train_step.py                                   glscl and a few other heads, batch 128
    python benchmarks/train_step.py --batch 4096 --once --heads glscl memory of a large batch, one step
    python benchmarks/train_step.py --device cuda --recipe-time       180,000 captions × 5 epochs, from beginning to end
    python benchmarks/train_step.py --also compile,bf16               what --compile and --precision bf16 give each head
    python benchmarks/train_step.py --quick                           small sizes: a look, not a result

Every figure is of the real loop (`glscl.train_head.train.fit`) on random features of MSR-VTT's shapes: gathering, head, loss,
gradients, clipping, AdamW. `--compile` and `--precision bf16` are those of `glscl train-head`.

A step is first burnt in, then timed, then profiled. "In products" is the time inside matrix products and fused attention as
torch.profiler sees it, as a share of all operators' own time, and of the profiled wall clock, which holds Python and the
profiler's own cost too. On a GPU both are times of its kernels.

Standard output is a dated note in Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from common import Peak, digits, machine, markdown, peak_memory, synchronise
from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.train_head.heads import HEAD_NAMES, build_head
from glscl.train_head.settings import TrainSettings
from glscl.train_head.train import Reporter, StepReport, fit

HEADS = "glscl,seq_transf,xpool,wti"
ALSO = {
    "compile": {"compile": True},
    "bf16": {"precision": "bf16"},
    "compile+bf16": {"compile": True, "precision": "bf16"},
}
FRAMES, WORDS = 12, 32
RECIPE_VIDEOS, RECIPE_CAPTIONS, RECIPE_EPOCHS, RECIPE_BATCH, RECIPE_TARGET = 9000, 20, 5, 128, 60.0
PRODUCTS = (
    "::mm",
    "::addmm",
    "::bmm",
    "::baddbmm",
    "::linear",
    "_attention",
    "::_addmm",
    "mkldnn_rnn_layer",
    "_thnn_fused",
)
KERNELS = ("gemm", "cutlass", "flash", "fmha", "attention", "xmma", "nvjet", "cudnn")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one head costs.

    Attributes:
        samples_per_second: pairs.
        in_operators, in_wall: share of the profiled steps in matrix products, 0–1; None where not profiled.
        peak_bytes: of the timed steps, above model, optimizer and features.
        start_up: seconds the burnt-in window took above a timed one; with `--compile` that is compiling.
    """

    head: str
    samples_per_second: float
    in_operators: float | None
    in_wall: float | None
    peak_bytes: int
    start_up: float


def made_up_table(captions: int, videos: int, *, dim: int, device: torch.device) -> FeatureTable:
    """Float16 features as a cache holds them: 13 of 32 words on average, 10 to 12 frames."""
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device, dtype=torch.float16)

    lengths = torch.randn(captions, generator=random, device=device).mul(4).add(13).round().clamp(4, WORDS).long()
    counts = torch.randint(10, FRAMES + 1, (videos, 1), generator=random, device=device)
    table = FeatureTable.from_features(
        TextFeatures(normal(captions, dim)),
        VideoFeatures(normal(videos, FRAMES, dim), torch.arange(FRAMES, device=device) < counts),
        torch.arange(captions, device=device) % videos,
    )
    return dataclasses.replace(
        table,
        token_values=normal(int(lengths.sum()), dim),
        token_first=lengths.cumsum(0) - lengths,
        token_count=lengths,
    )


class Windows(Reporter):
    """Watches a training of three windows of equally many steps: burnt in, timed with its peak memory, profiled.

    With `once` the first window alone is timed.
    """

    def __init__(self, device: torch.device, *, once: bool) -> None:
        self.device, self.once = device, once
        self.rates: list[float] = []
        self.peak, self.wall = Peak(), 0.0
        self.profiler: profile | None = None
        self._number = 0
        self._stack = contextlib.ExitStack()

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        with self._stack:
            if self.once:
                self.peak = self._stack.enter_context(peak_memory(self.device))
            yield

    def step(self, report: StepReport) -> None:
        self._number += 1
        synchronise(self.device)
        if self._number == (1 if self.once else 2):
            self._stack.close()
        if self._number <= (1 if self.once else 2):
            self.rates.append(report.captions_per_second)
        if self.once:
            return
        if self._number == 1:
            self.peak = self._stack.enter_context(peak_memory(self.device))
        elif self._number == 2:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self.profiler = profile(activities=activities, acc_events=True)
            self.profiler.start()
            self._started = time.perf_counter()
        elif self._number == 3:
            self.wall = time.perf_counter() - self._started
            self.profiler.stop()


def measure(
    name: str, *, batch: int, steps: int, dim: int, device: torch.device, precision: str, compile: bool, once: bool
) -> Cost:
    """Train `name` for a few steps."""
    captions = batch * steps * (1 if once else 3)
    table = made_up_table(captions, captions, dim=dim, device=device)
    torch.manual_seed(0)
    head = build_head(name, embed_dim=dim)
    watch = Windows(device, once=once)
    with watch.watching():
        fit(
            head,
            table,
            TrainSettings(epochs=1, batch_size=batch, precision=precision, compile=compile, log_every=steps),
            device=device,
            reporter=watch,
        )
    in_operators, in_wall = (None, None) if watch.profiler is None else shares(watch.profiler, watch.wall, device)
    return Cost(
        head=name,
        samples_per_second=watch.rates[-1],
        in_operators=in_operators,
        in_wall=in_wall,
        peak_bytes=watch.peak.bytes,
        start_up=batch * steps * max(0.0, 1 / watch.rates[0] - 1 / watch.rates[-1]),
    )


def shares(profiler: profile, wall: float, device: torch.device) -> tuple[float, float]:
    """Time in matrix products as a share of the operators' own time, and of the wall clock."""
    total = products = 0.0
    for event in profiler.key_averages():
        if device.type == "cuda":
            seconds, marks = event.self_device_time_total / 1e6, KERNELS
            if event.device_type != torch.autograd.DeviceType.CUDA:
                continue
        else:
            seconds, marks = event.self_cpu_time_total / 1e6, PRODUCTS
        total += seconds
        products += seconds * any(mark in event.key.lower() for mark in marks)
    return products / max(total, 1e-12), products / wall


def recipe_seconds(
    *, videos: int, captions: int, dim: int, device: torch.device, precision: str, compile: bool
) -> tuple[float, float]:
    """Seconds of the MSR-VTT recipe on random features, and of its first epoch, from a fresh head to the last step."""
    table = made_up_table(videos * captions, videos, dim=dim, device=device)
    epochs: list[float] = []

    class Epochs(Reporter):
        def epoch(self, row: dict, *, best: bool) -> None:
            epochs.append(row["seconds"])

    torch.manual_seed(0)
    head = build_head("glscl", embed_dim=dim)
    synchronise(device)
    started = time.perf_counter()
    fit(
        head,
        table,
        TrainSettings(epochs=RECIPE_EPOCHS, batch_size=RECIPE_BATCH, precision=precision, compile=compile),
        device=device,
        reporter=Epochs(),
    )
    synchronise(device)
    return time.perf_counter() - started, epochs[0]


def row(cost: Cost, batch: int) -> list[str]:
    """A row of the table."""
    share = (
        ["not profiled"] * 2
        if cost.in_wall is None
        else [f"{100 * s:.0f} %" for s in (cost.in_operators, cost.in_wall)]
    )
    rate = cost.samples_per_second
    return [f"`{cost.head}`", digits(rate), digits(batch / rate), *share, digits(cost.peak_bytes / 2**30)]


def other_rows(costs: list[Cost], names: list[str], **options: Any) -> list[list[str]]:
    """The heads again, in each of the manners `ALSO` that are named: ratios to what they cost as they are."""
    rows = []
    for plain in costs:
        for name in names:
            torch.compiler.reset()
            cost = measure(plain.head, **{**options, **ALSO[name]})
            ratio = digits(cost.samples_per_second / plain.samples_per_second)
            memory = digits(cost.peak_bytes / max(plain.peak_bytes, 1))
            rows.append(
                [f"`{plain.head}`", name, digits(cost.samples_per_second), ratio, memory, digits(cost.start_up)]
            )
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", default=HEADS, help="names separated by commas")
    parser.add_argument("--batch", type=int, default=128, help="captions a step")
    parser.add_argument("--steps", type=int, default=None, help="a window; 4, on a GPU 100")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default=None, choices=("fp32", "tf32", "bf16"), help="fp32, on a GPU tf32")
    parser.add_argument("--compile", action="store_true", help="as of glscl train-head")
    parser.add_argument("--also", default="", help=f"measure again, in one run: {', '.join(ALSO)}, separated by commas")
    parser.add_argument("--once", action="store_true", help="one window: no burning in, no profile")
    parser.add_argument("--recipe-time", action="store_true", help="also train 180,000 captions for 5 epochs")
    parser.add_argument("--quick", action="store_true", help="batch 16, one step a window, a recipe of 40 videos")
    given = parser.parse_args(arguments)
    names = [name.strip() for name in given.heads.split(",")]
    unknown = [name for name in names if name not in HEAD_NAMES]
    if unknown:
        parser.error(f"there is no head {unknown[0]!r}")
    also = [name.strip() for name in given.also.split(",") if name.strip()]
    if set(also) - set(ALSO):
        parser.error(f"--also takes {', '.join(ALSO)}; found {given.also!r}")
    device = torch.device(given.device)
    batch, steps = given.batch, given.steps or (1 if given.once else 100 if device.type == "cuda" else 4)
    if given.quick:
        batch, steps = min(batch, 16), 1
    options = {
        "dim": given.dim,
        "device": device,
        "precision": given.precision or ("tf32" if device.type == "cuda" else "fp32"),
        "compile": given.compile,
    }
    print(f"# A training step ({time.strftime('%Y-%m-%d')})\n")
    print(f"{machine(device)}\n")
    print(f"Command: `{' '.join(['python benchmarks/train_step.py', *(arguments or sys.argv[1:])])}`\n")
    print(
        f"Batch {batch}, D={given.dim}, {FRAMES} frames, captions of 13 of {WORDS} tokens on average, {options['precision']}"
        f"{', compiled' if given.compile else ''}; {steps} steps a window.\n"
    )
    header = ["head", "samples/s", "s a step", "in products, of operators", "in products, of wall", "peak extra GiB"]
    costs = [measure(name, batch=batch, steps=steps, once=given.once, **options) for name in names]
    print(markdown(header, [row(cost, batch) for cost in costs]) + "\n")
    beside = "head and features" if given.once else "model, optimizer, gradients of the step before and features"
    print(f"Peak is of a step, above {beside}.\n")
    if also:
        header = ["head", "with", "samples/s", "times the first table", "peak memory, times", "start-up, s"]
        print(markdown(header, other_rows(costs, also, batch=batch, steps=steps, once=given.once, **options)) + "\n")
        print(
            'The same heads on the same batches, as in the first table but for what stands under "with". Start-up is what the '
            "first window took longer than the timed one: with `compile` it is compiling, paid once a run.\n"
        )
    pairs = RECIPE_VIDEOS * RECIPE_CAPTIONS * RECIPE_EPOCHS
    if given.recipe_time:
        videos = 40 if given.quick else RECIPE_VIDEOS
        seconds, first = recipe_seconds(videos=videos, captions=RECIPE_CAPTIONS, **options)
        print(
            f"The MSR-VTT recipe, {videos * RECIPE_CAPTIONS:,} captions × {RECIPE_EPOCHS} epochs at batch {RECIPE_BATCH} with "
            f"`glscl`: {digits(seconds)} s from a fresh head to the last step, the first epoch {digits(first)} s. The target "
            f"on one H200 is {RECIPE_TARGET:.0f} s."
        )
    else:
        estimates = ", ".join(f"`{c.head}` {digits(pairs / c.samples_per_second / 60)} min" for c in costs)
        print(
            f"The MSR-VTT recipe ({RECIPE_VIDEOS * RECIPE_CAPTIONS:,} captions × {RECIPE_EPOCHS} epochs) was not run; at the "
            f"rates above it takes {estimates}. On an H200 it is not measured; `--device cuda --recipe-time` does."
        )


if __name__ == "__main__":
    main()
