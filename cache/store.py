"""A cache, opened: its splits, and what its shards hold as arrays over all of them.  n items, R rows, D embed_dim."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glscl.cache.library import Library, read_header
from glscl.cache.plan import Split, read_plan
from glscl.cache.reading import read_arrays, read_rows
from glscl.cache.schema import STREAMS, Annotations, Expected, Status
from glscl.cache.shard_arrays import FLOAT, LAYOUT, decode_features, unpack_strings

if TYPE_CHECKING:
    import torch

    from glscl.cache.table import FeatureTable, FramePosition


def open_store(path: os.PathLike[str] | str) -> Store:
    """Open a cache for reading (and for committing what it lacks).

    Raises:
        NotFoundError: nothing is there.
        CacheFormatError: something else is there, or a schema this version cannot read.
    """
    return Store(Path(path), read_header(Path(path)))


class Store(Library):
    """One open cache: its files (`Library`), and the list of what was asked for on top of them.

    Obtain it from `open_store` or `create_store`.

    Attributes:
        splits: name → Split.
        plan: the annotations with the files as this run found them (after `create_store`), else as recorded.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        super().__init__(path, header)
        self.splits = {
            name: Split(
                range(*entry.videos),
                range(*entry.texts),
                Expected(captions=entry.expected_captions, videos=entry.expected_videos),
            )
            for name, entry in self._about.splits.items()
        }

    @cached_property
    def plan(self) -> Annotations:
        return Annotations(
            dataset=self._about.configuration.dataset,
            videos=read_plan(self.path, "video", self.num_items["video"]),
            texts=read_plan(self.path, "text", self.num_items["text"]),
            expected={name: split.expected for name, split in self.splits.items()},
            notes=list(self._about.notes),
        )

    @property
    def everything(self) -> Split:
        """All items of all splits."""
        videos, texts = (range(self.num_items[stream]) for stream in STREAMS)
        return Split(videos, texts, Expected(None, None))

    @property
    def recipe(self) -> str:
        """Name of the training recipe that fits: the dataset's, as extraction recorded it."""
        return self._about.provenance.recipe or self._about.configuration.dataset

    def table(
        self,
        split: str | None,
        *,
        frames: int | None = None,
        frame_position: FramePosition = "uniform",
        tokens: bool | None = None,
        device: torch.device | str = "cpu",
    ) -> FeatureTable:
        """The tensors of one split: see `glscl.cache.table.FeatureTable`.

        Args:
            split: a name in `splits`; None takes the whole cache.
            frames: frames kept a video; None keeps all of the longest video.
            frame_position: which frames where there are more.
            tokens: whether to read token features; None reads them where the cache has them.
            device: where the tensors live.

        Raises:
            InputError: the cache has no such split.
            UsageError: tokens are asked for and the cache holds none.
            CacheIncompleteError, CacheCorruptError: see `arrays`.
        """
        from glscl.cache.table import FeatureTable  # with torch

        tokens = self.has_tokens if tokens is None else tokens
        return FeatureTable.load(
            self, split, max_frames=frames, frame_position=frame_position, tokens=tokens, device=device
        )

    def arrays(
        self,
        stream: str,
        names: Sequence[str] | None = None,
        *,
        items: range | None = None,
        raw: bool = False,
    ) -> dict[str, np.ndarray]:
        """Arrays over all shards (or over a run of items), boundaries made to fit.

        Args:
            stream: "video" or "text".
            names: which arrays; all by default, but for stored frames, which `glscl.cache.frames` reads.
            items: item numbers, a contiguous range; all by default.
            raw: bfloat16 stays uint16 and `video_index` stays as planned.

        Returns:
            name → array: `values` (R, D), `offsets` (n + 1,) int64, `pooled` (n, D), `status` (n,) uint8, … as
            docs/cache-format.md lists them. bfloat16 comes as float32. In `video_index` a caption whose video gave no
            frames has −1.

        Raises:
            CacheIncompleteError: a shard that is needed is not committed.
            CacheCorruptError: a shard contradicts its commit.
        """
        names = list(LAYOUT[stream]) if names is None else list(names)
        items = range(self.num_items[stream]) if items is None else items
        found = read_arrays(self, stream, names, items)
        for name, array in found.items():
            if raw:
                break
            if LAYOUT[stream][name].dtype == FLOAT:
                found[name] = decode_features(array, self.dtype)
            elif name == "video_index":
                usable = np.isin(self.arrays("video", ["status"])["status"], [s for s in Status if s.usable])
                found[name] = np.where((array >= 0) & usable[array], array, -1) if len(usable) else array * 0 - 1
        return found

    def take_rows(self, stream: str, name: str, rows: np.ndarray, *, items: range | None = None) -> np.ndarray:
        """Some rows of a ragged array; where they are few, without reading the others.

        Args:
            rows: (k,) int64, never falling; numbered within `items`, as the `offsets` of `arrays(stream, items=items)` do.

        Returns:
            (k, …) in the stored dtype.
        """
        return read_rows(self, stream, name, rows, range(self.num_items[stream]) if items is None else items)

    def ids(self, stream: str, items: range | None = None) -> list[str]:
        """Ids of the items of a stream, or of a run of them. Raises as `arrays`."""
        found = self.arrays(stream, ["id_bytes", "id_offsets"], items=items)
        return unpack_strings(found["id_bytes"], found["id_offsets"])

    def captions(self, items: range | None = None) -> list[str]:
        """The captions, or a run of them. Raises as `arrays`."""
        found = self.arrays("text", ["text_bytes", "text_offsets"], items=items)
        return unpack_strings(found["text_bytes"], found["text_offsets"])
