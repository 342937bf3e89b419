"""What `benchmarks/gpu.py` measures: one function a section, each of them in several small attempts.

B captions and as many videos a batch, D embed_dim, n frames.

A section says what it finds at once, by `Bench.row` (a line of a table) and `Bench.say` (a sentence); what fails is a line too, so
that a run which breaks off keeps all it had. Nothing here decides how long a section may take: that is the caller's.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu_bench import FRAMES, SMALL, WORDS, Bench, NotMeasured, products
from gpu_product import (
    Arithmetic,
    backbone_of,
    backward,
    caption_batch,
    command,
    encode_tokens,
    fit_head,
    flop_a_frame,
    forget_backbones,
    half,
    last_line,
    launch,
    made_up_table,
    model_of,
    new_head,
    noise,
    pictures,
    token_batch,
    video_batch,
)
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from common import digits, machine, peak_memory, synchronise
from glscl.cache.table import FeatureTable
from glscl.common import devices
from glscl.evaluate.similarity import ranks, similarity_matrix
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.batching import AHEAD
from glscl.train_head.learner import ContrastiveStep
from glscl.train_head.reports import Reporter, StepReport

ROOT = Path(__file__).parent.parent
BANDWIDTH = 4.8e12  # bytes a second of an H200, by its data sheet


# --- the machine -------------------------------------------------------------------------------------------------------


def the_machine(bench: Bench) -> None:
    """What it is, and what its matrix products and copies reach: the peaks that everything else is held against."""
    bench.say(machine(bench.device) + ".")
    with bench.attempt("driver"):
        if bench.cuda:
            asked = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
            found = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            bench.say(f"nvidia-smi: {found}; cuDNN {torch.backends.cudnn.version()}.")
    n = bench.sizes.product
    for name, dtype, tf32 in (
        ("fp16", torch.float16, False),
        ("bf16", torch.bfloat16, False),
        ("TF32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        with bench.attempt(f"{name} product"), products(tf32):
            a, b = (torch.randn(n, n, device=bench.device).to(dtype) for _ in range(2))
            seconds = bench.seconds(functools.partial(torch.mm, a, b), repeats=10)
            bench.row(
                "What the machine reaches",
                what=f"{name} product of {n}³",
                rate=f"{2 * n**3 / seconds / 1e12:.3g} TFLOP/s",
            )
    with bench.attempt("copies"):
        source = torch.empty(bench.sizes.copied, dtype=torch.uint8, device=bench.device).random_()
        target = torch.empty_like(source)
        seconds = bench.seconds(lambda: target.copy_(source), repeats=10)
        rate = f"{2 * source.numel() / seconds / 1e9:,.0f} GB/s read and written"
        bench.row("What the machine reaches", what="copy on the device", rate=rate)
        host = torch.zeros(bench.sizes.copied // 16, dtype=torch.uint8)
        kinds = {"pageable": host, **({"pinned": host.pin_memory()} if bench.cuda else {})}
        for kind, memory in kinds.items():
            onto = target[: len(memory)]
            seconds = bench.seconds(functools.partial(onto.copy_, memory, non_blocking=True), repeats=10)
            bench.row(
                "What the machine reaches",
                what=f"from {kind} host memory",
                rate=f"{len(memory) / seconds / 1e9:.3g} GB/s",
            )
    with bench.attempt("launches"):
        value = torch.zeros(1, device=bench.device)
        seconds = bench.seconds(lambda: value.add_(1), repeats=1000)
        bench.row(
            "What the machine reaches", what="one small operation after another", rate=f"{1e6 * seconds:.3g} µs each"
        )


# --- tests -------------------------------------------------------------------------------------------------------------


def marked_tests(bench: Bench) -> None:
    """The tests that need a GPU, in processes of their own."""
    files = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8")
    )
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=line", *files]
    if bench.cuda:
        command += ["-n", "4", "--dist", "load"]
    started = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = running.communicate(timeout=max(5.0, bench.left - 2))
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        output, _ = running.communicate()
        output += "\nstopped: the time was over"
    except BaseException:
        os.killpg(running.pid, signal.SIGKILL)
        raise
    lines = [line for line in output.splitlines() if line.strip()]
    bench.say(
        f"`pytest -m gpu`, {time.perf_counter() - started:.0f} s: {lines[-1].strip('= ') if lines else 'no output'}"
    )
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            bench.row("Tests that failed", test=line[:300].replace("|", "/"))
    (bench.folder / "tests.txt").write_text(output)


# --- attention ---------------------------------------------------------------------------------------------------------


def attention(bench: Bench) -> None:
    """Forward and backward pass of the shapes that occur, by each way torch has; what a new shape costs."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    N = bench.sizes.attention
    ways: dict[str, list[SDPBackend] | None] = {
        "torch's choice": None,
        "cuDNN": [SDPBackend.CUDNN_ATTENTION],
        "memory-efficient": [SDPBackend.EFFICIENT_ATTENTION],
        "flash": [SDPBackend.FLASH_ATTENTION],
        "plain": [SDPBackend.MATH],
    }
    kinds = [
        ("head, frames", (8, FRAMES, FRAMES), True, ("bfloat16", "float32")),
        ("head, shared queries on words", (8, 8, WORDS), True, ("bfloat16", "float32")),
        ("ViT-B/32", (12, 50, 50), False, ("float16",)),
    ]
    if not bench.cuda:
        ways = {name: way for name, way in ways.items() if name in ("torch's choice", "plain")}
    for kind, (heads, S, M), masked, dtypes in kinds:
        for dtype in dtypes:
            for name, way in ways.items():
                with bench.attempt(f"{kind}, {dtype}, {name}"):
                    shape, shared = (N, heads, S), S != M
                    step, chosen = _attention_step(bench, shape, M, masked, shared, getattr(torch, dtype))
                    other, _ = _attention_step(bench, shape, M - 1, masked, shared, getattr(torch, dtype))
                    with sdpa_kernel(way) if way else contextlib.nullcontext():
                        first, second, new = bench.once(step), bench.once(step), bench.once(other)
                        steady = bench.seconds(step)
                    bench.row(
                        f"Attention, forward and backward, {N} items of 64 a head",
                        what=f"{kind} {heads} × {S} × {M}{', masked' if masked else ''}",
                        dtype=dtype,
                        by=f"{name} ({chosen})" if way is None else name,
                        **{
                            "first call, ms": 1e3 * first,
                            "second, ms": 1e3 * second,
                            "first of another length, ms": 1e3 * new,
                            "then, µs": 1e6 * steady,
                        },
                    )


