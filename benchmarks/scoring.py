"""GLSCL scores of a whole gallery: ours against the algorithm of the public evaluation loop, in one run.

    python benchmarks/scoring.py                 1,000 captions × 1,000 videos, as MSR-VTT 1k-A
    python benchmarks/scoring.py --size 4000     another gallery
    python benchmarks/scoring.py --quick         small sizes, one repeat: a look, not a result
    python benchmarks/scoring.py --device cuda

The plain algorithm cuts texts and videos into 16 × 16 tiles and for every tile runs the aggregator and both decoders and builds
the text-conditioned video vector of each pair, all sequences padded to 12 frames and 32 tokens. It is timed on a tile and on
growing galleries; its time for the whole is that of a tile, which does not depend on the size, times the number of tiles. Ours
is timed whole. Both get the same weights and features and must agree to 1e-5.

Standard output is a dated note in Markdown.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common import digits, machine, markdown, peak_memory, timed
from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.evaluate.similarity import similarity_matrix
from glscl.train_head.heads import build_head

TILE, FRAMES, WORDS = 16, 12, 32
AGREE = 1e-5
TARGET = 200


class PlainGlscl:
    """The score as one would write it down first: nothing shared between tiles, nothing factored.

    T texts, V videos, L tokens, F frames, D embed_dim, Q queries.
    """

    def __init__(self, head: nn.Module) -> None:
        self.head = head
        self.layers = nn.ModuleList()
        for ours in head.decoder.layers:
            layer = nn.TransformerDecoderLayer(head.embed_dim, 8, 2048, 0.0, batch_first=True)
            layer.load_state_dict(ours.state_dict())
            self.layers.append(layer.eval().requires_grad_(False).to(head.logit_scale.device))

    def decode(self, memory: Tensor, mask: Tensor) -> Tensor:
        """(N, M, D) → (N, Q, D), normalised."""
        state = self.head.queries.expand(len(memory), -1, -1)
        for layer in self.layers:
            state = layer(state, memory, memory_key_padding_mask=~mask)
        return F.normalize(state, dim=-1)

    def tile(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """(T, V) similarity of one tile."""
        frames = self.head.aggregator(video.frame_features, video.frame_mask, padding_is_read=True)  # (V, F, D)
        dots = torch.einsum("td,vfd->tvf", text.text_features, frames)
        weights = (dots / self.head.temperature).masked_fill(~video.frame_mask, -torch.inf).softmax(-1)  # (T, V, F)
        pooled = torch.einsum("tvf,vfd->tvd", weights, frames)
        similarity = torch.einsum("td,tvd->tv", F.normalize(text.text_features, dim=-1), F.normalize(pooled, dim=-1))
        seen = self.decode(frames, video.frame_mask)  # (V, Q, D)
        read = self.decode(text.token_features, text.token_mask)  # (T, Q, D)
        local = torch.einsum("tqd,vqd->tvq", read, seen).mean(-1)
        return similarity + self.head.local_weight * local

    def matrix(self, table: FeatureTable) -> Tensor:
        """(T, V) in tiles of 16 × 16, both sides encoded again for each."""
        starts = range(0, table.num_texts, TILE)
        return torch.cat([torch.cat([self.tile(*tile_features(table, t, v)) for v in starts], 1) for t in starts])


def tile_features(table: FeatureTable, text: int, video: int) -> tuple[TextFeatures, VideoFeatures]:
    """Features of the tile whose first text and video are given, padded as the public program pads."""
    return table.texts(slice(text, text + TILE), width=WORDS), table.videos(slice(video, video + TILE))


def made_up_table(size: int, *, dim: int, device: torch.device) -> FeatureTable:
    """Features of MSR-VTT's shapes: 13 of 32 words on average, 10 to 12 frames."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(size, generator=generator).mul(4).add(13).round().clamp(4, WORDS)
    counts = torch.randint(10, FRAMES + 1, (size,), generator=generator)
    texts, frames = torch.randn(size, dim, generator=generator), torch.randn(size, FRAMES, dim, generator=generator)
    tokens = torch.randn(size, WORDS, dim, generator=generator)
    return FeatureTable.from_features(
        TextFeatures(texts, tokens, torch.arange(WORDS) < lengths[:, None]),
        VideoFeatures(frames, torch.arange(FRAMES) < counts[:, None]),
    ).to(device)


def tiles_in(size: int) -> float:
    """Tiles of a gallery, one that the border cuts counted by its share."""
    return math.ceil(size / TILE) * size / TILE


