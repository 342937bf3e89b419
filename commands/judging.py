"""Commands that judge runs: their metrics, side by side, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glscl.commands.options import BY_COMMAS, OneOf, Run, command, command_line
from glscl.commands.printing import TrainingLines, print_result
from glscl.commands.shared import (
    CacheArgument,
    CacheOption,
    JudgeOption,
    ListOption,
    MovedCacheOption,
    ResultsListOption,
    ResultsOption,
    RunsArgument,
    VideosOption,
    let_import,
    open_cache,
)
from glscl.common.errors import NotFoundError, UsageError
from glscl.common.progress import counted
from glscl.common.settings import build, home
from glscl.evaluate.settings import EvaluateSettings

if TYPE_CHECKING:
    from glscl.cache.store import Store
    from glscl.evaluate.evaluated_run import EvaluatedRun
    from glscl.evaluate.parts import ByParts


@command(EvaluateSettings, of_run=itemgetter("settings"))
def eval(
    run: Run,
    asked: dict[str, Any],
    run_folders: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            help="Run to judge; repeat to judge several as one. Default: the newest.",
            metavar="PATH",
            rich_help_panel="What",
        ),
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Judge the untrained --head instead of a run.", rich_help_panel="What")
    ] = False,
    cache: CacheOption = None,
    list: ListOption = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            help="Judge a run of finetune from pixels: the folder with the videos of the cache it began from.",
            rich_help_panel="Data",
        ),
    ] = None,
    normalise: Annotated[
        str | None,
        typer.Option(
            help="Hubness normalisations, separated by commas: qb-norm, inverted-softmax, dsl, csls, nnn, dual-is, sinkhorn.",
            rich_help_panel="Metrics",
        ),
        BY_COMMAS,
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(
            help="Also judge when captions happen: the annotations of Charades-STA, TVR, QVHighlights, ActivityNet or DiDeMo, "
            "or a .csv or .tsv with caption, start, end (seconds) and perhaps video.",
            metavar="FILE",
            rich_help_panel="Metrics",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Result file. Default: result.json in the run's folder; result@LIST.json for another list than its own.",
            rich_help_panel="Output",
        ),
    ] = None,
) -> None:
    """Report R@1, R@5, R@10, median and mean rank in both directions, from stored features alone."""
    from glscl.commands.default_paths import newest_run, result_file
    from glscl.evaluate.evaluation import check_zero_shot, checked, evaluate_run, write_result

    folders, asked = run_folders or [], _without_training(asked)
    if zero_shot and folders:
        raise UsageError("--run and --zero-shot exclude each other")
    let_import(asked.get("head"))
    if "head" in asked and not zero_shot and ":" not in asked["head"]:
        raise UsageError("--head goes with --zero-shot; a run has the head it was trained with")
    if "weights" in asked and zero_shot:
        raise UsageError("--weights chooses an epoch of a run, and --zero-shot judges none")
    if "combine" in asked and len(folders) < 2:
        raise UsageError("--combine needs several runs; repeat --run")
    if videos is not None and (zero_shot or len(folders) > 1):
        raise UsageError("--videos judges one run of finetune from pixels")
    if moments is not None and (len(folders) > 1 or videos is not None):
        raise UsageError("--moments judges one head on stored frames; leave out the other runs, and --videos")
    if moments is not None:
        from glscl.evaluate.moment_retrieval.windows import read_windows

        read_windows(moments)  # what is wrong with it is said before anything is computed
    names = tuple(name.strip() for name in normalise.split(",")) if normalise else ()
    settings = checked(build(EvaluateSettings, {"seed": run.seed}, asked, {"normalise": names}))
    if zero_shot:
        check_zero_shot(settings.head)
    run.in_force(settings)
    device = _scorers(settings, videos) if settings.engine == "ray" else run.device()
    folders = [] if zero_shot else folders or [newest_run()]
    at = folders[0] if folders else None
    if len(folders) > 1:
        from glscl.evaluate.ensemble import evaluate_ensemble, sharing_list

        store = open_cache(cache, at if list else sharing_list(folders), list)
        judge = partial(evaluate_ensemble, store, folders, settings)
        at = home() / "runs" / f"ensemble-{'+'.join(each.resolve().name for each in folders)}"
    else:
        store = open_cache(cache, at, list)
        judge = partial(evaluate_run, store, at, settings)
        if videos is not None and at is not None:
            from glscl.evaluate.second_pass.from_pixels import evaluate_from_pixels

            judge = partial(evaluate_from_pixels, store, at, settings, videos=videos)
    with counted(run.progress, "score", "pairs") as pairs:
        evaluation = judge(device=device, command=command_line(), progress=pairs, note=run.note)
    if moments is not None:
        from glscl.evaluate.moment_retrieval.judge_moments import judge_moments

        evaluation.result["moments"] = judge_moments(store, at, moments, settings, device=run.device())
    other = _other_list(store, folders) if list else None
    path = out or result_file(store.path, at, settings.head, settings.split, other)
    write_result(path, evaluation)
    print_result(run, evaluation.result)
    file = settings.save_similarity
    matrix = "" if file is None else f", the matrix to {file}, its ids to {file.with_suffix('.json')}"
    run.say(f"written to {path}{matrix}")
    run.result(evaluation.result)


def _scorers(settings: EvaluateSettings, videos: Path | None) -> ByParts:
    """The machines of a cluster, which score by parts."""
    from glscl.evaluate.evaluation import require_no_matrix
    from glscl.evaluate.parts import ByParts

    if videos is not None:
        raise UsageError("`videos` is judged from pixels, on one machine; `engine=ray` scores stored features")
    require_no_matrix(settings)
    return ByParts.on_ray(settings.address)


def _other_list(store: Store, folders: Sequence[Path]) -> str | None:
    """Name of the list that is judged on, where it is not the runs' own."""
    from glscl.cache.lists import valid_name
    from glscl.train_head.checkpoint import read_run

    own = {read_run(each).get("list_hash") for each in folders} == {store.list_hash}
    return None if own else valid_name(store.list_name)


