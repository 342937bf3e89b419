"""Commands that fill a cache: from videos, from the features of others, from parts made apart."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from glscl.commands.options import COMMANDS, Run, command, command_line
from glscl.commands.printing import print_extraction, print_failures, print_splits
from glscl.commands.shared import AnnotationsOption, CacheFolderOption, DatasetOption, ProtocolOption, SplitsOption
from glscl.commands.wording import hint_text
from glscl.common.errors import UsageError
from glscl.common.settings import home, with_option
from glscl.extract.settings import ExtractConfig, ImportConfig, parse_rate


@command(ExtractConfig)
def extract(
    run: Run,
    config: ExtractConfig,
    dataset: DatasetOption,
    annotations: AnnotationsOption = None,
    videos: Annotated[
        Path | None,
        typer.Option(help="Folder with the videos. Default: datasets/<name>/videos.", rich_help_panel="Data"),
    ] = None,
    out: CacheFolderOption = None,
    splits: SplitsOption = None,
    protocol: ProtocolOption = None,
    limit: Annotated[
        int | None, typer.Option(help="Only the first N videos of each split.", rich_help_panel="Data", min=1)
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Read the annotations, find the files, print counts; decode nothing.",
            rich_help_panel="Data",
        ),
    ] = False,
) -> None:
    """Encode every frame and caption with CLIP into a cache. Resumes by itself; a finished cache is left alone."""
    from glscl.extract.datasets import DATASETS, first_videos
    from glscl.extract.datasets.base import summary

    names = _split_names(dataset, splits)
    if not dry_run:
        run.device()  # one that is not there is said first
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
        splits=names,
        protocol=protocol,
        dry_run=dry_run,
    )
    if limit:
        found = first_videos(found, limit)
    counted = summary(found)
    for line in found.notes:
        run.say(f"note: {line}")
    if dry_run:
        print_splits(run, counted)
        run.result(counted)
        return
    done = _extract(run, config, dataset, found, out, limit)
    if run.launch.world == 1 or done.finished_here or (done.already_complete and done.complete):
        run.result(done.as_dict())


def _annotations_folder(dataset: str, given: Path | None) -> Path | None:
    """Where the annotations are looked for; None where the reader needs none."""
    default = home() / "datasets" / dataset / "annotations"
    if given is None and (default.exists() or dataset not in ("csv", "folder", "webdataset")):
        return default
    return given


def _split_names(dataset: str, splits: str | None) -> list[str] | None:
    """The splits asked for. Raises UsageError for an unknown data set or split before any file is looked for."""
    from glscl.extract.datasets import DATASETS
    from glscl.extract.datasets.base import SPLITS

    if dataset not in DATASETS:
        raise UsageError(f"--dataset is {dataset!r}; expected one of {', '.join(DATASETS)}")
    if splits is None:
        return None
    names = [name.strip() for name in splits.split(",")]
    for name in names:
        if name not in SPLITS:
            raise UsageError(f"--splits has {name!r}; expected some of {', '.join(SPLITS)}, separated by commas")
    return names


def _render_demo(run: Run, root: Path) -> None:
    from glscl.demo.corpus import SIZES, ensure_corpus
    from glscl.demo.pipeline import increments

    with run.progress.task("render", sum(SIZES.values()), "videos") as task:
        ensure_corpus(root, seed=run.seed, progress=increments(task.advance))


def _extract(run: Run, config: ExtractConfig, dataset: str, found: Any, out: Path | None, limit: int | None) -> Any:
    import os

    from glscl.common.versions import versions
    from glscl.extract.backbone.encoder import Backbone
    from glscl.extract.datasets import DATASETS
    from glscl.extract.decode.sampling import Sampling
    from glscl.extract.part import Part
    from glscl.extract.pipeline import extract as extract_features

    entry = DATASETS[dataset]
    launch = run.launch
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


@command(ImportConfig)
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
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the cache. Default: caches/<dataset>-<name>.", rich_help_panel="Data"),
    ] = None,
    splits: SplitsOption = None,
    protocol: ProtocolOption = None,
) -> None:
    """Make a cache from features that others extracted, with the captions of a dataset. No video is needed."""
    from glscl.common.versions import versions
    from glscl.extract.backbone.encoder import Backbone
    from glscl.extract.datasets import DATASETS
    from glscl.extract.importing.import_features import check_sources
    from glscl.extract.importing.import_features import import_features as import_arrays

    names = _split_names(dataset, splits)
    check_sources(text_features, token_features, config.backbone)
    if config.backbone is not None:
        run.device()  # one that is not there is said first
    entry = DATASETS[dataset]
    found = entry.read(_annotations_folder(dataset, annotations), None, splits=names, protocol=protocol, dry_run=True)
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


@command()
def merge(
    run: Run,
    out: Annotated[Path, typer.Argument(help="Folder of the merged cache; there already, or new.")],
    parts: Annotated[list[Path], typer.Argument(help="Folders that `glscl extract --part` filled.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files even where they could be linked.")] = False,
) -> None:
    """Bring what several caches of one encoder hold together, without copying where the file system has links."""
    from glscl.cache.upkeep.merge import merge as merge_caches

    done = merge_caches(parts, out, copy=copy)
    files = f"{done.linked} files linked, {done.copied} copied"
    state = f"complete with {done.videos} videos and {done.texts} captions"
    if done.pending:
        state = f"not complete: {done.videos} videos and {done.texts} captions are there"
    run.say(f"{out}: {done.shards} new shards ({files}); {state}")
    for line in done.notes:
        run.note(line)
    for row, hint in zip(done.pending, done.resume):
        waits = " and ".join(
            f"{row[key]} {name}" for key, name in (("video", "videos"), ("text", "captions")) if row[key]
        )
        run.say(f"the list {row['list']} waits for {waits}. {hint_text(hint, COMMANDS)}")
    run.result(done.as_dict())
