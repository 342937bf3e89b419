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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glscl.cache.files import dump_json, write_atomically
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.common.errors import InputError, UsageError
from glscl.common.versions import versions
from glscl.evaluate.confidence import confidence_of_directions
from glscl.evaluate.hubness import NORMALISATIONS, normalised_ranks
from glscl.evaluate.metrics import TEXT_TO_VIDEO, query_videos, retrieval_ranks, summarise
from glscl.evaluate.query_banks import Banks
from glscl.evaluate.similarity import DIRECTIONS, Progress, ranks, similarity_matrix
from glscl.train_head.checkpoint import backbone_of, check_cache, load_run
from glscl.train_head.heads import build_head, head_class
from glscl.train_head.heads.base import Head, VectorHead
from glscl.train_head.recipes import RECIPES

ZERO_SHOT_HEADS = ("mean_pool", "query_scoring", "projection")  # those whose start is the backbone's own score

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


def evaluate_run(
    store: Store,
    *,
    run: Path | str | None = None,
    head: str = "mean_pool",
    which: str = "best",
    split: str = "test",
    max_frames: int | None = None,
    frame_position: str | None = None,
    normalise: Sequence[str] = (),
    confidence: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
    save_similarity: Path | None = None,
    command: str = "",
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Judge a trained head, or one that needs no training.

    Args:
        store: an open cache.
        run: folder of a run; None takes the zero-shot `head`.
        head: one of `ZERO_SHOT_HEADS`; read only without `run`.
        which: "best" or "last" weights of the run.
        split: what to judge on.
        max_frames, frame_position: frames of a video to look at; None is as the run was trained, and zero-shot as the
            dataset's recipe says.
        normalise: keys of `NORMALISATIONS`; banks are taken from the split "train".
        confidence: whether to add bootstrap intervals.
        seed: of the bootstrap.
        device: where to compute.
        save_similarity: file for the matrix; see `save_similarity_matrix`.
        command: for the result.
        progress: called with pairs done and pairs in all.
        note: called with lines that people should read.

    Raises:
        FingerprintError: the run's head cannot understand this cache.
        UsageError: a head that means nothing untrained, or an unknown normalisation.
        NotFoundError, CheckpointError, InputError, NonFiniteError: see what is called.
    """
    started = time.perf_counter()
    if run is not None:
        judged = open_run(Path(run), store, which=which, split=split, note=note)
    else:
        recipe = RECIPES.get(store.recipe, RECIPES["default"])
        judged = Judged(zero_shot_head(head, store), head, "last", True, recipe.frames, "uniform")
    built = judged.head.to(device)

    def load(split: str) -> FeatureTable:
        return FeatureTable.load(
            store,
            split,
            max_frames=max_frames or judged.max_frames,
            frame_position=frame_position or judged.frame_position,
            tokens=built.needs_tokens,
        )

    of_head = {
        "head": judged.name,
        "run": None if run is None else str(run),
        "selection": judged.selection,
        "frozen_backbone": judged.frozen_backbone,
    }
    return judge(
        built,
        store,
        load,
        of_head,
        split=split,
        started=started,
        command=command,
        normalise=normalise,
        confidence=confidence,
        seed=seed,
        device=device,
        save_similarity=save_similarity,
        progress=progress,
    )


def judge(
    head: Head,
    store: Store,
    load: Callable[[str], FeatureTable],
    of_head: Mapping[str, Any],
    *,
    split: str,
    started: float,
    command: str = "",
    normalise: Sequence[str] = (),
    **how: Any,
) -> Evaluation:
    """Judge a head, or several as one, on a split of a cache: the numbers, and all that a result says beside them.

    Args:
        load: gives the table of a split; that of "train" is asked for only where a normalisation needs a bank.
        of_head: what the result says of the head: `head`, `run`, `selection`, `frozen_backbone`, and for several runs
            `runs` and `combine`.
        started: `time.perf_counter()` when the caller began to read.
        **how: whatever else `evaluate_head` takes.

    Raises:
        UsageError: an unknown normalisation, or one that the head or the cache has nothing for.
        Others: see `load` and `evaluate_head`.
    """
    check_normalisations(normalise, head, store)
    table = load(split)
    seconds = {"load": time.perf_counter() - started}
    evaluation = evaluate_head(head, table, normalise=normalise, train=lambda: load("train"), seconds=seconds, **how)
    backbone, pretrained = backbone_of(store.configuration)
    about = {
        "dataset": store.configuration.get("dataset", ""),
        "split": split,
        **of_head,
        "backbone": backbone,
        "pretrained": pretrained,
        "cache": str(store.path),
        "cache_fingerprint": store.fingerprint,
    }
    tail = {"versions": versions(), "command": command}
    return replace(evaluation, result={**about, **evaluation.result, **tail})


class Judged(NamedTuple):
    """A head and what a result says of it; the last two are the frames it looks at."""

    head: Head
    name: str
    selection: str
    frozen_backbone: bool
    max_frames: int | None
    frame_position: str


def open_run(run: Path, store: Store, *, which: str, split: str, note: Callable[[str], None]) -> Judged:
    """The head of a run, checked to understand a cache; arguments and errors as in `evaluate_run`."""
    head, record = load_run(run, which)
    for line in check_cache(run, record, store, which=which):
        note(f"the cache is not the one {run} was trained on: {line}")
    for line in record.get("imported", {}).get("notes", ()):
        note(f"{run}: {line}")
    selection = record.get("selection", "last") if which == "best" else "last"
    if selection == "test" and split == "test":
        note("warning: the epoch was selected on the test split, so these numbers are optimistic")
    settings = record["settings"]
    return Judged(
        head=head,
        name=record["head"],
        selection=selection,
        frozen_backbone=bool(record.get("frozen_backbone", True)),
        max_frames=settings.get("max_frames"),
        frame_position=settings.get("frame_position", "uniform"),
    )


def evaluate_head(
    head: Head,
    table: FeatureTable,
    *,
    normalise: Sequence[str] = (),
    train: Callable[[], FeatureTable] | None = None,
    confidence: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    seconds: dict[str, float] | None = None,
    save_similarity: Path | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a head on a table: `counts`, the three directions, and what was asked for beside.

    Captions whose id ends in `:word` (the built-in corpus marks `:order`, `:pair`, …) are also judged by themselves,
    against all videos, under "tags".

    Args:
        train: gives the table that banks are taken from; called only where a normalisation needs one.
        device: where to compute; None is where the head is.
        seconds: the result's `seconds` are added to it.
        The others: see `evaluate_run`.
    """
    seconds = {} if seconds is None else seconds
    for stage in ("load", "encode", "score", "metrics"):
        seconds.setdefault(stage, 0.0)
    check_normalisations(normalise, head)
    similarity = None
    if normalise or save_similarity is not None:
        _check_room(table, bytes_a_pair=4 + 20 * bool(normalise))
        similarity = similarity_matrix(head, table, device=device, seconds=seconds, progress=progress)
        with _timed(seconds, "metrics"):
            of = retrieval_ranks(similarity, table.video_of_text)
    else:
        of = ranks(head, table, device=device, seconds=seconds, progress=progress)
    video = table.video_of_text.cpu().numpy()
    queries = query_videos(video)
    result: dict[str, Any] = {"counts": asdict(table.counts)}
    with _timed(seconds, "metrics"):
        result.update((direction, summarise(of[direction])) for direction in DIRECTIONS)
        if confidence:
            result["confidence_95"] = confidence_of_directions(of, video, seed=seed)
        tags = _by_tag(table.text_ids, of[TEXT_TO_VIDEO])
        if tags:
            result["tags"] = tags
    if normalise:
        result["normalised"] = _normalised(normalise, head, table, similarity, train, device=device, seconds=seconds)
    if save_similarity is not None:
        save_similarity_matrix(save_similarity, similarity, table)
    result["seconds"] = {stage: round(spent, 4) for stage, spent in seconds.items()}
    return Evaluation(
        result=result,
        ranks=of,
        text_ids=list(table.text_ids),
        video_ids=[table.video_ids[row] for row in queries],
        video_of_text=np.searchsorted(queries, video),
    )


def _check_room(table: FeatureTable, *, bytes_a_pair: int) -> None:
    """Refuse a matrix that this machine cannot hold, before it is half made.

    Raises:
        InputError: names both sizes.
    """
    needed, there = bytes_a_pair * table.num_texts * table.num_videos, _physical_memory()
    if there is not None and needed > there:
        raise InputError(
            f"the similarities of {table.num_texts:,} texts with {table.num_videos:,} videos take {needed / 1e9:,.0f} GB, "
            f"this machine has {there / 1e9:,.0f} GB",
            mend="Leave out --normalise and --save-similarity: ranks need no matrix",
        )


def _physical_memory() -> int | None:
    """Bytes of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def validation_metrics(head: Head, table: FeatureTable) -> dict[str, dict[str, float]]:
    """Metrics of both directions, without extras: what training selects its epoch by."""
    of = ranks(head, table, directions=("text_to_video", "video_to_text"))
    return {direction: summarise(values) for direction, values in of.items()}


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
            mend=f"Train it: glscl train-head --head {name}",
        )


# --- files -------------------------------------------------------------------------------------------------------------


def write_result(path: Path, evaluation: Evaluation) -> None:
    """Write the result as JSON, and the ranks beside it (`result.json` → `result.ranks.npz`) for paired comparisons.

    Raises:
        StorageError: the disk is full or failing.
    """
    arrays = {
        **evaluation.ranks,
        "text_ids": np.array(evaluation.text_ids),
        "video_ids": np.array(evaluation.video_ids),
        "video_of_text": evaluation.video_of_text,
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path.with_suffix(".ranks.npz"), buffer.getvalue())
    write_atomically(path, dump_json(evaluation.result))


def save_similarity_matrix(path: Path, similarity: Tensor, table: FeatureTable) -> None:
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


def _normalised(
    names: Sequence[str],
    head: Head,
    table: FeatureTable,
    similarity: Tensor,
    train: Callable[[], FeatureTable] | None,
    *,
    device: Any,
    seconds: dict[str, float],
) -> dict[str, Any]:
    banks: Banks | None = None
    if any(NORMALISATIONS[name].needs_bank for name in names):
        if train is None:
            raise UsageError(f"{', '.join(names)}: a bank of training queries is needed")
        with _timed(seconds, "load"):
            bank_table = train()
        was_training = head.training
        head.eval()
        banks = Banks(head, table, bank_table, device=device, seconds=seconds)
    out: dict[str, Any] = {}
    for name in names:
        entry = NORMALISATIONS[name]
        given = {}
        if entry.needs_bank:
            given = {direction: banks.of(direction, entry.banks) for direction in ("text_to_video", "video_to_text")}
        with _timed(seconds, "metrics"):
            of = normalised_ranks(name, similarity, table.video_of_text, **given)
            out[name] = {direction: summarise(values) for direction, values in of.items()}
        out[name]["bank"] = banks.description if entry.needs_bank else "none"
        out[name]["transductive"] = entry.transductive
    if banks is not None:
        head.train(was_training)
    return out


def known_normalisations(names: Sequence[str]) -> Sequence[str]:
    """`names` again; UsageError for one that is not there."""
    for name in names:
        if name not in NORMALISATIONS:
            raise UsageError(f"there is no normalisation {name!r}; choose from {', '.join(NORMALISATIONS)}")
    return names


def check_normalisations(names: Sequence[str], head: Head, store: Store | None = None) -> None:
    """Refuse before any work is done what could not be normalised in the end."""
    for name in known_normalisations(names):
        if "gallery_bank" in NORMALISATIONS[name].banks and not isinstance(head, VectorHead):
            raise UsageError(
                f"{name} compares videos with videos, which needs a head that makes one vector of each; "
                f"{type(head).__name__} does not",
                mend=f"Leave it out, or choose from {', '.join(other for other in NORMALISATIONS if other != name)}",
            )
        if store is not None and NORMALISATIONS[name].needs_bank and "train" not in store.splits:
            raise UsageError(
                f"{name} needs a bank of training queries and {store.path} has no split train",
                mend="Extract it too, or choose one without a bank: dsl, csls",
            )


# --- small things ------------------------------------------------------------------------------------------------------


def _by_tag(text_ids: Sequence[str], of: np.ndarray) -> dict[str, Mapping[str, float]]:
    """Text-to-video metrics of the captions that share a tag; empty where ids have none."""
    found = [(m.group(1) if (m := _TAG.search(name)) else "") for name in text_ids]
    tags = np.array(found)
    return {tag: summarise(of[tags == tag]) for tag in sorted({*found} - {""})}


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - started
