"""What the second pass gains on the built-in corpus, beside a head that is trained on for as long with the backbone frozen.

    glscl demo --out demo-out
    python benchmarks/second_pass.py demo-out                            5 seeds, with the settings of glscl demo --finetune
    python benchmarks/second_pass.py demo-out --settings freeze=none lr=2e-4     other settings of the second pass
    python benchmarks/second_pass.py demo-out --results study.jsonl --runs DIR   goes on where it was stopped
    python benchmarks/second_pass.py --print study.jsonl other.jsonl     the note alone
    python benchmarks/second_pass.py demo-out --quick                    one epoch, two seeds: a look

For every seed three trainings: `frozen`, the glscl head of the recipe on cached features; then from that head, with the
same batches, epochs and learning rate, `trained on` (the backbone stays frozen) and `second pass`. What the second pass
brings is its difference to `trained on`. Every finished training is one line of the results file, seeds outermost. Seconds
are those of the processor, so that they mean the same on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from demo_page import spread
from demo_seeds import DIRECTIONS, METRICS, append, outcome, read

from common import digits, machine, markdown
from glscl.cache.store import Store, open_store
from glscl.cache.table import FeatureTable
from glscl.common.versions import versions
from glscl.demo.stages import SECOND_PASS
from glscl.evaluate.evaluation import evaluate_run, validation_metrics
from glscl.evaluate.second_pass.from_pixels import evaluate_from_pixels
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head.checkpoint import load_run
from glscl.train_head.finetuning.finetune import finetune
from glscl.train_head.finetuning.settings import FinetuneSettings, resolve_finetune
from glscl.train_head.heads.base import Head
from glscl.train_head.learner import Learner
from glscl.train_head.loop import fit_learner
from glscl.train_head.reports import Reporter
from glscl.train_head.settings import parse_value, resolve
from glscl.train_head.train import LoadedSplits, TrainResult, choose_data, run_record, train, trained

FROZEN, CONTROL, TUNING = ARMS = ("frozen", "trained on", "second pass")
HEAD = "glscl"
RECIPE = "demo"
Asked = Mapping[str, Any]


def asked_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """`["freeze=none", "lr=2e-4"]` → the settings of the second pass that differ from the demo's.

    Raises:
        UsageError: a value of another type.
        SystemExit: no such setting.
    """
    kinds = {"epochs": int, "batch_size": int, "captions_per_video": int, "freeze_layers": int, "lora_rank": int}
    kinds |= {"lr": float, "backbone_lr_scale": float, "freeze": str, "augment": str, "precision": str}
    asked = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in kinds:
            raise SystemExit(f"--settings {name}: choose from {', '.join(kinds)}")
        asked[name] = parse_value(f"--settings {name}", text, kinds[name])
    return {name: value for name, value in asked.items() if value != SECOND_PASS.get(name)}


def second_pass_settings(start: Path, asked: Asked, *, seed: int, device: torch.device) -> FinetuneSettings:
    """Those of `glscl demo --finetune` from the run `start`, with what was asked for."""
    told = {**SECOND_PASS, **asked, "start": start, "seed": seed}
    return resolve_finetune(told, dataset=RECIPE, device_type=device.type)


def frozen_head(store: Store, folder: Path, *, seed: int, epochs: int | None, device: torch.device) -> TrainResult:
    """The head that both ways start from, as `glscl demo` trains it; one that is in `folder` already is taken."""
    settings = resolve({"head": HEAD, "epochs": epochs, "seed": seed}, dataset=RECIPE, device_type=device.type)
    return train(store, folder, settings, device=device, validate=validation_metrics, resume=True)


def train_on(store: Store, out: Path, start: Path, settings: FinetuneSettings, device: torch.device) -> TrainResult:
    """The head of `start` trained on with the backbone frozen, everything else as `settings` say for the second pass."""
    started = time.perf_counter()
    data = choose_data(LoadedSplits(store), settings, True, Reporter())
    head = load_run(start)[0]
    record = run_record(settings, head, store, data, device, "")
    validate = None
    if data.validation is not None:
        validate = partial(_judge, data.validation)
    learner = Learner(head, data.train)
    fitted = fit_learner(learner, settings, device=device, validate=validate, out=out, record=record)
    return trained(out, record, fitted, started)


def _judge(table: FeatureTable, head: Head) -> Mapping[str, Mapping[str, float]]:
    return validation_metrics(head, table)


def measure(
    store: Store, arm: str, asked: Asked, seed: int, *, runs: Path, epochs: int | None, device: torch.device
) -> dict[str, Any]:
    """One training and its results on test and validation split: a line of the results file.

    Args:
        store: the demo's cache.
        arm: one of `ARMS`.
        asked: settings of the second pass that differ from the demo's.
        seed: of all three trainings.
        runs: folder that keeps the frozen heads.
        epochs: of every training; None is as the recipe and the settings say.
    """
    start = runs / f"{HEAD}-seed{seed}"
    begun = time.process_time()
    done = frozen_head(store, start, seed=seed, epochs=epochs, device=device)
    if arm == FROZEN:
        seconds = time.process_time() - begun
        result = evaluate_run(store, start, EvaluateSettings(confidence=False), device=device).result
    else:
        asked_too = asked if epochs is None else {**asked, "epochs": epochs}
        settings = second_pass_settings(start, asked_too, seed=seed, device=device)
        with tempfile.TemporaryDirectory() as folder:
            out, begun = Path(folder, "run"), time.process_time()
            if arm == CONTROL:
                done = train_on(store, out, start, settings, device)
            else:
                done = finetune(store, out, settings, device=device, validate=validation_metrics)
            seconds = time.process_time() - begun
            if arm == CONTROL:
                result = evaluate_run(store, out, EvaluateSettings(confidence=False), device=device).result
            else:
                result = evaluate_from_pixels(store, out, videos=None, device=device).result
    best = done.best or done.history[-1]
    return {
        "arm": arm,
        "settings": {} if arm == FROZEN else dict(asked),
        "seed": seed,
        "epochs": len(done.history),
        "best_epoch": best["epoch"],
        "cpu_seconds": None if done.already_complete else round(seconds, 1),
        **outcome(result),
        "validation": {d: {m: best["validation"][d][m] for m in METRICS} for d in DIRECTIONS},
        "cache_fingerprint": store.fingerprint,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": versions()["torch"],
        "date": time.strftime("%Y-%m-%d"),
    }


def label(line: Mapping[str, Any]) -> str:
    return " ".join([line["arm"], *(f"{key}={value}" for key, value in sorted(line["settings"].items()))])


def plan(asked: Asked, seeds: int) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Arm, settings and seed of every training, seeds outermost."""
    for seed in range(seeds):
        yield from ((arm, {} if arm == FROZEN else dict(asked), seed) for arm in ARMS)


