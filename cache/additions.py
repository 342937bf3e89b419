"""Additions: ordered lists of keys that are encoded together, cut into shards; and where in all of them a key stands.

n items of an addition, N of all additions of a stream.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np

from glscl.cache.files import dump_json, listed, plain, put_if_absent, refuse_unread, written
from glscl.cache.keys import KEY_BYTES, from_lines, to_lines
from glscl.common.errors import CacheCorruptError, StorageError, first_line

SCHEMA = "glscl.addition/1"
MAX_ITEMS = 10**9  # more is no cache but an attempt to fill the memory
WORST = 255  # rank of an item that is not there


class _Head(msgspec.Struct, forbid_unknown_fields=True):
    """The first line of an addition. No host, time or command: whoever plans the same writes the same file."""

    schema: Literal["glscl.addition/1"]
    stream: Literal["video", "text"]
    items: int
    shard_items: int
    attempt: int


class Addition(NamedTuple):
    """Attributes:
    name: first 16 hexadecimal digits of the SHA-256 of its file, so that the name proves the content.
    stream: "video" or "text".
    shard_items: items a shard; the last shard has fewer.
    attempt: 0 where its keys are asked for the first time, else how often they failed before.
    keys: (n, 16) uint8.
    """

    name: str
    stream: str
    shard_items: int
    attempt: int
    keys: np.ndarray

    @property
    def num_shards(self) -> int:
        return -(-len(self.keys) // self.shard_items)

    def shard_range(self, shard: int) -> range:
        """Numbers of the items of a shard, within the addition."""
        start = shard * self.shard_items
        return range(start, min(start + self.shard_items, len(self.keys)))

    def keys_of(self, shard: int) -> np.ndarray:
        """(n, 16) uint8, keys of the items of a shard."""
        items = self.shard_range(shard)
        return self.keys[items.start : items.stop]

    def __repr__(self) -> str:
        return f"Addition({self.name}, {self.stream}, {len(self.keys)} items in {self.num_shards} shards)"


def folder(root: Path, stream: str) -> Path:
    return root / "additions" / stream


def write_addition(root: Path, stream: str, keys: np.ndarray, *, shard_items: int, attempt: int = 0) -> Addition:
    """Write an addition, unless the very same is there. `keys`: (n, 16) uint8, n > 0, each once. Raises StorageError."""
    addition = addition_of(stream, keys, shard_items=shard_items, attempt=attempt)
    put_if_absent(folder(root, stream) / f"{addition.name}.txt", addition_bytes(addition))
    return addition


def addition_of(stream: str, keys: np.ndarray, *, shard_items: int, attempt: int = 0) -> Addition:
    """The addition that `write_addition` would write."""
    nameless = Addition("", stream, shard_items, attempt, keys)
    return nameless._replace(name=_name(addition_bytes(nameless)))


def addition_bytes(made: Addition) -> bytes:
    """The content of the file of an addition."""
    head = {
        "schema": SCHEMA,
        "stream": made.stream,
        "items": len(made.keys),
        "shard_items": made.shard_items,
        "attempt": made.attempt,
    }
    return dump_json(head, indent=None) + to_lines(made.keys)


def read_addition(path: Path, stream: str) -> Addition:
    """Read an addition back.

    Raises:
        CacheCorruptError: it is no addition of this stream, or not the one that its name says.
        StorageError: the disk fails.
    """
    try:
        data = plain(path).read_bytes()
        first, _, rest = data.partition(b"\n")
        head = msgspec.json.decode(first, type=_Head)
        keys = from_lines(rest)
        if head.stream != stream or head.items != len(keys) or not 0 < len(keys) <= MAX_ITEMS:
            raise ValueError(f"it lists {len(keys)} keys, its head {head.items} of stream {head.stream}")
        if not 0 < head.shard_items <= MAX_ITEMS or not 0 <= head.attempt <= MAX_ITEMS:
            raise ValueError(f"it has {head.shard_items} items a shard, attempt {head.attempt}")
        if _name(data) != path.stem:
            raise ValueError("its content is not what its name says")
    except (msgspec.DecodeError, ValueError) as error:
        raise CacheCorruptError(f"{path} cannot be read: {first_line(error)}") from error
    except OSError as error:
        refuse_unread(error, path)
        raise StorageError(f"Cannot read {path}: {error.strerror}") from error
    return Addition(path.stem, stream, head.shard_items, head.attempt, keys)


def read_additions(root: Path, stream: str) -> list[Addition]:
    """All additions of a stream, by name. Raises as `read_addition`."""
    return [read_addition(path, stream) for path in listed(folder(root, stream), "*.txt") if written(path)]


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


class KeyIndex:
    """Where keys stand among the items of a stream.

    Args:
        keys: (N, 16) uint8, of all items in the order of additions by name.
        rank: (N,) uint8: 0 for the most usable items of a key, higher for less usable ones, `WORST` for those that are not
            committed. Of several items of one key the best counts; of equals the first.

    Attributes:
        numbers: (k,) int64, number of the item that counts of each key.
    """

    def __init__(self, keys: np.ndarray, rank: np.ndarray) -> None:
        there = np.flatnonzero(rank < WORST)
        words = _words(keys[there])  # (N, 2)
        order = np.argsort(words[:, 0], kind="stable")
        words, there = words[order], there[order]
        equal = np.flatnonzero(words[1:, 0] == words[:-1, 0])
        if len(equal):  # one key again, or keys that share their first eight bytes: in order by all that counts
            runs = np.unique(np.concatenate([equal, equal + 1]))
            inner = np.lexsort((there[runs], rank[there[runs]], words[runs, 1], words[runs, 0]))
            words[runs], there[runs] = words[runs][inner], there[runs][inner]
        first = np.ones(len(words), bool)
        first[1:] = (words[1:] != words[:-1]).any(axis=1)
        self._words, self.numbers = words[first], there[first]

    def __len__(self) -> int:
        """How many different keys there are."""
        return len(self.numbers)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """(m, 16) uint8 → (m,) int64 item numbers, −1 where a key is not there."""
        wanted = _words(keys)
        order = np.argsort(wanted[:, 0])  # neighbours in the index are then looked for one after another
        found = np.empty(len(wanted), np.int64)
        found[order] = self._find_sorted(wanted[order])
        return found

    def _find_sorted(self, wanted: np.ndarray) -> np.ndarray:
        found = np.full(len(wanted), -1, np.int64)
        at = np.searchsorted(self._words[:, 0], wanted[:, 0])
        left = np.flatnonzero(at < len(self._words))
        while len(left):  # once, but for keys that share their first eight bytes
            same = self._words[at[left], 0] == wanted[left, 0]
            left = left[same]
            hit = self._words[at[left], 1] == wanted[left, 1]
            found[left[hit]] = self.numbers[at[left[hit]]]
            left = left[~hit]
            at[left] += 1
            left = left[at[left] < len(self._words)]
        return found


def _words(keys: np.ndarray) -> np.ndarray:
    """(n, 16) uint8 → (n, 2) uint64 that sort as the bytes do."""
    return np.ascontiguousarray(keys).view(">u8").reshape(-1, KEY_BYTES // 8).astype(np.uint64)