def _read_judged(
    run: Run, paths: Sequence[Path], split: str, list: str | None, cache: Path | None, *, judge: bool
) -> Sequence[EvaluatedRun]:
    """What evaluations have left of runs; with `judge`, those that were not evaluated are first."""
    from glscl.commands.default_paths import result_file
    from glscl.evaluate.evaluated_run import not_judged, read_evaluated_runs
    from glscl.evaluate.evaluation import checked, evaluate_run, write_result

    for folder in not_judged(paths, split=split, list=list) if judge else ():
        settings = checked(build(EvaluateSettings, {"seed": run.seed, "split": split}))
        store = open_cache(cache, folder, list)
        with counted(run.progress, f"judge {folder}", "pairs") as pairs:
            evaluation = evaluate_run(
                store, folder, settings, device=run.device(), command=command_line(), progress=pairs, note=run.note
            )
        write_result(
            result_file(store.path, folder, settings.head, split, _other_list(store, [folder]) if list else None),
            evaluation,
        )
    return read_evaluated_runs(paths, split=split, list=list)


def _without_training(asked: dict[str, Any]) -> dict[str, Any]:
    """Of what a run's own run.json says in the place of a settings file, what is about judging: how it was trained is not."""
    if "epochs" not in asked:
        return asked
    about_training = {"head", "max_frames", "frame_position"}  # what the run has anyway
    names = {field.name for field in fields(EvaluateSettings)} - about_training
    return {name: value for name, value in asked.items() if name in names}


@command()
def compare(
    run: Run,
    runs: RunsArgument,
    format: Annotated[
        str,
        typer.Option(help="How tables are written.", rich_help_panel="Output"),
        OneOf(("terminal", "markdown", "csv", "latex")),
    ] = "terminal",
    published: Annotated[
        bool,
        typer.Option(
            "--published/--no-published",
            help="Put published results beside, frozen and fine-tuned apart.",
            rich_help_panel="Output",
        ),
    ] = True,
    top: Annotated[
        int, typer.Option(help="Captions listed that improved most, and worsened.", min=0, rich_help_panel="Output")
    ] = 5,
    split: ResultsOption = "test",
    list: ResultsListOption = None,
    cache: MovedCacheOption = None,
    judge: JudgeOption = False,
    resamples: Annotated[
        int, typer.Option(help="Draws of the paired tests.", min=1, rich_help_panel="Statistics")
    ] = 2000,
) -> None:
    """Runs side by side: one table with intervals, each run tested against the first, and the captions they differ on."""
    from glscl.common.tables import render
    from glscl.evaluate.compare.comparison import compare_runs
    from glscl.evaluate.evaluated_run import open_cache_of

    found = [open_cache_of(judged, cache)[1] for judged in _read_judged(run, runs, split, list, cache, judge=judge)]
    comparison = compare_runs(found, published=published, top=top, resamples=resamples, seed=run.seed)
    run.say("\n".join(render(table, format) for table in comparison.tables()).rstrip())
    run.result(comparison.as_dict())


