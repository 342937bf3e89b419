"""A new cache, or the one that was begun from the same specification."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glscl.cache.files import dump_json, put_if_absent, refuse_links, storage_errors, written
from glscl.cache.fingerprint import annotation_hash, differences, fingerprint
from glscl.cache.formats import STORES
from glscl.cache.frame_format import FrameSpec, require_same
from glscl.cache.plan import arrange, write_plan
from glscl.cache.schema import DEPTH, SCHEMA, STREAMS, Annotations
from glscl.cache.shard_arrays import FEATURE_DTYPES
from glscl.cache.store import Store, open_store
from glscl.common.errors import CacheFormatError, FingerprintError, Hint, UsageError

_OWN_FOLDERS = {"plan", "shards", "commits", "backbone", "partial", "locks", "damaged"}
_OWN_NAMES = _OWN_FOLDERS | {"store.json", "manifest.json", "zarr.json"}


@dataclass(frozen=True, kw_only=True, repr=False)
class StoreSpec:
    """Everything that is decided before the first shard is written.

    Attributes:
        configuration: what decides the values (backbone, preprocessing, tokenizer, sampling, …), JSON-able; hashed.
        annotations: videos and captions, in order; sorted by split here.
        embed_dim: D.
        dtype: "float16", "float32" or "bfloat16".
        tokens: whether token features are stored.
        shard_items: items a shard, by stream.
        provenance: command, versions, paths; stored, not hashed.
        frames: how frames are stored with the features, if at all; stored, not hashed, for the features are the same.
    """

    configuration: Mapping[str, Any]
    annotations: Annotations
    embed_dim: int
    dtype: str = "float16"
    tokens: bool = True
    shard_items: Mapping[str, int] = field(default_factory=lambda: {"video": 256, "text": 2048})
    provenance: Mapping[str, Any] = field(default_factory=dict)
    frames: FrameSpec | None = None

    def __repr__(self) -> str:
        return f"StoreSpec({self.annotations!r}, {self.embed_dim}-d {self.dtype})"


def create_store(path: os.PathLike[str] | str, spec: StoreSpec, format: str = "zarr") -> Store:
    """Create a cache, or open the one that is there if it was made from the same specification.

    Args:
        path: folder of the cache; created with its parents.
        spec: what will be stored.
        format: a key of `STORES`.

    Raises:
        UsageError: unknown format or dtype, or the cache there has another format or stores frames in another way.
        InputError: duplicate ids, or a caption whose split is not its video's.
        FingerprintError: a cache of another configuration or other annotations is there.
        CacheFormatError: the folder holds something else.
        StorageError: it cannot be written, or a link stands in it.
    """
    root = Path(path)
    if format not in STORES:
        raise UsageError(f"Unknown cache format {format!r}; there are {', '.join(STORES)}")
    if spec.dtype not in FEATURE_DTYPES:
        raise UsageError(f"Unknown feature dtype {spec.dtype!r}; there are {', '.join(FEATURE_DTYPES)}")
    refuse_links(root, depth=DEPTH)
    annotations, splits = arrange(spec.annotations)
    configuration = {
        **spec.configuration,
        "dataset": annotations.dataset,
        "annotations": annotation_hash(annotations.videos, annotations.texts),
        "embed_dim": spec.embed_dim,
        "dtype": spec.dtype,
        "tokens": spec.tokens,
    }
    mark = fingerprint(configuration)
    if written(root / "store.json"):
        store = open_store(root)
        if store.fingerprint != mark:
            raise FingerprintError(
                f"{root} holds another cache ({'; '.join(differences(store.configuration, configuration)[:3])})",
                hint=Hint("Choose another folder with `out`, or delete that one first"),
            )
        if store.header["format"] != format:
            raise UsageError(
                f"{root} is a {store.header['format']} cache; asked for {format}",
                hint=Hint(f"Use `format={store.header['format']}`, or another folder with `out`"),
            )
        require_same(store.frames, spec.frames, root)
        return _with_plan(store, annotations)
    with storage_errors(root, "create the cache"):
        root.mkdir(parents=True, exist_ok=True)
        foreign = sorted(n for n in os.listdir(root) if n not in _OWN_NAMES and not n.startswith("."))
        if foreign:
            raise CacheFormatError(
                f"{root} is not a glscl cache and not empty: found {', '.join(foreign[:3])}, expected store.json",
                hint=Hint("Choose another folder with `out`"),
            )
        for stream in STREAMS:
            for part in ("shards", "commits"):
                (root / part / stream).mkdir(parents=True, exist_ok=True)
        STORES[format].prepare_root(root, STREAMS)
        header = {
            "schema": SCHEMA,
            "format": format,
            "fingerprint": mark,
            "configuration": configuration,
            "streams": {
                "video": {"items": len(annotations.videos), "shard_items": int(spec.shard_items["video"])},
                "text": {"items": len(annotations.texts), "shard_items": int(spec.shard_items["text"])},
            },
            "splits": {
                name: {
                    "videos": [split.videos.start, split.videos.stop],
                    "texts": [split.texts.start, split.texts.stop],
                    "expected_videos": split.expected.videos,
                    "expected_captions": split.expected.captions,
                }
                for name, split in splits.items()
            },
            "notes": list(annotations.notes),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "provenance": dict(spec.provenance),
            **({"stored_frames": spec.frames.as_header()} if spec.frames else {}),
        }
        if not put_if_absent(root / "store.json", dump_json(header)):
            return create_store(path, spec, format)  # another launch was a moment faster: compare with what it wrote
    return _with_plan(open_store(root), annotations)


def _with_plan(store: Store, annotations: Annotations) -> Store:
    """The store with the files as this run found them; the first to come here writes them down.

    After store.json, so that of two that begin together with other annotations only the one that won writes a plan.
    """
    write_plan(store.path, annotations)
    store.plan = annotations
    return store
