"""The whole pipeline on the built-in corpus and backbone, offline, on a CPU.

render → extract → zero-shot → train three heads → evaluate each [→ fine-tune → extract again → evaluate] → one table,
results.json, report.html
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from glscl.cache.files import dump_json, refuse_links, write_atomically
from glscl.cache.lock import hold_folder
from glscl.cache.schema import Annotations
from glscl.cache.store import Store, open_store
from glscl.common.errors import UsageError
from glscl.common.progress import Progress
from glscl.common.settings import build
from glscl.common.tables import amount
from glscl.common.versions import versions
from glscl.demo.corpus import render_corpus
from glscl.evaluate.evaluated_run import EvaluatedRun, with_cache
from glscl.evaluate.evaluation import evaluate_run, validation_metrics, write_result
from glscl.evaluate.report.examination import examine
from glscl.evaluate.report.page import write_report
from glscl.evaluate.settings import EvaluateSettings
from glscl.extract.datasets import DATASETS
from glscl.extract.decode.thumbnails import thumbnails_of
from glscl.extract.listing import ListOrigin
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings
from glscl.train_head.checkpoint import read_run
from glscl.train_head.finetuning.settings import resolve_finetune
from glscl.train_head.run_cache import list_differences
from glscl.train_head.settings import resolve
from glscl.train_head.train import Reporter, train

HEADS = ("projection", "seq_transf", "glscl")
DATASET = DATASETS["demo"]

# The second pass starts from the trained glscl head and trains the text tower with it; frames are read from the cache, so a
# CPU needs minutes. The tiny backbone has read captions of single frames only: a large learning rate suits it.
SECOND_PASS = {
    "epochs": 2,
    "batch_size": 128,
    "lr": 5e-4,
    "captions_per_video": 10,
    "backbone_lr_scale": 2.0,
    "freeze": "vision",
}


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Attributes:
    seed: of the corpus and of training.
    sizes: videos of train, val and test; the corpus's own where it says nothing.
    epochs: of training; None is the recipe's.
    finetune: whether to fine-tune text tower and glscl head together, extract again and judge that too.
    workers: rendering and decoding processes; None is one a core.
    """

    seed: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    epochs: int | None = None
    finetune: bool = False
    workers: int | None = None


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
    settings: DemoSettings | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    reporter: Reporter | None = None,
    say: Callable[[str], None] = lambda text: None,
    command: str = "demo",
) -> DemoDone:
    """Run everything below `out`; what is there already from the same seed is used again.

    Args:
        out: folder for videos, cache, runs and results.
        device: where to encode and train.
        progress, reporter, say: what people see meanwhile.
        command: for provenance.

    Raises:
        BusyError: another process writes `out`.
        StorageError: `out` cannot be written, or a link stands in it.
        UsageError: the runs in it were trained on other videos, of another seed or number.
    """
    for folder in (out, out / "runs"):
        refuse_links(folder, depth=1)
    demo = _Demo(
        out, settings or DemoSettings(), torch.device(device), progress or Progress(quiet=True), reporter, say, command
    )
    with hold_folder(out, what="demo"):
        annotations = demo.render()
        store = demo.extract(annotations)
        demo.judge_zero_shot(store)
        for head in HEADS:
            demo.train(head, store)
        if demo.settings.finetune:
            demo.finetune(annotations, store)
        demo.report(store)
        write_atomically(out / "results.json", dump_json(demo.results))
        write_atomically(out / "seconds.json", dump_json(demo.seconds))
    return DemoDone(demo.results, demo.seconds)


