"""A head on one split of a cache: every number of a result file, the ranks behind them, and how long it took.

T texts, V videos, N queries of a bank.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from glscl.cache.files import dump_json, write_atomically
from glscl.cache.store import Store, choose_list, open_store
from glscl.cache.stored_table import StoredTable
from glscl.cache.table import Counts, FeatureTable, FramePosition
from glscl.common.arguments import types_checked
from glscl.common.errors import Hint, InputError, UsageError
from glscl.common.memory import available
from glscl.common.settings import as_dict, check
from glscl.common.versions import versions
from glscl.evaluate.confidence import confidence_of_directions
from glscl.evaluate.graded import graded_metrics, grades, read_qrels, write_trec_run
from glscl.evaluate.hubness import NORMALISATIONS, known_normalisations, normalised_ranks
from glscl.evaluate.judged_lists import about_list
from glscl.evaluate.metrics import as_mteb, partially_relevant, summarise
from glscl.evaluate.parts import ByParts
from glscl.evaluate.query_banks import Banks, TableOnDevice
from glscl.evaluate.ranks import DIRECTIONS, RANKINGS, TEXT_TO_VIDEO, VIDEO_TO_TEXT, query_videos, retrieval_ranks
from glscl.evaluate.seen_in_training import training_of, videos_seen
from glscl.evaluate.settings import ZERO_SHOT_HEADS, EvaluateSettings
from glscl.evaluate.similarity import PairsDone, Scoring, ranks, similarity_matrix
from glscl.evaluate.watched import Watched
from glscl.extract.datasets import DATASETS
from glscl.train_head.checkpoint import load_run, read_run
from glscl.train_head.doubts import score_doubts
from glscl.train_head.heads import build_head, head_class
from glscl.train_head.heads.base import Head, VectorHead
from glscl.train_head.recipes import RECIPES
from glscl.train_head.run_cache import backbone_of, check_cache, open_recorded

_TAG = re.compile(r":([a-z][a-z_-]*)$")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        result: content of a result file (docs/results.md); JSON-able.
        ranks: float64 ranks under "text_to_video" (T,), "video_to_text" and "video_to_text_caption" (G,).
        text_ids: of the queries of text to video, in order.
        video_ids: of the queries of video to text, in order.
        video_of_text: (T,) position of each text's video in `video_ids`.
    """

    result: dict[str, Any]
    ranks: dict[str, np.ndarray]
    text_ids: list[str]
    video_ids: list[str]
    video_of_text: np.ndarray

    def __repr__(self) -> str:
        where = "/".join(str(self.result.get(key)) for key in ("dataset", "split"))
        return f"Evaluation({self.result.get('head')!r} on {where}, R@1 {self.result[TEXT_TO_VIDEO]['R@1']:.1f})"


class JudgedTable(TableOnDevice, Protocol):
    """One split to judge on; `glscl.cache.table.FeatureTable` is one."""

    @property
    def counts(self) -> Counts: ...
    @property
    def captions(self) -> Sequence[str]: ...


class JudgedHead(NamedTuple):
    """What is judged.

    Attributes:
        head: a head, or several as one.
        load: gives the table of a split as the head looks at it; that of "train" is asked for only where a
            normalisation needs a bank.
        facts: what the result says of the head: `head`, `run`, `selection`, `frozen_backbone`, and for several runs
            `runs` and `combine`.
        runs: folders of the runs that it comes from; none where it is untrained.
    """

    head: Scoring
    load: Callable[[str], JudgedTable]
    facts: Mapping[str, Any]
    runs: Sequence[Path] = ()


