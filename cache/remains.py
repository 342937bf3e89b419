"""What killed writers leave in a cache, known by names: a file that is not yet whole, or that nothing refers to yet."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from glscl.cache.files import half_written, listed, remove, written
from glscl.cache.library import Library
from glscl.cache.lists import list_names
from glscl.cache.schema import STREAMS

SHARD_NAME = re.compile(r"([0-9a-f]{16})-(\d{5,8})-[^/]+")
_LIST_ARRAYS = re.compile(r"([0-9a-f]{16})(\.h5)?")


def record_folders(root: Path) -> list[str]:
    """Folders of the small files that are put in one step, below the cache."""
    lists = [f"lists/{name}" for name in list_names(root)]
    return [*(f"{kind}/{stream}" for kind in ("additions", "commits") for stream in STREAMS), *lists]


def temporary_files(root: Path) -> list[Path]:
    """Half-written files, locks apart: they may be another process's that is just beginning."""
    shards = ["shards", *(f"shards/{stream}" for stream in STREAMS)]
    return [
        path for folder in (".", "backbone", *shards, *record_folders(root)) for path in half_written(root / folder)
    ]


def unreferenced(root: Path, kept: Collection[Path]) -> list[Path]:
    """Whole shards other than those in `kept`, and arrays of lists that have no record."""
    shards = [path for stream in STREAMS for path in listed(root / "shards" / stream, "*-*-*")]
    found = [path for path in shards if path not in kept and SHARD_NAME.fullmatch(path.name)]
    for path in (path for name in list_names(root) for path in listed(root / "lists" / name)):
        match = _LIST_ARRAYS.fullmatch(path.name)
        if match and path not in kept and not written(path.with_name(f"{match[1]}.json")):
            found.append(path)
    return found


def sweep(library: Library) -> None:
    """Delete what killed writers left. For who holds all of a cache and has looked at it anew since.

    Shards of an addition that is not there stay: the addition may have been lost, and is made again from them by repair.
    """
    root, kept = library.path, set()
    for stream in map(library.stream, STREAMS):
        known = {addition.name for addition in stream.additions}
        kept |= {root / commit.path for commit in stream.commits.values()}
        kept |= {path for path in listed(root / "shards" / stream.name) if path.name.split("-")[0] not in known}
    for path in (*listed(root / "partial"), *temporary_files(root), *unreferenced(root, kept)):
        remove(path, root)
