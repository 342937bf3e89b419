"""Commands that use a run: find videos and captions, write vectors for an index."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from glscl.commands.options import OneOf, Run, command, command_line
from glscl.commands.printing import lines_of, print_hits
from glscl.commands.shared import CacheOption, open_cache
from glscl.common.errors import Hint, NotFoundError, UsageError


@command()
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
    split: Annotated[
        str | None, typer.Option(help="Search one split only. Default: all.", rich_help_panel="Data")
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            help="Lower what answers too many queries, as a bank of training captions tells.", rich_help_panel="How"
        ),
        OneOf(("nnn", "qb-norm")),
    ] = None,
    pretrained: Annotated[
        str | None,
        typer.Option(
            help="Weights of the backbone, where the cache was made from a file.", metavar="FILE", rich_help_panel="How"
        ),
    ] = None,
) -> None:
    """Find videos for a sentence, with the moment that fits best; or captions for a video file."""
    from glscl.evaluate.search.search import Search
    from glscl.train_head.checkpoint import read_run

    if (sentence is None) == (video is None):
        raise UsageError("Give either a sentence or --video FILE")
    if sentence is not None and not sentence.strip():
        raise UsageError("The sentence is empty", hint=Hint('Say what to look for: glscl search "a dog runs"'))
    if video is not None and not video.is_file():
        raise NotFoundError(f"There is no video file {video}")
    run.device()  # one that is not there is said first
    store = open_cache(cache, run_folder)
    if video is not None and "text_backbone" in store.configuration:
        raise UsageError(f"{store.path} holds imported frame features: how they were made from pixels is not known")
    if normalise is not None and "train" not in store.splits:
        raise UsageError(
            f"--normalise needs a bank of training captions and {store.path} has no split train",
            hint="Search without --normalise",
        )
    head, table = _head_and_table(run, store, run_folder, split)
    head_name = "mean_pool" if run_folder is None else read_run(run_folder)["head"]
    backbone = _backbone_of(run, store, pretrained)
    searched = Search(
        head, table, normalise=normalise, train=lambda: _head_and_table(run, store, run_folder, "train")[1]
    )
    about = {"head": head_name, "run": run_folder, "cache": store.path, "split": split}
    count = f"{table.num_videos:,} videos" if video is None else f"{table.num_texts:,} captions"
    by = f"zero-shot {head_name}" if run_folder is None else f"{head_name} ({run_folder})"
    run.say(f"{count} of {store.path}{f', split {split}' if split else ''}, by {by}")
    if sentence == "-":
        prompt = "look for: " if sys.stdin.isatty() else None
        found = []
        for line in lines_of(sys.stdin, prompt):
            found.append({"query": line, "hits": _videos_for(run, searched, backbone, line, top)})
            run.say()
            if not run.heard:
                break
        run.result({"searches": found, **about, "bank": searched.bank})
    elif sentence is not None:
        hits = _videos_for(run, searched, backbone, sentence, top)
        run.result({"query": sentence, "hits": hits, **about, "bank": searched.bank})
    else:
        hits = _captions_for(run, searched, backbone, video, store.configuration["sampling"], top)
        run.result({"query": video, "hits": hits, **about, "bank": searched.bank})


def _head_and_table(
    run: Run, store: Any, folder: Path | None, split: str | None, *, check: Any = lambda head: None
) -> tuple[Any, Any]:
    """The head of a run, or zero-shot mean_pool, and what it searches; `check` may refuse the head before reading."""
    from glscl.cache.table import FeatureTable
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
    from glscl.extract.backbone.encoder import backbone_of_cache

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
    from glscl.extract.single_video import encode_video_file

    table = searched.table
    frames = encode_video_file(video, backbone, sampling, width=table.frame_features.shape[1])
    features = torch.from_numpy(frames).to(table.device)[None]
    mask = torch.ones(features.shape[:2], dtype=torch.bool, device=table.device)
    hits = searched.captions(VideoFeatures(features, mask), top=top)
    print_hits(run, hits, searched)
    return [hit._asdict() for hit in hits]


@command()
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
        str, typer.Option(help="How vectors are written.", rich_help_panel="Output"), OneOf(("npy", "safetensors"))
    ] = "npy",
) -> None:
    """Write one vector a video and one a caption for any index; their dot products are the similarities of the head."""
    from glscl.commands.default_paths import newest_run
    from glscl.evaluate.exporting.vectors import check_indexable, export_vectors
    from glscl.train_head.checkpoint import read_run

    if zero_shot and run_folder is not None:
        raise UsageError("--run and --zero-shot exclude each other")
    run.device()  # one that is not there is said first
    folder = None if zero_shot else run_folder or newest_run()
    store = open_cache(cache, folder)
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