@dataclass
class _Demo:
    """What the stages share, and what they have given so far."""

    out: Path
    settings: DemoSettings
    device: torch.device
    progress: Progress
    reporter: Reporter | None
    say: Callable[[str], None]
    command: str
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    shown: list[EvaluatedRun] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - started, 1)

    def render(self) -> Annotations:
        seed, sizes, workers = self.settings.seed, self.settings.sizes, self.settings.workers
        with self.stage("render"):
            folders = render_corpus(
                self.out / "dataset", seed=seed, sizes=sizes, workers=workers, progress=self.progress
            )
        return DATASET.read(*folders)

    def extract(
        self, annotations: Annotations, *, stage: str = "extract", cache: str = "cache", weights: Path | None = None
    ) -> Store:
        asked: dict[str, Any] = {"backbone": "demo", "workers": self.settings.workers}
        if weights is not None:
            asked["pretrained"] = weights
        with self.stage(stage):
            done = extract(
                annotations,
                self.out / cache,
                build(ExtractSettings, DATASET.defaults, asked),
                origin=ListOrigin(
                    name=DATASET.name,
                    family=DATASET.name,
                    recipe=DATASET.recipe,
                    command=self.command,
                    versions=versions(),
                ),
                device=self.device,
                progress=self.progress,
            )
            return open_store(self.out / cache, f"{done.list}@{done.list_hash}")

    def judge(self, store: Store, *, name: str, title: str, run: Path | None) -> None:
        """Evaluate on the test split, write the result into the run's folder, and look closer for the report."""
        settings = EvaluateSettings(seed=self.settings.seed)
        evaluation = evaluate_run(store, run, settings, device=self.device, command=self.command)
        write_result((run or self.out / "runs" / name) / "result.json", evaluation)
        if not self.results:
            self.results["chance"] = chance(evaluation.result)
        self.results[name] = evaluation.result
        judged = EvaluatedRun.from_evaluation(evaluation, name=title, folder=run)
        self.shown.append(examine(with_cache(judged, store), store, device=self.device))

    def judge_zero_shot(self, store: Store) -> None:
        with self.stage("zero_shot"):
            self.judge(store, name="zero_shot", title="zero-shot (mean_pool)", run=None)

    def training(self) -> dict[str, Any]:
        """How every run is trained, or gone on with."""
        about = {"device": self.device, "reporter": self.reporter, "command": self.command}
        return {**about, "validate": validation_metrics, "resume": True}

    def train(self, head: str, store: Store) -> None:
        folder = self.out / "runs" / head
        if (folder / "run.json").exists() and list_differences(read_run(folder), store):
            raise UsageError(f"{self.out} holds runs on other videos", hint="Choose another folder with `out`")
        with self.stage(head):
            asked = {"head": head, "epochs": self.settings.epochs, "seed": self.settings.seed}
            settings = resolve(asked, dataset="demo", device_type=self.device.type)
            self.say(f"training {head} ({amount(settings.epochs, 'epoch')})")
            train(store, folder, settings, **self.training())
            self.judge(store, name=head, title=head, run=folder)

    def finetune(self, annotations: Annotations, store: Store) -> None:
        """Fine-tune from the glscl head, extract with the new backbone, and judge that."""
        from glscl.train_head.finetuning.finetune import finetune

        head, folder = self.out / "runs" / "glscl", self.out / "runs" / "finetuned"
        asked = {**SECOND_PASS, "start": head, "workers": self.settings.workers, "seed": self.settings.seed}
        if self.settings.epochs is not None:
            asked["epochs"] = self.settings.epochs
        with self.stage("finetune"):
            settings = resolve_finetune(asked, dataset="demo", device_type=self.device.type)
            self.say(f"fine-tuning the text tower with glscl ({amount(settings.epochs, 'epoch')})")
            finetune(store, folder, settings, **self.training())
        weights = folder / "backbone.safetensors"
        tuned = self.extract(annotations, stage="extract_again", cache="cache-finetuned", weights=weights)
        with self.stage("finetuned"):
            self.judge(tuned, name="finetuned", title="glscl, fine-tuned", run=folder)

    def report(self, store: Store) -> None:
        with self.stage("report"):
            write_report(
                self.shown,
                self.out / "report.html",
                title="Demo: the built-in corpus",
                chance=self.results["chance"],
                thumbnails=thumbnails_of(store),
            )


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
