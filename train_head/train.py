"""Training a head on a cache: which part of it, where the head starts, and the run folder that remembers it all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import set_seed

from glscl.cache.files import refuse_links
from glscl.cache.lock import hold_folder
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable, require_tokens
from glscl.common.errors import FingerprintError, Hint, InputError, UsageError
from glscl.common.launch import launch
from glscl.common.settings import as_dict, differences
from glscl.common.tables import amount
from glscl.common.versions import versions
from glscl.train_head.checkpoint import read_run, run_id
from glscl.train_head.heads import build_head, head_class, head_options
from glscl.train_head.heads.base import Head
from glscl.train_head.holdout import hold_out
from glscl.train_head.learner import Learner, resident
from glscl.train_head.loop import fit, fit_learner
from glscl.train_head.reports import FitResult, Reporter, StepReport
from glscl.train_head.resume_state import clear
from glscl.train_head.run_cache import cache_record, check_cache, list_differences
from glscl.train_head.settings import TrainSettings, settings_from
from glscl.train_head.teaching import load_teacher, reads_padding, reads_tokens
from glscl.train_head.tracking import tracked

__all__ = [
    "LoadedSplits",
    "Reporter",
    "StepReport",
    "TrainResult",
    "TrainingData",
    "Validate",
    "earlier_run",
    "fit",
    "start_head",
    "train",
]

# (head, table) -> {"text_to_video": {"R@1", ..., "MnR"}, "video_to_text": {...}}; the evaluation room provides it
Validate = Callable[[Head, FeatureTable], Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What came of a run; `history`, `best` and `doubts` as in `FitResult`."""

    run: Path
    head: str
    selection: str
    best: dict[str, Any] | None = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    seconds: float
    already_complete: bool = False
    doubts: list[str] = field(default_factory=list, repr=False)


class TrainingData(NamedTuple):
    """What a training learns from, what chooses its epoch (None: nothing), and what `best` means: `SELECTIONS`."""

    train: FeatureTable
    validation: FeatureTable | None
    selection: str


class LoadedSplits:
    """Splits of a cache as tensors, each read once however many heads are trained on it.

    Args:
        store: an open cache.
        tokens: read token features at once, because some head will need them; a head that needs none gets none.
    """

    def __init__(self, store: Store, *, tokens: bool = False) -> None:
        self.store, self.tokens = store, tokens
        self._read: dict[tuple[Any, ...], FeatureTable] = {}

    def __repr__(self) -> str:
        return f"LoadedSplits({str(self.store.path)!r}, tokens={self.tokens})"

    def load(self, split: str, settings: TrainSettings) -> FeatureTable:
        """A split with the frames and tokens that a training by these settings looks at; see `FeatureTable.load`."""
        needs_tokens, padded = reads_tokens(settings), reads_padding(settings)
        key = (split, settings.max_frames, settings.frame_position, needs_tokens or self.tokens, padded)
        if key not in self._read:
            self._read[key] = FeatureTable.load(
                self.store,
                split,
                max_frames=settings.max_frames,
                frame_position=settings.frame_position,
                tokens=needs_tokens or self.tokens,
                padded=padded,
            )
        table = self._read[key]
        return table if needs_tokens else replace(table, token_values=None, token_first=None, token_count=None)


def train(
    store: Store | LoadedSplits,
    out: Path | str,
    settings: TrainSettings,
    *,
    device: torch.device | str = "cpu",
    validate: Validate | None = None,
    reporter: Reporter | None = None,
    resume: bool = False,
    command: str = "",
) -> TrainResult:
    """Train a head on the split `train` of a cache and keep best, last and how it went in a run folder.

    Validated is on the split `val` where the cache has one with captions, else on videos held out of `train`
    (`glscl.train_head.holdout`); never on `test`, unless `settings.select` says so.

    Args:
        store: an open cache, or its splits as several trainings share them.
        out: the run folder; it must hold no run, unless `resume`.
        settings: from `glscl.train_head.settings.resolve`, or made by hand.
        device: where to train.
        validate: metrics of a head on a table; None keeps the last epoch as best. Where it is
            `glscl.train_head.tracking.Documented`, trackers get intervals and a page too.
        reporter: hears how it goes.
        resume: go on where the run in `out` stopped; begins it where there is none, and leaves a finished one alone.
        command: the command line, for run.json.

    Raises:
        BusyError: another process writes `out`.
        UsageError: `out` holds a run and `resume` is not set, or settings that do not fit the cache.
        FingerprintError: the run to resume was trained on another cache.
        Others: see `FeatureTable.load`, `build_head`, `fit_learner`.
    """
    started = time.perf_counter()
    reporter = reporter if reporter is not None and launch().speaks else Reporter()
    out, splits = Path(out), store if isinstance(store, LoadedSplits) else LoadedSplits(store)
    store = splits.store
    with hold_folder(out, what="train-head"):
        earlier = earlier_run(out, store, settings, resume)
        if earlier and earlier.get("complete"):
            return finished(out, earlier, reporter)
        data = choose_data(splits, settings, validate is not None, reporter)
        head = start_head(settings, store, data, reporter)
        teacher = load_teacher(settings, store, reporter.note)
        record = run_record(settings, head, store, data, device, command)
        if teacher is not None:
            record["teacher"] = teacher.about
        record = begun_as(out, earlier, record)
        judge = None
        if validate is not None and data.validation is not None:
            judge = partial(_judge, validate, resident(data.validation, torch.device(device)))
        learner = Learner(head, data.train, loss=settings.loss, teacher=teacher, compile=settings.compile)
        fitted = fit_learner(
            learner,
            settings,
            device=device,
            validate=judge,
            reporter=tracked(reporter, settings, out, record, validate),
            out=out,
            record=record,
            resume=resume,
        )
    return trained(out, record, fitted, started)


