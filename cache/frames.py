"""Frames that a cache holds with its features, read a video at a time.

n frames asked for, H and W the sides of the model's input in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from glscl.cache.formats.rows import RowReader
from glscl.cache.frame_format import FrameSpec
from glscl.cache.jpeg import decode_jpeg
from glscl.cache.shards import see_damage
from glscl.cache.store import PENDING, Store, open_store
from glscl.common.errors import CacheCorruptError, Hint, UsageError


class StoredFrames:
    """The frames of a cache. Holds no file open, so it can be sent to worker processes.

    Args:
        store: an open cache, or its path.
    """

    def __init__(self, store: Store | os.PathLike[str] | str) -> None:
        self.store = store if isinstance(store, Store) else open_store(store)
        self.spec = self.store.frames
        self._shards: dict[int, tuple[np.ndarray, dict[str, RowReader]]] = {}  # offsets and readers of those used

    def __repr__(self) -> str:
        return f"StoredFrames({self.spec or 'none'}, {str(self.store.path)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    @property
    def available(self) -> bool:
        """Whether the cache holds frames."""
        return self.spec is not None

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """How the frames were made, as the configuration of the cache says; another model may want other pixels."""
        return self.store.configuration["backbone"].get("preprocessing", {})

    def count(self, item: int) -> int:
        """Frames of video `item`; 0 where it gave none."""
        return len(self._find(item)[0])

    def read(self, item: int, positions: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Frames of one video as the encoder saw them; from JPEG, nearly so.

        Args:
            item: number of the video in the cache.
            positions: which of its stored frames, in any order; all by default.

        Returns:
            (n, H, W, 3) uint8 RGB.

        Raises:
            UsageError: the cache holds no frames.
            IndexError: no such item or position.
            CacheIncompleteError: the shard of the video is not committed yet.
            CacheCorruptError: the frames cannot be read.
        """
        rows, readers, spec = self._find(item)
        wanted = range(len(rows)) if positions is None else [int(position) for position in positions]
        if any(not 0 <= position < len(rows) for position in wanted):
            raise IndexError(f"video {item} has {len(rows)} frames, asked for {list(wanted)}")
        out = np.empty((len(wanted), *spec.size, 3), np.uint8)
        try:
            if spec.encoding == "uint8":
                for i, first, last in _runs(wanted):
                    out[i : i + last - first] = readers["frames"].read(rows.start + first, rows.start + last)
            elif len(wanted):
                offsets = readers["frame_offsets"].read(rows.start, rows.stop + 1)
                for i, position in enumerate(wanted):
                    data = readers["frame_bytes"].read(*offsets[position : position + 2].tolist())
                    out[i] = decode_jpeg(data, spec.size)
        except (OSError, ValueError, IndexError) as error:
            raise self._corrupt(item, error) from error
        return out

    def stored(self, item: int) -> tuple[bytes, list[int]]:
        """All frames of a video in the encoding of the cache: their bytes one after another, and how many each has."""
        rows, readers, spec = self._find(item)
        try:
            if spec.encoding == "uint8":
                frames = readers["frames"].read(rows.start, rows.stop)
                return frames.tobytes(), [frames[0].nbytes] * len(frames) if len(frames) else []
            offsets = readers["frame_offsets"].read(rows.start, rows.stop + 1)
            data = readers["frame_bytes"].read(int(offsets[0]), int(offsets[-1]))
            return data.tobytes(), np.diff(offsets).tolist()
        except (OSError, ValueError, IndexError) as error:
            raise self._corrupt(item, error) from error

    def _find(self, item: int) -> tuple[range, dict[str, RowReader], FrameSpec]:
        """Rows of a video within its shard, readers of the shard's frames, and how these are stored."""
        if self.spec is None:
            raise UsageError(
                f"{self.store.place} holds no frames",
                hint=Hint("Extract with `store_frames=jpeg` (or uint8) into another folder, or give the videos"),
            )
        if not 0 <= item < self.store.num_items["video"]:
            raise IndexError(f"video {item} of {self.store.num_items['video']}")
        number = int(self.store.numbers["video"][item])
        if number == PENDING:
            self.store.require_complete()
        if number < 0:
            return range(0), {}, self.spec
        about = self.store.library.stream("video")
        position = int(np.searchsorted(about.starts, number, side="right")) - 1
        if position not in self._shards:
            shard = self.store.library.shard("video", about.places[position])
            self._shards[position] = shard.boundaries("offsets"), shard.readers(self.spec.arrays)
        offsets, readers = self._shards[position]
        row = number - about.places[position].items.start
        return range(int(offsets[row]), int(offsets[row + 1])), readers, self.spec

    def _corrupt(self, item: int, error: Exception) -> CacheCorruptError:
        return CacheCorruptError(
            f"The stored frames of video {item} in {self.store.place} cannot be read: {error}",
            hint=see_damage(self.store.path),
        )


def _runs(positions: Sequence[int]) -> list[tuple[int, int, int]]:
    """Consecutive positions as (index in the list, first, last + 1), so that each run is one read."""
    runs: list[tuple[int, int, int]] = []
    for i, position in enumerate(positions):
        if runs and runs[-1][2] == position:
            runs[-1] = (runs[-1][0], runs[-1][1], position + 1)
        else:
            runs.append((i, position, position + 1))
    return runs