def _attention_step(
    bench: Bench, shape: tuple[int, int, int], M: int, masked: bool, shared: bool, dtype: torch.dtype
) -> tuple[Callable[[], None], str]:
    """A forward and a backward pass, and the way that torch chooses for it; `shared` queries are the same for all items."""
    N, heads, S = shape
    made = functools.partial(torch.randn, device=bench.device, dtype=dtype, requires_grad=True)
    own = made(1 if shared else N, heads, S, 64)
    q, k, v = own.expand(N, -1, -1, -1), made(N, heads, M, 64), made(N, heads, M, 64)
    real = torch.randint(max(1, M // 2), M + 1, (N, 1, 1, 1), device=bench.device)
    mask = torch.arange(M, device=bench.device) < real if masked else None
    upstream = torch.randn(N, heads, S, 64, device=bench.device, dtype=dtype)
    names = {0: "plain", 1: "flash", 2: "memory-efficient", 3: "cuDNN", 4: "overrideable"}

    def step() -> None:
        F.scaled_dot_product_attention(own.expand(N, -1, -1, -1), k, v, attn_mask=mask).backward(upstream)
        own.grad = k.grad = v.grad = None

    return step, names.get(int(torch._fused_sdp_choice(q, k, v, mask)), "?")


# --- training a head ---------------------------------------------------------------------------------------------------


BURNT_IN, TIMED = 2, 4  # windows; one more is profiled


class Watch(Reporter):
    """A training in windows of equally many steps: `BURNT_IN`, then `TIMED`, then one profiled.

    Attributes:
        seconds: of each window.
        notes: what the loop said; of a manner that it left out, why.
        launches, device_seconds: of the profiled window: what the host started, and how long the device worked.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.notes = device, [], []
        self.launches, self.device_seconds = 0, 0.0
        self._profiler: profile | None = None
        self._clock = time.perf_counter()

    @property
    def timed(self) -> float:
        """Mean seconds of a timed window."""
        return statistics.mean(self.seconds[BURNT_IN : BURNT_IN + TIMED])

    def note(self, text: str) -> None:
        self.notes.append(text)

    def step(self, report: StepReport) -> None:
        synchronise(self.device)
        self.seconds.append(time.perf_counter() - self._clock)
        if self._profiler is not None:
            self._profiler.stop()
            self._count(self._profiler)
            self._profiler = None
        elif len(self.seconds) == BURNT_IN + TIMED:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
            self._profiler = profile(activities=activities)
            self._profiler.start()
        self._clock = time.perf_counter()

    def _count(self, profiler: profile) -> None:
        starts = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpy", "cudaMemset")
        for event in profiler.key_averages():
            on_device = event.device_type == torch.autograd.DeviceType.CUDA
            if on_device and not getattr(event, "is_user_annotation", False):
                self.device_seconds += event.self_device_time_total / 1e6
            elif event.key.startswith(starts):
                self.launches += event.count


STEP, GRAPH = "A step of training", "A step of training as one graph"


def steps_table(bench: Bench) -> FeatureTable:
    """As many pairs as one head is watched for."""
    pairs = (BURNT_IN + TIMED + 1) * bench.sizes.batch * bench.sizes.window
    return made_up_table(pairs, pairs, dim=bench.sizes.dim, device=bench.device)


def step(bench: Bench) -> None:
    """A step of the real loop for each head in each arithmetic: as it is, recorded as CUDA graphs, compiled."""
    table = steps_table(bench)
    first, *others = bench.sizes.step_heads
    plan = [(first, how, "loop") for how in ("fp32", "TF32", "bf16")]
    plan += [(first, how, "recorded loop") for how in ("TF32", "bf16", "fp32")]
    plan += [(name, how, by) for name in others for by in ("loop", "recorded loop") for how in ("TF32", "bf16")]
    plan += [(first, "TF32", "compiled loop")]
    if bench.sizes is not SMALL:
        plan += [(first, "bf16", "compiled loop"), *((name, "TF32", "compiled loop") for name in others)]
    for name, how, by in plan:
        with bench.attempt(f"{name}, {how}, {by}"):
            if by != "loop" and not bench.cuda:
                raise NotMeasured("it is of interest on a GPU only")
            bench.require(40 if by == "compiled loop" else 0)
            _looped(bench, name, table, how, by=by)


def graphs(bench: Bench) -> None:
    """A step recorded whole as one CUDA graph and replayed: what is left when the host does nothing."""
    table = steps_table(bench)
    first, *others = bench.sizes.step_heads
    for name, how in [(first, how) for how in ("TF32", "bf16", "fp32")] + [(name, "TF32") for name in others]:
        with bench.attempt(f"{name}, {how}"):
            if not bench.cuda:
                raise NotMeasured("CUDA graphs need a GPU")
            _graphed(bench, name, table, how)


def _looped(bench: Bench, name: str, table: FeatureTable, arithmetic: str, *, by: str) -> None:
    torch.compiler.reset()
    window, watch = bench.sizes.window, Watch(bench.device)
    with peak_memory(bench.device) as peak:
        fit_head(bench, name, table, epochs=1, arithmetic=arithmetic, by=by, reporter=watch, log_every=window)
    if left_out := [line for line in watch.notes if "graphs" in line]:
        raise NotMeasured(left_out[0])
    took = watch.timed / window
    bench.row(
        STEP,
        head=name,
        by=by,
        arithmetic=arithmetic,
        **{
            "ms a step": 1e3 * took,
            "host starts": round(watch.launches / window) if bench.cuda else "–",
            "device ms": 1e3 * watch.device_seconds / window if bench.cuda else "–",
            "device busy": f"{100 * watch.device_seconds / window / took:.0f} %" if bench.cuda else "–",
            "first window longer, s": max(0.0, watch.seconds[0] - watch.timed),
            "peak GiB above features": peak.bytes / 2**30,
        },
    )


def _graphed(bench: Bench, name: str, table: FeatureTable, arithmetic: str) -> None:
    """Gathers, loss, gradients, clipping and update recorded once and replayed: what a loop without its host costs."""
    sizes, device = bench.sizes, bench.device
    torch.manual_seed(0)
    head = new_head(bench, name).to(device).train()
    loss_of = ContrastiveStep(head)
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=torch.tensor(1e-4, device=device), fused=True, capturable=True)
    rows = torch.randperm(table.num_texts, device=device).view(-1, sizes.batch)
    index = rows[0].clone()

    def once() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=arithmetic == "bf16"):
            loss = loss_of(table.texts(index, width=WORDS), table.videos(table.video_of_text[index]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        return loss

    with products(arithmetic == "TF32"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                once()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        started = time.perf_counter()
        with torch.cuda.graph(graph):
            loss = once()
        recording = time.perf_counter() - started
        number = iter(range(1 << 30))

        def replay() -> None:
            index.copy_(rows[next(number) % len(rows)])
            graph.replay()

        seconds = bench.seconds(replay, repeats=4 * sizes.window)
    if not torch.isfinite(loss):
        raise NotMeasured("the loss of the recorded step became NaN")
    bench.row(
        GRAPH,
        head=name,
        arithmetic=arithmetic,
        words=WORDS,
        **{"ms a step": 1e3 * seconds, "recording, s": recording},
    )


# --- the recipe --------------------------------------------------------------------------------------------------------


class Epochs(Reporter):
    """Notes when epochs end, and ends a training whose time is over."""

    def __init__(self, until: float) -> None:
        self.until, self.seconds, self.steps = until, [], 0

    def step(self, report: StepReport) -> None:
        self.steps = (report.epoch - 1) * report.steps + report.step
        self.total = report.epochs * report.steps
        if time.monotonic() > self.until:
            raise NotMeasured("the time was over")

    def epoch(self, row: Mapping[str, Any], *, best: bool) -> None:
        self.seconds.append(row["seconds"])


def recipe(bench: Bench) -> None:
    """The MSR-VTT recipe from a fresh head to the last step, with the fastest manner that `step` found."""
    videos, captions, epochs = bench.sizes.recipe
    clock = time.perf_counter()
    table = made_up_table(videos * captions, videos, dim=bench.sizes.dim, device=bench.device)
    synchronise(bench.device)
    made = time.perf_counter() - clock
    bench.say(
        f"{videos:,} videos × {FRAMES} frames, {videos * captions:,} captions × {epochs} epochs at batch {bench.sizes.batch}, "
        f"D={bench.sizes.dim}, features made up on the device ({made:.1f} s, not counted); no validation."
    )
    shares = {0: 0.6, 1: 0.55, 2: 0.9}
    steps = videos * captions * epochs // bench.sizes.batch
    for number, name in enumerate(bench.sizes.step_heads):
        with bench.attempt(name):
            bench.require(3)
            arithmetic, by = fastest(bench.earlier(), name, steps)
            torch.compiler.reset()
            watch = Epochs(time.monotonic() + shares.get(number, 0.5) * bench.left)
            started = time.perf_counter()
            with contextlib.suppress(NotMeasured):
                fit_head(
                    bench,
                    name,
                    table,
                    epochs=epochs,
                    arithmetic=arithmetic,
                    by=by,
                    reporter=watch,
                    log_every=50,
                )
            synchronise(bench.device)
            took = time.perf_counter() - started
            whole = watch.steps == watch.total
            bench.row(
                "The whole recipe",
                head=name,
                manner=f"{arithmetic}, {by}",
                **{
                    "steps run": f"{watch.steps:,} of {watch.total:,}",
                    "seconds of them": took,
                    "whole recipe, s": took
                    if whole
                    else f"about {digits(took * watch.total / watch.steps)} (by the share that ran)",
                    "first epoch, s": watch.seconds[0] if watch.seconds else "–",
                },
            )


def fastest(lines: list[dict[str, Any]], head: str, steps: int) -> tuple[str, str]:
    """Arithmetic and manner with which the real loop is soonest through so many steps, by the table of `step`."""
    found: dict[tuple[str, str], float] = {}
    for line in lines:
        if line.get("table") == STEP and line["row"]["head"] == head and "loop" in line["row"]["by"]:
            row = line["row"]
            total = row["first window longer, s"] + steps * row["ms a step"] / 1e3
            found[row["arithmetic"], row["by"]] = total
    return min(found, key=lambda manner: found[manner]) if found else ("TF32", "loop")


# --- encoders ----------------------------------------------------------------------------------------------------------


def first_encodes(bench: Bench) -> None:
    """The first and the second encode of each size that an extraction meets; a new size may cost a plan."""
    name, sizes = bench.sizes.encoders[0], bench.sizes
    backbone = backbone_of(name, bench.device, half(bench))
    frames = noise(backbone, max(sizes.frame_counts))
    for cudnn in (True, False):
        counts = sizes.frame_counts if cudnn else sizes.other_frame_counts
        widths = sizes.caption_widths if cudnn else sizes.other_caption_widths
        label = "as torch chooses" if cudnn else "without cuDNN attention"
        devices.CUDNN_ATTENTION = cudnn
        try:
            spent = []
            for count in counts:
                with bench.attempt(f"{count} frames, {label}"):
                    first, second = bench.twice(backbone.encode_frames, frames[:count])
                    spent.append(first - second)
                    _first_row(bench, f"{count} frames", label, first, second)
            for width in widths:
                with bench.attempt(f"{width} tokens, {label}"):
                    tokens = caption_batch(backbone, sizes.captions, width)
                    first, second = bench.twice(encode_tokens, backbone, tokens)
                    spent.append(first - second)
                    _first_row(bench, f"{sizes.captions} captions of {width} tokens", label, first, second)
            bench.say(
                f"{name}, {half(bench)}, {label}: first encodes cost {sum(spent[1:]):.2f} s more than second ones over "
                f"{len(spent) - 1} sizes after the very first, {1e3 * sum(spent[1:]) / max(1, len(spent) - 1):.0f} ms each."
            )
        finally:
            devices.CUDNN_ATTENTION = False


def _first_row(bench: Bench, what: str, label: str, first: float, second: float) -> None:
    bench.row(
        "First and second encode of a size",
        what=what,
        attention=label,
        **{"first, ms": 1e3 * first, "second, ms": 1e3 * second},
    )


def frames_a_second(bench: Bench) -> None:
    """Encoders alone, on frames that lie on the device, and from decoded frames in host memory."""
    for name in bench.sizes.encoders:
        with bench.attempt(name):
            bench.require(6)
            clock = time.perf_counter()
            backbone = backbone_of(name, bench.device, half(bench))
            bench.say(f"{name}: made with random weights in {time.perf_counter() - clock:.1f} s.")
            for batch in bench.sizes.encoder_batches:
                _encoder_rows(bench, backbone, batch)
    with bench.attempt("compiled encoder"):
        bench.require(45)
        if not bench.cuda:
            raise NotMeasured("a look on a CPU compiles nothing")
        _compiled_encoder(bench, backbone_of(bench.sizes.encoders[0], bench.device, half(bench)), 512)


def _encoder_rows(bench: Bench, backbone: Backbone, batch: int) -> None:
    flop, frames = flop_a_frame(backbone), noise(backbone, batch)
    resident = torch.from_numpy(frames).to(bench.device)
    repeats = max(2, min(20, bench.sizes.repeats))

    def row(how: str, seconds: float) -> None:
        share = flop * batch / seconds / 1e12
        bench.row(
            "Frames a second",
            encoder=backbone.name,
            batch=batch,
            how=how,
            **{"frames/s": batch / seconds, "TFLOP/s": share or "–", "of the fp16 peak": _of_peak(bench, share)},
        )

    for dtype in (torch.float16, torch.bfloat16) if bench.cuda else (torch.bfloat16,):

        @torch.inference_mode()
        def alone(dtype: torch.dtype = dtype) -> Tensor:
            with torch.autocast(bench.device.type, dtype):
                return backbone.image_features(resident)

        row(f"alone, {dtype_name(dtype)}", bench.seconds(alone, repeats=repeats))
    row("from host memory, one at a time", bench.seconds(lambda: backbone.encode_frames(frames), repeats=repeats))
    under_way: deque[Callable[[], np.ndarray]] = deque()

    def ahead() -> None:
        under_way.append(backbone.encode_later([frames]))
        if len(under_way) > AHEAD:
            under_way.popleft()()

    row("from host memory, as extraction does", bench.seconds(ahead, repeats=repeats, burn_in=AHEAD + 2))


def dtype_name(dtype: torch.dtype) -> str:
    return {torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]


def _of_peak(bench: Bench, reached: float) -> str:
    """Share of the fp16 product that `the_machine` measured."""
    for line in bench.earlier():
        row = line.get("row", {})
        if reached and str(row.get("what", "")).startswith("fp16 product"):
            return f"{100 * reached / float(row['rate'].split()[0]):.0f} %"
    return "–"


def _compiled_encoder(bench: Bench, backbone: Backbone, batch: int) -> None:
    resident = torch.from_numpy(noise(backbone, batch)).to(bench.device)
    compiled = torch.compile(backbone.image_features, dynamic=False)

    @torch.inference_mode()
    def alone() -> Tensor:
        with torch.autocast("cuda", torch.float16):
            return compiled(resident)

    first = bench.once(alone)
    seconds = bench.seconds(alone, repeats=20)
    reached = flop_a_frame(backbone) * batch / seconds / 1e12
    bench.row(
        "Frames a second",
        encoder=backbone.name,
        batch=batch,
        how=f"alone, fp16, compiled (first call {first:.0f} s)",
        **{"frames/s": batch / seconds, "TFLOP/s": reached, "of the fp16 peak": _of_peak(bench, reached)},
    )


# --- values ------------------------------------------------------------------------------------------------------------


def feature_values(bench: Bench) -> None:
    """The same frames and captions on GPU and CPU, and in each precision."""
    name, count = bench.sizes.encoders[0], bench.sizes.compared
    bench.say(
        f"{name}, random weights, {count} pictures and {count} captions; cosine of a feature with the reference's."
    )
    words = ["a", "man", "is", "talking", "about", "cars", "on", "the", "road", "while", "people", "cook"]
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(words, random.integers(3, 14))) for _ in range(count)]

    def features(device: torch.device, precision: str) -> dict[str, np.ndarray]:
        backbone = backbone_of(name, device, precision)
        pooled, tokens = encode_tokens(backbone, backbone.tokenize(texts))
        frames = backbone.encode_frames(pictures(backbone, count))
        return {"frames": frames, "captions": pooled, "tokens": tokens.reshape(-1, tokens.shape[-1])}

    cpu, gpu = torch.device("cpu"), bench.device
    with products(False):
        reference = features(cpu, "fp32")
        full = features(gpu, "fp32")
    cases: list[tuple[str, str, Callable[[], dict[str, np.ndarray]], dict[str, np.ndarray]]] = [
        ("fp32 on the device, TF32 off", "fp32 on the CPU", lambda: full, reference),
        ("fp32 as it is used", "fp32 on the CPU", lambda: features(gpu, "fp32"), reference),
        ("bf16", "fp32 on the device", lambda: features(gpu, "bf16"), full),
    ]
    if bench.cuda:
        cases.append(("fp16", "fp32 on the device", lambda: features(gpu, "fp16"), full))
    for found, against, make, expected in cases:
        with bench.attempt(f"{found} against {against}"):
            for side, values in make().items():
                a, b = (torch.from_numpy(x).double() for x in (values, expected[side]))
                real = b.norm(dim=-1) > 0
                cosine = F.cosine_similarity(a, b, dim=-1)[real]
                off = ((a - b).norm(dim=-1) / b.norm(dim=-1).clamp(min=1e-12))[real]
                bench.row(
                    "Values of features",
                    features=side,
                    found=found,
                    against=against,
                    **{
                        "1 − smallest cosine": f"{1 - cosine.min().item():.1e}",
                        "largest relative difference": f"{off.max().item():.1e}",
                    },
                )


# --- the same again ----------------------------------------------------------------------------------------------------


def same_again(bench: Bench) -> None:
    """The whole demo on the device by its commands; then, at the same time, trainings that should end alike.

    Of `train-head` and `finetune` each: twice with one seed, and once killed (SIGKILL) after its first checkpoint and
    taken up again.
    """
    demo, device = bench.folder / "demo", str(bench.device)
    started = time.perf_counter()
    command(bench, "demo", "--out", demo, "--videos", bench.sizes.demo_videos, "--epochs", 1, "--device", device)
    seconds = json.loads((demo / "seconds.json").read_text())
    bench.say(
        f"`glscl demo --videos {bench.sizes.demo_videos} --epochs 1 --device {bench.device.type}`: {time.perf_counter() - started:.0f} s "
        f"with start-up ({', '.join(f'{stage} {took} s' for stage, took in seconds.items())})."
    )
    common = ["--cache", demo / "cache", "--batch-size", 32, "--epochs", 2, "--device", device, "--seed", 3]
    again = {
        "train-head": ["train-head", *common, "--head", "glscl", "--precision", "fp32"],
        "train-head, bf16": ["train-head", *common, "--head", "glscl", "--precision", "bf16"],
        "finetune": [
            *("finetune", *common, "--run", demo / "runs" / "glscl", "--captions-per-video", 2),
            *("--workers", 2, "--precision", "bf16", "--checkpoint-every", 2),
        ],
    }
    if not bench.cuda:
        del again["train-head, bf16"]
    runs = {(name, copy): bench.folder / f"{name.split(',')[0]}-{len(name)}-{copy}" for name in again for copy in "ABC"}
    processes = {(name, copy): launch(bench, *again[name], "--out", out) for (name, copy), out in runs.items()}
    try:
        third = {name: (processes[name, "C"], runs[name, "C"]) for name in again}
        for name, how in kill_at_checkpoints(third, until=bench.deadline - 15):
            bench.say(f"{name}, third run: {how}.")
            processes[name, "C"] = launch(bench, *again[name], "--out", runs[name, "C"], "--resume")
        for (name, copy), process in processes.items():
            with bench.attempt(f"{name}, run {copy}"):
                output, _ = process.communicate(timeout=max(1.0, bench.left - 2))
                if process.returncode:
                    raise NotMeasured(f"exit status {process.returncode}: {last_line(output)}")
    finally:
        for process in processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    for name in again:
        for first, second, what in (("A", "B", "the same seed twice"), ("A", "C", "killed and resumed")):
            with bench.attempt(f"{name}: {what}"):
                if processes[name, first].returncode or processes[name, second].returncode:
                    raise NotMeasured("a run failed")
                bench.row(
                    "The same training again",
                    command=name,
                    what=what,
                    weights=alike(runs[name, first], runs[name, second]),
                )


def kill_at_checkpoints(
    started: dict[str, tuple[subprocess.Popen[str], Path]], *, until: float
) -> Iterator[tuple[str, str]]:
    """SIGKILL each run as soon as it could be resumed; its name and what happened.

    Args:
        started: name → its process, which leads a process group, and its run folder.
        until: `time.monotonic()` at which the others are left alone.
    """
    waiting = dict(started)
    while waiting and time.monotonic() < until:
        for name, (process, run) in list(waiting.items()):
            status = process.poll()
            if status is not None:
                how = f"ended by itself with status {status} before it could be killed"
            elif (run / "resume.safetensors").exists():
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                how = "killed after its first checkpoint, then taken up"
            else:
                continue
            del waiting[name]
            yield name, how
        time.sleep(0.005)


def alike(first: Path, second: Path) -> str:
    """How the last weights of two runs differ."""
    from safetensors.torch import load_file

    largest = 0.0
    for file in sorted(first.glob("*last.safetensors")):
        ours, theirs = load_file(file), load_file(second / file.name)
        largest = max(largest, *((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours))
    return "the same to the last bit" if largest == 0 else f"differ by {largest:.1e} at most"


# --- the second pass ---------------------------------------------------------------------------------------------------


def second_pass(bench: Bench) -> None:
    """Memory and milliseconds of a step of backbone and head together, batch as the recipe's."""
    sizes = bench.sizes
    backbone = backbone_of(sizes.tuned, bench.device, "fp32")
    model = model_of(bench, backbone)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in trained)
    bench.say(
        f"{sizes.tuned} and glscl, {count / 1e6:.0f} M trained parameters, {sizes.batch} videos × {FRAMES} frames, AdamW; "
        f"weights, gradients and moments are {16 * count / 2**30:.2f} GiB."
    )
    host = [noise(backbone, FRAMES) for _ in range(sizes.batch)]
    captions = token_batch(bench, backbone, sizes.batch, 16)
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    ready = bench.seconds(lambda: video_batch(bench, host), repeats=3, burn_in=1)
    bench.say(f"Frames of a batch from host memory to the device, through pinned buffers: {1e3 * ready:.3g} ms.")
    clips = video_batch(bench, host)
    for arithmetic in ("bf16", "TF32", "fp32") if bench.cuda else ("bf16",):
        for piece in (None,) if arithmetic == "fp32" else (None, max(1, sizes.batch // 4)):
            how = "whole batch" if piece is None else f"in pieces of {piece}"
            with bench.attempt(f"{arithmetic}, {how}"), products(arithmetic == "TF32"):
                way = Arithmetic(bench.device, arithmetic == "bf16")

                def one(piece: int | None = piece, way: Arithmetic = way) -> None:
                    backward(model, captions, clips, piece, way)
                    torch.nn.utils.clip_grad_norm_(trained, 1.0)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)

                first = bench.once(one)
                with peak_memory(bench.device) as peak:
                    seconds = bench.seconds(one, repeats=sizes.tuned_steps, burn_in=1)
                bench.row(
                    "A step of the second pass",
                    arithmetic=arithmetic,
                    how=how,
                    **{
                        "first, ms": 1e3 * first,
                        "ms a step": 1e3 * seconds,
                        "peak GiB above weights and moments": peak.bytes / 2**30,
                    },
                )
    forget_backbones()


# --- judging and searching ---------------------------------------------------------------------------------------------


def scoring(bench: Bench) -> None:
    """The similarity of a whole gallery, and ranks without the matrix."""
    for size in bench.sizes.scored:
        table = made_up_table(size, size, dim=bench.sizes.dim, device=bench.device)
        for name in ("glscl", "xpool"):
            head = new_head(bench, name).to(bench.device)
            ways: dict[str, Callable[..., Any]] = {"matrix": similarity_matrix}
            if size == bench.sizes.scored[-1]:
                ways["ranks"] = ranks
            for way, function in ways.items():
                with bench.attempt(f"{name}, {size}², {way}"):
                    bench.require(2)
                    with peak_memory(bench.device) as peak:
                        first = bench.once(function, head, table)
                    second = bench.once(function, head, table) if bench.left > 2 * first else None
                    bench.row(
                        "Scoring",
                        head=name,
                        gallery=f"{size:,} × {size:,}",
                        what=way,
                        **{
                            "first, s": first,
                            "again, s": "–" if second is None else second,
                            "peak GiB above features": peak.bytes / 2**30,
                        },
                    )


def nearest(queries: Tensor, gallery: Tensor, count: int) -> Tensor:
    """Rows of the vectors with the largest products, best first, on the host."""
    return (queries @ gallery.T).float().topk(count, dim=-1).indices.cpu()


@torch.inference_mode()
def search(bench: Bench) -> None:
    """The ten frames of a million that are nearest to a query, by brute force."""
    count, dim = bench.sizes.searched, bench.sizes.dim
    frames = F.normalize(torch.randn(count, dim, device=bench.device), dim=-1)
    queries = F.normalize(torch.randn(64, dim, device=bench.device), dim=-1)
    best = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        with bench.attempt(name), products(False):
            gallery = frames.to(dtype)
            for batch in (1, 64):
                times = [bench.once(nearest, queries[:batch].to(dtype), gallery, 10) for _ in range(12)]
                seconds = statistics.median(times[2:])
                bench.row(
                    f"Search among {count:,} frames, D={dim}",
                    arithmetic=name,
                    queries=batch,
                    **{
                        "ms, answer on the host": 1e3 * seconds,
                        "GB/s": count * dim * gallery.element_size() / seconds / 1e9,
                        "of the data sheet's": f"{100 * count * dim * gallery.element_size() / seconds / BANDWIDTH:.0f} %",
                    },
                )
            best[name] = nearest(queries.to(dtype), gallery, 100)
    for name in ("bf16", "fp16"):
        if "fp32" in best and name in best:
            exact = best["fp32"][:, :10]
            ten = np.mean([len(set(a) & set(b)) for a, b in zip(exact.tolist(), best[name][:, :10].tolist())])
            hundred = np.mean([len(set(a) & set(b)) for a, b in zip(exact.tolist(), best[name].tolist())])
            bench.say(
                f"Of the ten nearest by fp32, {name} has {ten:.2f} among its ten and {hundred:.2f} among its hundred "
                "(random vectors, mean of 64 queries)."
            )


@dataclass(frozen=True)
class Section:
    """One part of the note.

    Attributes:
        limit: seconds after which it is stopped.
        needs: seconds that the sections before leave it.
    """

    title: str
    run: Callable[[Bench], None]
    limit: float
    needs: float


SECTIONS = {
    "machine": Section("The machine", the_machine, 25, 8),
    "tests": Section("Tests that need a GPU", marked_tests, 110, 0),
    "attention": Section("Attention", attention, 30, 8),
    "step": Section("A step of training a head", step, 130, 50),
    "graphs": Section("A step as one CUDA graph", graphs, 40, 10),
    "recipe": Section("The MSR-VTT recipe", recipe, 150, 50),
    "encodes": Section("First encodes", first_encodes, 40, 15),
    "frames": Section("Frames a second", frames_a_second, 75, 25),
    "values": Section("Values of features", feature_values, 30, 12),
    "again": Section("The same again", same_again, 100, 50),
    "second-pass": Section("The second pass", second_pass, 40, 15),
    "scoring": Section("Scoring", scoring, 40, 12),
    "search": Section("Search", search, 20, 6),
}
