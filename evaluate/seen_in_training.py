"""Videos that a run is judged on and was trained on: known by their keys, whatever list and id they stand under."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from glscl.cache.library import open_library
from glscl.cache.lists import CacheList
from glscl.cache.store import Store, choose_list
from glscl.common.errors import GlsclError
from glscl.train_head.checkpoint import read_run


class Training(NamedTuple):
    """The lists that runs were trained on, as far as they can be read; `unknown` says of the others why not."""

    lists: list[CacheList]
    unknown: list[str]


def training_of(runs: Collection[Path], store: Store) -> Training:
    """The lists that some runs, and the runs that these started from, were trained on.

    They are looked for in the cache that is judged on, then in the one that the run was trained on.
    """
    found, todo, visited = Training([], []), list(runs), set()
    while todo:
        run = todo.pop(0)
        if run in visited:
            continue
        visited.add(run)
        try:
            record = read_run(run)
        except (GlsclError, OSError):
            found.unknown.append(f"the run {run} is not there any more")
            continue
        made = _list_of(record, store)
        if isinstance(made, CacheList):
            found.lists.append(made)
        else:
            found.unknown.append(f"{run} {made}")
        if isinstance(record.get("start"), str):
            todo.append(Path(record["start"]))
    return found


def videos_seen(judged: CacheList, split: str, ids: Collection[str], training: Training) -> int | None:
    """How many videos of a split have the key of a training video; None where none has and not all lists are known.

    Args:
        judged: the list that is judged on.
        ids: the videos of its split `split` that count: those that gave frames.
        training: from `training_of`.
    """
    trained = {key for each in training.lists for _, key in _videos(each, "train")} - {bytes(16)}
    ids = set(ids)
    seen = sum(id in ids and key in trained for id, key in _videos(judged, split))
    return None if training.unknown and not seen else seen


def _videos(made: CacheList, split: str) -> list[tuple[str, bytes]]:
    """Id and key of every video of a split; none where the list has no such split."""
    if split not in made.splits:
        return []
    run = made.splits[split].videos
    return [(made.video_ids[row], made.video_key[row].tobytes()) for row in run]


def _list_of(record: Mapping[str, Any], store: Store) -> CacheList | str:
    """The list that a run was trained on, by its hash; where it cannot be had, what is to be said of the run."""
    name, version = record.get("list"), record.get("list_hash")
    if record.get("imported"):
        return "was imported"
    if not version:
        return "does not say which list it was trained on"
    if version == store.list_hash:
        return store.list
    for path in (store.path, record["cache"]):
        for asked in (f"{name}@{version}", version):
            with contextlib.suppress(GlsclError, OSError):
                return choose_list(open_library(path), asked)
    return f"was trained on the list {name}@{version}, which is neither in {store.place} nor in {record['cache']}"
