"""What stands beside the shards of a cache, the plan and the pieces of the backbone: read back to find damage."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from glscl.cache.files import utf8_name, written
from glscl.cache.fingerprint import annotation_hash
from glscl.cache.schema import STREAMS
from glscl.common.errors import CacheCorruptError

if TYPE_CHECKING:
    from glscl.cache.store import Store

_CHECKSUMS = "crc32"  # key of the file's metadata: JSON, name of each tensor → CRC-32 of its bytes


def pack_tensors(pieces: Mapping[str, np.ndarray]) -> bytes:
    """Pieces of a backbone as a safetensors file that holds the checksum of each."""
    from safetensors.numpy import save

    return save(dict(pieces), {_CHECKSUMS: json.dumps({name: _checksum(piece) for name, piece in pieces.items()})})


def damage_beside(store: Store) -> dict[Path, str]:
    """File → what is wrong with it, for the plan and the backbone's pieces of a cache folder.

    Of the plan all but the paths of the videos is compared with the hash in the configuration. Pieces are compared with
    the checksums in their file, which those of earlier versions lack.
    """
    if "commits" in store.header:  # a flat file has no plan, and the format's own checksums of the pieces
        return {}
    return _plan(store) | _pieces(store)


def _plan(store: Store) -> dict[Path, str]:
    files = {stream: store.path / "plan" / f"{stream}.jsonl" for stream in STREAMS}
    there = all(written(path) if store.num_items[stream] else path.exists() for stream, path in files.items())
    if not there and not (store.path / "manifest.json").exists():
        return {}  # not written yet: the next extraction does
    items, found = {}, {}
    for stream, path in files.items():
        try:
            items[stream] = store.plan_items(stream)
        except CacheCorruptError as error:
            found[path] = str(error).removeprefix(f"{path} ").removeprefix(f"{path}, ")
    if not found and annotation_hash(items["video"], items["text"]) != store.configuration.get("annotations"):
        wrong = "ids, splits, clips or captions in plan/ are not those that the cache was begun with"
        found = dict.fromkeys(files.values(), wrong)
    return found


def _pieces(store: Store) -> dict[Path, str]:
    from safetensors import safe_open

    path = store.path / "backbone" / "pieces.safetensors"
    if not written(path):
        return {}
    try:
        with utf8_name(path) as name, safe_open(name, framework="np") as file:
            expected = json.loads((file.metadata() or {}).get(_CHECKSUMS, "null"))
            given = {key: _checksum(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own, undocumented type
        return {path: f"it cannot be read: {str(error)[:200]}"}
    return {} if expected is None or expected == given else {path: "it does not have the checksums it was written with"}


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array))
