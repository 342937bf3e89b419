"""How much of a head's number on the built-in corpus is luck, and what an option changes: several seeds on one cache.

    glscl demo --out demo-out
    python benchmarks/demo_seeds.py demo-out/cache                          the demo's heads, 5 seeds
    python benchmarks/demo_seeds.py demo-out/cache --heads mean_pool,glscl --options adapter=none adapter=mlp
    python benchmarks/demo_seeds.py demo-out/cache --heads tight_transf --options layers=1,batch_size=32
    python benchmarks/demo_seeds.py demo-out/cache --results study.jsonl    goes on where it was stopped
    python benchmarks/demo_seeds.py --print study.jsonl other.jsonl         the note alone
    python benchmarks/demo_seeds.py --print study.jsonl --docs docs/heads.md     its tables there, and no note
    python benchmarks/demo_seeds.py demo-out/cache --quick                  one epoch, two seeds: a look

Every finished training is one line of the results file, seeds outermost, so that a stopped study is balanced. Prints
means and standard deviations over seeds, and for what has the same seeds the differences seed by seed. Seconds are those
of the processor, so that they mean the same on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, get_type_hints

import torch
from demo_page import rewrite, spread

from common import digits, machine, markdown
from glscl.cache.store import Store, open_store
from glscl.common.versions import versions
from glscl.demo.stages import HEADS
from glscl.evaluate.evaluation import evaluate_run, validation_metrics
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head.heads import HEAD_NAMES, head_options
from glscl.train_head.settings import TrainSettings, parse_value, resolve, typed_options
from glscl.train_head.train import train

METRICS = ("R@1", "R@5", "R@10", "MnR")
DIRECTIONS = ("text_to_video", "video_to_text")
RECIPE = "demo"


TRAINING = ("epochs", "batch_size", "lr", "weight_decay", "warmup", "captions_per_video")  # may stand among the options


def asked_options(head: str, variant: str) -> dict[str, Any]:
    """`"adapter=mlp,batch_size=32"` → options and settings of training other than what the recipe gives the head."""
    recipe = resolve({"head": head}, dataset=RECIPE)
    usual = {**head_options(head), **recipe.options, **{name: getattr(recipe, name) for name in TRAINING}}
    kinds, asked = get_type_hints(TrainSettings), {}
    for part in filter(None, variant.split(",")):
        name, _, text = part.partition("=")
        if name in TRAINING:
            asked[name] = parse_value(name, text, kinds[name])
        else:
            asked.update(typed_options(head, {name: text}))
    return {key: value for key, value in asked.items() if usual[key] != value}


def measure(
    store: Store, head: str, options: dict[str, Any], seed: int, *, epochs: int | None, device: torch.device
) -> dict[str, Any]:
    """One training and its result on the test split: a line of the results file."""
    training = {key: value for key, value in options.items() if key in TRAINING}
    training = {"head": head, "epochs": epochs, "seed": seed, **training}
    training["options"] = {key: value for key, value in options.items() if key not in TRAINING}
    settings = resolve(training, dataset=RECIPE, device_type=device.type)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.process_time()
        trained = train(store, folder, settings, device=device, validate=validation_metrics)
        seconds = time.process_time() - begun
        result = evaluate_run(store, folder, EvaluateSettings(confidence=False), device=device).result
        parameters = json.loads(Path(folder, "run.json").read_text())["parameters"]
    return {
        "head": head,
        "options": options,
        "seed": seed,
        "epochs": settings.epochs,
        "best_epoch": trained.best["epoch"] if trained.best else None,
        "cpu_seconds": round(seconds, 1),
        "parameters": parameters - 1,
        **outcome(result),
        "cache_fingerprint": store.fingerprint,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": versions()["torch"],
        "date": time.strftime("%Y-%m-%d"),
    }


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers that are kept of a result file."""
    kept = {direction: {m: result[direction][m] for m in METRICS} for direction in DIRECTIONS}
    return {**kept, "tags": {tag: found["R@1"] for tag, found in result.get("tags", {}).items()}}


