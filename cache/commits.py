"""What has been committed to a cache: from the head of a flat file, from manifest.json, or from the commits themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glscl.cache.files import load_json, written
from glscl.cache.records import Commit, Header, parse_commit
from glscl.cache.schema import STREAMS
from glscl.common.errors import CacheCorruptError, first_line

Commits = dict[str, dict[int, Commit]]  # by stream and shard, the highest revision of each


def commit_file(root: Path, stream: str, shard: int, revision: int) -> Path:
    """Where the commit of a shard stands."""
    name = f"{shard:05d}.r{revision}.json" if revision else f"{shard:05d}.json"
    return root / "commits" / stream / name


def read_commits(root: Path, header: Header) -> Commits:
    """All commits of a cache folder, in one file where there is one.

    Raises:
        CacheCorruptError: they cannot be read, or are of another cache.
    """
    found = _of_manifest(root, header)
    return read_commit_files(root, header) if found is None else found


def read_commit_files(root: Path, header: Header) -> Commits:
    """As `read_commits`, from commits/ alone: also what was committed after the manifest was written."""
    found: Commits = {stream: {} for stream in STREAMS}
    for stream in STREAMS:
        for path in sorted((root / "commits" / stream).glob("[0-9]*.json")):
            if not written(path):
                continue  # only reserved
            row = load_json(path, "a commit of a glscl cache")
            try:
                commit = parse_commit(row, header, stream=stream)
            except ValueError as error:
                raise CacheCorruptError(f"{path} cannot be read: {first_line(error)}") from error
            known = found[stream].get(commit.shard)
            if known is None or known.revision < commit.revision:
                found[stream][commit.shard] = commit
    return found


def flat_commits(root: Path, rows: dict[str, Any], header: Header) -> Commits:
    """The commits that the head of a flat file lists, one a stream. Raises CacheCorruptError."""
    try:
        return {
            stream: {0: parse_commit(rows[stream], header, stream=stream)} if header.streams[stream].items else {}
            for stream in STREAMS
        }
    except (KeyError, ValueError) as error:
        raise CacheCorruptError(f"The head of {root} cannot be read: {first_line(error)}") from error


def _of_manifest(root: Path, header: Header) -> Commits | None:
    path = root / "manifest.json"
    if not written(path):
        return None
    manifest = load_json(path, "the manifest of a glscl cache")
    if manifest.get("fingerprint") != header.fingerprint:
        raise CacheCorruptError(f"{path} belongs to another cache (fingerprint {manifest.get('fingerprint')})")
    try:
        found = {s: [parse_commit(row, header, stream=s) for row in manifest["streams"][s]] for s in STREAMS}
    except (KeyError, TypeError, ValueError) as error:
        raise CacheCorruptError(
            f"{path} cannot be read: {first_line(error)}", hint="Delete it and extract again"
        ) from error
    return {stream: {commit.shard: commit for commit in commits} for stream, commits in found.items()}
