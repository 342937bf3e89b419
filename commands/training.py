"""Commands that make a run: on cached features, from pixels, from the weights of others."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glscl.commands.options import COMMANDS, OneOf, Run, Stopped, command, command_line
from glscl.commands.printing import TrainingLines, backbone_line, print_rows, settings_line
from glscl.commands.shared import ListOption, RunFolderOption, SourceOption, UntoldOption, let_import, open_cache
from glscl.commands.wording import hint_text
from glscl.common.errors import NotFoundError, StorageError, UsageError
from glscl.common.progress import duration
from glscl.common.settings import setting
from glscl.common.tables import amount
from glscl.train_head.finetuning.settings import FinetuneSettings
from glscl.train_head.settings import TrainSettings

if TYPE_CHECKING:
    from glscl.cache.store import Store
    from glscl.train_head.train import TrainResult


@dataclass(frozen=True, kw_only=True)
class TypedOptions:
    """Options of a training that the settings hold in another form, or not at all."""

    option: list[str] | None = setting(
        None, "Option of the head, such as queries=12; repeat for more.", group="Head", metavar="KEY=VALUE"
    )
    adapter: str | None = setting(
        None,
        "Residual feature adapters under the head.",
        group="Head",
        choices=("none", "linear", "mlp"),
        default_from="none",
    )
    resume: bool = setting(False, "Go on where the run in --out stopped.", group="Training")
    requeue: bool = setting(
        False,
        "Begin the run in --out, or go on with it: for jobs that are started again by the same command.",
        group="Training",
    )


def _settings_asked(asked: dict[str, Any]) -> dict[str, Any]:
    """What is asked for as the settings hold it: without the `TypedOptions`, whose head options are joined."""
    options = {**(asked.get("options") or {}), **option_values(asked.get("option") or ())}
    if asked.get("adapter") is not None:
        options["adapter"] = asked["adapter"]
    let_import(asked.get("head"))
    kept = {name: value for name, value in asked.items() if name not in TypedOptions.__dataclass_fields__}
    return {**kept, "options": options} if options else kept


def option_values(pairs: Sequence[str]) -> dict[str, str]:
    """`["queries=12"]` → `{"queries": "12"}`. Raises UsageError for what is not KEY=VALUE."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--option is {pair!r}; expected KEY=VALUE")
        values[key.strip()] = text.strip()
    return values


@contextlib.contextmanager
def _resumable(out: Path, *, sweep: bool = False) -> Iterator[None]:
    """Let an interrupt and a failing disk say how to go on: the command as typed, with what names the run."""
    try:
        yield
    except KeyboardInterrupt as error:
        saved = any(any(out.glob(where)) for where in ("run.json", "*/run.json"))
        stands = f"{out} keeps what is done" if saved else "nothing was saved of it yet"
        raise Stopped(f"Stopped; {stands}. Go on: {_going_on(out, sweep)}") from error
    except StorageError as error:
        raise error.continued(_going_on(out, sweep)) from error


def _going_on(out: Path, sweep: bool) -> str:
    """The command that goes on; a sweep finds by itself what is done."""
    typed = command_line()
    words = shlex.split(typed)
    more = [] if any(word.partition("=")[0] == "--out" for word in words) else ["--out", str(out)]
    again = sweep or {"--resume", "--requeue"} & set(words)
    more += ["--resume"] if not again and (out / "run.json").exists() else []
    return " ".join([typed, shlex.join(more)]).strip()


@command(TrainSettings, TypedOptions, of_run=itemgetter("settings"))
def train_head(
    run: Run,
    asked: dict[str, Any],
    cache: Annotated[
        Path | None, typer.Option(help="Cache to train on. Default: the only one there is.", rich_help_panel="Data")
    ] = None,
    list: ListOption = None,
    out: RunFolderOption = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            help="Train once for each value of a setting or option of the head, such as queries=4,8,16; repeat for a grid.",
            metavar="KEY=V1,V2",
            rich_help_panel="Sweep",
        ),
    ] = None,
) -> None:
    """Train a head on cached features. Keeps the best and the last epoch, and how it went, in a run folder."""
    from glscl.cache.lock import require_free
    from glscl.commands.default_paths import run_folder
    from glscl.train_head.settings import resolve
    from glscl.train_head.train import check_trainable, earlier_run, train

    if sweep:
        _sweep(run, asked, sweep, partial(open_cache, cache, list=list), out)
        return
    begun, device = _run_to_resume(asked, out), run.device()
    settings_by = partial(resolve, _settings_asked(asked), device_type=device.type, stored=_settings_of(begun))
    settings_by(dataset="default")  # wrong usage is said before any cache is looked for
    store = open_cache(cache, begun, list)
    settings = settings_by(dataset=store.recipe)
    check_trainable(store, settings.head)
    with run_folder(out, settings.head) as out:
        require_free(out)
        earlier_run(out, store, settings, begun is not None)
        run.say(f"training {settings.head} on {_named(store)} by the recipe {settings.recipe} → {out}")
        run.say(settings_line(settings))
        run.in_force(settings)
        run.result(vars(_trained(run, store, out, settings, partial(train, resume=begun is not None))))


