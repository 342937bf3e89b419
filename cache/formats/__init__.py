"""How the arrays of one shard become bytes: what every format of a cache can do, and which there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import numpy as np

from glscl.cache.formats.blocks import Blocks, Groups
from glscl.cache.formats.hdf5_store import Hdf5Shards
from glscl.cache.formats.rows import RowReader
from glscl.cache.formats.zarr_store import ZarrShards


class OpenShard(Protocol):
    """The arrays of one file or folder, through the format's library, checksums verified. Libraries raise whatever they like."""

    def read(self, name: str) -> np.ndarray:
        """One array, whole."""
        ...

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """One array, chunk by chunk along its first axis."""
        ...


class ShardFormat(Protocol):
    """How the arrays of one shard become bytes. Everything else about a cache is the same for all formats."""

    name: str
    suffix: str

    def prepare_root(self, root: Path, streams: tuple[str, ...]) -> None:
        """Make `root` itself openable by the format's own tools, where it has such a notion."""

    def write(self, path: Path, arrays: Mapping[str, np.ndarray | Blocks], attributes: Mapping[str, str]) -> None:
        """Write a new file or folder; durability and visibility are the caller's."""

    def write_groups(self, path: Path, groups: Groups) -> None:
        """Write one new file or folder with several groups of arrays, "/" being its root; each is asked for when its
        turn comes."""

    def opened(self, path: Path) -> AbstractContextManager[OpenShard]:
        """A file, a folder, or a group inside one, opened once for all of its arrays that are read."""
        ...

    def rows(self, path: Path, names: list[str]) -> dict[str, RowReader]:
        """Readers of the rows of arrays, from the raw bytes where they lie plainly in the file."""
        ...


STORES: dict[str, ShardFormat] = {"zarr": ZarrShards(), "hdf5": Hdf5Shards()}
