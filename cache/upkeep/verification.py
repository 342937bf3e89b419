"""A cache read back whole through its format's library, against everything that was written down about it."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable

import numpy as np

from glscl.cache.backbone_tensors import damage_beside
from glscl.cache.files import links_below
from glscl.cache.formats import OpenShard
from glscl.cache.records import Commit
from glscl.cache.schema import STREAMS
from glscl.cache.shard_arrays import FLOAT, LAYOUT, decode_features
from glscl.cache.store import Store
from glscl.common.errors import first_line


def verify(store: Store, *, progress: Callable[[], None] = lambda: None) -> list[str]:
    """Every contradiction with checksums, shapes, boundaries or finiteness, as a line; none of a good cache.

    Read back are the committed shards, the plan and the backbone's pieces. A link anywhere in the cache is a problem too.

    Args:
        progress: called after each shard.
    """
    problems = [f"{path.relative_to(store.path).as_posix()}: {wrong}" for path, wrong in damage_beside(store).items()]
    for link in sorted(links_below(store.path)):
        problems.append(f"{link.relative_to(store.path).as_posix()} is a link to {os.readlink(link)}")
    for stream in STREAMS:
        for _, commit in sorted(store.commits(stream).items()):
            problems += verify_commit(store, commit)
            progress()
    return problems


def verify_commit(store: Store, commit: Commit) -> list[str]:
    """As `verify`, of one shard; the commit need not be the one in force."""
    try:
        with store.format.opened(store.place(commit)) as shard:
            problems, arrays = _read_back(commit, shard)
    except Exception as error:  # libraries raise whatever they like on damaged files
        return [f"{commit.path} cannot be read: {first_line(error)}"]
    return [f"{commit.path}: {problem}" for problem in (*problems, *_contradictions(commit, arrays, store.dtype))]


def _read_back(commit: Commit, shard: OpenShard) -> tuple[list[str], dict[str, np.ndarray]]:
    """What is wrong with single arrays, and those with which nothing is."""
    problems: list[str] = []
    arrays: dict[str, np.ndarray] = {}
    for name, expected in commit.arrays.items():
        try:
            if name not in LAYOUT[commit.stream]:
                problems += _of_blocks(name, commit, shard)
                continue
            array = shard.read(name)
        except Exception as error:  # libraries raise whatever they like on damaged files
            problems.append(f"{name} cannot be read: {first_line(error)}")
            continue
        if list(array.shape) != expected["shape"] or array.dtype.name != expected["dtype"]:
            problems.append(f"{name} is {array.dtype.name}{list(array.shape)}, expected {expected}")
        elif zlib.crc32(np.ascontiguousarray(array)) != expected["crc32"]:
            problems.append(f"{name} does not have the checksum it was committed with")
        else:
            arrays[name] = array
    return problems, arrays


def _of_blocks(name: str, commit: Commit, shard: OpenShard) -> list[str]:
    """What is wrong with an array that may be larger than memory."""
    expected, checksum, length, before, rises = commit.arrays[name], 0, 0, 0, True
    for block in shard.blocks(name):
        if name == "frame_offsets":
            rises = rises and bool((block[0] >= before if length else block[0] == 0) and (np.diff(block) >= 0).all())
            before = block[-1]
        checksum, length = zlib.crc32(np.ascontiguousarray(block), checksum), length + len(block)
    if length != expected["shape"][0] or checksum != expected["crc32"]:
        return [f"{name} does not have the length and checksum it was committed with"]
    return [] if rises else [f"{name} does not rise from 0"]


def _contradictions(commit: Commit, arrays: dict[str, np.ndarray], dtype: str) -> list[str]:
    """What no array of this kind holds, whatever its checksum."""
    problems = []
    for name, array in arrays.items():
        spec = LAYOUT[commit.stream][name]
        if spec.along == "boundaries" and (len(array) == 0 or array[0] != 0 or (np.diff(array) < 0).any()):
            problems.append(f"{name} does not rise from 0")
        if spec.dtype == FLOAT and not np.isfinite(decode_features(array, dtype)).all():
            problems.append(f"{name} has NaN or infinite values")
        if spec.along == "rows" and spec.boundaries in arrays and len(array) != arrays[spec.boundaries][-1]:
            problems.append(f"{name} has {len(array)} rows, {spec.boundaries} says otherwise")
    return problems
