"""What every head costs: time and memory for a gallery and for a training batch, parameters, exact FLOPs of a pair.

    python benchmarks/heads.py                              all heads, 1,000 captions × 1,000 videos, batches of 1,024
    python benchmarks/heads.py --whole tight_transf         that head's gallery to its end: half an hour of two cores
    python benchmarks/heads.py --heads glscl,xpool --pairs 200x5000
    python benchmarks/heads.py --quick                      smaller, and little patience: a look, not a result
    python benchmarks/heads.py --device cuda

Features are random, of MSR-VTT's shapes (12 frames, 32 tokens, no padding). Encoding is what depends on one side and
is done once a caption and once a video; scoring is what grows with the pairs. A head that would take longer than
`--patience` seconds for all pairs is timed on a part of them, and the table says on how many; `--whole` names heads that
score the whole gallery however long it takes. What takes longer than a third of the patience is done once, not thrice.

FLOPs are counted by `torch.utils.flop_counter`: two per multiply-add of matrix products, convolutions and attention.
"A pair, encoding included" is one caption with one video: what a program pays that shares nothing between pairs. "Each
further pair" is by how much the score of a gallery grows with a pair, when both sides are encoded. The last column is
what GLSCL's paper prints, without saying for how many pairs; its Prompt Switch is no head (it changes the backbone).

Standard output is a dated note.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from common import digits, machine, markdown, peak_memory, synchronise, timed
from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.evaluate.published import HEAD_GFLOPS
from glscl.train_head.heads import HEAD_NAMES, build_head
from glscl.train_head.heads.base import Head, slice_items

PAPER = {"glscl": "GLSCL", "seq_transf": "CLIP4Clip", "xclip": "X-CLIP", "xpool": "X-Pool"}
FRAMES, TOKENS = 12, 32


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one head costs.

    Attributes:
        parameters: learned numbers, without the temperature.
        pair_flops: of one caption with one video, encoding both.
        further_flops: of one more pair of what is encoded already.
        encode_seconds: of all captions and all videos.
        score_seconds: of `pairs` pairs.
        pairs: that were timed.
        peak_bytes: memory beside features and parameters, encodings and result included, at its highest.
    """

    head: str
    parameters: int
    pair_flops: int
    further_flops: int
    encode_seconds: float
    score_seconds: float
    pairs: int
    peak_bytes: int

    @property
    def seconds_per_million(self) -> float:
        return self.score_seconds / self.pairs * 1e6


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What the pairs of a training batch cost one head: score and backward pass, down to the encodings.

    Attributes:
        seconds: of `pairs` pairs.
        pairs: that were timed.
        peak_bytes: memory beside encodings and parameters, gradients included, at its highest.
    """

    head: str
    seconds: float
    pairs: int
    peak_bytes: int

    @property
    def seconds_per_million(self) -> float:
        return self.seconds / self.pairs * 1e6


def features(texts: int, videos: int, *, dim: int, device: torch.device) -> tuple[TextFeatures, VideoFeatures]:
    """Random captions and videos, every token and frame real."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def real(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.bool, device=device)

    text = TextFeatures(normal(texts, dim), normal(texts, TOKENS, dim), real(texts, TOKENS))
    return text, VideoFeatures(normal(videos, FRAMES, dim), real(videos, FRAMES))


def make_head(name: str, *, dim: int, device: torch.device) -> Head:
    """The head with its defaults, fixed."""
    torch.manual_seed(0)
    return build_head(name, embed_dim=dim).eval().requires_grad_(False).to(device)


@torch.no_grad()
def count_flops(head: Head, *, dim: int) -> tuple[int, int]:
    """Exact FLOPs of one caption with one video, encoding included; and of one more pair, once both are encoded.

    Scoring t captions with v videos in one tile costs `a t v + b t + c v + d`; the second number is `a`, from four sizes.
    """
    home, tile_bytes = head.logit_scale.device, head.tile_bytes
    head.to("cpu")
    head.tile_bytes = 1 << 40
    text, video = features(32, 2, dim=dim, device=torch.device("cpu"))

    def scored(texts: int, videos: int) -> int:
        with FlopCounterMode(display=False) as counter:
            head.score(slice_items(encoded_text, 0, texts), slice_items(encoded_video, 0, videos))
        return counter.get_total_flops()

    # oneDNN's recurrent kernel and the fused kernel of attention are opaque calls; without them an LSTM and a layer of
    # attention are the matrix products that are counted.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TF32 acceleration")
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as counter:
                encoded_text = head.encode_text(slice_items(text, 0, 1))
                encoded_video = head.encode_video(slice_items(video, 0, 1))
                head.score(encoded_text, encoded_video)
            encoded_text, encoded_video = head.encode_text(text), head.encode_video(video)
            further = (scored(32, 2) - scored(32, 1) - scored(16, 2) + scored(16, 1)) / 16
    head.to(home)
    head.tile_bytes = tile_bytes
    return counter.get_total_flops(), round(further)


