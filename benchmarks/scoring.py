"""GLSCL scores of a whole gallery: ours against the algorithm of the public evaluation loop, in one run.

    python benchmarks/scoring.py                 1,000 × 1,000 captions and videos, as MSR-VTT 1k-A
    python benchmarks/scoring.py --size 256      smaller

The plain algorithm cuts texts and videos into 16 × 16 tiles and for every tile runs the aggregator, both decoders, and builds the
text-conditioned video vector of each pair. It is timed on tiles, on growing sizes, and its whole is extrapolated from the cost of a tile,
which does not depend on the size; ours is timed whole. Both get the same weights and must agree to 1e-5.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.feature_table import FeatureTable
from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.evaluate.similarity import similarity_matrix
from glscl.train_head.heads import build_head
from glscl.versions import versions

TILE = 16


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
            self.layers.append(layer.eval())

    def decode(self, memory: Tensor, mask: Tensor) -> Tensor:
        """(N, M, D) → (N, Q, D), normalised."""
        state = self.head.queries.expand(len(memory), -1, -1)
        for layer in self.layers:
            state = layer(state, memory, memory_key_padding_mask=~mask)
        return F.normalize(state, dim=-1)

    def tile(self, text: TextFeatures, video: VideoFeatures) -> Tensor:
        """(T, V) similarity of one tile."""
        frames = self.head.aggregator(video.frame_features, video.frame_mask)  # (V, F, D)
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
        spans = [slice(i, i + TILE) for i in range(0, table.num_texts, TILE)]
        return torch.cat([torch.cat([self.tile(table.texts(t), table.videos(v)) for v in spans], 1) for t in spans])


def made_up_table(size: int, *, frames: int = 12, words: int = 32, dim: int = 512) -> FeatureTable:
    """Features of MSR-VTT's shapes: 13 of 32 words on average, most clips with all 12 frames."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randn(size, generator=generator).mul(4).add(13).round().clamp(4, words)
    counts = torch.randint(10, frames + 1, (size,), generator=generator)
    return FeatureTable.from_arrays(
        torch.randn(size, dim, generator=generator),
        torch.randn(size, frames, dim, generator=generator),
        frame_mask=torch.arange(frames) < counts[:, None],
        token_features=torch.randn(size, words, dim, generator=generator),
        token_mask=torch.arange(words) < lengths[:, None],
    )


def timed(function: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds after one warm-up."""
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1000, help="captions and videos")
    parser.add_argument("--dim", type=int, default=512)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    head = build_head("glscl", embed_dim=arguments.dim).eval()
    plain = PlainGlscl(head)

    print(f"torch {versions()['torch']}, {torch.get_num_threads()} threads, D={arguments.dim}, 12 frames, 32 tokens")
    small = made_up_table(64, dim=arguments.dim)
    difference = (plain.matrix(small) - similarity_matrix(head, small)).abs().max().item()
    print(f"largest difference on 64 × 64: {difference:.1e}")
    assert difference < 1e-5

    print("\n| size | plain s | ours s | ratio |\n|---|---|---|---|")
    for size in (32, 64, 128):
        table = made_up_table(size, dim=arguments.dim)
        a, b = timed(lambda t=table: plain.matrix(t), 1), timed(lambda t=table: similarity_matrix(head, t))
        print(f"| {size} × {size} | {a:.2f} | {b:.3f} | {a / b:.0f} |", flush=True)

    table = made_up_table(arguments.size, dim=arguments.dim)
    text, video = table.texts(slice(0, TILE)), table.videos(slice(0, TILE))
    tile = timed(lambda: plain.tile(text, video), 9)
    tiles = (-(-arguments.size // TILE)) ** 2
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stages: dict[str, float] = {}
    ours = timed(lambda: similarity_matrix(head, table, seconds=stages))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"\n{arguments.size} × {arguments.size}:")
    print(f"  plain: {tile * 1e3:.1f} ms a tile × {tiles} tiles = {tile * tiles:.0f} s (extrapolated)")
    share = ", ".join(f"{name} {100 * s / sum(stages.values()):.0f} %" for name, s in stages.items())
    print(f"  ours:  {ours:.2f} s ({share}), peak memory {peak:.0f} MB above the inputs")
    print(f"  ratio: {tile * tiles / ours:.0f}")


if __name__ == "__main__":
    main()
