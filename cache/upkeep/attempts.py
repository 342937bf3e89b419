"""What went better in another cache: its shard stands beside the one that is there, as another attempt at the same keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from glscl.cache.additions import WORST, Addition, addition_of
from glscl.cache.commits import commit_file
from glscl.cache.files import dump_json
from glscl.cache.library import Library, Place, Stream
from glscl.cache.upkeep.contents import commit_bytes


class Brought(NamedTuple):
    """A committed shard of one cache as it is to stand in another.

    Attributes:
        place: where it stands in its own.
        addition, shard: where it is to stand: the same, or an addition of its own that the other does not have yet.
        path: of its file or folder, below the root of a cache.
        commit: content of its commit.
    """

    place: Place
    addition: Addition
    shard: int
    path: str
    commit: bytes

    @property
    def is_another_attempt(self) -> bool:
        return self.addition.name != self.place.addition.name


def brings_more(theirs: Stream, place: Place, own: Stream) -> bool:
    """Whether a committed shard of `theirs` holds an item that is more usable than the one that `own` has of its key."""
    numbers = own.index.find(theirs.keys_at(place))
    there = np.append(own.rank, np.uint8(WORST))[numbers]  # a number of −1 takes the last
    return bool((theirs.rank[place.items.start : place.items.stop] < there).any())


def as_brought(library: Library, stream: str, place: Place, own: Stream) -> Brought:
    """A committed shard of `library` as it is to stand where `own` is; under another name where `own` has one of its name.

    Raises:
        CacheCorruptError: its commit cannot be read, or contradicts those gathered of its addition.
    """
    commit = library.stream(stream).commit_of(place)
    told = commit_bytes(library, commit_file(library.path, stream, place.addition.name, place.shard), commit, place)
    if (place.addition.name, place.shard) not in own.commits:
        return Brought(place, place.addition, place.shard, commit.path, told)
    addition = next(each for each in _attempts(place) if (each.name, 0) not in own.commits)
    path = f"shards/{stream}/{addition.name}-00000-{commit.path.rpartition('-')[2]}"
    row = {"addition": addition.name, "shard": 0, "attempt": addition.attempt, "path": path}
    told = dump_json(json.loads(told) | row | {"items": [0, len(addition.keys)]})
    return Brought(place, addition, 0, path, told)


def _attempts(place: Place) -> Iterator[Addition]:
    """Additions of the keys of one shard alone, one attempt later each."""
    attempt = place.addition.attempt
    while attempt := attempt + 1:
        keys, shard_items = place.addition.keys_of(place.shard), place.addition.shard_items
        yield addition_of(place.addition.stream, keys, shard_items=shard_items, attempt=attempt)
