"""Commands that use a run: find videos and captions, write vectors for an index."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glscl.commands.options import OneOf, Run, command, command_line
from glscl.commands.printing import lines_of, print_hits
from glscl.commands.shared import CacheOption, HeadOfRunOption, ListOption, let_import, open_cache
from glscl.common.errors import Hint, NotFoundError, UsageError

if TYPE_CHECKING:
    from glscl.cache.store import Store
    from glscl.evaluate.search.model import Model


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
    head: HeadOfRunOption = None,
    cache: Annotated[
        Path | None,
        typer.Option(help="Cache to search. Default: the run's own, or the only one.", rich_help_panel="Data"),
    ] = None,
    list: ListOption = None,
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
    if (sentence is None) == (video is None):
        raise UsageError("Give either a sentence or `video=FILE`")
    if sentence is not None and not sentence.strip():
        raise UsageError("The sentence is empty", hint=Hint("Say what to look for", "search", {"": "a dog runs"}))
    if video is not None and not video.is_file():
        raise NotFoundError(f"There is no video file {video}")
    run.device()  # one that is not there is said first
    let_import(head)
    store = open_cache(cache, run_folder, list)
    if video is not None and "text_backbone" in store.configuration:
        raise UsageError(f"{store.path} holds imported frame features: how they were made from pixels is not known")
    if normalise is not None and "train" not in store.splits:
        raise UsageError(
            f"`normalise` needs a bank of training captions and {store.path} has no split train",
            hint="Search without `normalise`",
        )
    model = _model(run, store, run_folder)
    model.load_backbone(pretrained)
    search = model.searching(split, normalise)
    name = model.record.get("head", "mean_pool")
    about = {"head": name, "run": run_folder, "cache": store.path, "list": store.list_name, "split": split}
    table = search.table
    count = f"{table.num_videos:,} videos" if video is None else f"{table.num_texts:,} captions"
    by = f"zero-shot {name}" if run_folder is None else f"{name} ({run_folder})"
    run.say(f"{count} of {store.path}{f', split {split}' if split else ''}, by {by}")

    def answered(query: str) -> Sequence[dict[str, Any]]:
        hits = model.search(query, top=top, split=split, normalise=normalise)
        print_hits(run, hits, search)
        return [hit._asdict() for hit in hits]

    if sentence == "-":
        prompt = "look for: " if sys.stdin.isatty() else None
        found = []
        for line in lines_of(sys.stdin, prompt):
            found.append({"query": line, "hits": answered(line)})
            run.say()
            if not run.heard:
                break
        run.result({"searches": found, **about, "bank": search.bank})
    elif sentence is not None:
        run.result({"query": sentence, "hits": answered(sentence), **about, "bank": search.bank})
    elif video is not None:
        hits = model.search_captions(video, top=top, split=split, normalise=normalise)
        print_hits(run, hits, search)
        run.result({"query": video, "hits": [hit._asdict() for hit in hits], **about, "bank": search.bank})


def _model(run: Run, store: Store, folder: Path | None) -> Model:
    """The head of a run, or zero-shot mean_pool, on a cache."""
    from glscl.evaluate.search.model import load_run, zero_shot

    return zero_shot(store, device=run.device()) if folder is None else load_run(folder, store, device=run.device())


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
    head: HeadOfRunOption = None,
    cache: CacheOption = None,
    list: ListOption = None,
    split: Annotated[
        str, typer.Option(help="Split to make vectors of; all takes the whole list.", rich_help_panel="Data")
    ] = "test",
    to: Annotated[
        str, typer.Option(help="How vectors are written.", rich_help_panel="Output"), OneOf(("npy", "safetensors"))
    ] = "npy",
) -> None:
    """Write one vector a video and one a caption for any index; their dot products are the similarities of the head."""
    from glscl.commands.default_paths import newest_run
    from glscl.evaluate.exporting.vectors import check_indexable, export_vectors
    from glscl.evaluate.judged_lists import about_list
    from glscl.train_head.checkpoint import read_run

    if zero_shot and run_folder is not None:
        raise UsageError("--run and --zero-shot exclude each other")
    run.device()  # one that is not there is said first
    let_import(head)
    folder = None if zero_shot else run_folder or newest_run()
    store = open_cache(cache, folder, list)
    model = _model(run, store, folder)
    check_indexable(model.head)
    done = export_vectors(
        model.head,
        model.table(None if split == "all" else split),
        out,
        to=to,
        about={
            "head": "mean_pool, zero-shot" if folder is None else read_run(folder)["head"],
            "run": None if folder is None else str(folder),
            "cache": str(store.path),
            "cache_fingerprint": store.fingerprint,
            **about_list(store.list),
            "split": split,
            "command": command_line(),
        },
    )
    run.say(f"{out}: {done.videos:,} videos and {done.texts:,} captions, {done.dim}-d, in {', '.join(done.files)}")
    run.result(done.as_dict())
