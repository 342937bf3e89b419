"""A grid of trainings on one cache: read once, trained point by point, one table sorted by validation.

sweep.json              the grid and one row a point
<key>=<value>,…/        the run folder of a point, as any other
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from glscl.cache.files import dump_json, refuse_links, write_atomically
from glscl.cache.lock import hold_folder
from glscl.cache.store import Store
from glscl.common.errors import GlsclError, NonFiniteError, UsageError
from glscl.common.launch import launch
from glscl.common.versions import versions
from glscl.train_head.heads import build_head, head_class
from glscl.train_head.reports import Reporter
from glscl.train_head.settings import TrainSettings, parse_value, resolve
from glscl.train_head.train import LoadedSplits, TrainResult, Validate, earlier_run, train

# Settings that may be varied, as options of the head may. What decides who is validated on what is not among them,
# but for the seed: rows of several seeds have several validation parts where these are held out of the training split.
SETTINGS = (
    "head", "epochs", "batch_size", "lr", "weight_decay", "warmup", "clip", "precision", "max_frames",
    "frame_position", "same_video", "captions_per_video", "seed",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Point:
    """One training of a grid.

    Attributes:
        name: `queries=4,temperature=1.0`, also its folder's name.
        changes: what distinguishes it, in the order of the grid.
        settings: all of them.
    """

    name: str
    changes: Mapping[str, Any]
    settings: TrainSettings


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a point.

    Attributes:
        point, changes: of the point.
        run: its run folder.
        epoch: whose weights are `best`; None where nothing was validated, or nothing came of it.
        validation: metrics of that epoch by direction; None likewise.
        loss: mean training loss of the last epoch.
        seconds: of training, summed over epochs.
        skipped: whether it was finished before.
        error: why it has no result; None where it has.
        doubts: as in `FitResult`.
    """

    point: str
    changes: Mapping[str, Any]
    run: Path
    epoch: int | None = None
    validation: Mapping[str, Mapping[str, float]] | None = None
    loss: float | None = None
    seconds: float = 0.0
    skipped: bool = False
    error: str | None = None
    doubts: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "changes": dict(self.changes), "run": str(self.run), "doubts": [*self.doubts]}


def parse_sweep(pairs: Sequence[str]) -> dict[str, list[str]]:
    """`["queries=4,8", "lr=1e-4,3e-4"]` → the grid as it was typed.

    Raises:
        UsageError: not KEY=V1,V2,…, or a key or value given twice.
    """
    grid: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        values = [value.strip() for value in text.split(",")]
        if not (key and equals and all(values)):
            raise UsageError(f"`sweep` is {pair!r}; expected KEY=VALUE,VALUE,…")
        if key in grid:
            raise UsageError(f"`sweep={key}` is given twice; list all its values once")
        grid[key] = values
    return grid


def sweep_points(
    asked: Mapping[str, Any],
    grid: Mapping[str, Sequence[str]],
    *,
    dataset: str,
    embed_dim: int | None,
    device_type: str = "cpu",
) -> list[Point]:
    """Every combination of a grid with all its settings, checked; nothing is trained yet.

    Args:
        asked: settings that all points share; none of them but the seed may be in the grid.
        grid: key → values as text; a key is one of `SETTINGS` or an option of the head.
        embed_dim: D of the features the heads will read; None, not known yet, leaves the heads themselves unchecked.
        dataset, device_type: as in `resolve`.

    Raises:
        UsageError: an unknown key, a value of the wrong type or out of bounds, the same point twice, a key that is
            given outside the grid too, or a choice of epochs on the test split.
    """
    if asked.get("select") == "test":
        raise UsageError("a sweep chooses among its points, which `select=test` would do by the test split")
    if not grid:
        raise UsageError("the sweep is empty; give `sweep=KEY=VALUE,VALUE,…`")
    heads = grid.get("head", [asked.get("head") or "glscl"])
    for key in grid:
        _check_key(key, heads, asked)
    points: dict[str, Point] = {}
    for texts in itertools.product(*grid.values()):
        typed = dict(zip(grid, texts))
        head = typed.get("head", heads[0])
        options = {key: text for key, text in typed.items() if key not in SETTINGS}
        declared = head_class(head).declared_options()
        unknown = next((key for key in options if key not in declared), None)
        if unknown is not None:
            raise UsageError(
                f"`sweep={unknown}`: head {head} has no such option; its options are {', '.join(declared)}"
            )
        chosen = {key: _setting(key, text) for key, text in typed.items() if key in SETTINGS}
        parsed = {key: parse_value(f"`sweep={key}`", text, declared[key].kind) for key, text in options.items()}
        changes = {key: (chosen | parsed)[key] for key in grid}
        name = ",".join(f"{key}={value}" for key, value in changes.items())
        if name in points:
            raise UsageError(f"`sweep` has the point {name} twice")
        settings = resolve(
            {**asked, **chosen, "options": {**asked.get("options", {}), **parsed}},
            dataset=dataset,
            device_type=device_type,
        )
        if embed_dim is not None:
            _check_head(name, settings, embed_dim)
        points[name] = Point(name=name, changes=changes, settings=settings)
    return list(points.values())


