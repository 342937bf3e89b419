"""A cache read back whole through its format's library, against everything that was written down about it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from glscl.cache import backbone_tensors
from glscl.cache.files import links_below, written
from glscl.cache.fingerprint import annotation_hash
from glscl.cache.formats import OpenShard
from glscl.cache.library import Library
from glscl.cache.plan import plan_file, read_plan
from glscl.cache.records import Commit
from glscl.cache.schema import STREAMS
from glscl.cache.shard_arrays import FLOAT, LAYOUT, checksum, decode_features
from glscl.cache.shards import shard_path
from glscl.common.errors import CacheCorruptError, first_line


def verify(library: Library, *, progress: Callable[[], None] = lambda: None) -> list[str]:
    """Every contradiction with checksums, shapes, boundaries or finiteness, as a line; none of a good cache.

    Read back are the committed shards, the plan and the backbone's tensors. A link anywhere in the cache is a problem too.

    Args:
        progress: called after each shard.
    """
    damaged = damaged_files(library).items()
    problems = [f"{path.relative_to(library.path).as_posix()}: {wrong}" for path, wrong in damaged]
    for link in sorted(links_below(library.path)):
        problems.append(f"{link.relative_to(library.path).as_posix()} is a link to {os.readlink(link)}")
    for stream in STREAMS:
        for _, commit in sorted(library.commits(stream).items()):
            problems += verify_commit(library, commit)
            progress()
    return problems


def damaged_files(library: Library) -> dict[Path, str]:
    """File → what is wrong with it, for the plan and the backbone's tensors of a cache folder.

    Of the plan all but the paths of the videos is compared with the hash in the configuration.
    """
    if library.is_flat:  # it has no plan, and of the tensors the format's own checksums
        return {}
    tensors = backbone_tensors.damage(library.path)
    return _damaged_plan(library) | ({backbone_tensors.tensors_file(library.path): tensors} if tensors else {})


def _damaged_plan(library: Library) -> dict[Path, str]:
    files = {stream: plan_file(library.path, stream) for stream in STREAMS}
    there = all(written(path) if library.num_items[stream] else path.exists() for stream, path in files.items())
    if not there and not (library.path / "manifest.json").exists():
        return {}  # not written yet: the next extraction does
    items: dict[str, list[Any]] = {}
    found: dict[Path, str] = {}
    for stream, path in files.items():
        try:
            items[stream] = read_plan(library.path, stream, library.num_items[stream])
        except CacheCorruptError as error:
            found[path] = str(error).removeprefix(f"{path} ").removeprefix(f"{path}, ")
    if not found and annotation_hash(items["video"], items["text"]) != library.configuration.get("annotations"):
        wrong = "ids, splits, clips or captions in plan/ are not those that the cache was begun with"
        found = dict.fromkeys(files.values(), wrong)
    return found


def verify_commit(library: Library, commit: Commit) -> list[str]:
    """As `verify`, of one shard; the commit need not be the one in force."""
    try:
        with library.format.opened(shard_path(library.path, commit)) as shard:
            problems, arrays = _read_back(commit, shard)
    except Exception as error:  # libraries raise whatever they like on damaged files
        return [f"{commit.path} cannot be read: {first_line(error)}"]
    return [f"{commit.path}: {problem}" for problem in (*problems, *_contradictions(commit, arrays, library.dtype))]


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
        elif checksum(array) != expected["crc32"]:
            problems.append(f"{name} does not have the checksum it was committed with")
        else:
            arrays[name] = array
    return problems, arrays


def _of_blocks(name: str, commit: Commit, shard: OpenShard) -> list[str]:
    """What is wrong with an array that may be larger than memory."""
    expected, crc32, length, before, rises = commit.arrays[name], 0, 0, 0, True
    for block in shard.blocks(name):
        if name == "frame_offsets":
            rises = rises and bool((block[0] >= before if length else block[0] == 0) and (np.diff(block) >= 0).all())
            before = block[-1]
        crc32, length = checksum(block, crc32), length + len(block)
    if length != expected["shape"][0] or crc32 != expected["crc32"]:
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
