"""What has been committed to a cache: the commits of additions, one file each, or all of an addition in one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from glscl.cache.additions import Addition
from glscl.cache.files import dump_json, listed, load_json, put_if_absent, written
from glscl.cache.records import Commit, Header, parse_commit
from glscl.common.errors import CacheCorruptError, first_line

Commits = dict[tuple[str, int], Commit]  # by the name of an addition and a shard of it
SCHEMA = "glscl.commits/1"
COMMIT_NAME = re.compile(r"([0-9a-f]{16})-(\d{5,8})\.json")


def commit_folder(root: Path, stream: str) -> Path:
    return root / "commits" / stream


def commit_file(root: Path, stream: str, addition: str, shard: int) -> Path:
    """Where the commit of a shard stands."""
    return commit_folder(root, stream) / f"{addition}-{shard:05d}.json"


def all_commits_file(root: Path, stream: str, addition: str) -> Path:
    """Where all commits of an addition stand together, once all are there."""
    return commit_folder(root, stream) / f"{addition}.json"


def read_commits(root: Path, additions: Sequence[Addition], header: Header, stream: str) -> Commits:
    """All commits of a stream; of an addition that is whole from one file.

    Raises:
        CacheCorruptError: they cannot be read, or are of another cache.
    """
    found: Commits = {}
    single = single_commits(root, stream)
    for addition in additions:
        for commit in _gathered(root, addition, header) or ():
            found[addition.name, commit.shard] = commit
        for path in single.get(addition.name, ()):
            shard = int(path.stem.rpartition("-")[2])
            if (addition.name, shard) not in found and written(path):
                found[addition.name, shard] = read_commit(path, addition, header)
    return found


def single_commits(root: Path, stream: str) -> dict[str, list[Path]]:
    """Name of an addition → the files of its single commits, in order."""
    found: dict[str, list[Path]] = {}
    for path in listed(commit_folder(root, stream), "*-*.json"):
        if match := COMMIT_NAME.fullmatch(path.name):
            found.setdefault(match[1], []).append(path)
    return found


def read_commit(path: Path, addition: Addition, header: Header) -> Commit:
    """One commit. Raises CacheCorruptError where it cannot be read, or is of another cache, addition or shard."""
    row = load_json(path, "a commit of a glscl cache")
    try:
        commit = parse_commit(row, header, addition)
        if path.name != f"{addition.name}-{commit.shard:05d}.json":
            raise ValueError("it belongs to another shard")
    except ValueError as error:
        raise CacheCorruptError(f"{path} cannot be read: {first_line(error)}") from error
    return commit


def write_all_commits(root: Path, addition: Addition, commits: Sequence[Commit]) -> None:
    """Write all commits of an addition into one file, unless it is there. Raises StorageError."""
    rows = [msgspec.to_builtins(commit) for commit in sorted(commits, key=lambda commit: commit.shard)]
    about = {"schema": SCHEMA, "stream": addition.stream, "addition": addition.name, "commits": rows}
    put_if_absent(all_commits_file(root, addition.stream, addition.name), dump_json(about, indent=None))


def flat_commits(root: Path, rows: Any, additions: Sequence[Addition], header: Header, stream: str) -> Commits:
    """The commits that the head of a flat file lists, one a stream. Raises CacheCorruptError."""
    try:
        return {(addition.name, 0): parse_commit(rows[stream], header, addition) for addition in additions}
    except (KeyError, TypeError, ValueError) as error:
        raise CacheCorruptError(f"The head of {root} cannot be read: {first_line(error)}") from error


def _gathered(root: Path, addition: Addition, header: Header) -> list[Commit] | None:
    path = all_commits_file(root, addition.stream, addition.name)
    if not written(path):
        return None
    about = load_json(path, "the commits of a glscl cache")
    try:
        if (about.get("schema"), about.get("addition")) != (SCHEMA, addition.name):
            raise ValueError("it is of another addition")
        commits = [parse_commit(row, header, addition) for row in about["commits"]]
        if [commit.shard for commit in commits] != [*range(addition.num_shards)]:
            raise ValueError(f"it has not each of {addition.num_shards} shards once")
    except (KeyError, TypeError, ValueError) as error:
        hint = "Delete it: the single commits say the same"
        raise CacheCorruptError(f"{path} cannot be read: {first_line(error)}", hint=hint) from error
    return commits
