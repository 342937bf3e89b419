"""A cache read back whole through its format's library, against everything that was written down about it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from glscl.cache.files import links_below, refuse_unread
from glscl.cache.formats import OpenShard
from glscl.cache.keys import to_lines
from glscl.cache.library import Library
from glscl.cache.lists import read_flat_list
from glscl.cache.records import Commit
from glscl.cache.schema import STREAMS, Status
from glscl.cache.shard_arrays import FLOAT, LAYOUT, checksum, decode_features, unpack_strings
from glscl.cache.upkeep.contents import Contents, is_gathered, keys_tell_texts, read_contents, wrong_keys
from glscl.common.errors import CacheCorruptError, StorageError, first_line


def count_shards(library: Library) -> int:
    """How many shards `verify` reads back; of a damaged cache about as many."""
    try:
        return sum(len(library.stream(stream).commits) for stream in STREAMS)
    except CacheCorruptError:
        return sum(1 for stream in STREAMS for _ in (library.path / "shards" / stream).glob("*-*-*"))


class Unread(str):
    """A problem that says nothing of what is in the file; `first`: what is to be done before it is read again."""

    first: str | None = None


def verify(library: Library, *, progress: Callable[[], None] = lambda: None) -> list[str]:
    """Every contradiction, as a line; none of a good cache.

    Read back are additions (against their names), commits, lists (against their checksums and hashes), the backbone's tensors,
    and every committed shard: checksums, shapes, boundaries, finiteness, and keys, of which those of captions are made again.
    A link anywhere in the cache is a problem too, and a shard that could not be read is one, an `Unread`.

    Args:
        progress: called after each shard.
    """
    if library.is_flat:
        return _verify_flat(library, progress)
    root, contents = library.path, read_contents(library)
    problems = [f"{path.relative_to(root).as_posix()}: {wrong}" for path, wrong in sorted(contents.damaged.items())]
    for link in sorted(links_below(root)):
        problems.append(f"{link.relative_to(root).as_posix()} is a link to {os.readlink(link)}")
    for (stream, name), files in sorted(contents.lost.items()):
        problems.append(f"additions/{stream}/{name}.txt is not there or damaged; {len(files)} commits are of it")
    for (stream, name, _), files in sorted(contents.commits.items()):
        for commit in _different(files):
            problems += _read_or_told(library, commit, contents.additions[stream, name].keys)
        progress()
    return problems + _without_version(contents)


def _read_or_told(library: Library, commit: Commit, keys: np.ndarray) -> list[str]:
    """`verify_commit`, with a shard that could not be read as one problem among the others."""
    try:
        return verify_commit(library, commit, keys)
    except StorageError as error:
        told = Unread(error.message)
        told.first = error.first
        return [told]


def _different(files: Mapping[Path, Commit]) -> list[Commit]:
    """What is said of one shard, in its own file and among all commits of its addition; once where it is the same."""
    found: list[Commit] = []
    for _, commit in sorted(files.items(), key=lambda each: is_gathered(each[0])):
        if all(commit.path != other.path or commit.arrays != other.arrays for other in found):
            found.append(commit)
    return found


def _without_version(contents: Contents) -> list[str]:
    """Lists of which the version that counts is damaged."""
    good = {(made.name, made.hash) for made in contents.lists}
    return [
        f"lists/{name}/current names the version {version}, which is damaged"
        for name, version in sorted(contents.current.items())
        if (name, version) not in good
    ]


def _verify_flat(library: Library, progress: Callable[[], None]) -> list[str]:
    problems: list[str] = []
    try:
        made = read_flat_list(library.path, library.header, library.header["format"])
        if keys_tell_texts(library) and (count := wrong_keys(made.text_key, made.captions)):
            problems.append(f"list: {count} keys are not those of their captions")
    except CacheCorruptError as error:
        problems.append(error.message)
    for stream in STREAMS:
        try:
            about = library.stream(stream)
        except CacheCorruptError as error:
            problems.append(error.message)
            continue
        for place in about.committed():
            commit = about.commit_of(place)
            problems += _read_or_told(library, commit, place.addition.keys)
            progress()
    return problems


def verify_commit(library: Library, commit: Commit, keys: np.ndarray) -> list[str]:
    """As `verify`, of one shard.

    Args:
        keys: (n, 16) uint8, of all items of its addition.

    Raises:
        StorageError: it could not be read, which says nothing of what is in it.
    """
    try:
        with library.format.opened(library.shard_file(commit)) as shard:
            problems, arrays = _read_back(commit, shard)
        problems += [*_contradictions(commit, arrays, library.dtype)]
        if not problems:
            own = keys[commit.items[0] : commit.items[1]]
            problems += _wrong_keys(library, commit, own, arrays) or _wrong_failures(commit, own, arrays["status"])
    except Exception as error:  # libraries raise whatever they like on damaged files
        refuse_unread(error, library.path / commit.path)
        return [f"{commit.path} cannot be read: {first_line(error)}"]
    return [f"{commit.path}: {problem}" for problem in problems]


def _wrong_keys(library: Library, commit: Commit, keys: np.ndarray, arrays: dict[str, np.ndarray]) -> list[str]:
    """Whether the items are those of the addition, and captions those of their keys."""
    told = "".join(f"{key}\n" for key in unpack_strings(arrays["id_bytes"], arrays["id_offsets"]))
    if told.encode() != to_lines(keys):
        return ["its items are not those of its addition"]
    if commit.stream == "text" and keys_tell_texts(library):
        count = wrong_keys(keys, unpack_strings(arrays["text_bytes"], arrays["text_offsets"]))
        return [f"{count} keys are not those of their captions"] if count else []
    return []


def _wrong_failures(commit: Commit, keys: np.ndarray, status: np.ndarray) -> list[str]:
    """Whether the commit names exactly the items that failed: by it readers know which items are usable."""
    rows = np.flatnonzero(status != int(Status.OK)).tolist()
    found = {keys[row].tobytes().hex(): int(status[row]) for row in rows}
    told = {failure["key"]: int(Status[failure["status"].upper()]) for failure in commit.failures}
    return [] if found == told else ["its commit names other failures than it holds"]


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
            refuse_unread(error, commit.path)
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
