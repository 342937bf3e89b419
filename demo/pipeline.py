"""The whole pipeline on the built-in corpus and backbone, offline, on a CPU: what `glscl demo` does.

render → extract → zero-shot → train three heads → evaluate each [→ fine-tune → extract again → evaluate] → one table,
results.json, report.html
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from glscl.cache.files import dump_json, refuse_links, write_atomically
from glscl.cache.schema import Annotations
from glscl.cache.store import Store, open_store
from glscl.common.progress import Progress
from glscl.common.versions import versions
from glscl.demo.corpus import SIZES, ensure_corpus
from glscl.evaluate.evaluated_run import RunForReport, with_cache
from glscl.evaluate.evaluation import Evaluation, evaluate_run, validation_metrics, write_result
from glscl.evaluate.report.closeup import examine
from glscl.evaluate.report.page import write_report
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.datasets import DATASETS
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.thumbnails import thumbnails_of
from glscl.extract.pipeline import extract
from glscl.train_head.finetuning.settings import resolve_finetune
from glscl.train_head.settings import resolve
from glscl.train_head.train import Reporter, train

HEADS = ("projection", "seq_transf", "glscl")

# The second pass starts from the trained glscl head and trains the text tower with it; frames are read from the cache, so a
# CPU needs minutes. The tiny backbone has read captions of single frames only: a large learning rate suits it.
SECOND_PASS = {"epochs": 2, "batch_size": 128, "lr": 5e-4, "captions_per_video": 10}
TUNED = {"backbone_lr_scale": 2.0, "freeze": "vision"}


class DemoDone(NamedTuple):
    """What the demo gave.

    Attributes:
        results: the content of results.json: `chance`, `zero_shot`, one entry a head, and `finetuned` where a second
            pass was asked for; each as a result file.
        seconds: stage -> seconds, the content of seconds.json.
    """

    results: dict[str, dict[str, Any]]
    seconds: dict[str, float]


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    sizes: Mapping[str, int] | None = None,
    epochs: int | None = None,
    second_pass: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    reporter: Reporter | None = None,
    say: Callable[[str], None] = lambda text: None,
    command: str = "glscl demo",
) -> DemoDone:
    """Run everything below `out`; what is there already from the same seed is used again.

    Args:
        out: folder for videos, cache, runs and results.
        seed: of the corpus and of training.
        device: where to encode and train.
        sizes: videos of train, val and test; the corpus's own by default.
        epochs: of training; the recipe's by default.
        second_pass: whether to fine-tune text tower and glscl head together, extract again and judge that too.
        workers: rendering and decoding processes; one a core by default.
        progress, reporter, say: what people see meanwhile.
        command: for provenance.

    Raises:
        StorageError: `out` cannot be written, or a link stands in it.
    """
    for folder in (out, out / "runs"):
        refuse_links(folder, depth=1)
    progress = progress or Progress(quiet=True)
    workers = workers or len(os.sched_getaffinity(0))
    sizes = {**SIZES, **(sizes or {})}
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal clock
        seconds[stage] = round(time.perf_counter() - clock, 1)
        clock = time.perf_counter()

    with progress.task("render", sum(sizes.values()), "videos") as task:
        annotations, videos = ensure_corpus(
            out / "dataset", seed=seed, sizes=sizes, workers=workers, progress=increments(task.advance)
        )
    lap("render")
    entry = DATASETS["demo"]
    found = entry.read(annotations, videos)
    cache = out / "cache"
    extract(
        found,
        cache,
        backbone=Backbone.load("demo", words=entry.max_words, device=device),
        sampling=Sampling(fps=entry.fps),
        workers=workers,
        progress=progress,
        provenance={"command": command, "versions": versions(), "recipe": entry.recipe},
    )
    store = open_store(cache)
    lap("extract")

    results: dict[str, Any] = {}
    evaluation = evaluate_run(store, seed=seed, device=device, command=command)
    results["chance"] = chance(evaluation.result)
    results["zero_shot"] = evaluation.result
    write_result(out / "runs" / "zero_shot" / "result.json", evaluation)
    shown = [_examined(evaluation, "zero-shot (mean_pool)", None, store, device)]
    lap("zero_shot")
    for name in HEADS:
        folder = out / "runs" / name
        settings = resolve(
            {"head": name, "epochs": epochs, "seed": seed}, dataset="demo", device_type=torch.device(device).type
        )
        say(f"training {name} ({settings.epochs} epochs)")
        train(
            store,
            folder,
            settings,
            device=device,
            validate=validation_metrics,
            reporter=reporter,
            resume=True,
            command=command,
        )
        evaluation = evaluate_run(store, run=folder, seed=seed, device=device, command=command)
        write_result(folder / "result.json", evaluation)
        results[name] = evaluation.result
        shown.append(_examined(evaluation, name, folder, store, device))
        lap(name)
    if second_pass:
        evaluation, tuned, seconds_of = _second_pass(
            out,
            found,
            store,
            seed=seed,
            epochs=epochs,
            device=device,
            workers=workers,
            progress=progress,
            reporter=reporter,
            say=say,
            command=command,
        )
        results["finetuned"] = evaluation.result
        shown.append(_examined(evaluation, "glscl, fine-tuned", out / "runs" / "finetuned", tuned, device))
        seconds.update(seconds_of)
        lap("finetuned")
        seconds["finetuned"] = round(seconds["finetuned"] - sum(seconds_of.values()), 1)
    write_report(
        shown,
        out / "report.html",
        title="glscl demo: the built-in corpus",
        chance=results["chance"],
        thumbnails=thumbnails_of(store.configuration),
    )
    lap("report")
    write_atomically(out / "results.json", dump_json(results))
    write_atomically(out / "seconds.json", dump_json(seconds))
    return DemoDone(results, seconds)


def _second_pass(
    out: Path,
    annotations: Annotations,
    store: Store,
    *,
    seed: int,
    epochs: int | None,
    device: torch.device | str,
    workers: int,
    progress: Progress,
    reporter: Reporter | None,
    say: Callable[[str], None],
    command: str,
) -> tuple[Evaluation, Store, dict[str, float]]:
    """Fine-tune, extract with the new backbone, judge; the evaluation, the new cache, and seconds of the two long stages."""
    from glscl.train_head.finetuning.finetune import finetune

    head, folder = out / "runs" / "glscl", out / "runs" / "finetuned"
    asked = SECOND_PASS if epochs is None else {**SECOND_PASS, "epochs": epochs}
    asked = {**asked, **TUNED, "start": head, "workers": workers, "seed": seed}
    settings = resolve_finetune(asked, dataset="demo", device_type=torch.device(device).type)
    say(f"fine-tuning the text tower with glscl ({settings.epochs} epochs)")
    clock = time.perf_counter()
    finetune(
        store,
        folder,
        settings,
        device=device,
        validate=validation_metrics,
        reporter=reporter,
        resume=True,
        command=command,
    )
    tuning = time.perf_counter() - clock
    entry = DATASETS["demo"]
    extract(
        annotations,
        out / "cache-finetuned",
        backbone=Backbone.load("demo", str(folder / "backbone.safetensors"), words=entry.max_words, device=device),
        sampling=Sampling(fps=entry.fps),
        workers=workers,
        progress=progress,
        provenance={"command": command, "versions": versions(), "recipe": entry.recipe},
    )
    spent = {"finetune": round(tuning, 1), "extract_again": round(time.perf_counter() - clock - tuning, 1)}
    tuned = open_store(out / "cache-finetuned")
    evaluation = evaluate_run(tuned, run=folder, seed=seed, device=device, command=command)
    write_result(folder / "result.json", evaluation)
    return evaluation, tuned, spent


def _examined(
    evaluation: Evaluation, name: str, folder: Path | None, store: Store, device: torch.device | str
) -> RunForReport:
    run = RunForReport.of(evaluation, name=name, folder=folder)
    return examine(with_cache(run, store), store, device=device)


def chance(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a head that knows nothing is expected to score on the same split: the mean over random orders.

    Args:
        result: of any head on that split; names the data.

    Returns:
        A result too. Its values are computed, not sampled, so its intervals have no width.
    """
    videos, texts = result["counts"]["videos"], result["counts"]["texts"]
    groups = result["video_to_text"]["queries"]
    expected = {
        "text_to_video": _chance(videos, texts),
        "video_to_text": _chance(groups, groups),
        "video_to_text_caption": _chance_of_best(texts, texts / max(1, groups), groups),
    }
    exact = {direction: {m: [v, v] for m, v in of.items() if m != "queries"} for direction, of in expected.items()}
    spent = dict.fromkeys(result["seconds"], 0.0)
    kept = {key: value for key, value in result.items() if key not in ("tags", "normalised")}
    return {**kept, "head": "chance", "run": None, **expected, "confidence_95": exact, "seconds": spent}