def identity(arm: str, settings: Asked, seed: int) -> str:
    return json.dumps([arm, settings, seed], sort_keys=True)


def note(lines: Sequence[Mapping[str, Any]]) -> str:
    """The tables of a study: spread over seeds, and differences seed by seed."""
    studied: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in sorted(lines, key=lambda line: (ARMS.index(line["arm"]), label(line), line["seed"])):
        studied.setdefault(label(line), {})[line["seed"]] = line
    parts = []
    for split, of in (("test", lambda line: line), ("validation", lambda line: line["validation"])):
        header = [f"{split} split", "seeds", *(f"{short(d)} {m}" for d in DIRECTIONS for m in METRICS)]
        rows = [
            [
                f"`{name}`",
                str(len(found)),
                *(spread([of(x)[d][m] for x in found.values()]) for d in DIRECTIONS for m in METRICS),
            ]
            for name, found in studied.items()
        ]
        parts.append(markdown(header, rows))
    spent = []
    for name, found in studied.items():
        seconds = [line["cpu_seconds"] for line in found.values() if line["cpu_seconds"] is not None]
        epochs = ", ".join(f"{line['best_epoch']} of {line['epochs']}" for line in found.values())
        spent.append([f"`{name}`", digits(statistics.median(seconds), 2) if seconds else "taken over", epochs])
    parts.append(markdown(["", "CPU seconds, median", "best epoch, seed by seed"], spent))
    if gains := list(differences(studied)):
        header = ["R@1 of runs with the same seed", "split", "seeds", "t→v", "seed by seed", "v→t", "seed by seed"]
        parts.append(markdown(header, gains))
    return "\n\n".join(parts)


def short(direction: str) -> str:
    return {"text_to_video": "t→v", "video_to_text": "v→t"}[direction]


