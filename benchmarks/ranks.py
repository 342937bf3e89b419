"""Ranks of galleries whose matrix would not fit: time and memory while captions and videos grow.

    python benchmarks/ranks.py
    python benchmarks/ranks.py --quick                      smaller galleries: a look, not a result
    python benchmarks/ranks.py --device cuda --sizes 100000x50000,1000000x100000

Vectors are random, one a caption and one a video (`mean_pool`, one frame), a tenth of the captions word for word like
another, so that there are ties. Ranks are of all three kinds that an evaluation reports. "Memory" is what the computation
takes beside features and ids, at its highest; "the matrix" is what it does without. Up to `--full` MB of matrix the ranks
are compared with those of the matrix itself. The last two galleries are as long in one direction as 1,000,000 captions and
100,000 videos: what is kept for each caption and for each video shows there.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from common import digits, machine, markdown, peak_memory, synchronise
from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.evaluate.metrics import retrieval_ranks
from glscl.evaluate.similarity import ranks, similarity_matrix
from glscl.train_head.heads import build_head

SIZES = "2000x2000,10000x5000,20000x10000,50000x20000,1000x100000,1000000x1000"
QUICK = "500x300,2000x1000,500x20000,20000x500"
TARGET = (1_000_000, 100_000)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One gallery: sizes, seconds, bytes beside the features, and whether the ranks are those of the matrix."""

    texts: int
    videos: int
    seconds: float
    peak_bytes: int
    equal: bool | None

    @property
    def pairs(self) -> int:
        return self.texts * self.videos


def made_up(texts: int, videos: int, *, dim: int, device: torch.device | str = "cpu") -> FeatureTable:
    """Captions near the vectors of their videos, in no order; every tenth is another's twin."""
    generator = torch.Generator().manual_seed(0)
    video = torch.randn(videos, dim, generator=generator)
    owner = torch.randint(0, videos, (texts,), generator=generator)
    text = video[owner] + 2 * torch.randn(texts, dim, generator=generator)
    twins = torch.arange(0, texts, 10)
    text[twins] = text[torch.randint(0, texts, (len(twins),), generator=generator)]
    frames = VideoFeatures(video[:, None], torch.ones(videos, 1, dtype=torch.bool))
    return FeatureTable.from_features(TextFeatures(text), frames, owner).to(device)


def measure(texts: int, videos: int, *, dim: int, device: torch.device, full_bytes: int) -> Measured:
    """Rank one gallery, and compare with its matrix where that has at most `full_bytes`."""
    table = made_up(texts, videos, dim=dim, device=device)
    head = build_head("mean_pool", embed_dim=dim).to(device)
    ranks(head, made_up(64, 32, dim=dim, device=device))  # libraries are loaded, kernels chosen
    with peak_memory(device) as peak:
        started = time.perf_counter()
        found = ranks(head, table)
        synchronise(device)
        seconds = time.perf_counter() - started
    equal = None
    if 4 * texts * videos <= full_bytes:
        expected = retrieval_ranks(similarity_matrix(head, table), table.video_of_text)
        equal = all(np.array_equal(found[direction], of) for direction, of in expected.items())
    return Measured(texts=texts, videos=videos, seconds=seconds, peak_bytes=peak.bytes, equal=equal)


def rows_of(measured: list[Measured]) -> list[list[str]]:
    said = {True: "yes", False: "NO", None: "not compared"}
    return [
        [
            f"{of.texts:,} x {of.videos:,}",
            f"{of.pairs / 1e6:,.1f}",
            digits(of.seconds),
            digits(of.seconds / of.pairs * 1e9),
            f"{of.peak_bytes / 1e6:,.0f}",
            f"{4 * of.pairs / 1e6:,.0f}",
            said[of.equal],
        ]
        for of in measured
    ]


def projection(measured: list[Measured], dim: int) -> str:
    """What the target needs, by the cost of a pair of the largest gallery and the memory of the longest ones."""
    largest = max(measured, key=lambda of: of.pairs)
    pairs = TARGET[0] * TARGET[1]
    seconds = largest.seconds / largest.pairs * pairs
    said = (
        f"{TARGET[0]:,} x {TARGET[1]:,} is {pairs / largest.pairs:,.0f} times the pairs of {largest.texts:,} x "
        f"{largest.videos:,}: at its cost of a pair {digits(seconds / 60)} minutes (not run), where the matrix would take "
        f"{4 * pairs / 1e9:,.0f} GB."
    )
    longest = [max(of.texts for of in measured), max(of.videos for of in measured)]
    if longest == list(TARGET):
        most = max(of.peak_bytes for of in measured) / 1e6
        said += (
            f" Both of its sides were run at full length, one at a time, and took at most {most:,.0f} MB. Nothing is kept "
            "for a pair: a score and six counts for each caption and video, the encoded videos "
            f"({4 * dim * TARGET[1] / 1e6:,.0f} MB at D={dim}), one byte for each tile of about half a million pairs, and a "
            "work space of fixed size."
        )
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=SIZES, help="galleries, captions x videos")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument(
        "--full", type=float, default=1000.0, help="MB of matrix up to which ranks are compared with it"
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}: a look, not a result")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    sizes = QUICK if arguments.quick and arguments.sizes == SIZES else arguments.sizes

    print(f"# Ranks without the matrix, {time.strftime('%Y-%m-%d')}\n\n{machine(device)}\n")
    print(
        f"    python benchmarks/ranks.py --sizes {sizes} --dim {arguments.dim} --full {arguments.full:g} "
        f"--device {arguments.device}\n"
    )
    measured = []
    for size in sizes.split(","):
        texts, videos = map(int, size.lower().split("x"))
        measured.append(measure(texts, videos, dim=arguments.dim, device=device, full_bytes=int(arguments.full * 1e6)))
    header = (
        "gallery",
        "million pairs",
        "seconds",
        "ns a pair",
        "memory MB",
        "the matrix MB",
        "ranks as of the matrix",
    )
    print(markdown(header, rows_of(measured)))
    small, large = (pick(measured, key=lambda of: of.pairs) for pick in (min, max))
    print(
        f"\nFrom {small.texts:,} x {small.videos:,} to {large.texts:,} x {large.videos:,} pairs grow "
        f"{large.pairs / small.pairs:,.0f} times, memory from {small.peak_bytes / 1e6:,.0f} to {large.peak_bytes / 1e6:,.0f} MB. "
        "Small galleries stay below the work space (256 MiB, on a GPU 4 GiB; half of it keeps what the first pass made for "
        f"the second), large ones stay at it.\n\n{projection(measured, arguments.dim)}\n"
    )
    print(
        "Not in these numbers: the features themselves. A split is held in memory whole: pooled captions and frames, and "
        "token features for heads that read them, so a million captions of 13 tokens and 512 dimensions in float16 are "
        "14 GB. Encoded captions are kept only as far as the work space goes, else made again; encoded videos are kept "
        "for all videos. Time with other heads was not measured here (benchmarks/heads.py has it)."
    )


if __name__ == "__main__":
    main()
