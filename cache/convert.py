"""Zarr ↔ HDF5, and caches as one ordinary file: `glscl convert`.

A flat file holds the groups `video` and `text` with every array over all shards, `backbone`, and `head`, the JSON that tells
the rest (bytes of UTF-8). It is opened by `open_store` like a cache of one shard a stream, and never written to again.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glscl.cache.files import storage_errors, sync_directory, sync_tree
from glscl.cache.schema import STREAMS
from glscl.cache.store import STORES, Store, StoreSpec, create_store
from glscl.errors import UsageError

FLAT_SUFFIXES = {".h5": "hdf5", ".hdf5": "hdf5", ".zarr": "zarr"}


def convert(store: Store, out: Path, *, format: str | None = None) -> Path:
    """Write a complete cache again, in another format or as one flat file.

    Args:
        store: a complete cache.
        out: `*.h5` or `*.zarr` makes one flat file or group; any other name a cache folder.
        format: of a cache folder; the other one by default.

    Returns:
        `out`.

    Raises:
        CacheIncompleteError: the cache is not complete.
        UsageError: `out` exists, or `format` contradicts its name.
        StorageError: it cannot be written.
    """
    flat = FLAT_SUFFIXES.get(out.suffix.lower())
    if flat and format not in (None, flat):
        raise UsageError(f"{out.name} will be {flat} by its name; --format says {format}")
    if out.exists():
        raise UsageError(f"{out} exists already", mend="Choose another name, or delete it first")
    if flat:
        return _write_flat(store, out, flat)
    others = [name for name in STORES if name != store.header["format"]]
    return _write_cache(store, out, format or others[0])


def _write_cache(store: Store, out: Path, format: str) -> Path:
    own = ("dataset", "annotations", "embed_dim", "dtype", "tokens")
    spec = StoreSpec(
        configuration={k: v for k, v in store.configuration.items() if k not in own},
        annotations=replace(store.plan, dataset=store.configuration["dataset"]),
        embed_dim=store.embed_dim,
        dtype=store.dtype,
        tokens=store.has_tokens,
        shard_items=store.shard_items,
        provenance=store.header.get("provenance", {}),
    )
    target = create_store(out, spec, format)
    target.write_backbone_pieces(store.backbone_pieces())
    for stream in STREAMS:
        for shard in range(store.num_shards(stream)):
            arrays = store.arrays(stream, items=store.shard_range(stream, shard), raw=True)
            target.commit(stream, shard, arrays, failures=store.commits(stream)[shard].failures)
    target.finish()
    return out


def _write_flat(store: Store, out: Path, format: str) -> Path:
    groups: dict[str, Mapping[str, np.ndarray]] = {s: store.arrays(s, raw=True) for s in STREAMS}
    commits = {
        stream: {
            "stream": stream,
            "shard": 0,
            "revision": 0,
            "items": [0, store.num_items[stream]],
            "path": stream,
            "arrays": {
                name: {"shape": list(a.shape), "dtype": a.dtype.name, "crc32": zlib.crc32(np.ascontiguousarray(a))}
                for name, a in groups[stream].items()
            },
            "failures": [f for _, c in sorted(store.commits(stream).items()) for f in c.failures],
        }
        for stream in STREAMS
    }
    streams = {s: {"items": store.num_items[s], "shard_items": max(1, store.num_items[s])} for s in STREAMS}
    groups["backbone"] = store.backbone_pieces()
    head: dict[str, Any] = {
        **store.header,
        "format": format,
        "streams": streams,
        "commits": commits,
        "backbone": sorted(groups["backbone"]),
    }
    groups["/"] = {"head": np.frombuffer(json.dumps(head, ensure_ascii=False).encode(), np.uint8)}
    aside = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
    try:
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            STORES[format].write_groups(aside, groups)
            sync_tree(aside)
            os.rename(aside, out)
            sync_directory(out.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True) if aside.is_dir() else aside.unlink(missing_ok=True)
        raise
    return out