@torch.no_grad()
def measure(
    name: str,
    texts: int,
    videos: int,
    *,
    dim: int,
    device: torch.device,
    patience: float,
    repeats: int,
    whole: bool = False,
) -> Cost:
    """Time, memory, parameters and FLOPs of one head; `whole` scores all pairs whatever the patience."""
    head = make_head(name, dim=dim, device=device)
    pair, further = count_flops(head, dim=dim)
    text, video = features(texts, videos, dim=dim, device=device)

    def encode() -> tuple[Any, Any]:
        return head.encode_text(text), head.encode_video(video)

    with peak_memory(device) as encoding:
        encoded = encode()
    kept = sum(field.numel() * field.element_size() for side in encoded for field in side)
    encode_seconds = timed(encode, repeats=repeats, burn_in=0, device=device)
    score = head.score
    sides = encoded if whole else _affordable(score, *encoded, device=device, patience=patience)
    pairs = len(sides[0][0]) * len(sides[1][0])
    score_seconds, score_bytes = _measured(lambda: score(*sides), repeats=repeats, patience=patience, device=device)
    return Cost(
        head=name,
        parameters=sum(p.numel() for p in head.parameters()) - head.logit_scale.numel(),
        pair_flops=pair,
        further_flops=further,
        encode_seconds=encode_seconds,
        score_seconds=score_seconds,
        pairs=pairs,
        peak_bytes=max(encoding.bytes, kept + score_bytes),
    )


def measure_learning(
    name: str, batch: int, *, dim: int, device: torch.device, patience: float, repeats: int
) -> Learning:
    """Time and memory of the pairs of one training batch, backward included."""
    head = make_head(name, dim=dim, device=device).train().requires_grad_(True)
    text, video = features(batch, batch, dim=dim, device=device)
    with torch.no_grad():
        encoded = head.encode_text(text), head.encode_video(video)

    def learn(text_side: Any, video_side: Any) -> None:
        head.zero_grad()
        sides = [
            type(side)(*(f.detach().requires_grad_(f.is_floating_point()) for f in side))
            for side in (text_side, video_side)
        ]
        head.score(*sides).square().mean().backward()

    sides = _affordable(learn, *encoded, device=device, patience=patience)
    seconds, peak = _measured(lambda: learn(*sides), repeats=repeats, patience=patience, device=device)
    return Learning(head=name, seconds=seconds, pairs=len(sides[0][0]) * len(sides[1][0]), peak_bytes=peak)


def _measured(call: Callable[[], object], *, repeats: int, patience: float, device: torch.device) -> tuple[float, int]:
    """Seconds and peak bytes of a call: of the first one where `repeats` would take longer than `patience`, else the median."""
    with peak_memory(device) as peak:
        seconds = timed(call, repeats=1, burn_in=0, device=device)
    if seconds * repeats < patience:
        seconds = timed(call, repeats=repeats, burn_in=0, device=device)
    return seconds, peak.bytes


def _affordable(
    work: Callable[[Any, Any], object], text: Any, video: Any, *, device: torch.device, patience: float
) -> tuple[Any, Any]:
    """As large a part of all pairs as `work` is done on within `patience` seconds, by doubling from a few pairs."""
    texts, videos = len(text[0]), len(video[0])
    some_texts, some_videos = min(texts, 4), min(videos, 4)
    while some_texts < texts or some_videos < videos:
        sides = slice_items(text, 0, some_texts), slice_items(video, 0, some_videos)
        work(*sides)
        synchronise(device)
        spent = timed(lambda sides=sides: work(*sides), repeats=1, burn_in=0, device=device)
        growth = patience / max(spent, 1e-9)  # how many times the pairs would fit
        if growth >= texts * videos / (some_texts * some_videos):
            return text, video
        if growth < 4:
            break
        some_texts, some_videos = min(2 * some_texts, texts), min(2 * some_videos, videos)
    return slice_items(text, 0, some_texts), slice_items(video, 0, some_videos)


def row(cost: Cost, gallery: int) -> list[str]:
    """A row of the table."""
    paper = PAPER.get(cost.head)
    published = f"{HEAD_GFLOPS[paper]} ({paper})" if paper else "–"
    return [
        f"`{cost.head}`",
        f"{cost.parameters:,}",
        digits(cost.encode_seconds),
        digits(cost.seconds_per_million),
        "all" if cost.pairs == gallery else f"{cost.pairs:,}",
        digits(cost.peak_bytes / 2**20),
        digits(cost.pair_flops / 1e9),
        digits(cost.further_flops / 1e6),
        published,
    ]


