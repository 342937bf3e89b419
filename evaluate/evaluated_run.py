"""What is known about one evaluated run: its result, ranks, history and cache, read back for tables and reports.

T texts, G groups (the videos that have a caption).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from glscl.cache.files import plain
from glscl.cache.store import Store
from glscl.common.addresses import may_exist
from glscl.common.archive_limits import check_zip
from glscl.common.errors import (
    CacheError,
    CheckpointError,
    Hint,
    InputError,
    NotFoundError,
    StorageError,
    UsageError,
)
from glscl.evaluate.judged_lists import split_hash, version_of
from glscl.evaluate.ranks import DIRECTIONS, RANKINGS, TEXT_TO_VIDEO
from glscl.evaluate.result_record import result_problem
from glscl.evaluate.run_names import marked, result_name
from glscl.train_head.run_cache import open_recorded

if TYPE_CHECKING:
    from glscl.evaluate.evaluation import Evaluation


@dataclass(frozen=True, kw_only=True)
class EvaluatedRun:
    """One evaluated run and all that could be found beside its result.

    Attributes:
        result: content of a result file (docs/results.md).
        name: how tables and figures call it; "" takes the head's name.
        ranks: float64 ranks by direction, (T,) for text to video, (G,) for video to text; None where none were kept.
        text_ids: ids of the queries of text to video, in the order of the ranks.
        video_ids: ids of the queries of video to text, in order.
        video_of_text: (T,) position of each text's video in `video_ids`.
        folder: run folder, if there is one.
        run: content of its run.json.
        history: rows of its history.jsonl.
        captions: text id -> caption, as far as the cache was there.
        failures: what extraction lost in the split: `{"id", "reason", "status"}`; None where the cache was not there.
        extraction: `command`, `versions` and `created` of the cache.
        notes: what is missing and why, one sentence each.
    """

    result: Mapping[str, Any]
    name: str = ""
    ranks: Mapping[str, np.ndarray] | None = None
    text_ids: Sequence[str] = ()
    video_ids: Sequence[str] = ()
    video_of_text: np.ndarray | None = None
    folder: Path | None = None
    run: Mapping[str, Any] | None = None
    history: Sequence[Mapping[str, Any]] = ()
    captions: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[Mapping[str, Any]] | None = None
    extraction: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_evaluation(cls, evaluation: Evaluation, *, name: str = "", folder: Path | None = None) -> EvaluatedRun:
        """A run that was evaluated a moment ago; `folder` is where run.json and history.jsonl are, if anywhere."""
        made = cls(
            result=evaluation.result,
            name=name,
            ranks=evaluation.ranks,
            text_ids=evaluation.text_ids,
            video_ids=evaluation.video_ids,
            video_of_text=np.asarray(evaluation.video_of_text),
            folder=folder,
        )
        return made if folder is None else _with_history(made, folder)

    @property
    def title(self) -> str:
        return self.name or str(self.result["head"])

    def __repr__(self) -> str:
        where = "/".join(str(self.result.get(key)) for key in ("dataset", "split"))
        return f"{type(self).__name__}({self.title!r} on {where}, {len(self.notes)} notes)"

    def with_notes(self, *sentences: str) -> Self:
        """The run with more that must be said of it; nothing is said twice."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *sentences))))

    def clusters(self, direction: str) -> np.ndarray | None:
        """Queries that are drawn together by a bootstrap: the video of each caption; None takes each for itself."""
        return self.video_of_text if direction == TEXT_TO_VIDEO else None


def not_judged(paths: Sequence[Path], *, split: str = "test", list: str | None = None) -> Sequence[Path]:
    """Those of some folders that hold no result of a split and a list. Raises NotFoundError for a path that is not there."""
    return [path for path in dict.fromkeys(paths) if _result_path(path, split, list) is None]


def read_evaluated_runs(paths: Sequence[Path], *, split: str = "test", list: str | None = None) -> list[EvaluatedRun]:
    """As `read_evaluated`, of several paths; what was not judged is named in one error."""
    lacking = not_judged(paths, split=split, list=list)
    if len(lacking) > 1:
        raise NotFoundError(
            f"{len(lacking)} of {len(paths)} were not judged on {_what(split, list)}: {', '.join(map(str, lacking))}",
            hint="Judge them now with `judge`",
        )
    return [read_evaluated(path, split=split, list=list) for path in paths]


