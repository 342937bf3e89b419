"""What is in a cache: items, lists, losses, sizes."""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from glscl.cache.library import Library
from glscl.cache.lists import current_version, list_names, read_flat_list, read_list, versions_of
from glscl.cache.reading import read_entries
from glscl.cache.schema import STREAMS, Status
from glscl.cache.store import NO_KEY, PENDING, Store, choose_list

_USABLE = [int(status) for status in Status if status.usable]


def summarise(library: Library, list: str | None = None) -> dict[str, Any]:
    """Items, lists, losses, sizes and provenance of a cache, complete or not; JSON-able.

    Args:
        list: of which list splits and failures are counted, as `open_store` takes it; None takes the only one there is.

    Returns:
        `items` and `unlisted` (those that no current list names) count all that is there, `lists` has a row a list, and
        `videos`, `texts`, `frames`, `splits`, `failed` and `notes` are of the one list; with several lists and none chosen the
        first three are of all items, and `list` is None.

    Raises:
        NotFoundError: there is no such list.
        CacheCorruptError: something cannot be read.
    """
    shown = _lists_shown(library)
    store = _chosen(library, list, shown)
    rows = [_row(each, current) for each, current in shown]
    return {
        "path": library.place,
        "format": library.header["format"],
        "complete": bool(rows) and all(row["complete"] for row in rows) if store is None else store.complete,
        "fingerprint": library.fingerprint,
        **_counts(library, store),
        "embed_dim": library.embed_dim,
        "dtype": library.dtype,
        "tokens": library.has_tokens,
        "items": {stream: _items(library, stream) for stream in STREAMS},
        "unlisted": {
            stream: _unlisted(library, stream, [each for each, current in shown if current]) for stream in STREAMS
        },
        "additions": {stream: len(library.stream(stream).additions) for stream in STREAMS},
        "shards": {
            stream: {"committed": len(library.stream(stream).commits), "planned": len(library.stream(stream).places)}
            for stream in STREAMS
        },
        "lists": rows,
        "bytes": bytes_on_disk(library.path),
        "stored_frames": _stored_frames(library),
        "configuration": library.configuration,
        "created": library.header.get("created"),
        "versions": library.header.get("versions", {}),
    }