def _chance(gallery: int, queries: int) -> dict[str, float]:
    recall = {f"R@{k}": 100.0 * min(k, gallery) / gallery for k in (1, 5, 10, 50)}
    return {**recall, "MdR": (gallery + 1) / 2, "MnR": (gallery + 1) / 2, "queries": queries}


def _chance_of_best(gallery: int, correct: float, queries: int) -> dict[str, float]:
    """Rank of the best of `correct` captions among all in random order, other correct ones not counted as rivals."""
    correct = max(1, round(correct))
    miss, rank, recall, median = 1.0, 1, {}, None
    while rank <= gallery - correct + 1:
        miss *= (gallery - correct - rank + 1) / (gallery - rank + 1)
        if rank in (1, 5, 10, 50):
            recall[f"R@{rank}"] = 100.0 * (1 - miss)
        if median is None and miss <= 0.5:
            median = float(rank)
        rank += 1
    recall = {f"R@{k}": recall.get(f"R@{k}", 100.0) for k in (1, 5, 10, 50)}
    return {**recall, "MdR": median or 1.0, "MnR": (gallery + 1) / (correct + 1), "queries": queries}


def table(results: Mapping[str, Any]) -> list[list[str]]:
    """Rows of the table that the demo prints: chance, zero-shot and the heads, both directions."""
    rows = [["", "t→v R@1", "R@5", "R@10", "MdR", "MnR", "v→t R@1", "R@5", "R@10", "MdR", "MnR"]]
    titles = {"zero_shot": "zero-shot (mean_pool)", "finetuned": "glscl, fine-tuned"}
    for name, result in results.items():
        cells = [
            f"{result[direction][metric]:.1f}"
            for direction in ("text_to_video", "video_to_text")
            for metric in ("R@1", "R@5", "R@10", "MdR", "MnR")
        ]
        rows.append([titles.get(name, name), *cells])
    return rows


def increments(advance: Callable[[int], None]) -> Callable[[int, int], None]:
    """From "so many are done" to "so many more are done"."""
    before = 0

    def progress(done: int, _: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return progress