def _trained(
    run: Run, store: Store, out: Path, settings: TrainSettings, train: Callable[..., TrainResult]
) -> TrainResult:
    """What comes of `train`, and said."""
    from glscl.evaluate.validating.validation import validation_of

    with _resumable(out):
        done = train(
            store,
            out,
            settings,
            device=run.device(),
            validate=validation_of(store, settings, out),
            reporter=TrainingLines(run),
            command=command_line(),
        )
    best = f"; best epoch {done.best['epoch']} by {done.selection}" if done.best else ""
    run.say(f"{done.run}: {amount(len(done.history), 'epoch')} in {duration(done.seconds)}{best}")
    for doubt in done.doubts:
        run.say(f"warning: {doubt}")
    return done


def _named(store: Store) -> str:
    return f"list {store.list_name} of {store.place}"


def _run_to_resume(asked: dict[str, Any], out: Path | None) -> Path | None:
    """The run that --resume goes on with, and --requeue where there is one; None where one begins."""
    resume, requeue = bool(asked.get("resume")), bool(asked.get("requeue"))
    if not resume and not requeue:
        return None
    if out is None:
        raise UsageError(
            f"--{'resume' if resume else 'requeue'} goes on with the run in --out", hint="Name it: --out RUN"
        )
    if not (out / "run.json").exists():
        if requeue:
            return None
        raise NotFoundError(f"{out} holds no run to go on with", hint="Begin one: leave out --resume")
    return out


def _settings_of(run: Path | None) -> dict[str, Any] | None:
    from glscl.train_head.checkpoint import read_run

    return None if run is None else read_run(run)["settings"]


def _sweep(
    run: Run, asked: dict[str, Any], sweep: list[str], opened: Callable[[Path | None], Store], out: Path | None
) -> None:
    """Train a grid; `opened` gives the cache, at the list of a run where one was begun."""
    from glscl.commands.default_paths import run_folder
    from glscl.evaluate.evaluation import validation_metrics
    from glscl.train_head.sweeping.sweep import parse_sweep, sweep_points, sweep_table, train_sweep
    from glscl.train_head.train import check_trainable

    if asked.get("tracker", "none") != "none":
        raise UsageError("--tracker follows one run, not a sweep")
    if asked.get("resume") and out is None:
        raise UsageError("--resume goes on with the sweep in --out", hint="Name it: --out FOLDER")
    device = run.device()
    points_by = partial(sweep_points, _settings_asked(asked), parse_sweep(sweep), device_type=device.type)
    points = points_by(dataset="default", embed_dim=None)  # wrong usage is said before any cache is looked for
    runs = [] if out is None else [out / point.name for point in points]
    store = opened(next((each for each in runs if (each / "run.json").exists()), None))
    points = points_by(dataset=store.recipe, embed_dim=store.embed_dim)
    for point in points:
        check_trainable(store, point.settings.head)
    with run_folder(out, f"sweep-{points[0].settings.head}") as out:
        run.say(f"{amount(len(points), 'training')} on {_named(store)} → {out}")
        with _resumable(out, sweep=True):
            rows = train_sweep(
                store,
                out,
                points,
                device=device,
                validate=validation_metrics,
                reporter=TrainingLines(run),
                announce=run.say,
                command=command_line(),
            )
        run.say()
        print_rows(run, sweep_table(rows))
        for row in rows:
            if row.error is not None:
                run.say(f"note: {row.point}: {row.error}")
            for doubt in row.doubts:
                run.say(f"warning: {row.point}: {doubt}")
        best = rows[0]
        if best.validation is None:
            run.say("nothing was validated, so the order says nothing")
        else:
            run.say(f"sorted by validation R@1; judge the best: glscl eval --run {best.run}")
        run.result({"out": out, "rows": [row.as_dict() for row in rows]})


