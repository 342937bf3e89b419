"""What the files of a cache folder say, each read for itself, however damaged the others are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from glscl.cache import backbone_tensors
from glscl.cache.additions import Addition, folder, read_addition
from glscl.cache.commits import COMMIT_NAME, SCHEMA, commit_folder
from glscl.cache.files import dump_json, listed, load_json, written
from glscl.cache.keys import has_key, text_key
from glscl.cache.library import Library, Place
from glscl.cache.lists import CacheList, current_version, list_names, read_list, versions_of
from glscl.cache.records import Commit
from glscl.cache.schema import STREAMS
from glscl.cache.shards import see_damage
from glscl.common.errors import CacheCorruptError, CacheFormatError, NotFoundError, first_line

ALL_COMMITS_NAME = re.compile(r"([0-9a-f]{16})\.json")
ShardName = tuple[str, str, int]  # stream, name of the addition, number in it


@dataclass
class Contents:
    """Attributes:
    additions: (stream, name) → addition.
    commits: shard → what is said of it, in its own file and in the one of all commits of its addition: file → commit.
    lost: (stream, name of an addition that cannot be read or is not there) → file → its commit, as JSON.
    lists: all versions that can be read. current: name → hash of the version that counts.
    damaged: file → what is wrong with it.
    """

    additions: dict[tuple[str, str], Addition] = field(default_factory=dict)
    commits: dict[ShardName, dict[Path, Commit]] = field(default_factory=dict)
    lost: dict[tuple[str, str], dict[Path, Any]] = field(default_factory=dict)
    lists: list[CacheList] = field(default_factory=list)
    current: dict[str, str] = field(default_factory=dict)
    damaged: dict[Path, str] = field(default_factory=dict)


def read_contents(library: Library) -> Contents:
    """Read everything in a cache folder but the shards. Raises StorageError where the disk fails."""
    found = Contents()
    for stream in STREAMS:
        for path in listed(folder(library.path, stream), "*.txt"):
            if written(path):
                try:
                    found.additions[stream, path.stem] = read_addition(path, stream)
                except CacheCorruptError as error:
                    found.damaged[path] = _wrong(error, path)
        for path in listed(commit_folder(library.path, stream), "*.json"):
            if written(path):
                _read_commits(library, stream, path, found)
    _read_lists(library, found)
    tensors = backbone_tensors.tensors_file(library.path)
    if wrong := backbone_tensors.damage(library.path):
        found.damaged[tensors] = wrong
    return found


def parse_commit(library: Library, row: Any, addition: Addition) -> Commit:
    """A commit of an addition. Raises ValueError where it is none, or names another shard than its own."""
    commit = library.commit_from_json(row, addition)
    if not re.fullmatch(rf"shards/{addition.stream}/{addition.name}-{commit.shard:05d}-[^/]+", commit.path):
        raise ValueError("it names no shard of this cache")
    return commit


def keys_tell_texts(library: Library) -> bool:
    """Whether the key of a caption is the hash of its text; features that others made have keys of their own."""
    made_here = library.configuration.get("sampling", {}).get("source") != "imported"
    return made_here or "text_backbone" in library.configuration


def wrong_keys(keys: np.ndarray, texts: list[str]) -> int:
    """How many of (n, 16) keys, none where zero, are not those of their texts."""
    there = has_key(keys)
    return sum(bool(there[row]) and keys[row].tobytes() != text_key(text) for row, text in enumerate(texts))


def _read_commits(library: Library, stream: str, path: Path, found: Contents) -> None:
    single, gathered = COMMIT_NAME.fullmatch(path.name), ALL_COMMITS_NAME.fullmatch(path.name)
    match = single or gathered
    if match is None:
        return
    try:
        about = load_json(path, "a commit of a glscl cache")
        addition = found.additions.get((stream, match[1]))
        if addition is None:
            found.lost.setdefault((stream, match[1]), {})[path] = about
            return
        rows = [about] if single else _gathered(about, addition)
        commits = [parse_commit(library, row, addition) for row in rows]
        expected = [int(single[2])] if single else [*range(addition.num_shards)]
        if [commit.shard for commit in commits] != expected:
            raise ValueError("it belongs to another shard" if single else "it has not each shard once")
    except (CacheFormatError, KeyError, TypeError, ValueError, AttributeError) as error:
        found.damaged[path] = _wrong(error, path)
        return
    for commit in commits:
        found.commits.setdefault((stream, addition.name, commit.shard), {})[path] = commit


def _gathered(about: Any, addition: Addition) -> list[Any]:
    if (about.get("schema"), about.get("addition")) != (SCHEMA, addition.name):
        raise ValueError("it is of another addition")
    return about["commits"]


def _read_lists(library: Library, found: Contents) -> None:
    root = library.path
    for name in list_names(root):
        for version in versions_of(root, name):
            path = root / "lists" / name / f"{version}.json"
            try:
                made = read_list(root, name, version, library.header["format"])
                if keys_tell_texts(library) and (count := wrong_keys(made.text_key, made.captions)):
                    raise CacheCorruptError(f"{count} keys are not those of their captions")
            except CacheCorruptError as error:
                found.damaged[path] = _wrong(error, path)
                continue
            found.lists.append(made)
        current = root / "lists" / name / "current"
        try:
            version = current_version(root, name)
            if version is not None and not written(current.with_name(f"{version}.json")):
                raise NotFoundError(f"it names the version {version}, which is not there")
        except (CacheCorruptError, NotFoundError) as error:
            found.damaged[current] = _wrong(error, current)
            continue
        if version is not None:
            found.current[name] = version


def is_gathered(path: Path) -> bool:
    """Whether a file is one of all commits of an addition."""
    return ALL_COMMITS_NAME.fullmatch(path.name) is not None


def _wrong(error: Exception, path: Path) -> str:
    """What an error says, without the name of the file that it is said of."""
    text = error.message if isinstance(error, CacheCorruptError) else first_line(error)
    for start in ("The list ", f"{os.fspath(path)} cannot be read: ", os.fspath(path)):
        text = text.removeprefix(start)
    return text.strip()


def commit_bytes(library: Library, file: Path, commit: Commit, place: Place) -> bytes:
    """A commit as its own file tells it, with how each video was decoded; else as those gathered of its addition do.

    Raises:
        CacheCorruptError: its file cannot be read, or contradicts those.
    """
    try:
        if not written(file):
            parse_commit(library, msgspec.to_builtins(commit), place.addition)
            return dump_json(msgspec.to_builtins(commit))
        own = parse_commit(library, load_json(file, "a commit of a glscl cache"), place.addition)
        if (own.shard, own.path, own.arrays) != (commit.shard, commit.path, commit.arrays):
            raise ValueError("it says otherwise than the commits gathered of its addition")
        return file.read_bytes()
    except (CacheFormatError, ValueError) as error:
        raise CacheCorruptError(f"{file} cannot be read: {first_line(error)}", hint=see_damage(library.path)) from error
