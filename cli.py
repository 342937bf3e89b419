"""The command line. It only wires: each command opens paths, calls one room after another and prints what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glscl.config import home, with_option
from glscl.console import (
    TrainingLines,
    aligned,
    lines_of,
    print_cache,
    print_extraction,
    print_failures,
    print_hits,
    print_repair,
    print_result,
    print_splits,
    settings_line,
)
from glscl.errors import NotFoundError, UsageError
from glscl.extract.config import ExtractConfig, ImportConfig, parse_rate
from glscl.options import Run, command, command_line
from glscl.options import main as run_command_line
from glscl.progress import duration
from glscl.train_head.config import TrainConfig
from glscl.train_head.finetuning.config import TuneConfig

app = typer.Typer(
    name="glscl",
    help="Encode every frame and caption with CLIP once; then train and judge text-video retrieval heads in seconds.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


# Options of several commands
DatasetOption = Annotated[
    str, typer.Option(help="Name of a dataset reader; see docs/datasets.md.", rich_help_panel="Data")
]
AnnotationsOption = Annotated[
    Path | None, typer.Option(help="File or folder with the annotations.", rich_help_panel="Data")
]
CacheFolderOption = Annotated[Path | None, typer.Option(help="Folder of the cache.", rich_help_panel="Data")]
SplitsOption = Annotated[
    str | None, typer.Option(help="Only these splits, separated by commas.", rich_help_panel="Data")
]
ProtocolOption = Annotated[
    str | None, typer.Option(help="Variant of the splits, such as 9k, 7k, full.", rich_help_panel="Data")
]
CacheArgument = Annotated[Path, typer.Argument(help="Folder of the cache.")]
RunFolderOption = Annotated[
    Path | None, typer.Option(help="Folder of the run. Default: runs/<head>-<time>.", rich_help_panel="Data")
]
VideosOption = Annotated[
    Path | None,
    typer.Option(help="Folder with the videos. Default: where extraction found them.", rich_help_panel="Data"),
]
CacheOption = Annotated[
    Path | None, typer.Option(help="Cache. Default: the run's own, or the only one.", rich_help_panel="Data")
]
RunsArgument = Annotated[
    list[Path], typer.Argument(help="Run folders or result files; the first is what others are compared with.")
]
ResultsOption = Annotated[str, typer.Option(help="Which results of the folders.", rich_help_panel="Data")]
MovedCacheOption = Annotated[
    Path | None, typer.Option(help="Where the cache is now. Default: where it was.", rich_help_panel="Data")
]


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command_line(app))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from glscl import __version__

        print(f"glscl {__version__}")
        raise typer.Exit()


@command(app)
def demo(
    run: Run,
    out: Annotated[Path | None, typer.Option(help="Folder for videos, cache, runs and results. Default: demo.")] = None,
    videos: Annotated[
        int | None, typer.Option(help="Training videos; validation and test shrink with them.", min=20)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs a head. Default: the recipe's.", min=1)] = None,
    finetune: Annotated[
        bool,
        typer.Option(
            "--finetune", help="Also fine-tune text tower and glscl head together, extract again and judge that."
        ),
    ] = False,
) -> None:
    """Run the whole pipeline on the built-in corpus and backbone: offline, on a CPU, in a few minutes."""
    from glscl.demo import run_demo
    from glscl.demo import table as demo_table
    from glscl.extract.demo.corpus import SIZES

    out = out or home() / "demo"
    sizes = None
    if videos:
        sizes = {split: max(10, round(size * videos / SIZES["train"])) for split, size in SIZES.items()}
    results = run_demo(
        out,
        seed=run.seed,
        device=run.device(),
        sizes=sizes,
        epochs=epochs,
        second_pass=finetune,
        progress=run.progress,
        reporter=TrainingLines(run),
        say=run.say,
        command=command_line(),
    )
    counts = results["zero_shot"]["counts"]
    spent = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in results["seconds"].items())
    rest = " (fine-tuned in the last row)" if finetune else ""
    run.say(f"\ntest split: {counts['videos']} videos, {counts['texts']} captions, frozen backbone{rest}\n")
    run.say(aligned(demo_table(results)))
    for name, result in results.items():
        if "tags" in result:
            tags = ", ".join(f":{tag} {found['R@1']:.1f}" for tag, found in result["tags"].items())
            run.say(f"text→video R@1 by kind of caption, {name}: {tags}")
    run.say(f"\n{spent}\nwritten to {out}/results.json")
    run.result(results)


@command(app, ExtractConfig)
def extract(
    run: Run,
    config: ExtractConfig,
    dataset: DatasetOption,
    annotations: AnnotationsOption = None,
    videos: Annotated[Path | None, typer.Option(help="Folder with the videos.", rich_help_panel="Data")] = None,
    out: CacheFolderOption = None,
    splits: SplitsOption = None,
    protocol: ProtocolOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N videos of each split.", rich_help_panel="Data", min=1)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Read the annotations, find the files, print counts.", rich_help_panel="Data"),
    ] = False,
) -> None:
    """Encode every frame and caption with CLIP into a cache. Resumes by itself; a finished cache is left alone."""
    from glscl.extract.datasets import DATASETS
    from glscl.extract.datasets.base import summary

    if dataset not in DATASETS:
        raise UsageError(f"--dataset is {dataset!r}; expected one of {', '.join(DATASETS)}")
    root = home() / "datasets" / dataset
    if dataset == "demo" and annotations is None:
        _render_demo(run, root)
    if videos is None and (dry_run or dataset == "csv") and not (root / "videos").is_dir():
        videos = None
    else:
        videos = videos or root / "videos"
    found = DATASETS[dataset].read(
        _annotations_folder(dataset, annotations),
        videos,
        splits=_split_names(splits),
        protocol=protocol,
        dry_run=dry_run,
    )
    if limit:
        from glscl.extract.pipeline import first_videos  # loads torch, which a dry run need not wait for

        found = first_videos(found, limit)
    counted = summary(found)
    for line in found.notes:
        run.say(f"note: {line}")
    if dry_run:
        print_splits(run, counted)
        run.result(counted)
        return
    done = _extract(run, config, dataset, found, out, limit)
    if run.processes.world == 1 or done.finished_here or (done.already_complete and done.complete):
        run.result(done.as_dict())


def _annotations_folder(dataset: str, given: Path | None) -> Path | None:
    """Where the annotations are looked for; None where the reader needs none."""
    default = home() / "datasets" / dataset / "annotations"
    if given is None and (default.exists() or dataset not in ("csv", "folder", "webdataset")):
        return default
    return given


def _split_names(splits: str | None) -> list[str] | None:
    return [name.strip() for name in splits.split(",")] if splits else None


def _render_demo(run: Run, root: Path) -> None:
    from glscl.demo import increments
    from glscl.extract.demo.corpus import SIZES, ensure_corpus

    with run.progress.task("render", sum(SIZES.values()), "videos") as task:
        ensure_corpus(root, seed=run.seed, progress=increments(task.advance))


def _extract(run: Run, config: ExtractConfig, dataset: str, found: Any, out: Path | None, limit: int | None) -> Any:
    import os

    from glscl.extract.datasets import DATASETS
    from glscl.extract.encoder import Backbone
    from glscl.extract.part import Part
    from glscl.extract.pipeline import extract as extract_features
    from glscl.extract.sampling import Sampling
    from glscl.versions import versions

    entry = DATASETS[dataset]
    launch = run.processes
    part = Part.parse(config.part).among(launch.rank, launch.world)
    cores = len(os.sched_getaffinity(0))
    name = f"{dataset}-{config.backbone.replace('/', '-').replace(':', '-')}" + (f"-first{limit}" if limit else "")
    out = out or home() / "caches" / name
    backbone = Backbone.load(
        config.backbone,
        config.pretrained,
        words=config.max_words or entry.max_words,
        device=run.device(),
        precision=config.precision,
        preprocess=config.preprocess,
    )
    done = extract_features(
        found,
        out,
        backbone=backbone,
        sampling=Sampling(
            fps=entry.fps if config.fps is None else parse_rate(config.fps),
            rule=config.sampling,
            max_frames=config.max_frames,
        ),
        format=config.format,
        dtype=config.dtype,
        tokens=config.tokens,
        shard_videos=config.shard_videos,
        shard_texts=config.shard_texts,
        store_frames=config.store_frames,
        frame_quality=config.frame_quality,
        workers=config.workers or max(1, cores // launch.local_world),
        batch_frames=config.batch_frames,
        batch_texts=config.batch_texts,
        decoder=config.decoder,
        time_limit=config.time_limit,
        memory_limit=config.memory_limit,
        strict=config.strict,
        retry_failed=config.retry_failed,
        part=part,
        progress=run.progress,
        provenance={
            "command": with_option(command_line(), "--part", None),
            "versions": versions(),
            "recipe": entry.recipe,
        },
    )
    print_extraction(run, out, done)
    return done


@command(app)
def inspect(
    run: Run,
    cache: CacheArgument,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read everything back: checksums, finite values, boundaries.")
    ] = False,
) -> None:
    """Say what is in a cache, what failed and why; with --verify, whether all of it can still be read."""
    from glscl.cache.store import open_store
    from glscl.cache.summary import summarise
    from glscl.cache.summary import verify as verify_store
    from glscl.errors import CacheCorruptError

    store = open_store(cache)
    report = summarise(store)
    print_cache(run, report)
    if verify:
        shards = sum(len(store.commits(stream)) for stream in ("video", "text"))
        with run.progress.task("verify", shards, "shards") as task:
            report["problems"] = verify_store(store, progress=task.advance)
        run.say(f"verified {shards} shards: {len(report['problems']) or 'no'} problems")
        for line in report["problems"]:
            run.say(f"  {line}")
    if report.get("problems"):
        raise CacheCorruptError(
            f"{cache} has {len(report['problems'])} problems; the first: {report['problems'][0]}",
            mend=f"Make the damaged shards again: glscl repair {cache}, then {store.resume_command}",
        )
    run.result(report)


@command(app)
def repair(
    run: Run,
    cache: CacheArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
) -> None:
    """Drop what killed runs left in a cache and set damaged shards aside, so that the next extract makes them again."""
    from glscl.cache.repair import repair as repair_cache
    from glscl.cache.store import open_store

    store = open_store(cache)
    shards = sum(store.num_shards(stream) for stream in ("video", "text"))
    with run.progress.task("read back", shards, "shards") as task:
        report = repair_cache(cache, dry_run=dry_run, progress=task.advance)
    print_repair(run, report)
    run.result(report.as_dict())


@command(app, TrainConfig)
def train_head(
    run: Run,
    config: TrainConfig,
    cache: Annotated[
        Path | None, typer.Option(help="Cache to train on. Default: the only one there is.", rich_help_panel="Data")
    ] = None,
    out: RunFolderOption = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Train once for each value of a setting or option of the head, such as queries=4,8,16; repeat for a grid.",
            metavar="KEY=V1,V2",
            rich_help_panel="Sweep",
        ),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the step (on a GPU into CUDA graphs): a slower start, faster steps. Needs a compiler.",
            rich_help_panel="Training",
        ),
    ] = False,
) -> None:
    """Train a head on cached features. Keeps the best and the last epoch, and how it went, in a run folder."""
    from glscl.cache.store import open_store
    from glscl.evaluate.evaluation import validation_metrics
    from glscl.places import new_run, the_cache
    from glscl.train_head.config import resolve
    from glscl.train_head.train import train

    device = run.device()
    store = open_store(cache or the_cache())
    if sweep:
        _sweep(run, config, sweep, store, out, device, compile)
        return
    stored = _settings_to_resume(config, out)
    settings = resolve(
        config,
        dataset=store.recipe,
        device_type=device.type,
        seed=None if stored is not None and run.seed == 0 else run.seed,
        stored=stored,
    )
    out = out or new_run(settings.head)
    run.say(f"training {settings.head} on {store.path} by the recipe {settings.recipe} → {out}")
    run.say(settings_line(settings))
    done = train(
        store,
        out,
        settings,
        device=device,
        validate=validation_metrics,
        reporter=TrainingLines(run),
        resume=config.resume,
        tracker=config.tracker,
        compile=compile,
        command=command_line(),
    )
    _say_trained(run, done)
    run.result(vars(done))


def _settings_to_resume(config: TrainConfig, out: Path | None) -> dict[str, Any] | None:
    """Settings of the run that --resume goes on with; None where there is none yet."""
    from glscl.train_head.checkpoint import read_run

    return read_run(out)["settings"] if config.resume and out is not None and (out / "run.json").exists() else None


def _say_trained(run: Run, done: Any) -> None:
    best = f"; best epoch {done.best['epoch']} by {done.selection}" if done.best else ""
    run.say(f"{done.run}: {len(done.history)} epochs in {duration(done.seconds)}{best}")


def _sweep(
    run: Run, config: TrainConfig, sweep: list[str], store: Any, out: Path | None, device: Any, compile: bool
) -> None:
    from glscl.evaluate.evaluation import validation_metrics
    from glscl.places import new_run
    from glscl.train_head.sweep import parse_sweep, sweep_points, sweep_table, train_sweep

    if config.tracker != "none":
        raise UsageError("--tracker follows one run, not a sweep")
    points = sweep_points(
        config,
        parse_sweep(sweep),
        dataset=store.recipe,
        embed_dim=store.embed_dim,
        device_type=device.type,
        seed=run.seed,
    )
    out = out or new_run(f"sweep-{points[0].settings.head}")
    run.say(f"{len(points)} trainings on {store.path} → {out}")
    rows = train_sweep(
        store,
        out,
        points,
        device=device,
        compile=compile,
        validate=validation_metrics,
        reporter=TrainingLines(run),
        announce=run.say,
        command=command_line(),
    )
    run.say()
    run.say(aligned(sweep_table(rows)))
    for row in rows:
        if row.error is not None:
            run.say(f"note: {row.point}: {row.error}")
    best = rows[0]
    if best.validation is None:
        run.say("nothing was validated, so the order says nothing")
    else:
        run.say(f"sorted by validation R@1; judge the best: glscl eval --run {best.run}")
    run.result({"out": out, "rows": [row.as_dict() for row in rows]})


@command(app, TrainConfig, TuneConfig)
def finetune(
    run: Run,
    config: TrainConfig,
    tuning: TuneConfig,
    run_folder: Annotated[
        Path | None,
        typer.Option("--run", help="Trained head to start from. Default: a fresh --head.", rich_help_panel="Data"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Cache of captions, splits and ids. Default: that of --run, or the only one.", rich_help_panel="Data"
        ),
    ] = None,
    videos: VideosOption = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights of the backbone, where the cache was made from a file.",
            metavar="FILE",
            rich_help_panel="Data",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. Default: runs/finetune-<head>-<time>.", rich_help_panel="Data"),
    ] = None,
) -> None:
    """Train backbone and head together from pixels: the second pass. Leaves a run with a backbone to extract with."""
    from glscl.cache.store import open_store
    from glscl.evaluate.evaluation import validation_metrics
    from glscl.places import new_run, the_cache
    from glscl.train_head.checkpoint import read_run
    from glscl.train_head.finetune import finetune as train_both
    from glscl.train_head.finetuning.config import resolve_finetune

    device = run.device()
    start = None if run_folder is None else read_run(run_folder)
    if cache is None and start is not None and Path(start["cache"]).exists():
        cache = Path(start["cache"])
    store = open_store(cache or the_cache())
    stored = _settings_to_resume(config, out)
    settings = resolve_finetune(
        config,
        tuning,
        start=start,
        dataset=store.recipe,
        device_type=device.type,
        seed=None if stored is not None and run.seed == 0 else run.seed,
        stored=stored,
    )
    out = out or new_run(f"finetune-{settings.head}")
    run.say(
        f"training backbone and {settings.head} on the videos of {store.path} by the recipe {settings.recipe} → {out}"
    )
    run.say(f"{settings_line(settings)}, backbone_lr_scale {settings.backbone_lr_scale:g}")
    done = train_both(
        store,
        out,
        settings,
        start=run_folder,
        pretrained=pretrained,
        videos=videos,
        workers=tuning.workers,
        frame_memory=tuning.frame_memory,
        checkpoint_every=tuning.checkpoint_every or 500,
        device=device,
        validate=validation_metrics,
        reporter=TrainingLines(run),
        resume=config.resume,
        tracker=config.tracker,
        command=command_line(),
    )
    _say_trained(run, done)
    run.say(f"its backbone gives other features than {store.path} holds; judge it from pixels, or extract again:")
    run.say(f"  glscl eval --run {out} --videos DIR")
    run.say(
        f"  glscl extract --dataset {store.configuration.get('dataset', 'NAME')} "
        f"--backbone {store.configuration['backbone']['name']} --pretrained {out}/backbone.safetensors --out CACHE"
    )
    run.result(vars(done))


@command(app)
def eval(
    run: Run,
    run_folders: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            help="Run to judge; repeat to judge several as one. Default: the newest.",
            metavar="PATH",
            rich_help_panel="What",
        ),
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(
            help="How several runs' similarities are averaged: as they are, or each scaled by its temperature. Default: mean.",
            metavar="mean|scaled",
            rich_help_panel="What",
        ),
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Judge the untrained --head instead of a run.", rich_help_panel="What")
    ] = False,
    head: Annotated[str, typer.Option(help="Head of a zero-shot evaluation.", rich_help_panel="What")] = "mean_pool",
    weights: Annotated[str, typer.Option(help="best or last epoch of the run.", rich_help_panel="What")] = "best",
    cache: CacheOption = None,
    split: Annotated[str, typer.Option(help="Split to judge on.", rich_help_panel="Data")] = "test",
    videos: Annotated[
        Path | None,
        typer.Option(
            help="Judge a run of finetune from pixels: the folder with the videos of the cache it began from.",
            rich_help_panel="Data",
        ),
    ] = None,
    normalise: Annotated[
        str | None, typer.Option(help="Hubness normalisations, separated by commas.", rich_help_panel="Metrics")
    ] = None,
    save_similarity: Annotated[
        Path | None, typer.Option(help="Write the matrix to this .npy file.", rich_help_panel="Output")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Result file. Default: result.json in the run's folder.", rich_help_panel="Output"),
    ] = None,
) -> None:
    """Report R@1, R@5, R@10, median and mean rank in both directions, from stored features alone."""
    from glscl.cache.store import open_store
    from glscl.evaluate.evaluation import write_result
    from glscl.places import newest_run, result_file, the_cache
    from glscl.train_head.checkpoint import read_run

    folders = run_folders or []
    if zero_shot and folders:
        raise UsageError("--run and --zero-shot exclude each other")
    if weights not in ("best", "last"):
        raise UsageError(f"--weights is {weights!r}; expected best or last")
    if combine is not None and len(folders) < 2:
        raise UsageError("--combine needs several runs; repeat --run")
    if videos is not None and (zero_shot or len(folders) > 1):
        raise UsageError("--videos judges one run of finetune from pixels")
    folder = None if zero_shot else folders[0] if folders else newest_run()
    if cache is None and folder is not None:
        recorded = Path(read_run(folder)["cache"])
        cache = recorded if recorded.exists() else None
    store = open_store(cache or the_cache())
    common: dict[str, Any] = {
        "which": weights,
        "split": split,
        "normalise": [name.strip() for name in normalise.split(",")] if normalise else (),
        "seed": run.seed,
        "device": run.device(),
        "save_similarity": save_similarity,
        "command": command_line(),
        "note": lambda text: run.say(f"note: {text}"),
    }
    if len(folders) > 1:
        from glscl.evaluate.ensemble import evaluate_ensemble

        evaluation = evaluate_ensemble(store, folders, combine=combine or "mean", **common)
        together = home() / "runs" / f"ensemble-{'+'.join(each.resolve().name for each in folders)}"
        path = out or result_file(store.path, together, head, split)
    elif videos is not None and folder is not None:
        from glscl.evaluate.from_pixels import evaluate_from_pixels

        evaluation = evaluate_from_pixels(store, folder, videos=videos, **common)
        path = out or result_file(store.path, folder, head, split)
    else:
        from glscl.evaluate.evaluation import evaluate_run

        evaluation = evaluate_run(store, run=folder, head=head, **common)
        path = out or result_file(store.path, folder, head, split)
    write_result(path, evaluation)
    print_result(run, evaluation.result)
    run.say(f"written to {path}")
    run.result(evaluation.result)


@command(app)
def search(
    run: Run,
    sentence: Annotated[
        str | None, typer.Argument(help="What to look for, in plain words; - reads a sentence a line.")
    ] = None,
    video: Annotated[
        Path | None, typer.Option(help="A video file, to find captions for it instead.", rich_help_panel="What")
    ] = None,
    top: Annotated[int, typer.Option(help="How many answers.", min=1, rich_help_panel="What")] = 10,
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Trained head. Default: zero-shot mean_pool.", rich_help_panel="How")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Cache to search. Default: the run's own, or the only one.", rich_help_panel="Data"),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Search one split only.", rich_help_panel="Data")] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            help="Lower what answers too many queries, as a bank of training captions tells.",
            metavar="nnn|qb-norm",
            rich_help_panel="How",
        ),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(help="Weights of the backbone, where the cache was made from a file.", rich_help_panel="How"),
    ] = None,
) -> None:
    """Find videos for a sentence, with the moment that fits best; or captions for a video file."""
    from glscl.cache.store import open_store
    from glscl.evaluate.search import Search
    from glscl.places import the_cache
    from glscl.train_head.checkpoint import read_run

    if (sentence is None) == (video is None):
        raise UsageError("Give either a sentence or --video FILE")
    if sentence is not None and not sentence.strip():
        raise UsageError("The sentence is empty", mend='Say what to look for: glscl search "a dog runs"')
    if video is not None and not video.is_file():
        raise NotFoundError(f"There is no video file {video}")
    if cache is None and run_folder is not None:
        cache = Path(read_run(run_folder)["cache"])
    store = open_store(cache or the_cache())
    if video is not None and "text_backbone" in store.configuration:
        raise UsageError(f"{store.path} holds imported frame features: how they were made from pixels is not known")
    if normalise is not None and "train" not in store.splits:
        raise UsageError(
            f"--normalise needs a bank of training captions and {store.path} has no split train",
            mend="Search without --normalise",
        )
    head, table = _head_and_table(run, store, run_folder, split)
    backbone = _backbone_of(run, store, pretrained)
    searched = Search(
        head, table, normalise=normalise, train=lambda: _head_and_table(run, store, run_folder, "train")[1]
    )
    if sentence == "-":
        prompt = "look for: " if sys.stdin.isatty() else None
        found = []
        for line in lines_of(sys.stdin, prompt):
            found.append({"query": line, "hits": _videos_for(run, searched, backbone, line, top)})
            run.say()
        run.result({"searches": found, "bank": searched.bank})
    elif sentence is not None:
        hits = _videos_for(run, searched, backbone, sentence, top)
        run.result({"query": sentence, "hits": hits, "bank": searched.bank})
    else:
        hits = _captions_for(run, searched, backbone, video, store.configuration["sampling"], top)
        run.result({"query": video, "hits": hits, "bank": searched.bank})


def _head_and_table(
    run: Run, store: Any, folder: Path | None, split: str | None, *, check: Any = lambda head: None
) -> tuple[Any, Any]:
    """The head of a run, or zero-shot mean_pool, and what it searches; `check` may refuse the head before reading."""
    from glscl.cache.feature_table import FeatureTable
    from glscl.evaluate.evaluation import zero_shot_head
    from glscl.train_head.checkpoint import check_cache, load_run
    from glscl.train_head.recipes import RECIPES

    settings: dict[str, Any] = {}
    if folder is None:
        head = zero_shot_head("mean_pool", store)
        settings["max_frames"] = RECIPES.get(store.recipe, RECIPES["default"]).frames
    else:
        head, record = load_run(folder)
        check_cache(folder, record, store)
        settings = record["settings"]
    check(head)
    table = FeatureTable.load(
        store,
        split,
        max_frames=settings.get("max_frames"),
        frame_position=settings.get("frame_position", "uniform"),
        tokens=head.needs_tokens,
        device=run.device(),
    )
    return head.to(run.device()), table


def _backbone_of(run: Run, store: Any, pretrained: str | None) -> Any:
    """The backbone that a cache was made with, its weights compared by hash."""
    from glscl.extract.encoder import backbone_of_cache

    return backbone_of_cache(store.configuration, store.path, pretrained, device=run.device())


def _videos_for(run: Run, searched: Any, backbone: Any, sentence: str, top: int) -> list[dict[str, Any]]:
    import torch

    from glscl.cache.schema import TextFeatures

    device = searched.table.device
    encoded = backbone.encode_texts(backbone.tokenize([" ".join(sentence.split())]))
    tokens = torch.from_numpy(encoded.token_features).to(device)
    mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=device)
    hits = searched.videos(TextFeatures(torch.from_numpy(encoded.text_features).to(device), tokens, mask), top=top)
    print_hits(run, hits, searched)
    return [hit._asdict() for hit in hits]


def _captions_for(run: Run, searched: Any, backbone: Any, video: Any, sampling: Any, top: int) -> list[dict[str, Any]]:
    import torch

    from glscl.cache.schema import VideoFeatures
    from glscl.extract.pipeline import encode_video_file

    table = searched.table
    frames = encode_video_file(video, backbone, sampling, width=table.frame_features.shape[1])
    features = torch.from_numpy(frames).to(table.device)[None]
    mask = torch.ones(features.shape[:2], dtype=torch.bool, device=table.device)
    hits = searched.captions(VideoFeatures(features, mask), top=top)
    print_hits(run, hits, searched)
    return [hit._asdict() for hit in hits]


@command(app)
def compare(
    run: Run,
    runs: RunsArgument,
    format: Annotated[
        str,
        typer.Option(help="How tables are written.", metavar="terminal|markdown|csv|latex", rich_help_panel="Output"),
    ] = "terminal",
    published: Annotated[
        bool, typer.Option(help="Put published results beside, frozen and fine-tuned apart.", rich_help_panel="Output")
    ] = True,
    top: Annotated[
        int, typer.Option(help="Captions listed that improved most, and worsened.", min=0, rich_help_panel="Output")
    ] = 5,
    split: ResultsOption = "test",
    cache: MovedCacheOption = None,
    resamples: Annotated[
        int, typer.Option(help="Draws of the paired tests.", min=1, rich_help_panel="Statistics")
    ] = 2000,
) -> None:
    """Runs side by side: one table with intervals, each run tested against the first, and the captions they differ on."""
    from glscl.evaluate.comparison import compare_runs
    from glscl.evaluate.runs import open_cache_of, read_evaluated
    from glscl.evaluate.tables import STYLES, render

    if format not in STYLES:
        raise UsageError(f"--format is {format!r}; expected one of {', '.join(STYLES)}")
    found = [open_cache_of(read_evaluated(path, split=split), cache)[1] for path in runs]
    comparison = compare_runs(found, published=published, top=top, resamples=resamples, seed=run.seed)
    run.say("\n".join(render(table, format) for table in comparison.tables()).rstrip())
    run.result(comparison.as_dict())


@command(app)
def report(
    run: Run,
    runs: RunsArgument,
    out: Annotated[Path, typer.Option(help="The page.", rich_help_panel="Output")] = Path("report.html"),
    plots: Annotated[
        Path | None, typer.Option(help="Write the figures as PNG and PDF to this folder.", rich_help_panel="Output")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.", rich_help_panel="Output")] = None,
    videos: VideosOption = None,
    split: ResultsOption = "test",
    cache: MovedCacheOption = None,
    examples: Annotated[
        int, typer.Option(help="Best captions shown a run, and as many worst.", min=0, rich_help_panel="Examples")
    ] = 3,
) -> None:
    """Write one self-contained HTML page: tables, curves, hubs, examples with their frames, failures, commands."""
    from glscl.evaluate.closeup import examine
    from glscl.evaluate.report import write_report
    from glscl.evaluate.runs import open_cache_of, read_evaluated
    from glscl.extract.thumbnails import thumbnails_of

    if videos is not None and not videos.is_dir():
        raise NotFoundError(f"--videos is {videos}, where there is no folder")
    found, thumbnails = [], None
    for path in runs:
        store, judged = open_cache_of(read_evaluated(path, split=split), cache)
        if store is not None:
            run.detail(f"looking closely at {path}")
            judged = examine(judged, store, examples=examples, device=run.device())
            thumbnails = thumbnails or thumbnails_of(store.configuration, videos)
        found.append(judged)
    write_report(found, out, title=title, thumbnails=thumbnails, plots_dir=plots, seed=run.seed)
    for judged in found:
        for note in judged.notes:
            run.say(f"note: {judged.title}: {note}")
    run.say(f"written to {out}" + (f", figures to {plots}" if plots else ""))
    run.result({"report": out, "plots": plots, "runs": [judged.title for judged in found]})


@command(app, ImportConfig)
def import_features(
    run: Run,
    config: ImportConfig,
    dataset: DatasetOption,
    features: Annotated[
        Path,
        typer.Option(
            help="Frame features: a folder with a file a video, or one file by video.", rich_help_panel="Data"
        ),
    ],
    annotations: AnnotationsOption = None,
    text_features: Annotated[
        Path | None,
        typer.Option(help="Caption features: by caption or by video, or one array in order.", rich_help_panel="Data"),
    ] = None,
    token_features: Annotated[
        Path | None, typer.Option(help="Token features: by caption, or one array in order.", rich_help_panel="Data")
    ] = None,
    out: CacheFolderOption = None,
    splits: SplitsOption = None,
    protocol: ProtocolOption = None,
) -> None:
    """Make a cache from features that others extracted, with the captions of a dataset. No video is needed."""
    from glscl.extract.datasets import DATASETS
    from glscl.extract.encoder import Backbone
    from glscl.extract.import_features import import_features as import_arrays
    from glscl.versions import versions

    if dataset not in DATASETS:
        raise UsageError(f"--dataset is {dataset!r}; expected one of {', '.join(DATASETS)}")
    entry = DATASETS[dataset]
    found = entry.read(
        _annotations_folder(dataset, annotations), None, splits=_split_names(splits), protocol=protocol, dry_run=True
    )
    backbone = None
    if config.backbone is not None:
        backbone = Backbone.load(
            config.backbone,
            config.pretrained,
            words=config.max_words or entry.max_words,
            device=run.device(),
            precision=config.precision,
        )
    out = out or home() / "caches" / f"{dataset}-{config.name.replace('/', '-').replace(':', '-')}"
    done = import_arrays(
        found,
        features,
        out,
        text_features=text_features,
        token_features=token_features,
        backbone=backbone,
        name=config.name,
        fps=config.fps,
        format=config.format,
        dtype=config.dtype,
        tokens=config.tokens,
        shard_videos=config.shard_videos,
        shard_texts=config.shard_texts,
        batch_texts=config.batch_texts,
        progress=run.progress,
        provenance={"command": command_line(), "versions": versions(), "recipe": entry.recipe},
    )
    for line in done.notes:
        run.say(f"note: {line}")
    state = " is complete already" if done.already_complete else ""
    run.say(f"{out}{state}: {done.videos} videos, {done.frames} frames, {done.texts} captions")
    print_failures(run, out, done)
    run.result(done.as_dict())


@command(app)
def import_checkpoint(
    run: Run,
    file: Annotated[Path, typer.Argument(help="State dict: what torch.save wrote, or safetensors.")],
    source: Annotated[
        str, typer.Option(help="Program that made it.", metavar="glscl|clip4clip", rich_help_panel="What")
    ],
    option: Annotated[
        list[str] | None,
        typer.Option(
            help="Option of the head that weights cannot tell, such as mask_padding=false; repeat for more.",
            metavar="KEY=VALUE",
            rich_help_panel="What",
        ),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Cache to judge it on. Default: the only one there is.", rich_help_panel="Data")
    ] = None,
    out: RunFolderOption = None,
    max_frames: Annotated[
        int | None, typer.Option(help="Frames a video. Default: the recipe's.", min=1, rich_help_panel="Data")
    ] = None,
    frame_position: Annotated[
        str,
        typer.Option(help="Which frames where there are more.", metavar="uniform|first|last", rich_help_panel="Data"),
    ] = "uniform",
) -> None:
    """Make a run from a checkpoint of GLSCL or CLIP4Clip, to judge and search with. Unpickles nothing but tensors."""
    from glscl.cache.store import open_store
    from glscl.places import new_run, the_cache
    from glscl.train_head.import_checkpoint import import_checkpoint as import_weights

    done = import_weights(
        file,
        open_store(cache or the_cache()),
        out or new_run,
        source=source,
        options=option or (),
        max_frames=max_frames,
        frame_position=frame_position,
        command=command_line(),
    )
    for line in done.notes:
        run.say(f"note: {line}")
    for key in done.dropped_keys:
        run.detail(f"dropped: {key}")
    run.say(f"{done.run}: {done.head} from {file}. Judge it: glscl eval --run {done.run}")
    run.result(done.as_dict())


@command(app)
def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Folder to write to.", rich_help_panel="Output")],
    run_folder: Annotated[
        Path | None, typer.Option("--run", help="Run to export. Default: the newest.", rich_help_panel="What")
    ] = None,
    zero_shot: Annotated[
        bool,
        typer.Option("--zero-shot", help="Vectors of zero-shot mean_pool instead of a run.", rich_help_panel="What"),
    ] = False,
    cache: CacheOption = None,
    split: Annotated[
        str, typer.Option(help="Split to make vectors of; all takes the whole cache.", rich_help_panel="Data")
    ] = "test",
    to: Annotated[
        str, typer.Option(help="How vectors are written.", metavar="npy|safetensors", rich_help_panel="Output")
    ] = "npy",
) -> None:
    """Write one vector a video and one a caption for any index; their dot products are the similarities of the head."""
    from glscl.cache.store import open_store
    from glscl.evaluate.export import FORMATS, check_indexable, export_vectors
    from glscl.places import newest_run, the_cache
    from glscl.train_head.checkpoint import read_run

    if zero_shot and run_folder is not None:
        raise UsageError("--run and --zero-shot exclude each other")
    if to not in FORMATS:
        raise UsageError(f"--to is {to!r}; expected one of {', '.join(FORMATS)}")
    folder = None if zero_shot else run_folder or newest_run()
    if cache is None and folder is not None:
        recorded = Path(read_run(folder)["cache"])
        cache = recorded if recorded.exists() else None
    store = open_store(cache or the_cache())
    head, table = _head_and_table(run, store, folder, None if split == "all" else split, check=check_indexable)
    done = export_vectors(
        head,
        table,
        out,
        to=to,
        about={
            "head": "mean_pool, zero-shot" if folder is None else read_run(folder)["head"],
            "run": None if folder is None else str(folder),
            "cache": str(store.path),
            "cache_fingerprint": store.fingerprint,
            "split": split,
            "command": command_line(),
        },
    )
    run.say(f"{out}: {done.videos:,} videos and {done.texts:,} captions, {done.dim}-d, in {', '.join(done.files)}")
    run.result(done.as_dict())


@command(app)
def merge(
    run: Run,
    out: Annotated[Path, typer.Argument(help="Folder of the merged cache; there already, or new.")],
    parts: Annotated[list[Path], typer.Argument(help="Folders that `glscl extract --part` filled.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files even where they could be linked.")] = False,
) -> None:
    """Make one cache of the parts of an extraction that ran apart, without copying where the file system has links."""
    from glscl.cache.merge import merge as merge_parts

    done = merge_parts(parts, out, copy=copy)
    files = f"{done.linked} files linked, {done.copied} copied"
    run.say(f"{out}: {done.shards} new shards ({files}); complete with {done.videos} videos and {done.texts} captions")
    run.result(vars(done))


@command(app)
def convert(
    run: Run,
    cache: Annotated[Path, typer.Argument(help="Cache to read: a folder, or a flat .h5 file or .zarr group.")],
    out: Annotated[
        Path, typer.Argument(help="*.h5 or *.zarr: one flat file or group. Any other name: a cache folder.")
    ],
    format: Annotated[
        str | None, typer.Option(help="Format of a cache folder; the other one by default.", metavar="zarr|hdf5")
    ] = None,
) -> None:
    """Write a complete cache again: in the other format, or as one ordinary HDF5 file or Zarr group to share."""
    from glscl.cache.convert import convert as convert_store
    from glscl.cache.store import open_store
    from glscl.cache.summary import folder_bytes

    store = open_store(cache)
    convert_store(store, out, format=format)
    size = folder_bytes(out) if out.is_dir() else out.stat().st_size
    run.say(f"{out}: {size / 1e6:.1f} MB, fingerprint {store.fingerprint}")
    run.result({"out": out, "bytes": size, "fingerprint": store.fingerprint})