@command(FinetuneSettings, TypedOptions, of_run=itemgetter("settings"))
def finetune(
    run: Run,
    asked: dict[str, Any],
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Cache of captions, splits and ids. Default: that of --run, or the only one.", rich_help_panel="Data"
        ),
    ] = None,
    list: ListOption = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run. Default: runs/finetune-<head>-<time>.", rich_help_panel="Data"),
    ] = None,
) -> None:
    """Train backbone and head together from pixels: the second pass. Leaves a run with a backbone to extract with."""
    from glscl.cache.lock import require_free
    from glscl.commands.default_paths import run_folder
    from glscl.train_head.finetuning.finetune import finetune as train_both
    from glscl.train_head.finetuning.settings import resolve_finetune
    from glscl.train_head.train import check_trainable, earlier_run

    begun, device = _run_to_resume(asked, out), run.device()
    settings_by = partial(resolve_finetune, _settings_asked(asked), device_type=device.type, stored=_settings_of(begun))
    start = settings_by(dataset="default").start  # wrong usage is said before any cache is looked for
    store = open_cache(cache, begun or start, list)
    settings = settings_by(dataset=store.recipe)
    check_trainable(store)
    with run_folder(out, f"finetune-{settings.head}") as out:
        require_free(out)
        earlier_run(out, store, settings, begun is not None)
        run.say(
            f"training backbone and {settings.head} on the videos of {_named(store)} by the recipe {settings.recipe} → {out}"
        )
        run.say(settings_line(settings))
        run.say(backbone_line(settings))
        run.in_force(settings)
        done = _trained(run, store, out, settings, partial(train_both, resume=begun is not None))
        _say_what_next(run, store, out, settings)
        run.result(vars(done))


def _say_what_next(run: Run, store: Store, out: Path, settings: FinetuneSettings) -> None:
    """The commands that judge a second pass: from pixels, and where one frame is encoded by itself from new features."""
    from glscl.train_head.run_cache import extraction_hint, videos_folder

    again = extraction_hint(store, out / "backbone.safetensors")
    videos = settings.videos or shlex.quote(videos_folder(store) or "DIR")
    from_pixels = f"  glscl eval --run {out} --videos {videos}"
    if settings.patch_embedding == "3d":
        run.say(
            "its backbone sees a frame with its neighbours, so nothing can be extracted with it; judge it from pixels:"
        )
        run.say(from_pixels)
        return
    run.say(f"its backbone gives other features than {store.place} holds; judge it from pixels, or extract again:")
    run.say(from_pixels)
    run.say(f"  {hint_text(again._replace(text=''), COMMANDS)}")
    run.say(f"  glscl eval --run {out} --cache CACHE")


@command()
def import_checkpoint(
    run: Run,
    file: Annotated[Path, typer.Argument(help="Checkpoint: what torch.save wrote, or safetensors.")],
    source: SourceOption = "auto",
    option: UntoldOption = None,
    cache: Annotated[
        Path | None, typer.Option(help="Cache to judge it on. Default: the only one there is.", rich_help_panel="Data")
    ] = None,
    list: ListOption = None,
    out: RunFolderOption = None,
    max_frames: Annotated[
        int | None, typer.Option(help="Frames a video. Default: the recipe's.", min=1, rich_help_panel="Data")
    ] = None,
    frame_position: Annotated[
        str,
        typer.Option(help="Which frames where there are more.", rich_help_panel="Data"),
        OneOf(("uniform", "first", "last")),
    ] = "uniform",
) -> None:
    """Make a run from a checkpoint of GLSCL, CLIP4Clip, X-CLIP, X-Pool, DRL or DiCoSA. Unpickles nothing but tensors."""
    from glscl.commands.default_paths import run_folder
    from glscl.train_head.importing.import_checkpoint import check_options
    from glscl.train_head.importing.import_checkpoint import import_checkpoint as import_weights

    options = option_values(option or ())
    check_options(source, options)
    with contextlib.ExitStack() as stack:
        done = import_weights(
            file,
            open_cache(cache, list=list),
            lambda head: stack.enter_context(run_folder(out, head)),
            source=source,
            options=options,
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
