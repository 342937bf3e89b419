"""How the stages behind extraction grow: writing, opening and loading a cache, encoding a gallery once, asking it one question.

    python benchmarks/scaling.py                1,000 to 8,000 videos, 512-d, 12 frames, one caption each
    python benchmarks/scaling.py --quick        sixteen times smaller

Standard output is the result, in Markdown. The last column is the exponent b of seconds ∝ videos^b, fitted over all sizes: 1 means
that twice as many videos take twice as long. docs/scaling.md computes from these numbers.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cache import Size, write_cache
from common import digits, machine, markdown, synchronise, timed
from glscl.cache.library import open_library
from glscl.cache.store import open_store
from glscl.cache.table import FeatureTable
from glscl.cache.upkeep.summary import summarise
from glscl.train_head.heads import build_head

HEADS = ("mean_pool", "query_scoring", "glscl")
DIM = 512


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


@torch.inference_mode()
def measure(videos: int, folder: Path, device: str, repeats: int) -> dict[str, float]:
    """Seconds of every stage at one size."""
    root = folder / str(videos)
    found = {"write and commit the cache": write_cache(root, Size(videos, videos, DIM), "zarr")}
    found["open it"] = timed(lambda: open_store(root, "full").complete, repeats=repeats)
    found["describe it (inspect)"] = timed(lambda: summarise(open_library(root)), repeats=repeats)
    found["load it"] = timed(
        lambda: FeatureTable.load(open_store(root, "full"), None, device=device), repeats=repeats, device=device
    )
    table = FeatureTable.load(open_store(root, "full"), None, device=device)
    for name in HEADS:
        torch.manual_seed(0)
        head = build_head(name, embed_dim=DIM).eval().to(device)
        rows = torch.arange(table.num_videos, device=device)
        started = time.perf_counter()
        parts = [head.encode_video(table.videos(some)) for some in rows.split(512)]
        synchronise(device)
        found[f"{name}: encode the gallery once"] = time.perf_counter() - started
        gallery = type(parts[0])(*(torch.cat(pieces) for pieces in zip(*parts)))
        text = table.texts(torch.tensor([0], device=device))
        query = head.encode_text(text)
        found[f"{name}: one query"] = timed(
            lambda h=head, q=query, g=gallery: h.score(q, g), repeats=5 * repeats, device=device
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 2000, 4000, 8000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="sixteen times smaller")
    arguments = parser.parse_args()
    sizes = [max(20, size // 16) for size in arguments.sizes] if arguments.quick else arguments.sizes
    print("# How the stages grow with the number of videos\n")
    print(f"{time.strftime('%Y-%m-%d')}; {machine(arguments.device)}\n\n`python {shlex.join(sys.argv)}`\n")
    with tempfile.TemporaryDirectory(prefix="glscl-bench-") as scratch:
        found = [measure(size, Path(scratch), arguments.device, arguments.repeats) for size in sizes]
    rows = [
        [stage, *(digits(of[stage]) for of in found), f"{exponent(sizes, [of[stage] for of in found]):.2f}"]
        for stage in found[0]
    ]
    print(markdown(["seconds", *(f"{size:,} videos" for size in sizes), "exponent"], rows))
    print(
        f"\n{DIM}-d float16, 12 frames a video, one caption each. A query is scored against an encoded gallery in memory."
        "\nNot measured: galleries larger than memory, several queries at once (benchmarks/scoring.py), decoding and encoding of"
        "\npixels, whose cost is one video after another (benchmarks/extract.py)."
    )


if __name__ == "__main__":
    main()