def read_evaluated(path: Path, *, split: str = "test", list: str | None = None) -> EvaluatedRun:
    """What an evaluation has left of a run.

    Args:
        path: a run folder, the folder of a zero-shot result, or a result file.
        split: which result of a folder.
        list: of which list, by name; None is the run's own.

    Raises:
        NotFoundError: there is no such path, or it was never evaluated on that split and list.
        InputError: the result file is not one. What lacks beside it (ranks, history) becomes a note instead.
    """
    file = _result_path(path, split, list)
    if file is None:
        asked = {"run": path, "split": split if split != "test" else None, "list": list}
        raise NotFoundError(
            f"{path} has no {result_name(split, list)}: it was not judged on {_what(split, list)}",
            hint=Hint("Do", "eval", {name: value for name, value in asked.items() if value}),
        )
    result = _read_result(file)
    made = _with_ranks(EvaluatedRun(result=result), file.with_suffix(".ranks.npz"))
    recorded = result.get("run")
    for folder in (file.parent, Path(recorded) if recorded else None):
        if folder is not None and (folder / "run.json").is_file():
            return _with_history(made, folder)
    return made


def with_cache(run: EvaluatedRun, store: Store) -> EvaluatedRun:
    """The run with what its cache knows: captions of the queries, failures of extraction in the split, provenance."""
    split = run.result["split"]
    if split not in store.splits:
        return run.with_notes(f"The cache {store.place} has no split {split}, so captions and failures are not shown.")
    span = store.splits[split]
    captions = dict(zip(store.ids("text", span.texts), store.captions(span.texts)))
    videos = set(store.ids("video", span.videos))
    return replace(
        run,
        captions=captions,
        failures=[failure for failure in store.failures() if failure["id"] in videos],
        extraction={key: getattr(store.list, key) for key in ("command", "versions", "created")},
    )


def open_cache_of(run: EvaluatedRun, cache: Path | None = None) -> tuple[Store | None, EvaluatedRun]:
    """The cache a result was made from, opened at its list, and the run with a note where that cannot be.

    Args:
        cache: where the cache is now; None looks where the result says.
    """
    recorded = run.result.get("cache")
    where = cache or (Path(recorded) if recorded else None)
    if where is None or (cache is None and not may_exist(where)):
        return None, run.with_notes(
            f"The cache {where or 'of the result'} is not there, so captions, examples, hubness and failures of "
            "extraction are not shown."
        )
    try:
        store = open_recorded({**run.result, "cache": recorded or str(where)}, where)
        if store.fingerprint != run.result.get("cache_fingerprint"):
            return None, run.with_notes(
                f"The cache {where} is another one than {run.title} was judged on "
                f"(fingerprint {store.fingerprint}, then {run.result.get('cache_fingerprint')}), so it was not read."
            )
        if not _holds_what_was_judged(store, run.result):
            return None, run.with_notes(
                f"The cache {where} holds other videos or captions than {run.title} was judged on "
                f"({store.list_name}@{store.list_hash}, then {version_of(run.result)}), so it was not read."
            )
        return store, with_cache(run, store)
    except (CacheError, NotFoundError, StorageError, UsageError) as error:
        return None, run.with_notes(f"The cache {where} cannot be read: {error.message}.")


def _holds_what_was_judged(store: Store, result: Mapping[str, Any]) -> bool:
    """Whether the split of a list is the one that a result is about; that of a result which does not say may be."""
    judged, split = result.get("split_annotations"), result["split"]
    same_list = store.list_hash == result.get("list_hash")
    return not judged or same_list or split not in store.splits or split_hash(store.list, split) == judged