def train_sweep(
    store: Store,
    out: Path,
    points: Sequence[Point],
    *,
    device: torch.device | str = "cpu",
    validate: Validate | None = None,
    reporter: Reporter | None = None,
    announce: Callable[[str], None] = lambda text: None,
    command: str = "",
) -> list[Outcome]:
    """Train every point into its own folder below `out`; finished ones are left alone, begun ones go on.

    The cache is read once. A training whose loss becomes NaN loses its own point only.

    Args:
        store: an open cache.
        out: folder of the sweep.
        points: from `sweep_points`.
        device, validate, reporter, command: as in `glscl.train_head.train.train`.
        announce: hears which point begins.

    Returns:
        One row a point, the best validation R@1 first; see `sort_key`. `sweep.json` holds the same.

    Raises:
        UsageError: `out` is a run itself, or a folder in it was begun with other settings. Before anything is trained.
        StorageError: a link stands in `out`.
        As `glscl.train_head.train.train`.
    """
    out = Path(out)
    refuse_links(out, depth=1)
    if (out / "run.json").exists():
        raise UsageError(f"{out} is a run, so no sweep can be put there", hint="Choose another folder with `out`")
    with hold_folder(out, what="train-head"):
        for point in points:
            earlier_run(out / point.name, store, point.settings, True)
        splits = LoadedSplits(store, tokens=any(head_class(point.settings.head).needs_tokens for point in points))
        rows = []
        for number, point in enumerate(points, 1):
            announce(f"point {number} of {len(points)}: {point.name}")
            try:
                done = train(
                    splits,
                    out / point.name,
                    point.settings,
                    device=device,
                    validate=validate,
                    reporter=reporter,
                    resume=True,
                    command=command,
                )
            except NonFiniteError as error:
                if launch().world > 1:  # the other processes may not have met it
                    raise
                rows.append(Outcome(point=point.name, changes=point.changes, run=out / point.name, error=str(error)))
            else:
                rows.append(_outcome(point, done))
            rows.sort(key=sort_key)
            if launch().speaks:
                write_atomically(out / "sweep.json", dump_json(_record(store, points, rows, command)))
    return rows


def sort_key(row: Outcome) -> tuple[float, ...]:
    """Best first by validation R@1 text to video, then video to text, then the lower mean rank; never by test."""
    if row.validation is None:
        return (1.0 if row.error is None else 2.0,)
    t2v, v2t = row.validation["text_to_video"], row.validation["video_to_text"]
    return 0.0, -t2v["R@1"], -v2t["R@1"], t2v["MnR"] + v2t["MnR"]


def sweep_table(rows: Sequence[Outcome]) -> list[list[str]]:
    """Rows of text, a header first: what was varied, then the validation metrics of the best epoch."""
    keys = list(rows[0].changes) if rows else []
    metrics = [("text_to_video", "R@1"), ("text_to_video", "MnR"), ("video_to_text", "R@1"), ("video_to_text", "MnR")]
    titles = [f"{'t→v' if direction == 'text_to_video' else 'v→t'} {metric}" for direction, metric in metrics]
    table = [[*keys, "epoch", *titles, "loss", "seconds"]]
    for row in rows:
        numbers = ["-"] * len(metrics)
        if row.validation is not None:
            numbers = [f"{row.validation[direction][metric]:.1f}" for direction, metric in metrics]
        loss = "failed" if row.error is not None else "-" if row.loss is None else f"{row.loss:.4f}"
        epoch = "-" if row.epoch is None else str(row.epoch)
        table.append([*(str(row.changes[key]) for key in keys), epoch, *numbers, loss, f"{row.seconds:.1f}"])
    return table


def _check_key(key: str, heads: Sequence[str], asked: Mapping[str, Any]) -> None:
    """Refuse what is neither a setting nor an option of a head in the grid, and what is asked for outside the grid too."""
    options = {name: None for head in heads for name in head_class(head).declared_options()}
    if key not in SETTINGS and key not in options:
        raise UsageError(
            f"`sweep={key}`: neither a setting ({', '.join(SETTINGS)}) nor an option of {', '.join(heads)} "
            f"({', '.join(options)})"
        )
    given = {name.replace("-", "_") for name in asked.get("options", {})}
    given |= {name for name, value in asked.items() if value is not None and name != "seed"}
    if key in given:
        raise UsageError(f"{key} is given both by itself and in `sweep`", hint="Leave one of them out")


def _setting(key: str, text: str) -> Any:
    """The value of a setting; names such as "none" stay names where the setting has named choices."""
    if key == "seed":
        seed = parse_value("`sweep=seed`", text, int)
        if seed < 0:
            raise UsageError(f"`sweep=seed` is {seed}; expected at least 0")
        return seed
    field = TrainSettings.__dataclass_fields__[key]
    if field.metadata.get("choices"):
        return text  # `resolve` compares it with the choices
    return parse_value(f"`sweep={key}`", text, typing.get_type_hints(TrainSettings)[key])


def _check_head(name: str, settings: TrainSettings, embed_dim: int) -> None:
    """Build the head without memory, so that a value it refuses is found before the first point is trained."""
    try:
        with torch.device("meta"):
            build_head(settings.head, embed_dim=embed_dim, **settings.options)
    except (GlsclError, ValueError, TypeError, RuntimeError, AssertionError) as error:
        raise UsageError(f"`sweep`: the point {name} is no head: {error}") from error


def _outcome(point: Point, done: TrainResult) -> Outcome:
    best = done.best or {}
    return Outcome(
        point=point.name,
        changes=point.changes,
        run=done.run,
        epoch=best.get("epoch"),
        validation=best.get("validation"),
        loss=done.history[-1]["loss"] if done.history else None,
        seconds=sum(row["seconds"] for row in done.history),
        skipped=done.already_complete,
        doubts=done.doubts,
    )


def _record(store: Store, points: Sequence[Point], rows: Sequence[Outcome], command: str) -> dict[str, Any]:
    return {
        "cache": store.place,
        "cache_fingerprint": store.fingerprint,
        "list": store.list_name,
        "list_hash": store.list_hash,
        "points": [point.name for point in points],
        "rows": [row.as_dict() for row in rows],
        "versions": versions(),
        "command": command,
    }