def learning_row(cost: Learning, batch: int) -> list[str]:
    """A row of the table of training."""
    timed_on = "all" if cost.pairs == batch**2 else f"{cost.pairs:,}"
    return [f"`{cost.head}`", digits(cost.seconds_per_million), timed_on, digits(cost.peak_bytes / 2**20)]


def meaning(costs: Sequence[Cost], learned: Sequence[Learning], gallery: int, batch: int) -> str:
    """What the tables say, in sentences."""
    cheap, dear = (pick(costs, key=lambda cost: cost.seconds_per_million) for pick in (min, max))
    hungry, greedy = (max(found, key=lambda cost: cost.peak_bytes) for found in (costs, learned))
    times = digits(dear.seconds_per_million / cheap.seconds_per_million, 2)
    lines = [f"A pair costs `{dear.head}` {times} times what it costs `{cheap.head}`."] if len(costs) > 1 else []
    lines += [
        f"Scoring took {hungry.peak_bytes / 2**20:,.0f} MiB at most (`{hungry.head}`), the pairs of a training "
        f"batch {greedy.peak_bytes / 2**20:,.0f} MiB (`{greedy.head}`):",
        "pairs are computed in tiles, and the backward pass computes each tile again instead of keeping it.",
    ]
    timings = [("gallery", cost, gallery) for cost in costs] + [("batch", cost, batch**2) for cost in learned]
    for what, cost, pairs in timings:
        minutes = digits(cost.seconds_per_million * pairs / 6e7, 2)
        if cost.pairs < pairs:
            lines.append(
                f"`{cost.head}` was timed on a part of the {what}: by its cost a pair all of it takes {minutes} minutes.\n"
                "Beside the similarities its memory does not grow further: more pairs are more tiles of the same size."
            )
        elif cost.seconds_per_million * pairs > 6e7:
            lines.append(f"The whole {what} took `{cost.head}` {minutes} minutes.")
    lines.append(
        "Not measured here: encoding in a training step (it grows with the batch, not with its square), padded "
        "features,\nhalf precision, and galleries whose encodings do not fit memory."
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", default=",".join(HEAD_NAMES), help="names separated by commas; all by default")
    parser.add_argument("--pairs", default="1000x1000", help="captions x videos, or one number for both")
    parser.add_argument("--batch", type=int, default=1024, help="captions, and videos, of a training batch")
    parser.add_argument("--dim", type=int, default=512, help="size of the features")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds for a head's pairs; inf: all of them")
    parser.add_argument("--whole", default="", help="heads whose gallery is scored whole, whatever the patience")
    parser.add_argument("--quick", action="store_true", help="100 x 100, batch 64, one repeat, patience of a second")
    given = parser.parse_args(arguments)
    try:
        sizes = [int(part) for part in given.pairs.lower().split("x")]
        texts, videos = sizes * 2 if len(sizes) == 1 else sizes
    except ValueError:
        parser.error(f"--pairs is {given.pairs!r}; expected N or NxM")
    heads = [name.strip() for name in given.heads.split(",")]
    whole = [name.strip() for name in given.whole.split(",") if name]
    unknown = [name for name in (*heads, *whole) if name not in HEAD_NAMES]
    if unknown or min(texts, videos) < 1:
        parser.error(f"there is no head {unknown[0]!r}" if unknown else "--pairs must be at least 1x1")
    if given.quick:
        texts, videos, given.repeats, given.patience = min(texts, 100), min(videos, 100), 1, 1.0
        given.batch = min(given.batch, 64)
    device = torch.device(given.device)
    options = {"dim": given.dim, "device": device, "patience": given.patience, "repeats": given.repeats}
    print(f"# Heads: time, memory, parameters, FLOPs\n\n{machine(device)}\n")
    print(f"    python benchmarks/heads.py {shlex.join(sys.argv[1:] if arguments is None else arguments)}\n")
    print(f"D={given.dim}, {FRAMES} frames, {TOKENS} tokens, float32; medians of {given.repeats}.\n")
    print(f"## A gallery of {texts:,} captions × {videos:,} videos\n")
    header = [
        "head", "parameters", "encode s", "s per million pairs", "pairs timed", "peak extra MiB",
        "GFLOP a pair, encoding included", "MFLOP each further pair", "paper's G",
    ]  # fmt: skip
    costs = [measure(name, texts, videos, whole=name in whole, **options) for name in heads]
    print(markdown(header, [row(cost, texts * videos) for cost in costs]))
    print(f"\n## The pairs of a training batch of {given.batch:,}, backward included\n")
    header = ["head", "s per million pairs", "pairs timed", "peak extra MiB"]
    learned = [measure_learning(name, given.batch, **options) for name in heads]
    print(markdown(header, [learning_row(cost, given.batch) for cost in learned]))
    print(f"\n{meaning(costs, learned, texts * videos, given.batch)}")


if __name__ == "__main__":
    main()