def plan(heads: Sequence[str], variants: Sequence[str], seeds: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Head, options and seed of every training, each once, seeds outermost."""
    seen: set[str] = set()
    for seed in range(seeds):
        for head in heads:
            for variant in variants:
                options = asked_options(head, variant)
                if (key := json.dumps([head, options, seed], sort_keys=True)) not in seen:
                    seen.add(key)
                    yield head, options, seed


def read(path: Path) -> list[dict[str, Any]]:
    """Lines of a results file; a last line that was cut off is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one line and see it on the disk; what a killed run left of a line goes first."""
    with path.open("ab+") as file:
        file.seek(0)
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        file.write((json.dumps(line) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def label(line: dict[str, Any]) -> str:
    return " ".join([line["head"], *(f"{key}={value}" for key, value in line["options"].items())])


def note(lines: Sequence[dict[str, Any]]) -> str:
    """The tables of a study: spread over seeds, kinds of captions, differences seed by seed."""
    studied: dict[str, dict[int, dict[str, Any]]] = {}

    def place(line: dict[str, Any]) -> tuple[Any, ...]:  # a head without options stands before itself with some
        options = sorted((name, str(value)) for name, value in line["options"].items())
        return HEAD_NAMES.index(line["head"]), options, line["seed"]

    for line in sorted(lines, key=place):
        studied.setdefault(label(line), {})[line["seed"]] = line
    short = {"text_to_video": "t→v", "video_to_text": "v→t"}
    columns = [(direction, metric) for direction in DIRECTIONS for metric in METRICS]
    header = ["head", "seeds", "parameters", "CPU seconds", *(f"{short[d]} {m}" for d, m in columns)]
    rows = []
    for name, by_seed in studied.items():
        found = list(by_seed.values())
        seconds = digits(statistics.median(line["cpu_seconds"] for line in found), 2)
        cells = [spread([line[d][m] for line in found]) for d, m in columns]
        rows.append([f"`{name}`", str(len(found)), f"{found[0]['parameters']:,}", seconds, *cells])
    parts = [markdown(header, rows)]
    tags = sorted({tag for line in lines for tag in line["tags"]})
    if tags:
        kinds = [
            [f"`{name}`", *(spread([line["tags"][tag] for line in by_seed.values()]) for tag in tags)]
            for name, by_seed in studied.items()
        ]
        parts.append("Text-to-video R@1 by kind of caption:\n\n" + markdown(["head", *tags], kinds))
    if gains := list(differences(studied)):
        header = ["", "seeds", "t→v R@1, mean ± sd", "seed by seed", "v→t R@1, mean ± sd"]
        parts.append("Differences of runs with the same seed:\n\n" + markdown(header, gains))
    return "\n\n".join(parts)


def differences(studied: dict[str, dict[int, dict[str, Any]]]) -> Iterator[list[str]]:
    """A row for each two heads, or options of one head, with two seeds in common at least: later minus earlier."""
    for (a, of_a), (b, of_b) in combinations(studied.items(), 2):
        seeds = sorted(of_a.keys() & of_b.keys())
        first, second = of_a[seeds[0]] if seeds else {}, of_b[seeds[0]] if seeds else {}
        if len(seeds) < 2 or (first["head"] != second["head"] and (first["options"] or second["options"])):
            continue
        there, back = ([of_b[s][d]["R@1"] - of_a[s][d]["R@1"] for s in seeds] for d in DIRECTIONS)
        listed = ", ".join(f"{gain:+.1f}" for gain in there)
        yield [f"`{b}` − `{a}`", str(len(seeds)), spread(there, signed=True), listed, spread(back, signed=True)]


def print_note(lines: Sequence[dict[str, Any]], device: torch.device) -> None:
    """The whole dated note."""
    print(f"# Heads on the built-in corpus, seed by seed\n\n{machine(device)}\n")
    print(f"    python benchmarks/demo_seeds.py {shlex.join(sys.argv[1:])}\n")
    used = {key: sorted({str(line[key]) for line in lines}) for key in ("date", "device", "threads", "torch", "epochs")}
    told = "; ".join(f"{key} {', '.join(values)}" for key, values in used.items())
    caches = sorted({line["cache_fingerprint"] for line in lines})
    print(f"{len(lines)} trainings with the recipe `{RECIPE}` ({told}) on the cache {', '.join(caches)}.")
    print("Means ± standard deviations over seeds, on the test split, of the epoch that was best in validation.")
    print("CPU seconds are of training with its validations.\n")
    print(note(lines))
    print(
        "\nA difference is worth naming when it is large beside its spread over seeds and has one sign in all of them. "
        "One corpus\nwas used: how far numbers move with another corpus or backbone was not measured here, nor was any "
        "option that the\ntable does not name."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", default=",".join(HEADS), help="names separated by commas")
    parser.add_argument(
        "--options",
        nargs="+",
        default=[""],
        help="sets of options of the head or of training, each KEY=VALUE[,KEY=VALUE…]",
    )
    parser.add_argument("--results", type=Path, help="JSON lines to add to, and to go on from")
    parser.add_argument("--at-most", type=int, help="stop after this many trainings, without a note")
    parser.add_argument("--print", type=Path, nargs="+", help="print the note of these results and train nothing")
    parser.add_argument("--docs", type=Path, help="with --print: put the tables into this page instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one epoch, two seeds")
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.print:
        lines = [line for path in given.print for line in read(path)]
        if given.docs:
            rewrite(given.docs, lines)
        else:
            print_note(lines, device)
        return
    if given.docs:
        parser.error("--docs needs results to --print")
    if given.cache is None:
        parser.error("name the cache, or results to --print")
    heads = given.heads.split(",")
    if unknown := [name for name in heads if name not in HEAD_NAMES]:
        parser.error(f"there is no head {unknown[0]!r}; choose from {', '.join(HEAD_NAMES)}")
    store = open_store(given.cache)
    epochs, seeds = (1, min(given.seeds, 2)) if given.quick else (None, given.seeds)
    with tempfile.TemporaryDirectory() as folder:
        results = given.results or Path(folder, "results.jsonl")
        done = {json.dumps([line["head"], line["options"], line["seed"]], sort_keys=True) for line in read(results)}
        left = [
            (head, options, seed)
            for head, options, seed in plan(heads, given.options, seeds)
            if json.dumps([head, options, seed], sort_keys=True) not in done
        ]
        for head, options, seed in left[: given.at_most]:
            line = measure(store, head, options, seed, epochs=epochs, device=device)
            append(results, line)
            gone = f"{line['cpu_seconds']:.0f} s, t→v R@1 {line['text_to_video']['R@1']:.1f}"
            print(f"{label(line)} seed {seed}: {gone}", file=sys.stderr, flush=True)
        if given.at_most is None:
            print_note(read(results), device)


if __name__ == "__main__":
    main()