@command()
def leaderboard(
    run: Run,
    cache: CacheArgument,
    heads: Annotated[
        str,
        typer.Option(
            help="Heads, separated by commas; all is every head of the package that fits, but tight_transf.",
            metavar="NAMES",
            rich_help_panel="What",
        ),
    ] = "all",
    seeds: Annotated[int, typer.Option(help="Trainings a head.", min=1, rich_help_panel="What")] = 3,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs a training. Default: the recipe's.", min=1, rich_help_panel="What")
    ] = None,
    list: ListOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs. Default: runs/leaderboard-<cache>.", rich_help_panel="Data"),
    ] = None,
    format: Annotated[
        str,
        typer.Option(help="How the table is written.", rich_help_panel="Output"),
        OneOf(("terminal", "markdown", "csv", "latex")),
    ] = "terminal",
) -> None:
    """Train and judge every head that fits a cache, over seeds: one table with intervals and costs. Goes on by itself."""
    from glscl.common.tables import render
    from glscl.evaluate.leaderboard.leaderboard import leaderboard as all_heads
    from glscl.train_head.train import check_trainable

    names = [name.strip() for name in heads.split(",") if name.strip()]
    for name in names:
        let_import(name)
    store = open_cache(cache, None, list)
    check_trainable(store)
    name = store.path.name if list is None else f"{store.path.name}@{store.list_name}"
    out = out or home() / "runs" / f"leaderboard-{name}"
    run.say(f"{', '.join(names)} on list {store.list_name} of {store.place} → {out}")
    board = all_heads(
        store,
        out,
        {"epochs": epochs},
        heads=names,
        seeds=seeds,
        device=run.device(),
        reporter=TrainingLines(run),
        say=run.say,
    )
    run.say(render(board.table(), format).rstrip())
    run.result({"out": out, **board.as_dict()})


@command()
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
    list: ResultsListOption = None,
    cache: MovedCacheOption = None,
    judge: JudgeOption = False,
    examples: Annotated[
        int, typer.Option(help="Best captions shown a run, and as many worst.", min=0, rich_help_panel="Examples")
    ] = 3,
    heads: Annotated[
        list[str] | None,
        typer.Option(
            "--head",
            help="Head of a run where it is from outside this package, to let it be imported: package.module:Class; "
            "repeat for several.",
            metavar="NAME",
            rich_help_panel="What",
        ),
    ] = None,
) -> None:
    """Write one self-contained HTML page: tables, curves, hubs, examples with their frames, failures, commands."""
    from glscl.evaluate.evaluated_run import open_cache_of
    from glscl.evaluate.report.examination import examine
    from glscl.evaluate.report.page import write_report
    from glscl.extract.decode.thumbnails import thumbnails_of

    if videos is not None and not videos.is_dir():
        raise NotFoundError(f"--videos is {videos}, where there is no folder")
    for head in heads or []:
        let_import(head)
    found, thumbnails = [], None
    for path, judged in zip(runs, _read_judged(run, runs, split, list, cache, judge=judge)):
        store, judged = open_cache_of(judged, cache)
        if store is not None:
            with counted(run.progress, f"look at {path}", "pairs") as pairs:
                judged = examine(judged, store, examples=examples, device=run.device(), progress=pairs)
            thumbnails = thumbnails or thumbnails_of(store, videos)
        found.append(judged)
    write_report(found, out, title=title, thumbnails=thumbnails, plots_dir=plots, seed=run.seed)
    for judged in found:
        for note in judged.notes:
            run.note(f"{judged.title}: {note}")
    run.say(f"written to {out}" + (f", figures to {plots}" if plots else ""))
    run.result({"report": out, "plots": plots, "runs": [judged.title for judged in found]})
