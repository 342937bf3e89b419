"""How much of the demo's table is luck: every head trained with several seeds on one cache of the built-in corpus.

    glscl demo --out demo-out && python benchmarks/demo_seeds.py demo-out/cache --seeds 5

Prints mean and standard deviation over seeds as a Markdown table, and for each pair of heads the differences seed by seed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from itertools import combinations
from pathlib import Path

from glscl.cache.store import Store, open_store
from glscl.demo import HEADS
from glscl.evaluate.evaluation import evaluate_run, validation_metrics
from glscl.train_head.config import TrainConfig, resolve
from glscl.train_head.train import train

METRICS = ("R@1", "R@5", "R@10", "MnR")


def measure(store: Store, head: str, seed: int, folder: Path) -> tuple[dict, float]:
    """Result of one training on the test split, and its seconds."""
    started = time.perf_counter()
    settings = resolve(TrainConfig(head=head), dataset="demo", seed=seed)
    train(store, folder, settings, validate=validation_metrics)
    seconds = time.perf_counter() - started
    return evaluate_run(store, run=folder, confidence=False).result, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", nargs="+", default=list(HEADS))
    arguments = parser.parse_args()
    store = open_store(arguments.cache)
    zero_shot = evaluate_run(store, confidence=False).result
    found: dict[str, list[dict]] = {}
    print(f"| head | seconds | t→v {' | '.join(METRICS)} | v→t {' | '.join(METRICS)} |")
    print("|---|---|" + "---|" * 2 * len(METRICS))
    print(f"| zero-shot | | {' | '.join(f'{zero_shot[d][m]:.1f}' for d in DIRECTIONS for m in METRICS)} |")
    with tempfile.TemporaryDirectory() as runs:
        for head in arguments.heads:
            measured = [measure(store, head, seed, Path(runs, head, str(seed))) for seed in range(arguments.seeds)]
            found[head] = [result for result, _ in measured]
            seconds = statistics.median(s for _, s in measured)
            cells = [spread([r[d][m] for r in found[head]]) for d in DIRECTIONS for m in METRICS]
            print(f"| {head} | {seconds:.0f} | {' | '.join(cells)} |", flush=True)
    for a, b in combinations(arguments.heads, 2):
        gains = [y["text_to_video"]["R@1"] - x["text_to_video"]["R@1"] for x, y in zip(found[a], found[b])]
        print(f"\n{b} − {a}, text→video R@1 by seed: {', '.join(f'{g:+.1f}' for g in gains)}", end="")
    print()
    for head, results in found.items():
        tags = results[0].get("tags", {})
        kinds = ", ".join(f":{tag} {spread([r['tags'][tag]['R@1'] for r in results])}" for tag in tags)
        print(f"\ntext→video R@1 by kind of caption, {head}: {kinds}")


DIRECTIONS = ("text_to_video", "video_to_text")


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.1f} ± {deviation:.1f}"


if __name__ == "__main__":
    main()
