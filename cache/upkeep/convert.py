"""Zarr ↔ HDF5, and caches as one ordinary file.

A flat file holds the groups `video` and `text` with every array over all shards, `backbone`, `head`, the JSON that tells
the rest (bytes of UTF-8), and likewise `ledger`, how each video was decoded. It is opened by `open_store` like a cache of one shard a stream, and never written to again.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glscl.cache.creation import StoreSpec, create_store
from glscl.cache.files import dump_json, half_written, remove, storage_errors, sync_directory, sync_tree, written
from glscl.cache.formats import STORES
from glscl.cache.formats.blocks import Blocks
from glscl.cache.lock import hold
from glscl.cache.schema import STREAMS
from glscl.cache.shards import describe_array, shard_path
from glscl.cache.store import Store, open_store
from glscl.common.errors import UsageError

FLAT_SUFFIXES = {".h5": "hdf5", ".hdf5": "hdf5", ".zarr": "zarr"}


def check_name(out: Path, format: str | None) -> str | None:
    """The format of a flat file by its name, None for a cache folder. Raises UsageError where `format` contradicts it."""
    flat = FLAT_SUFFIXES.get(out.suffix.lower())
    if flat and format not in (None, flat):
        raise UsageError(f"{out.name} will be {flat} by its name; `format` says {format}")
    return flat


def convert(store: Store, out: Path, *, format: str | None = None) -> Path:
    """Write a complete cache again, in another format or as one flat file.

    A cache folder that an earlier attempt began is gone on with; of a flat file, which begins anew, the remains are removed.

    Args:
        store: a complete cache.
        out: `*.h5` or `*.zarr` makes one flat file or group; any other name a cache folder.
        format: of a cache folder; the other one by default.

    Returns:
        `out`.

    Raises:
        CacheIncompleteError: the cache is not complete.
        UsageError: `out` exists, and is no conversion of this cache that was stopped; or `format` contradicts its name.
        CacheBusyError: another process writes `out`.
        StorageError: it cannot be written.
    """
    flat = check_name(out, format)
    store.require_complete()
    format = format or next(name for name in STORES if name != store.header["format"])
    if os.path.lexists(out) and (flat or not _was_begun(store, out, format)):
        raise UsageError(f"{out} exists already", hint="Choose another name, or delete it first")
    return _write_flat(store, out, flat) if flat else _write_cache(store, out, format)


def _was_begun(store: Store, out: Path, format: str) -> bool:
    """Whether a conversion of this cache to this folder was stopped before its end."""
    if not out.is_dir() or written(out / "manifest.json"):
        return False
    if not written(out / "store.json"):
        return (out / "commits").is_dir()  # the folders come first
    begun = open_store(out).header
    return begun["format"] == format and all(
        begun.get(key) == store.header.get(key) for key in ("fingerprint", "streams", "splits", "stored_frames")
    )


def spec_of(store: Store) -> StoreSpec:
    """What `create_store` needs to begin a cache like this one."""
    own = ("dataset", "annotations", "embed_dim", "dtype", "tokens")
    return StoreSpec(
        configuration={k: v for k, v in store.configuration.items() if k not in own},
        annotations=replace(store.plan, dataset=store.configuration["dataset"]),
        embed_dim=store.embed_dim,
        dtype=store.dtype,
        tokens=store.has_tokens,
        shard_items=store.shard_items,
        provenance=store.header.get("provenance", {}),
        frames=store.frames,
    )


def _write_cache(store: Store, out: Path, format: str) -> Path:
    target = create_store(out, spec_of(store), format)
    with hold(out, what="convert"):
        target.write_backbone_tensors(store.backbone_tensors())
        target.refresh()
        for stream in STREAMS:
            for shard in target.pending(stream):
                arrays = store.arrays(stream, items=store.shard_range(stream, shard), raw=True)
                if stream == "video":
                    arrays |= _stored_frames(store, range(shard, shard + 1))
                ledger = store.ledger(shard) if stream == "video" else ()
                target.commit(stream, shard, arrays, failures=store.commits(stream)[shard].failures, ledger=ledger)
        target.finish()
    return out


def _write_flat(store: Store, out: Path, format: str) -> Path:
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            for path in half_written(out.parent, name=out.name):
                remove(path, out.parent)
            STORES[format].write_groups(aside, _groups(store, format))
            sync_tree(aside)
            os.rename(aside, out)
            sync_directory(out.parent)
    except BaseException:
        remove(aside, out.parent)
        raise
    return out


def _groups(store: Store, format: str) -> Iterator[tuple[str, Mapping[str, np.ndarray | Blocks]]]:
    """The groups of a flat file, made one after another; the head comes last, for it lists what was written."""
    commits = {}
    for stream in STREAMS:
        arrays: dict[str, np.ndarray | Blocks] = {**store.arrays(stream, raw=True)}
        if stream == "video":
            arrays |= _stored_frames(store, range(store.num_shards(stream)))
        yield stream, arrays
        commits[stream] = {
            "stream": stream,
            "shard": 0,
            "revision": 0,
            "items": [0, store.num_items[stream]],
            "path": stream,
            "arrays": {name: describe_array(array) for name, array in arrays.items()},
            "failures": [f for _, c in sorted(store.commits(stream).items()) for f in c.failures],
        }
    tensors = store.backbone_tensors()
    yield "backbone", tensors
    ledger = [row for shard in range(store.num_shards("video")) for row in store.ledger(shard)]
    head: dict[str, Any] = {
        **store.header,
        "format": format,
        "ledger": bool(ledger),
        "streams": {s: {"items": store.num_items[s], "shard_items": max(1, store.num_items[s])} for s in STREAMS},
        "commits": commits,
        "backbone": sorted(tensors),
    }
    told = {"head": head, "ledger": ledger} if ledger else {"head": head}
    yield "/", {name: np.frombuffer(dump_json(value, indent=None), np.uint8) for name, value in told.items()}


def _stored_frames(store: Store, shards: range) -> dict[str, np.ndarray | Blocks]:
    """The stored frames of some shards as one run, read again through the library; nothing where there are none."""
    if store.frames is None:
        return {}
    paths = [shard_path(store.path, store.commits("video")[shard]) for shard in shards]
    lengths = [store.commits("video")[shard].arrays[store.frames.arrays[0]]["shape"][0] for shard in shards]

    def blocks(name: str, paths: Sequence[Path] = paths) -> Iterator[np.ndarray]:
        for path in paths:
            with store.format.opened(path) as shard:
                yield from shard.blocks(name)

    name = store.frames.arrays[0]
    columns = (*store.frames.size, 3) if store.frames.encoding == "uint8" else ()
    found: dict[str, np.ndarray | Blocks] = {name: Blocks((sum(lengths), *columns), np.uint8, lambda: blocks(name))}
    if store.frames.encoding == "jpeg":
        starts = np.cumsum([0, *lengths])
        offsets = [np.concatenate(list(blocks("frame_offsets", [path]))) for path in paths]
        moved = [start + run[1:] for start, run in zip(starts, offsets)]
        found["frame_offsets"] = np.concatenate([np.zeros(1, np.int64), *moved])
    return found