def bytes_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder, none behind a link; 0 where there is nothing."""
    if path.is_file():
        return path.stat().st_size
    total, folders = 0, [os.fspath(path)]
    while folders:
        with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def _lists_shown(library: Library) -> list[tuple[Store, bool]]:
    """The versions that count, and those that were begun after them and never finished; whether each counts."""
    if library.is_flat:
        return [(Store(library, read_flat_list(library.path, library.header, library.header["format"])), True)]
    root, found = library.path, []
    for name in list_names(root):
        current = current_version(root, name)
        versions = {each: read_list(root, name, each, library.header["format"]) for each in versions_of(root, name)}
        since = versions[current].created if current in versions else ""
        if current in versions:
            found.append((Store(library, versions[current]), True))
        for version, made in versions.items():
            if current is None or (version != current and made.created >= since):
                store = Store(library, made)
                if current is None or not store.complete:
                    found.append((store, False))
    return found


def _chosen(library: Library, asked: str | None, shown: list[tuple[Store, bool]]) -> Store | None:
    """The list whose splits are shown: the one asked for, else the only one, finished or not."""
    if asked is not None:
        return Store(library, choose_list(library, asked))
    counting = [store for store, current in shown if current] or [store for store, _ in shown]
    return counting[0] if len(counting) == 1 and len({store.list_name for store, _ in shown}) == 1 else None


def _row(store: Store, current: bool) -> dict[str, Any]:
    """A list in the table of lists."""
    made, status, numbers = store.list, store.status(), store.numbers["video"]
    failed = ~np.isin(status, _USABLE) & (numbers >= 0)
    return {
        "name": made.name,
        "hash": made.hash,
        "annotations": made.annotations,
        "dataset": made.dataset,
        "current": current,
        "complete": store.complete,
        "videos": len(made.video_ids),
        "captions": len(made.text_ids),
        "without_file": int((numbers == NO_KEY).sum()),
        "failed": int(failed.sum()),
        "pending": {stream: int((store.numbers[stream] == PENDING).sum()) for stream in STREAMS},
        "known_by_id": made.known_by_id,
        "command": made.command,
        "created": made.created,
    }


def _counts(library: Library, store: Store | None) -> dict[str, Any]:
    """Videos, texts and frames of a list, its splits, and what it lost; without one, of all items."""
    if store is None:
        about = library.stream("video")
        usable = np.flatnonzero(np.isin(about.status, _USABLE) & _counting(library, "video"))
        none: dict[str, Any] = {"list": None, "videos": len(usable), "texts": len(library.stream("text").index)}
        frames = int(read_entries(library, "video", ["offsets"], usable)["offsets"][-1])
        none |= {"frames": frames, "splits": {}, "failed": [], "failed_by_status": {}}
        return none | {"notes": [], "provenance": {}}
    usable = np.isin(store.status(), _USABLE)
    there = {stream: store.numbers[stream] >= 0 for stream in STREAMS}
    failed, made = store.failures(), store.list
    return {
        "list": f"{made.name}@{made.hash}",
        "videos": int(usable.sum()),
        "texts": int(there["text"].sum()),
        "frames": store.count_frames(),
        "splits": _splits(store, usable, there["text"]),
        "failed": [{"id": f["id"], "reason": f["reason"], "status": f["status"]} for f in failed],
        "failed_by_status": dict(Counter(f["status"] for f in failed)),
        "notes": [*made.notes],
        "provenance": {"command": made.command, "versions": dict(made.versions), "recipe": store.recipe},
    }


def _splits(store: Store, usable: np.ndarray, texts: np.ndarray) -> dict[str, Any]:
    """A row a split. `usable` (V,) and `texts` (T,) bool: which entries have features."""
    owner, pending = store.list.text_video, store.numbers["video"] == PENDING
    lost = (owner < 0) | ~(usable[np.maximum(owner, 0)] if len(usable) else np.zeros(len(owner), bool))
    found = {}
    for name, split in store.splits.items():
        videos, captions = slice(split.videos.start, split.videos.stop), slice(split.texts.start, split.texts.stop)
        found[name] = {
            "videos": int(usable[videos].sum()),
            "texts": int(texts[captions].sum()),
            "videos_listed": len(split.videos),
            "texts_listed": len(split.texts),
            "expected_videos": split.expected.videos,
            "expected_captions": split.expected.captions,
            "videos_failed": int((~usable[videos] & ~pending[videos]).sum()),
            "texts_without_video": int(lost[captions].sum()) if store.complete else None,
        }
    return found


def _items(library: Library, stream: str) -> dict[str, int]:
    """Different items: how many are there, with features and without, and how many of the additions are awaited."""
    about = library.stream(stream)
    counting = _counting(library, stream)
    usable = int((np.isin(about.status, _USABLE) & counting).sum())
    awaited = sum(int((about.index.find(about.keys_at(place)) < 0).sum()) for place in about.pending())
    return {"there": int(counting.sum()), "usable": usable, "pending": awaited}


def _counting(library: Library, stream: str) -> np.ndarray:
    """(N,) bool, the item of each key that counts."""
    about = library.stream(stream)
    found = np.zeros(about.num_items, bool)
    found[about.index.numbers] = True
    return found


def _unlisted(library: Library, stream: str, lists: Sequence[Store]) -> int:
    """Items that are there and that none of the lists names."""
    unnamed = _counting(library, stream)
    for store in lists:
        numbers = store.numbers[stream]
        unnamed[numbers[numbers >= 0]] = False
    return int(unnamed.sum())


def _stored_frames(library: Library) -> dict[str, Any] | None:
    """How frames are stored, and their bytes so far; None where they are not."""
    if library.frames is None:
        return None
    commits = library.stream("video").commits.values()
    described = [commit.arrays[name] for commit in commits for name in library.frames.arrays]
    sizes = [math.prod(array["shape"]) * np.dtype(array["dtype"]).itemsize for array in described]
    return {**library.frames.as_header(), "bytes": sum(sizes)}
