"""One committed shard, read array by array, and the error of one that is damaged.  n items, R rows of all items together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from glscl.cache.files import refuse_unread
from glscl.cache.formats import ShardFormat
from glscl.cache.formats.blocks import Blocks
from glscl.cache.formats.rows import RowReader
from glscl.cache.records import Commit, StoredArray
from glscl.cache.shard_arrays import LAYOUT, checksum
from glscl.common.errors import CacheCorruptError, Hint, first_line

Result = TypeVar("Result")


def see_damage(cache: Path) -> Hint:
    """What to do about a cache of which something cannot be read."""
    return Hint("See what is damaged", "inspect", {"": cache, "verify": True})


def shard_path(cache: Path, commit: Commit) -> Path:
    """Where a shard is. Raises CacheCorruptError where a link leads out of the cache."""
    path = cache / commit.path
    below = [path, *path.parents][: commit.path.count("/") + 1]
    if any(map(os.path.islink, below)) and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(cache)):
        raise CacheCorruptError(f"{path} is reached by a link that leads out of the cache", hint=see_damage(cache))
    return path


def describe_array(array: np.ndarray | Blocks) -> StoredArray:
    """What a commit says of an array: shape, dtype, CRC-32 of its raw bytes (of `Blocks`: after they were written)."""
    crc32 = array.crc32 if isinstance(array, Blocks) else checksum(array)
    return {"shape": list(array.shape), "dtype": array.dtype.name, "crc32": crc32}


def require_as_committed(path: Path, commit: Commit, format: ShardFormat) -> None:
    """Raise CacheCorruptError where the checksum of an array of a shard at `path` is not the one it was committed with."""
    try:
        with format.opened(path) as shard:
            for name, expected in commit.arrays.items():
                crc32 = 0
                for block in shard.blocks(name):
                    crc32 = checksum(block, crc32)
                if crc32 != expected["crc32"]:
                    raise CacheCorruptError(f"{commit.path}: {name} does not have the checksum it was committed with")
    except CacheCorruptError:
        raise
    except Exception as error:  # libraries raise whatever they like on damaged files
        refuse_unread(error, path)
        raise CacheCorruptError(f"{commit.path} cannot be read: {first_line(error)}") from error


class Shard:
    """A committed shard. It is never modified, so what was looked up once stays true.

    Attributes:
        commit: what was written down about it.
    """

    def __init__(self, cache: Path, commit: Commit, format: ShardFormat) -> None:
        self.commit = commit
        self._cache, self._path, self._format = cache, shard_path(cache, commit), format
        self._readers: dict[str, RowReader] = {}

    def __repr__(self) -> str:
        return f"Shard({self.commit.stream} {self.commit.shard}, {self._path})"

    def readers(self, names: Sequence[str]) -> dict[str, RowReader]:
        """Readers of some arrays.

        Raises:
            CacheCorruptError: the shard is not there or cannot be read, or an array is not what the commit says.
        """
        missing = [name for name in names if name not in self._readers]
        if missing:
            for name, reader in self.read(lambda: self._format.rows(self._path, missing)).items():
                expected, dtype = self.commit.arrays[name], reader.dtype.name
                if list(reader.shape) != expected["shape"] or dtype != expected["dtype"]:
                    raise self.damaged(
                        f"{name} is {dtype}{list(reader.shape)}, expected {expected['dtype']}{expected['shape']}"
                    )
                self._readers[name] = reader
        return {name: self._readers[name] for name in names}

    def boundaries(self, name: str) -> np.ndarray:
        """(n + 1,) int64. Raises CacheCorruptError where they do not cut up the rows that are there."""
        reader = self.readers([name])[name]
        found = self.read(lambda: reader.read(0, reader.shape[0]))
        ragged = next(n for n, spec in LAYOUT[self.commit.stream].items() if spec.boundaries == name)
        rows = self.commit.arrays[ragged]["shape"][0]
        if found[0] != 0 or found[-1] != rows or (found[1:] < found[:-1]).any():
            raise self.damaged(f"{name} does not rise from 0 to {rows}")
        return found

    def read(self, read: Callable[[], Result]) -> Result:
        """What `read` gives.

        Raises:
            CacheCorruptError: it fails, for libraries raise whatever they like on damaged files.
            StorageError: the file may be whole, but could not be read.
        """
        try:
            return read()
        except FileNotFoundError as error:
            raise CacheCorruptError(f"{self._path} is committed but not there", hint=see_damage(self._cache)) from error
        except Exception as error:
            refuse_unread(error, self._path)
            raise CacheCorruptError(
                f"{self._path} cannot be read: {first_line(error)}", hint=see_damage(self._cache)
            ) from error

    def damaged(self, what: str) -> CacheCorruptError:
        """The error of a shard that holds something else than its commit says."""
        return CacheCorruptError(f"{self._path}: {what}", hint=see_damage(self._cache))
