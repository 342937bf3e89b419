"""What is left to encode of what somebody wants: shards that were begun, and keys that no addition has."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from glscl.cache.additions import KeyIndex, write_addition
from glscl.cache.library import Library, Place, Stream
from glscl.cache.schema import Status

_RETRIED = (int(Status.DECODE_ERROR), int(Status.TIMED_OUT))


class Work(NamedTuple):
    """What an extraction has to do for a stream.

    Attributes:
        finish: shards that were begun and are wanted whole.
        new: (n, 16) uint8, keys for another addition, in the order in which they are wanted.
        attempt: of that addition.
        had: how many of the wanted keys are there already.
        left: pending shards that hold wanted keys and are another part's, or not wanted whole.
    """

    finish: list[Place]
    new: np.ndarray
    attempt: int
    had: int
    left: int


def work_for(library: Library, stream: str, wanted: np.ndarray, *, parts: int = 1, retry_failed: bool = False) -> Work:
    """Plan a stream. A key is had if a committed item of it is not MISSING; what was not decoded may be tried again.

    Args:
        wanted: (n, 16) uint8; a key that stands more than once is wanted once.
        parts: of how many launches beside each other this is one: what others may be at work on is left to them.
        retry_failed: also try again what gave no frames. Where that was begun and not brought to its end, only what was begun.
    """
    about = library.stream(stream)
    wanted = _each_once(wanted)
    index = KeyIndex(wanted, np.zeros(len(wanted), np.uint8))
    pending = [(place, index.find(about.keys_at(place))) for place in about.pending()]
    status = _status(about, wanted)
    lacking = status == int(Status.MISSING)  # (n,), of `wanted`
    if retry_failed:
        failed, begun = np.isin(status, _RETRIED), np.zeros(len(wanted), bool)
        for _, rows in pending:
            if np.append(lacking | failed, False)[rows].all():  # a row of −1 takes the last
                begun[rows] = True
        lacking |= failed & begun if (failed & begun).any() else failed
    finish, left = [], 0
    ours, others = np.zeros(len(wanted), bool), np.zeros(len(wanted), bool)  # in a pending shard, to be finished or not
    for place, rows in pending:
        asked = np.append(lacking & ~ours, False)[rows]
        if asked.all():
            finish.append(place)
            ours[rows] = True
        elif asked.any():
            left += 1
            others[rows[asked]] = True
    new = wanted[lacking & ~ours & ~others] if parts > 1 else wanted[lacking & ~ours]
    return Work(finish, new, _attempt(about, new), int((~lacking).sum()), left)


def _status(about: Stream, wanted: np.ndarray) -> np.ndarray:
    """(n,) uint8 `Status` of the item that counts of each key; MISSING where there is none."""
    numbers = about.index.find(wanted)
    status = np.full(len(wanted), int(Status.MISSING), np.uint8)
    status[numbers >= 0] = about.status[numbers[numbers >= 0]]
    return status


def _attempt(about: Stream, new: np.ndarray) -> int:
    """The most additions that hold one of the keys already: so that asking for the same keys again is another addition."""
    if not len(new):
        return 0
    index, times = KeyIndex(new, np.zeros(len(new), np.uint8)), np.zeros(len(new), np.int64)
    for addition in about.additions:
        rows = index.find(addition.keys)
        times[rows[rows >= 0]] += 1
    return int(times.max())


def _each_once(keys: np.ndarray) -> np.ndarray:
    """The different keys, in the order in which they stand first."""
    _, first = np.unique(np.ascontiguousarray(keys).view("V16")[:, 0], return_index=True)
    return keys[np.sort(first)]


def begin(library: Library, work: Work, stream: str, *, shard_items: int) -> list[Place]:
    """The shards that are to be made: those that were begun, and those of a new addition, which is written here.

    Raises:
        StorageError: it cannot be written.
    """
    if not len(work.new):
        return work.finish
    addition = write_addition(library.path, stream, work.new, shard_items=shard_items, attempt=work.attempt)
    library.add(addition)
    if library.mirror is not None:
        library.mirror.publish()
    new = [place for place in library.stream(stream).pending() if place.addition.name == addition.name]
    return [*(place for place in work.finish if place.addition.name != addition.name), *new]
