"""The command line. It only wires: each command opens paths, calls one room after another and prints what came out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from glscl.config import home
from glscl.extract.config import ExtractConfig, parse_rate
from glscl.options import Run, command, command_line
from glscl.options import main as run_command_line

app = typer.Typer(
    name="glscl",
    help="Encode every frame and caption with CLIP once; then train and judge text-video retrieval heads in seconds.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_command_line(app))


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from glscl import __version__

        print(f"glscl {__version__}")
        raise typer.Exit()


@command(app, ExtractConfig)
def extract(
    run: Run,
    config: ExtractConfig,
    dataset: Annotated[str, typer.Option(help="Name of a dataset reader; see docs/datasets.md.", rich_help_panel="Data")],
    annotations: Annotated[
        Optional[Path], typer.Option(help="File or folder with the annotations.", rich_help_panel="Data")
    ] = None,
    videos: Annotated[Optional[Path], typer.Option(help="Folder with the videos.", rich_help_panel="Data")] = None,
    out: Annotated[Optional[Path], typer.Option(help="Folder of the cache.", rich_help_panel="Data")] = None,
    splits: Annotated[
        Optional[str], typer.Option(help="Only these splits, separated by commas.", rich_help_panel="Data")
    ] = None,
    protocol: Annotated[
        Optional[str], typer.Option(help="Variant of the splits, such as 9k, 7k, full.", rich_help_panel="Data")
    ] = None,
    limit: Annotated[
        Optional[int], typer.Option(help="Only the first N videos of each split.", rich_help_panel="Data", min=1)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read the annotations, find the files, print counts.", rich_help_panel="Data")
    ] = False,
) -> None:
    """Encode every frame and caption with CLIP into a cache. Resumes by itself; a finished cache is left alone."""
    from glscl.errors import UsageError
    from glscl.extract.datasets import DATASETS
    from glscl.extract.datasets.base import summary
    from glscl.extract.pipeline import first_videos

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
        annotations or root / "annotations",
        videos,
        splits=[name.strip() for name in splits.split(",")] if splits else None,
        protocol=protocol,
        dry_run=dry_run,
    )
    if limit:
        found = first_videos(found, limit)
    counted = summary(found)
    for line in found.notes:
        run.say(f"note: {line}")
    if dry_run:
        _print_splits(run, counted)
        run.result(counted)
        return
    done = _extract(run, config, dataset, found, out, limit)
    run.result(done.as_dict())


def _render_demo(run: Run, root: Path) -> None:
    from glscl.extract.demo.corpus import SIZES, ensure_corpus

    with run.progress.task("render", sum(SIZES.values()), "videos") as task:
        before = 0

        def progress(done: int, _: int) -> None:
            nonlocal before
            task.advance(done - before)
            before = done

        ensure_corpus(root, seed=run.seed, progress=progress)


def _extract(run: Run, config: ExtractConfig, dataset: str, found: Any, out: Path | None, limit: int | None) -> Any:
    import os

    from glscl.extract.datasets import DATASETS
    from glscl.extract.encoder import Backbone
    from glscl.extract.pipeline import extract as extract_features
    from glscl.extract.sampling import Sampling
    from glscl.progress import duration
    from glscl.versions import versions

    entry = DATASETS[dataset]
    name = f"{dataset}-{config.backbone.replace('/', '-').replace(':', '-')}" + (f"-first{limit}" if limit else "")
    out = out or home() / "caches" / name
    backbone = Backbone.load(
        config.backbone,
        config.pretrained,
        words=config.max_words or entry.max_words,
        device=run.device(),
        precision=config.precision,
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
        workers=config.workers or len(os.sched_getaffinity(0)),
        batch_frames=config.batch_frames,
        batch_texts=config.batch_texts,
        decoder=config.decoder,
        time_limit=config.time_limit,
        memory_limit=config.memory_limit,
        strict=config.strict,
        retry_failed=config.retry_failed,
        progress=run.progress,
        provenance={"command": command_line(), "versions": versions(), "recipe": entry.recipe},
    )
    if done.already_complete:
        run.say(f"{out} is complete already: {done.videos} videos, {done.frames} frames, {done.texts} captions")
    else:
        run.say(
            f"{out}: {done.videos} videos, {done.frames} frames, {done.texts} captions in "
            f"{duration(done.seconds['total'])}" + (f"; bound by {done.bound_by}" if done.bound_by else "")
        )
    if done.failed:
        lost = f"; {done.texts_without_video} captions lost their video" if done.texts_without_video else ""
        run.say(f"{len(done.failed)} videos with failures{lost}. Reasons: glscl inspect {out}")
    return done


def _print_splits(run: Run, counted: dict[str, Any]) -> None:
    rows = [["split", "captions", "videos", "found", "missing", "expected captions", "expected videos"]]
    for name, row in counted["splits"].items():
        cells = [row[k] for k in ("captions", "videos", "found", "missing", "expected_captions", "expected_videos")]
        rows.append([name, *("-" if cell is None else f"{cell:,}" for cell in cells)])
    run.say(_table(rows))
    for name, ids in counted.get("missing_examples", {}).items():
        if ids:
            run.say(f"missing in {name}, for example: {', '.join(ids)}")


def _table(rows: list[list[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    )


@command(app)
def inspect(
    run: Run,
    cache: Annotated[Path, typer.Argument(help="Folder of the cache.")],
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
    _print_cache(run, report)
    if verify:
        shards = sum(len(store.commits(stream)) for stream in ("video", "text"))
        with run.progress.task("verify", shards, "shards") as task:
            report["problems"] = verify_store(store, progress=task.advance)
        run.say(f"verified {shards} shards: {len(report['problems']) or 'no'} problems")
        for line in report["problems"]:
            run.say(f"  {line}")
    if report.get("problems"):
        raise CacheCorruptError(f"{cache} has {len(report['problems'])} problems; the first: {report['problems'][0]}")
    run.result(report)


def _print_cache(run: Run, report: dict[str, Any]) -> None:
    state = "complete" if report["complete"] else "NOT complete: " + ", ".join(
        f"{s['committed']} of {s['planned']} {name} shards" for name, s in report["shards"].items()
    )
    backbone = report["configuration"]["backbone"]
    run.say(f"{report['path']}  ({report['format']}, {report['bytes'] / 1e6:.1f} MB, {state})")
    run.say(
        f"{report['configuration']['dataset']} through {backbone['name']}/{backbone['pretrained']}, "
        f"{report['embed_dim']}-d {report['dtype']}, fingerprint {report['fingerprint']}"
    )
    run.say(f"{report['videos']:,} videos with {report['frames']:,} frames, {report['texts']:,} captions")
    rows = [["split", "videos", "listed", "published", "captions", "published", "failed", "captions without video"]]
    for name, split in report["splits"].items():
        keys = ("videos", "videos_listed", "expected_videos", "texts", "expected_captions", "videos_failed")
        cells = [split[k] for k in keys] + [split["texts_without_video"]]
        rows.append([name, *("-" if cell is None else f"{cell:,}" for cell in cells)])
    run.say(_table(rows))
    for line in report["notes"]:
        run.say(f"note: {line}")
    shown = report["failed"] if run.common.verbose else report["failed"][:20]
    for failure in shown:
        run.say(f"{failure['status']}: {failure['id']}: {failure['reason']}")
    if len(shown) < len(report["failed"]):
        run.say(f"… and {len(report['failed']) - len(shown)} more (all with -v)")


@command(app)
def convert(
    run: Run,
    cache: Annotated[Path, typer.Argument(help="Cache to read: a folder, or a flat .h5 file or .zarr group.")],
    out: Annotated[Path, typer.Argument(help="*.h5 or *.zarr: one flat file or group. Any other name: a cache folder.")],
    format: Annotated[
        Optional[str], typer.Option(help="Format of a cache folder; the other one by default.", metavar="zarr|hdf5")
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
