"""A new cache, or the one that was begun with the same encoder."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glscl.cache.files import dump_json, listed, put_if_absent, refuse_links, storage_errors, written
from glscl.cache.fingerprint import differences, fingerprint
from glscl.cache.formats import STORES
from glscl.cache.frame_format import FrameSpec, require_same
from glscl.cache.library import Library, open_library
from glscl.cache.mirror import MARK, Mirror, cache_path
from glscl.cache.schema import DEPTH, SCHEMA, STREAMS
from glscl.cache.shard_arrays import FEATURE_DTYPES
from glscl.common.errors import CacheFormatError, FingerprintError, Hint, UsageError

_FOLDERS = ("additions", "shards", "commits", "lists", "backbone", "partial", "locks", "damaged", "index")
_OWN_NAMES = {*_FOLDERS, "store.json", "zarr.json", "files.jsonl", MARK}


@dataclass(frozen=True, kw_only=True, repr=False)
class StoreSpec:
    """What encodes: everything that decides the values in a cache, and how they are stored.

    Attributes:
        configuration: what decides the values (backbone, preprocessing, tokenizer, sampling, …), JSON-able; hashed.
        embed_dim: D.
        dtype: "float16", "float32" or "bfloat16".
        tokens: whether token features are stored.
        frames: how frames are stored with the features, if at all; stored, not hashed, for the features are the same.
        versions: of packages; stored, not hashed.
    """

    configuration: Mapping[str, Any]
    embed_dim: int
    dtype: str = "float16"
    tokens: bool = True
    frames: FrameSpec | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"StoreSpec({self.embed_dim}-d {self.dtype}, fingerprint {fingerprint(self.full_configuration)})"

    @property
    def full_configuration(self) -> dict[str, Any]:
        """What the fingerprint is of."""
        return {**self.configuration, "embed_dim": self.embed_dim, "dtype": self.dtype, "tokens": self.tokens}


_SETTINGS = {  # what in a configuration a setting alone decides
    "backbone.precision": "precision",
    "backbone.words": "max_words",
    "sampling.fps": "fps",
    "sampling.rule": "sampling",
    "sampling.max_frames": "max_frames",
    "sampling.decoder": "decoder",
    "dtype": "dtype",
    "tokens": "tokens",
    "pad_tokens": "pad_tokens",
}


def _settings_of(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """The settings that make one configuration the other, as far as it is they alone that differ."""
    names = [line.partition(": ")[0] for line in differences(found, expected)]
    values = {
        name: functools.reduce(lambda part, key: part.get(key, False), name.split("."), found)
        for name in names
        if name in _SETTINGS
    }
    if len(values) < len(names) or None in values.values():
        return "the same settings"
    return " and ".join(f"`{_SETTINGS[name]}={str(value).split()[0]}`" for name, value in values.items())


def foreign_names(root: Path) -> list[str]:
    """What stands in a folder and is no part of a cache, in order. What is in `partial` would be swept: of a cache that began
    nothing it is somebody's too."""
    names = sorted(name for name in os.listdir(root) if name not in _OWN_NAMES and not name.startswith("."))
    if not any(listed(root / "additions" / stream) for stream in STREAMS):
        names += [f"partial/{path.name}" for path in listed(root / "partial")]
    return names


def require_format(root: Path, format: str) -> None:
    """Raise UsageError where there is a cache in `root` of another format, StorageError where links stand in it."""
    if root.is_dir():
        refuse_links(root, depth=DEPTH)
    if not written(root / "store.json"):
        return
    _require_same_format(open_library(root), format)


def _require_same_format(library: Library, format: str) -> None:
    there = library.header["format"]
    if there != format:
        raise UsageError(
            f"{library.place} is a {there} cache; asked for {format}",
            hint=Hint(f"Use `format={there}`, or another folder with `out`"),
        )


def create_library(
    path: os.PathLike[str] | str, spec: StoreSpec, format: str = "zarr", *, single_writer: bool = False
) -> Library:
    """Create a cache, or open the one that is there if it was made by the same encoder.

    Args:
        path: folder of the cache, created with its parents; or an address with conditional puts.
        spec: what encodes.
        format: a key of `STORES`.
        single_writer: nobody else writes at the address meanwhile, so that it needs no conditional puts.

    Raises:
        UsageError: unknown format or dtype, or the cache there has another format or stores frames in another way.
        FingerprintError: a cache of another configuration is there.
        CacheFormatError: the folder holds something else.
        StorageError: it cannot be written, or holds links.
    """
    root = cache_path(path, "out", new=True)
    if format not in STORES:
        raise UsageError(f"Unknown cache format {format!r}; there are {', '.join(STORES)}")
    if spec.dtype not in FEATURE_DTYPES:
        raise UsageError(f"Unknown feature dtype {spec.dtype!r}; there are {', '.join(FEATURE_DTYPES)}")
    configuration = spec.full_configuration
    mark = fingerprint(configuration)
    if root.is_dir():
        refuse_links(root, depth=DEPTH)
    if written(root / "store.json"):
        library = open_library(root)
        if library.fingerprint != mark:
            raise FingerprintError(
                f"{root} was made by another encoder ({'; '.join(differences(library.configuration, configuration)[:3])})",
                hint=Hint(f"Use {_settings_of(library.configuration, configuration)}, or another folder with `out`"),
            )
        _require_same_format(library, format)
        require_same(library.frames, spec.frames, root)
        return library
    with storage_errors(root, "create the cache"):
        root.mkdir(parents=True, exist_ok=True)
        if (foreign := foreign_names(root)) and not written(root / "store.json"):  # by a faster launch meanwhile
            raise CacheFormatError(
                f"{root} is not a glscl cache and not empty: found {', '.join(foreign[:3])}, expected store.json",
                hint=Hint("Choose another folder with `out`"),
            )
        for stream in STREAMS:
            for part in ("additions", "shards", "commits"):
                (root / part / stream).mkdir(parents=True, exist_ok=True)
        (root / "lists").mkdir(exist_ok=True)
        STORES[format].prepare_root(root, STREAMS)
        header = {
            "schema": SCHEMA,
            "format": format,
            "fingerprint": mark,
            "configuration": configuration,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": dict(spec.versions),
            **({"stored_frames": spec.frames.as_header()} if spec.frames else {}),
        }
        mirror, data = Mirror.of(root), dump_json(header)
        if mirror is not None:
            mirror.require_conditional_puts(single_writer)
            if not mirror.put_if_absent("store.json", data):
                mirror.refresh()
                return create_library(path, spec, format, single_writer=single_writer)
        if not put_if_absent(root / "store.json", data):
            # another launch was a moment faster: compare with what it wrote
            return create_library(path, spec, format, single_writer=single_writer)
    return open_library(root)