def power_law(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """`a` and `p` of `a · size^p`, by least squares on logarithms."""
    x, y = torch.tensor(sizes, dtype=torch.float64).log(), torch.tensor(seconds, dtype=torch.float64).log()
    power = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return (y.mean() - power * x.mean()).exp().item(), power.item()


def flops(function: Callable[[], object]) -> int:
    """Two for every multiply-add of matrix products and attention."""
    torch.backends.mha.set_fastpath_enabled(False)  # one opaque call, whose products the counter does not see
    try:
        with FlopCounterMode(display=False) as counter:
            function()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops()


def product_speed(dim: int, *, device: torch.device) -> float:
    """FLOP a second of the float32 products that encoders are made of, the best of several sizes and tries."""
    best = 0.0
    for rows, width, out in ((480, dim, 4 * dim), (4096, dim, 4 * dim), (4096, 4 * dim, dim), (8192, dim, 3 * dim)):
        left, weight = torch.randn(rows, width, device=device), torch.randn(out, width, device=device)
        for _ in range(5):
            seconds = timed(lambda a=left, b=weight: a @ b.T, repeats=1, device=device)
            best = max(best, 2 * rows * width * out / seconds)
    return best


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1000, help="captions and videos")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median is taken")
    parser.add_argument("--quick", action="store_true", help="sizes of 64 and below, one repeat")
    given = parser.parse_args(arguments)
    if given.quick:
        given.size, given.repeats = min(given.size, 64), 1
    device = torch.device(given.device)
    torch.manual_seed(0)
    head = build_head("glscl", embed_dim=given.dim).eval().requires_grad_(False).to(device)
    plain = PlainGlscl(head)
    print(f"# Scoring a gallery with GLSCL ({time.strftime('%Y-%m-%d')})\n")
    print(f"{machine(device)}\n")
    print(f"Command: `{' '.join(['python benchmarks/scoring.py', *(arguments or sys.argv[1:])])}`\n")
    print(f"D={given.dim}, {FRAMES} frames, {WORDS} tokens (13 real on average), 8 queries, 3 layers, float32.\n")

    def ours_on(table: FeatureTable, stages: dict[str, float] | None = None) -> Tensor:
        return similarity_matrix(head, table, seconds=stages)

    def row(name: str, seconds: float, flop: float) -> list[str]:
        ratios = digits(whole / seconds), digits(plain_flops / flop)
        return [name, digits(seconds), digits(flop / 1e12), digits(flop / seconds / 1e9), *ratios]

    small = made_up_table(4 * TILE, dim=given.dim, device=device)
    difference = (plain.matrix(small).cpu() - ours_on(small)).abs().max().item()
    print(f"Largest difference of the two on {len(small.captions)} × {len(small.captions)}: {difference:.1e}.\n")
    if not difference < AGREE:
        sys.exit(f"the two differ by {difference:.1e}, more than {AGREE:.0e}")

    measured: dict[str, list[tuple[int, float]]] = {"plain": [], "ours": []}
    plain_sizes = [TILE, 2 * TILE] if given.quick else [TILE, 2 * TILE, 4 * TILE, 8 * TILE]
    for size in plain_sizes:
        table = made_up_table(size, dim=given.dim, device=device)
        seconds = timed(lambda t=table: plain.matrix(t), repeats=given.repeats if size < 8 * TILE else 1, device=device)
        measured["plain"].append((size, seconds))
    stages: dict[str, float] = {}
    for size in [given.size // 8, given.size // 4, given.size // 2, given.size]:
        table = made_up_table(size, dim=given.dim, device=device)
        with peak_memory(device) as peak:
            ours_on(table)
        stages.clear()
        seconds = timed(lambda t=table: ours_on(t, stages), repeats=given.repeats, burn_in=0, device=device)
        measured["ours"].append((size, seconds))
    laws = {name: power_law(*zip(*points)) for name, points in measured.items()}
    rows = [[name, f"{n} × {n}", digits(s)] for name, points in measured.items() for n, s in points]
    print(markdown(["algorithm", "captions × videos", "seconds"], rows) + "\n")
    for name, (_, power) in laws.items():
        print(f"* {name}: seconds grow as size^{power:.2f}")

    first = made_up_table(TILE, dim=given.dim, device=device)
    tile = timed(lambda: plain.tile(*tile_features(first, 0, 0)), repeats=9, burn_in=2, device=device)
    whole = tile * tiles_in(given.size)
    plain_flops = flops(lambda: plain.tile(*tile_features(first, 0, 0))) * tiles_in(given.size)
    ours, ours_flops = measured["ours"][-1][1], flops(lambda: ours_on(table))
    speed = product_speed(given.dim, device=device)
    print(f"\n## {given.size:,} × {given.size:,}\n")
    header = ["algorithm", "seconds", "TFLOP", "GFLOP/s", "ratio of seconds", "ratio of FLOP"]
    print(markdown(header, [row("plain", whole, plain_flops), row("ours", ours, ours_flops)]) + "\n")
    print(f"Plain is {digits(1e3 * tile)} ms a tile, times {tiles_in(given.size):,.0f} tiles; ours was timed whole.")
    print(
        f"The target is a ratio of {TARGET} at 1,000 × 1,000: {digits(whole / ours)} is {'above' if whole > TARGET * ours else 'below'} it."
    )
    share = ", ".join(f"{name} {100 * s / sum(stages.values()):.0f} %" for name, s in stages.items())
    print(f"Ours spends {share}; its peak memory is {peak.bytes / 2**20:.0f} MiB above model and features.\n")
    best = ours_flops / speed
    print(
        f"The floor is arithmetic: float32 products run at {speed / 1e9:.0f} GFLOP/s here at best, at which the "
        f"{digits(ours_flops / 1e12)} TFLOP of ours take {digits(best)} s, {100 * best / ours:.0f} % of the measured time. At this "
        f"size this machine can therefore show about {digits(max(whole / best, whole / ours))} times and no more. That arithmetic "
        "is one pass of aggregator and decoder an item, on its real frames and tokens; fewer operations would need another "
        f"model, cheaper ones a precision that does not agree to {AGREE:.0e}."
    )
    (a, p), (b, q) = laws["plain"], laws["ours"]
    if p > q:
        print(
            f"\nThe ratio grows with the gallery: by the fits it passes {TARGET} at about {(TARGET * b / a) ** (1 / (p - q)):,.0f} "
            "captions and videos."
        )


if __name__ == "__main__":
    main()
