"""What is in a cache: counts, losses, sizes."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from glscl.cache.schema import STREAMS, Status
from glscl.cache.store import Store


def summarise(store: Store) -> dict[str, Any]:
    """Counts, losses, sizes and provenance of a cache, complete or not; JSON-able."""
    committed = {stream: _committed_items(store, stream) for stream in STREAMS}
    status, frames = _status_and_frames(store)
    usable = np.isin(status, [s for s in Status if s.usable])
    splits = {}
    for name, split in store.splits.items():
        videos, texts = (_within(committed[s], run) for s, run in (("video", split.videos), ("text", split.texts)))
        decoded = int(usable[split.videos.start : split.videos.stop].sum())
        splits[name] = {
            "videos": decoded,
            "texts": texts,
            "videos_listed": len(split.videos),
            "texts_listed": len(split.texts),
            "expected_videos": split.expected.videos,
            "expected_captions": split.expected.captions,
            "videos_failed": videos - decoded,
            "texts_without_video": None,
        }
    if store.complete:
        index = store.arrays("text", ["video_index"])["video_index"]
        for name, split in store.splits.items():
            splits[name]["texts_without_video"] = int((index[split.texts.start : split.texts.stop] < 0).sum())
    failed = store.failures()
    return {
        "path": str(store.path),
        "format": store.header["format"],
        "complete": store.complete,
        "fingerprint": store.fingerprint,
        "videos": int(usable.sum()),
        "texts": len(committed["text"]),
        "frames": frames,
        "embed_dim": store.embed_dim,
        "dtype": store.dtype,
        "tokens": store.has_tokens,
        "shards": {s: {"committed": len(store.commits(s)), "planned": store.num_shards(s)} for s in STREAMS},
        "splits": splits,
        "failed": [{"id": f["id"], "reason": f["reason"], "status": f["status"]} for f in failed],
        "failed_by_status": dict(Counter(f["status"] for f in failed)),
        "bytes": bytes_on_disk(store.path),
        "stored_frames": _stored_frames(store),
        "notes": list(store.header.get("notes", [])),
        "configuration": store.configuration,
        "created": store.header.get("created"),
        "provenance": store.header.get("provenance", {}),
    }


def bytes_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files below a folder, none behind a link; 0 where there is nothing."""
    if path.is_file():
        return path.stat().st_size
    return sum(os.lstat(Path(d, name)).st_size for d, _, names in os.walk(path) for name in names)


def _committed_items(store: Store, stream: str) -> set[int]:
    return {item for commit in store.commits(stream).values() for item in range(*commit.items)}


def _stored_frames(store: Store) -> dict[str, Any] | None:
    """How frames are stored, and their bytes so far; None where they are not."""
    if store.frames is None:
        return None
    described = [commit.arrays[name] for commit in store.commits("video").values() for name in store.frames.arrays]
    sizes = [math.prod(array["shape"]) * np.dtype(array["dtype"]).itemsize for array in described]
    return {**store.frames.as_header(), "bytes": sum(sizes)}


def _within(items: set[int], run: range) -> int:
    return sum(item in items for item in run)


def _status_and_frames(store: Store) -> tuple[np.ndarray, int]:
    """Status of every planned video (MISSING where its shard is not committed yet) and the frames committed so far."""
    status = np.full(store.num_items["video"], int(Status.MISSING), np.uint8)
    frames = 0
    for commit in store.commits("video").values():
        items = range(*commit.items)
        found = store.arrays("video", ["status", "offsets"], items=items)
        status[items.start : items.stop] = found["status"]
        frames += int(found["offsets"][-1])
    return status, frames