@types_checked
def evaluate_run(
    cache: Store | os.PathLike[str] | str | None,
    run: os.PathLike[str] | str | None = None,
    settings: EvaluateSettings | None = None,
    *,
    list: str | None = None,
    device: torch.device | str | ByParts = "cpu",
    command: str = "",
    progress: PairsDone | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Judge a trained head, or one that needs no training.

    Args:
        cache: an open cache, or its path; None is the one that the run was trained on.
        run: folder of a run; None takes the zero-shot `settings.head`.
        settings: what to judge on and how; None is the defaults.
        list: which list of the cache (see `glscl.cache.store.open_store`); None is that of an open cache, else the version
            that the run was trained on, else the only one.
        device: where to compute; a `ByParts` has others do it, for galleries that one machine does not hold.
        command: for the result.
        progress: called with pairs done and pairs in all.
        note: called with lines that people should read.

    Raises:
        FingerprintError: the run's head cannot understand this cache.
        UsageError: a head that means nothing untrained, an unknown normalisation, settings out of bounds, or several
            lists to choose from.
        NotFoundError, CheckpointError, InputError, NonFiniteError: see what is called.
    """
    started, settings = time.perf_counter(), checked(settings)
    folder = None if run is None else Path(run)
    store = seen_at(cache, folder, list)
    opened = open_judged(folder, store, settings, note=note)
    head, table_of = placed(opened.head, device)

    def load(split: str) -> FeatureTable | StoredTable:
        return table_of(
            store,
            split,
            max_frames=settings.max_frames or opened.max_frames,
            frame_position=settings.frame_position or opened.frame_position,
            tokens=head.needs_tokens,
            padded=not head.mask_padding,
        )

    facts = {
        "head": opened.name,
        "run": None if folder is None else str(folder),
        "selection": opened.selection,
        "frozen_backbone": opened.frozen_backbone,
    }
    judged = JudgedHead(head, load, facts, () if folder is None else (folder,))
    return judge(judged, store, settings, started=started, device=device, command=command, progress=progress, note=note)


def placed(head: Any, device: torch.device | str | ByParts) -> tuple[Any, Callable[..., FeatureTable | StoredTable]]:
    """A head where it computes, and how the table is opened that it looks at."""
    return (head, StoredTable) if isinstance(device, ByParts) else (head.to(device), FeatureTable.load)


def seen_at(cache: Store | os.PathLike[str] | str | None, run: Path | None, list: str | None = None) -> Store:
    """A cache at one of its lists: the one that is named, that of an open cache, of the run, or the only one.

    Args:
        cache: None is the one that the run was trained on.

    Raises:
        UsageError: there are several lists, or neither a cache nor a run is named.
        Others: see `glscl.train_head.run_cache.open_recorded`.
    """
    if isinstance(cache, Store):
        return cache if list is None else Store(cache.library, choose_list(cache.library, list))
    if run is not None:
        return open_recorded(read_run(run), None if cache is None else Path(cache), list)
    if cache is None:
        raise UsageError("neither a cache nor a run is named")
    return open_store(cache, list)


def checked(settings: EvaluateSettings | None) -> EvaluateSettings:
    """The settings, or the defaults. Raises UsageError for one that is not what it can be."""
    settings = settings or EvaluateSettings()
    check(settings)
    known_normalisations(settings.normalise)
    return settings


def judge(
    judged: JudgedHead,
    store: Store,
    settings: EvaluateSettings,
    *,
    started: float,
    device: torch.device | str | ByParts = "cpu",
    command: str = "",
    progress: PairsDone | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Judge a head, or several as one, on a split of a cache: the numbers, and all that a result says beside them.

    Args:
        started: `time.perf_counter()` when the caller began to read.
        The others: see `evaluate_run`.

    Raises:
        UsageError: an unknown normalisation, or one that the head or the cache has nothing for.
        Others: see `JudgedHead.load` and `evaluate_head`.
    """
    check_normalisations(settings.normalise, judged.head, store)
    table = judged.load(settings.split)
    if settings.qb_norm_beta is None:
        beta = RECIPES.get(store.recipe, RECIPES["default"]).qb_norm_beta
        settings = replace(settings, qb_norm_beta=beta)
    training = training_of(judged.runs, store)
    seen = videos_seen(store.list, settings.split, table.video_ids, training)
    counts = {**asdict(table.counts), "videos_seen_in_training": seen}
    if seen is None:
        note(f"not known how many of the judged videos were seen in training: {'; '.join(training.unknown)}")
    evaluation = evaluate_head(
        judged.head,
        table,
        settings,
        train=lambda: judged.load("train"),
        device=device,
        seconds={"load": time.perf_counter() - started},
        progress=progress,
    )
    backbone, pretrained = backbone_of(store.configuration)
    about = {
        "dataset": store.dataset,
        "split": settings.split,
        **judged.facts,
        "backbone": backbone,
        "pretrained": pretrained,
        "cache": store.place,
        "cache_fingerprint": store.fingerprint,
        **about_list(store.list, settings.split),
    }
    if store.dataset in DATASETS and DATASETS[store.dataset].partially_relevant:
        about["partially_relevant"] = partially_relevant(evaluation.ranks[TEXT_TO_VIDEO])
    if store.dataset == "mteb":
        about["mteb"] = {f"{way} nDCG@10": as_mteb(evaluation.ranks[way]) for way in DIRECTIONS}
    tail = {"settings": as_dict(settings), "versions": versions(), "command": command}
    return replace(evaluation, result={**about, **evaluation.result, "counts": counts, **tail})


class OpenedRun(NamedTuple):
    """The head of a run and what a result says of it; the last two are the frames it looks at."""

    head: Head
    name: str
    selection: str
    frozen_backbone: bool
    max_frames: int | None
    frame_position: FramePosition


def open_judged(
    run: Path | None, store: Store, settings: EvaluateSettings, *, note: Callable[[str], None] = lambda text: None
) -> OpenedRun:
    """The head of a run, or where there is none the zero-shot `settings.head`; errors as in `evaluate_run`."""
    if run is not None:
        return open_run(run, store, settings, note=note)
    recipe = RECIPES.get(store.recipe, RECIPES["default"])
    return OpenedRun(zero_shot_head(settings.head, store), settings.head, "last", True, recipe.frames, "uniform")


def open_run(run: Path, store: Store, settings: EvaluateSettings, *, note: Callable[[str], None]) -> OpenedRun:
    """The head of a run, checked to understand a cache; errors as in `evaluate_run`."""
    head, record = load_run(run, settings.weights)
    for line in check_cache(run, record, store, which=settings.weights):
        note(f"not what {run} was trained on: {line}")
    for line in record.get("imported", {}).get("notes", ()):
        note(f"{run}: {line}")
    trained = record["settings"]
    return OpenedRun(
        head=head,
        name=record["head"],
        selection=selection_of(record, settings, note=note),
        frozen_backbone=bool(record.get("frozen_backbone", True)),
        max_frames=trained.get("max_frames"),
        frame_position=trained.get("frame_position", "uniform"),
    )


def selection_of(record: Mapping[str, Any], settings: EvaluateSettings, *, note: Callable[[str], None]) -> str:
    """How the judged epoch of a run was chosen; a warning where by the split it is judged on."""
    selection = record.get("selection", "last") if settings.weights == "best" else "last"
    if selection == "test" and settings.split == "test":
        note("warning: the epoch was selected on the test split, so these numbers are optimistic")
    return selection


def evaluate_head(
    head: Scoring,
    table: JudgedTable,
    settings: EvaluateSettings | None = None,
    *,
    train: Callable[[], JudgedTable] | None = None,
    device: torch.device | str | ByParts | None = None,
    seconds: dict[str, float] | None = None,
    progress: PairsDone | None = None,
) -> Evaluation:
    """Judge a head on a table: `counts`, the three rankings, and what was asked for beside.

    Captions whose id ends in `:word` (the built-in corpus marks `:order`, `:pair`, …) are also judged by themselves,
    against all videos, under "tags".

    Args:
        settings: of these count `normalise`, `best_frames`, `confidence`, `seed`, `qrels`, `trec_run`, `save_similarity`.
        train: gives the table that banks are taken from; called only where a normalisation needs one.
        device: where to compute; None is where the head is, a `ByParts` has others do it.
        seconds: the result's `seconds` are added to it.
        progress: called with pairs done and pairs in all.
    """
    settings, seconds = checked(settings), {} if seconds is None else seconds
    for stage in ("load", "encode", "score", "metrics"):
        seconds.setdefault(stage, 0.0)
    check_normalisations(settings.normalise, head)
    similarity, watched = None, Watched(head)
    scoring: Any = watched  # all that a head has, by delegation
    judgements = None if settings.qrels is None else read_qrels(settings.qrels)
    wanted = (settings.save_similarity, settings.qrels, settings.trec_run, settings.best_frames)
    parts, device = (device, None) if isinstance(device, ByParts) else (None, device)
    if parts is not None:
        require_no_matrix(settings)
        found = parts.ranks(watched, table, seconds=seconds, progress=progress)
    elif settings.normalise or any(each is not None for each in wanted):
        _check_room(table, bytes_a_pair=4 + 20 * bool(settings.normalise))
        similarity = similarity_matrix(scoring, table, device=device, seconds=seconds, progress=progress)
        with _timed(seconds, "metrics"):
            found = retrieval_ranks(similarity, table.video_of_text)
    else:
        found = ranks(scoring, table, device=device, seconds=seconds, progress=progress)
    video = table.video_of_text.cpu().numpy()
    queries = query_videos(video)
    result: dict[str, Any] = {"counts": asdict(table.counts)}
    with _timed(seconds, "metrics"):
        result.update((direction, summarise(found[direction])) for direction in RANKINGS)
        if settings.confidence:
            result["confidence_95"] = confidence_of_directions(found, video, seed=settings.seed)
        tags = _by_tag(table.text_ids, found[TEXT_TO_VIDEO])
        if tags:
            result["tags"] = tags
    if similarity is not None and settings.normalise:
        banks = None
        if any(NORMALISATIONS[name].needs_bank for name in settings.normalise):
            banks = _banks(settings.normalise, head, table, train, device=device, seconds=seconds)
        result["normalised"] = _normalised(settings, similarity, table.video_of_text, banks, seconds)
    if similarity is not None and settings.best_frames is not None:
        rescored = _with_best_frames(similarity, table, settings, device=device, seconds=seconds)
        result["normalised"] = {**result.get("normalised", {}), "best-frames": rescored}
    if similarity is not None and judgements is not None:
        with _timed(seconds, "metrics"):
            grade = grades(judgements, table.text_ids, table.captions, table.video_ids, table.video_of_text.cpu())
            result["graded"] = {"qrels": str(settings.qrels), **graded_metrics(similarity, grade)}
    if similarity is not None and settings.trec_run is not None:
        write_trec_run(settings.trec_run, similarity, table.text_ids, table.video_ids, tag=type(head).__name__.lower())
    if similarity is not None and settings.save_similarity is not None:
        save_similarity_matrix(settings.save_similarity, similarity, table)
    summary = watched.summary(table.num_videos)
    doubts = score_doubts(summary, table.video_ids[summary.hub])
    if doubts:
        result["doubts"] = doubts
    result["seconds"] = {stage: round(spent, 4) for stage, spent in seconds.items()}
    return Evaluation(
        result=result,
        ranks=found,
        text_ids=list(table.text_ids),
        video_ids=[table.video_ids[row] for row in queries.tolist()],
        video_of_text=np.searchsorted(queries, video),
    )


def require_no_matrix(settings: EvaluateSettings) -> None:
    """Raise UsageError where something is asked for that takes all similarities on one machine."""
    names = ("normalise", "save_similarity", "qrels", "trec_run", "best_frames")
    asked = [name for name in names if getattr(settings, name)]
    if asked:
        raise UsageError(
            f"`{asked[0]}` takes all similarities on one machine, and with `engine=ray` none has them",
            hint="Leave it out, or judge on this machine",
        )


def _check_room(table: JudgedTable, *, bytes_a_pair: int) -> None:
    """Refuse a matrix that this machine cannot hold, before it is half made.

    Raises:
        InputError: names both sizes.
    """
    needed, there = bytes_a_pair * table.num_texts * table.num_videos, _physical_memory()
    if there is not None and needed > there:
        raise InputError(
            f"the similarities of {table.num_texts:,} texts with {table.num_videos:,} videos take {needed / 1e9:,.0f} GB, "
            f"{there / 1e9:,.0f} GB can be had",
            hint="Leave out `normalise` and `save_similarity`: ranks need no matrix",
        )


def _physical_memory() -> int | None:
    """Bytes that a limit or the machine leaves to this process; None where the system does not say."""
    return available()


def validation_metrics(head: Scoring, table: JudgedTable) -> dict[str, dict[str, float]]:
    """Metrics of both directions, without extras: what training selects its epoch by."""
    found = ranks(head, table, directions=DIRECTIONS)
    return {direction: summarise(values) for direction, values in found.items()}


def zero_shot_head(name: str, store: Store) -> Head:
    """An untrained head with the temperature of the cache's backbone.

    Raises:
        UsageError: a head whose start is random.
    """
    check_zero_shot(name)
    head = build_head(name, embed_dim=store.embed_dim)
    head.initialise_from_backbone({k: torch.from_numpy(np.array(v)) for k, v in store.backbone_tensors().items()})
    return head.eval()


def check_zero_shot(name: str) -> None:
    """Raise UsageError for a head that is not known, or whose start is random."""
    if name not in ZERO_SHOT_HEADS:
        head_class(name)  # an unknown name has its own message
        raise UsageError(
            f"{name} starts with random weights, so it says nothing untrained; zero-shot are {', '.join(ZERO_SHOT_HEADS)}",
            hint=Hint("Train it", "train-head", {"head": name}),
        )


# --- files -------------------------------------------------------------------------------------------------------------


def write_result(path: Path, evaluation: Evaluation) -> None:
    """Write the result as JSON, and the ranks beside it (`result.json` → `result.ranks.npz`) for paired comparisons.

    Raises:
        StorageError: the disk is full or failing.
    """
    arrays: dict[str, Any] = {
        **evaluation.ranks,
        "text_ids": np.array(evaluation.text_ids),
        "video_ids": np.array(evaluation.video_ids),
        "video_of_text": evaluation.video_of_text,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path.with_suffix(".ranks.npz"), buffer.getvalue())
    write_atomically(path, dump_json(evaluation.result))


def save_similarity_matrix(path: Path, similarity: Tensor, table: JudgedTable) -> None:
    """Write the matrix as (T, V) float32 `.npy`, and beside it (`.json`) the ids of its rows and columns.

    Raises:
        StorageError: the disk is full or failing.
    """
    buffer = io.BytesIO()
    np.save(buffer, similarity.numpy())
    write_atomically(path, buffer.getvalue())
    ids = {
        "text_ids": list(table.text_ids),
        "video_ids": list(table.video_ids),
        "video_of_text": table.video_of_text.tolist(),
    }
    write_atomically(path.with_suffix(".json"), dump_json(ids))


# --- normalisation with banks of training queries ----------------------------------------------------------------------


def _banks(
    names: Sequence[str],
    head: Scoring,
    table: JudgedTable,
    train: Callable[[], JudgedTable] | None,
    *,
    device: torch.device | str | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Direction -> name -> bank, for all normalisations together, and under "bank" what it is made of."""
    if train is None:
        raise UsageError(f"{', '.join(names)}: a bank of training queries is needed")
    with _timed(seconds, "load"):
        bank_table = train()
    wanted = list(dict.fromkeys(bank for name in names for bank in NORMALISATIONS[name].banks))
    was_training = head.training
    head.eval()
    banks = Banks(head, table, bank_table, device=device, seconds=seconds)
    found = {direction: banks.scores(direction, wanted) for direction in DIRECTIONS}
    head.train(was_training)
    return {**found, "bank": banks.description}


def _normalised(
    settings: EvaluateSettings,
    similarity: Tensor,
    video_of_text: Tensor,
    banks: Mapping[str, Any] | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name in settings.normalise:
        entry, given = NORMALISATIONS[name], banks or {}
        told = {"beta": settings.qb_norm_beta} if name == "qb-norm" and settings.qb_norm_beta is not None else {}
        with _timed(seconds, "metrics"):
            found = normalised_ranks(
                name,
                similarity,
                video_of_text,
                text_to_video=given.get(TEXT_TO_VIDEO),
                video_to_text=given.get(VIDEO_TO_TEXT),
                options=told,
            )
            out[name] = {direction: summarise(values) for direction, values in found.items()}
        out[name]["bank"] = given["bank"] if entry.needs_bank else "none"
        out[name]["transductive"] = entry.transductive
    return out


def _with_best_frames(
    similarity: Tensor,
    table: JudgedTable,
    settings: EvaluateSettings,
    *,
    device: torch.device | str | None,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Metrics of `S + λ · mean of the K largest n(t) · n(x_f)`, the re-scoring by frames of arXiv 2401.08449, over any S."""
    table = getattr(table, "tables", [table])[0]  # of several runs that look at different frames those of the first
    count, dim = settings.best_frames, table.texts(slice(0, 1)).text_features.shape[1]
    frames = build_head("best_frames", embed_dim=dim, count=count).eval().to(table.device if device is None else device)
    scores = similarity_matrix(frames, table, device=device, seconds=seconds)
    with _timed(seconds, "metrics"):
        found = retrieval_ranks(similarity + settings.best_frames_weight * scores, table.video_of_text)
        metrics = {direction: summarise(values) for direction, values in found.items()}
    return {**metrics, "bank": "none", "transductive": False}


def check_normalisations(names: Sequence[str], head: Scoring, store: Store | None = None) -> None:
    """Refuse before any work is done what could not be normalised in the end."""
    for name in known_normalisations(names):
        if "gallery_bank" in NORMALISATIONS[name].banks and not isinstance(head, VectorHead):
            raise UsageError(
                f"{name} compares videos with videos, which needs a head that makes one vector of each; "
                f"{type(head).__name__} does not",
                hint=f"Leave it out, or choose from {', '.join(other for other in NORMALISATIONS if other != name)}",
            )
        if store is not None and NORMALISATIONS[name].needs_bank and "train" not in store.splits:
            raise UsageError(
                f"{name} needs a bank of training queries and {store.place} has no split train",
                hint="Extract it too, or choose one without a bank: dsl, csls",
            )


# --- small things ------------------------------------------------------------------------------------------------------


def _by_tag(text_ids: Sequence[str], ranks: np.ndarray) -> dict[str, Mapping[str, float]]:
    """Text-to-video metrics of the captions that share a tag; empty where ids have none."""
    found = [(m.group(1) if (m := _TAG.search(name)) else "") for name in text_ids]
    tags = np.array(found)
    return {tag: summarise(ranks[tags == tag]) for tag in sorted({*found} - {""})}


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