def with_distinct_names(runs: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Runs under names that differ: the head, with the folder's name where heads repeat, with a number at last.

    A run that was selected on the queries it is judged on carries a mark behind its name, see `glscl.evaluate.run_names`.
    """
    titles = [run.title for run in runs]
    named = []
    for run, title in zip(runs, titles):
        where = run.folder or (Path(run.result["run"]) if run.result.get("run") else None)
        repeated = titles.count(title) > 1 and not run.name
        named.append(f"{title} ({where.name})" if repeated and where else title)
    final: list[str] = []
    for name in named:
        count, unique = 1, name
        while unique in final:
            count += 1
            unique = f"{name} #{count}"
        final.append(unique)
    return [replace(run, name=marked(name, run.result)) for run, name in zip(runs, final)]


def _result_path(path: Path, split: str, list: str | None) -> Path | None:
    """The result file of a path; None where it was not judged so."""
    if path.is_file():
        return path
    if not path.exists():
        raise NotFoundError(f"There is no run at {path}", hint="Name a run folder or a result file")
    own, other = path / result_name(split), path / result_name(split, list)
    if other.is_file():
        return other
    if list is not None and own.is_file() and _read_result(own).get("list") == list:
        return own
    return None


def _what(split: str, list: str | None) -> str:
    return f"the split {split}" + (f" of the list {list}" if list else "")


def _read_result(path: Path) -> dict[str, Any]:
    try:
        result = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as a result: {error}") from error
    if not isinstance(result, dict):
        raise InputError(f"{path} is not a result: found a {type(result).__name__}, expected an object")
    problem = result_problem(result)
    if problem:
        raise InputError(f"{path} is not a result of an evaluation: {problem}")
    return result


def _with_ranks(run: EvaluatedRun, path: Path) -> EvaluatedRun:
    lost = "so there is no rank histogram, no paired test and no example of it"
    if not path.is_file():
        return run.with_notes(f"The ranks of each query ({path.name}) are not there, {lost}.")
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        ranks = {name: np.asarray(arrays[name], np.float64) for name in RANKINGS}
        text_ids, video_ids = arrays["text_ids"].tolist(), arrays["video_ids"].tolist()
        video_of_text = np.asarray(arrays["video_of_text"], np.int64)
    except Exception as error:  # numpy and zipfile raise whatever they like on damaged files
        return run.with_notes(f"The ranks of each query ({path}) cannot be read ({str(error)[:200]}), {lost}.")
    if not all(isinstance(name, str) for name in (*text_ids, *video_ids)):
        return run.with_notes(f"The ids in {path} are not strings, {lost}.")
    queries = [len(text_ids), len(video_ids)]
    stated = [run.result[direction]["queries"] for direction in DIRECTIONS]
    sizes = [len(ranks[direction]) for direction in DIRECTIONS]
    means = [float(ranks[direction].mean()) for direction in DIRECTIONS if len(ranks[direction])]
    agree = np.allclose(means, [run.result[direction]["MnR"] for direction in DIRECTIONS]) if len(means) == 2 else False
    agree = agree and all(((values >= 1) & (values < 1e12)).all() for values in ranks.values())
    known = ((video_of_text >= 0) & (video_of_text < len(video_ids))).all()
    if not (queries == stated == sizes and agree and known and len(video_of_text) == len(text_ids)):
        return run.with_notes(f"The ranks in {path} belong to another evaluation than the result, {lost}.")
    return replace(run, ranks=ranks, text_ids=text_ids, video_ids=video_ids, video_of_text=video_of_text)


def _with_history(run: EvaluatedRun, folder: Path) -> EvaluatedRun:
    from glscl.train_head.checkpoint import read_run
    from glscl.train_head.run_record import history_problem

    run = replace(run, folder=folder)
    try:
        run = replace(run, run=read_run(folder))
    except (CheckpointError, NotFoundError) as error:
        return run.with_notes(f"How it was trained is not known: {error.message}.")
    path = folder / "history.jsonl"
    rows: list[Any] = []
    try:
        rows = [json.loads(line) for line in plain(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        problem = history_problem(rows)
    except (OSError, ValueError, RecursionError) as error:
        problem = type(error).__name__
    if problem:
        return run.with_notes(f"{os.fspath(path)} cannot be read ({problem}), so there are no training curves.")
    return replace(run, history=rows)