def differences(studied: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Iterator[list[str]]:
    """Rows for each later way minus each earlier one with two seeds in common at least, of the same settings."""
    names = list(studied)
    for i, second in enumerate(names):
        for first in names[:i]:
            a, b = studied[first], studied[second]
            seeds = sorted(a.keys() & b.keys())
            if len(seeds) < 2 or (a[seeds[0]]["settings"] != b[seeds[0]]["settings"] and a[seeds[0]]["arm"] != FROZEN):
                continue
            for split, of in (("test", lambda line: line), ("validation", lambda line: line["validation"])):
                cells = []
                for direction in DIRECTIONS:
                    gains = [of(b[s])[direction]["R@1"] - of(a[s])[direction]["R@1"] for s in seeds]
                    cells += [spread(gains, signed=True), ", ".join(f"{gain:+.1f}" for gain in gains)]
                yield [f"`{second}` − `{first}`", split, str(len(seeds)), *cells]


def print_note(lines: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """The whole dated note."""
    print(f"# The second pass on the built-in corpus, seed by seed\n\n{machine(device)}\n")
    print(f"    python benchmarks/second_pass.py {shlex.join(sys.argv[1:])}\n")
    used = {key: sorted({str(line[key]) for line in lines}) for key in ("date", "device", "threads", "torch")}
    told = "; ".join(f"{key} {', '.join(values)}" for key, values in used.items())
    caches = sorted({line["cache_fingerprint"] for line in lines})
    usual = ", ".join(f"{key} {value}" for key, value in SECOND_PASS.items())
    print(
        f"{len(lines)} trainings ({told}) on the cache {', '.join(caches)}. `frozen` is the {HEAD} head by the recipe"
    )
    print(
        f"`{RECIPE}`. `trained on` and `second pass` start from it and share seed, batches and settings ({usual}, but for"
    )
    print(
        "what a row names); the first leaves the backbone as it is. Means ± standard deviations over seeds, of the epoch"
    )
    print("that was best in validation.\n")
    print(note(lines))
    print(
        "\nWhat training the backbone brings is the second pass minus `trained on`; minus `frozen` it also holds what more "
        "steps\nbring to a head. A difference is worth naming when it is large beside its spread over seeds and has one "
        "sign in all of\nthem. The best epoch was chosen on the validation split, so differences there are flattered. Other "
        "corpora, backbones\nand settings than those named were not measured here."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, nargs="?", help="folder that glscl demo made")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--settings", nargs="+", default=[], help="of the second pass, KEY=VALUE; default: the demo's")
    parser.add_argument("--results", type=Path, help="JSON lines to add to, and to go on from")
    parser.add_argument("--runs", type=Path, help="keeps the frozen heads, and gives those that are there")
    parser.add_argument("--at-most", type=int, help="stop after this many trainings, without a note")
    parser.add_argument("--print", type=Path, nargs="+", help="print the note of these results and train nothing")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="one epoch, two seeds")
    given = parser.parse_args()
    device = torch.device(given.device)
    if given.print:
        print_note([line for path in given.print for line in read(path)], device)
        return
    if given.demo is None:
        parser.error("name the folder of the demo, or results to --print")
    asked = asked_settings(given.settings)
    store = open_store(given.demo / "cache")
    epochs, seeds = (1, min(given.seeds, 2)) if given.quick else (None, given.seeds)
    with tempfile.TemporaryDirectory() as folder:
        results = given.results or Path(folder, "results.jsonl")
        runs = given.runs or (Path(folder) if given.results is None else given.results.with_suffix(".runs"))
        done = {identity(line["arm"], line["settings"], line["seed"]) for line in read(results)}
        left = [each for each in plan(asked, seeds) if identity(*each) not in done]
        for arm, settings, seed in left[: given.at_most]:
            line = measure(store, arm, settings, seed, runs=runs, epochs=epochs, device=device)
            append(results, line)
            recalls = " | ".join(f"{short(d)} R@1 {line[d]['R@1']:.1f}" for d in DIRECTIONS)
            print(f"{label(line)}, seed {seed}: {seconds_of(line)}, {recalls}", file=sys.stderr, flush=True)
        if given.at_most is None:
            print_note(read(results), device)


def seconds_of(line: Mapping[str, Any]) -> str:
    return "taken over" if line["cpu_seconds"] is None else f"{line['cpu_seconds']:.0f} s"


if __name__ == "__main__":
    main()