def _judge(validate: Validate, table: FeatureTable, head: Head) -> Mapping[str, Mapping[str, float]]:
    return validate(head, table)


def trained(out: Path, record: Mapping[str, Any], fitted: FitResult, started: float) -> TrainResult:
    """What came of a run that has just been trained.

    Args:
        record: from `run_record`.
        started: `time.perf_counter()` when the run began.
    """
    return TrainResult(
        run=out,
        head=record["head"],
        selection="last" if fitted.best is None else record["selection"],
        best=fitted.best,
        history=fitted.history,
        seconds=time.perf_counter() - started,
        doubts=fitted.doubts,
    )


def begun_as(out: Path, earlier: Mapping[str, Any] | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a run with the `run_id` that it was begun with.

    Args:
        earlier: run.json of the run in `out`, from `earlier_run`; None where it begins now.
        record: what run.json would say now, from `run_record`.

    Raises:
        UsageError: the list gives more than it did then, as what could not be read was read since: there would be other
            batches than in a run that was never stopped.
    """
    for part in ("training", "validation"):
        then, now = ({} if run is None else run.get(part) or {} for run in (earlier, record))
        if earlier is not None and part in earlier and dict(then) != now:
            was, found = (
                f"{amount(size.get('videos', 0), 'video')} with {amount(size.get('texts', 0), 'caption')}"
                for size in (then, now)
            )
            raise UsageError(
                f"{out} was begun with {was} for {part}; {record['cache']} gives {found} now, as other items of the list "
                "have features",
                hint="Train into another folder with `out`",
            )
    if earlier is not None and (earlier.get("teacher") or {}) != record.get("teacher", {}):
        raise UsageError(
            f"the teacher of {out} is another one now than when it was begun",
            hint="Train into another folder with `out`",
        )
    return {**record, "run_id": (earlier or {}).get("run_id") or run_id(record)}


def finished(out: Path, run: Mapping[str, Any], reporter: Reporter) -> TrainResult:
    """What came of a run that needs no more training; `run` is its run.json."""
    clear(out, finished=True)
    reporter.note(f"{out} is finished already")
    return TrainResult(
        run=out,
        head=run["head"],
        selection=run["selection"],
        best=run["best"],
        history=run["history"],
        seconds=0.0,
        already_complete=True,
    )


def run_record(
    settings: TrainSettings, head: Head, store: Store, data: TrainingData, device: torch.device | str, command: str
) -> dict[str, Any]:
    """run.json but for how it went: what is trained, on what, selected how, with which versions."""
    validation = data.validation
    return {
        "head": settings.head,
        "options": head.options,
        "embed_dim": head.embed_dim,
        "parameters": sum(p.numel() for p in head.parameters()),
        "settings": as_dict(settings),
        **cache_record(store),
        "selection": data.selection,
        "frozen_backbone": True,
        "training": _size(data.train),
        "validation": None if validation is None else _size(validation),
        "device": str(device),
        "versions": versions(),
        "command": command,
    }


def _size(table: FeatureTable) -> dict[str, int]:
    return {"texts": table.num_texts, "videos": table.num_videos}


def start_head(settings: TrainSettings, store: Store, data: TrainingData, reporter: Reporter) -> Head:
    """The head before its first step: seeded, as large as the features need, parts of the backbone copied in."""
    set_seed(settings.seed)
    options = dict(settings.options)
    longest = _longest(store, [table for table in (data.train, data.validation) if table is not None])
    for option, default in head_options(settings.head).items():
        if option in longest and option not in options:
            options[option] = max(default, longest[option])
    kind = head_class(settings.head)
    if (settings.loss or kind.loss) == "sigmoid":  # as SigLIP begins: nearly all pairs are negatives
        options = {"logit_bias": -10.0, **({"logit_scale": math.log(10)} if kind.has_logit_scale else {}), **options}
    head = build_head(settings.head, embed_dim=store.embed_dim, **options)
    tensors = {key: torch.from_numpy(np.array(value)) for key, value in store.backbone_tensors().items()}
    if options.get("logit_scale") is not None:
        tensors.pop("logit_scale", None)
    begun = head.initialise_from_backbone(tensors)
    total = sum(1 for _ in head.parameters())
    reporter.note(
        f"{settings.head}: {amount(sum(p.numel() for p in head.parameters()), 'parameter')} in {amount(total, 'tensor')}; "
        f"from the backbone: {', '.join(begun.initialised) or 'none'}"
    )
    for line in begun.skipped:
        reporter.note(f"not from the backbone: {line}")
    return head


def check_trainable(store: Store, head: str | None = None) -> None:
    """Refuse a cache that a head cannot learn from, before anything is said or read.

    Args:
        head: the head that will read its features; None where they are made from pixels.

    Raises:
        InputError: it has no split "train".
        UsageError: the head needs token features and it has none.
    """
    if "train" not in store.splits:
        raise InputError(
            f"{store.place} has no split train to learn from; it has {', '.join(store.splits) or 'none'}",
            hint=Hint(
                "Extract captioned videos with a split train (docs/datasets.md), or search it untrained", "search"
            ),
        )
    if head is not None and head_class(head).needs_tokens:
        require_tokens(store)


def choose_data(splits: LoadedSplits, settings: TrainSettings, can_validate: bool, reporter: Reporter) -> TrainingData:
    """What to train on, what to validate on, and what `best` will mean."""
    table = splits.load("train", settings)
    if not can_validate or settings.select == "last":
        return TrainingData(table, None, "last")
    if settings.select == "test":
        reporter.note(
            "warning: the epoch is selected on the test split, so its test numbers are optimistic; result files say so"
        )
        return TrainingData(table, splits.load("test", settings), "test")
    if settings.validation is None and "val" in splits.store.splits:
        validation = splits.load("val", settings)
        if validation.num_texts:
            reporter.note(
                f"validation: split val, {amount(validation.num_videos, 'video')} with {amount(validation.num_texts, 'caption')}"
            )
            return TrainingData(table, validation, "validation")
    held = hold_out(table, size=settings.validation, seed=settings.seed)
    if held.validation is None and settings.select == "validation":
        raise UsageError(f"`select=validation`: {held.note}", hint="Use `select=last`, or `validation=N`")
    reporter.note(held.note)
    return TrainingData(held.train, held.validation, "last" if held.validation is None else "validation")


def _longest(store: Store, tables: list[FeatureTable]) -> dict[str, int]:
    """Sizes that heads with learned positions need, by the name of the option."""
    frames = max(table.frame_features.shape[1] for table in tables)
    words = [int(t.token_count.max()) for t in tables if t.token_count is not None and t.num_texts]
    backbone = store.configuration.get("backbone")
    if isinstance(backbone, Mapping) and isinstance(backbone.get("words"), int):
        words.append(backbone["words"])
    return {
        "frame_positions": frames,
        "max_frames": frames,
        "positions": frames + 1,  # the caption stands in front of the frames
        "max_words": max(words, default=1),
    }


def earlier_run(out: Path, store: Store, settings: TrainSettings, resume: bool) -> dict[str, Any] | None:
    """run.json of the run in `out`, None where there is none. Whoever trains into `out` asks this first.

    Raises:
        StorageError: a link stands in `out`.
        UsageError: there is one and `resume` is not set, or it was begun with other settings, or on another list or
            version of it: even with the same annotations, other files give other features.
        FingerprintError: it was begun on another cache.
        CheckpointError: its run.json cannot be read.
    """
    refuse_links(out, depth=1)
    if not (out / "run.json").exists():
        return None
    if not resume:
        raise UsageError(
            f"{out} holds a run already", hint="Go on with it: `resume`; or choose another folder with `out`"
        )
    run = read_run(out)
    if run["cache_fingerprint"] != store.fingerprint:
        if "weights" not in run:
            check_cache(out, run, store)
        raise FingerprintError(
            f"{out} was begun on another cache ({run['cache']}, fingerprint {run['cache_fingerprint']}) than {store.place} "
            f"({store.fingerprint})",
            hint="Resume it on that one with `cache`, or train into another folder with `out`",
        )
    for line in list_differences(run, store):
        raise UsageError(
            f"{out} was begun on other data than {store.place} gives: {line}",
            hint=f"Resume it on that version with `list={run['list']}@{run['list_hash']}`, or train into another folder with "
            "`out`",
        )
    if differences(settings_from(run["settings"], type(settings)), settings):
        raise UsageError(f"{out} was begun with other settings", hint="Train into another folder with `out`")
    return run
