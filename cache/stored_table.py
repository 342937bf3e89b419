"""One split of a cache as a `FeatureTable` has it, of which features are read when they are asked for: for what memory does not hold.

T texts, V videos, L tokens, F frames, D embed_dim.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from glscl.cache.reading import read_entries, without_padding
from glscl.cache.schema import FramePosition, Status, TextFeatures, VideoFeatures
from glscl.cache.store import Store, open_store
from glscl.cache.table import filled, owners_of, read_texts, read_videos, split_of, token_batch

_PIECE = 1 << 20  # entries whose boundaries are read together


class StoredTable:
    """Rows, ids and batches equal those of `FeatureTable.load` with the same arguments, also what is raised.

    It is pickled as its arguments, and reads from the place of the cache (a path, or an address) wherever it arrives.

    Attributes:
        frame_count: (V,) int64 frames of each video, at most `max_frames`. token_count: (T,) int64, None without tokens.
        The others: as of `FeatureTable`.
    """

    def __init__(
        self,
        store: Store,
        split: str | None,
        *,
        max_frames: int | None = 12,
        frame_position: FramePosition = "uniform",
        tokens: bool = True,
        padded: bool = False,
    ) -> None:
        run = split_of(store, split, tokens=tokens, padded=padded)
        self._store, self._split, self._tokens, self.padded = store, split, tokens or padded, padded
        self._most = max_frames
        self._position: FramePosition = frame_position
        videos = store.numbers["video"][run.videos.start : run.videos.stop]
        about = _in_pieces(store, "video", ["offsets", "status"], videos)
        frames = np.concatenate([np.diff(each["offsets"]) for each in about])
        status = np.concatenate([each["status"] for each in about])
        entries = np.flatnonzero(np.isin(status, [each for each in Status if each.usable]) & (frames > 0))
        self._videos = videos[entries]
        count = frames[entries] if max_frames is None else np.minimum(frames[entries], max_frames)
        self.frame_count = torch.from_numpy(count)
        self._width = max(1, int(count.max(initial=1)), (max_frames or 0) if padded else 0)
        rows = owners_of(store, split, run, entries)
        texts = store.numbers["text"][run.texts.start : run.texts.stop]
        self._texts = texts[rows.kept]
        self.video_of_text = torch.from_numpy(rows.video_of_text)
        self.token_count = self._count_tokens() if self._tokens else None
        self.text_ids, self.video_ids, self.captions = rows.text_ids, rows.video_ids, rows.captions
        self.counts = rows.counts
        self.device = torch.device("cpu")

    def __reduce__(self) -> tuple[Any, ...]:
        store = self._store
        about = (self._split, self._most, self._position, self._tokens, self.padded)
        return _opened, (store.place, f"{store.list_name}@{store.list_hash}", *about)

    def __repr__(self) -> str:
        return f"StoredTable({self.num_texts} texts, {self.num_videos} videos of {self._store.place})"

    @property
    def num_texts(self) -> int:
        return len(self._texts)

    @property
    def num_videos(self) -> int:
        return len(self._videos)

    def texts(self, index: torch.Tensor | slice) -> TextFeatures:
        """As `FeatureTable.texts`."""
        found = read_texts(self._store.library, self._texts[_rows(index)], self._tokens, self.padded)
        pooled = found.pooled.float()
        if found.values is None or found.first is None or found.lengths is None:
            return TextFeatures(pooled)
        return TextFeatures(pooled, *token_batch(found.values, found.first, found.lengths))

    def videos(self, index: torch.Tensor | slice) -> VideoFeatures:
        """As `FeatureTable.videos`."""
        library = self._store.library
        found = read_videos(library, self._videos[_rows(index)], self._most, self._position)
        padding = library.backbone_tensors()["padded_frame"] if self.padded else np.zeros(library.embed_dim, np.float32)
        found = filled(found, padding, self._width)
        return VideoFeatures(found.features.float(), torch.from_numpy(found.mask))

    def _count_tokens(self) -> torch.Tensor:
        library = self._store.library
        names = ["offsets", "token_ids"] if library.has_padding and not self.padded else ["offsets"]
        about = _in_pieces(self._store, "text", names, self._texts)
        if "token_ids" in names:
            about = [without_padding({**each, "values": each["token_ids"]}) for each in about]
        return torch.from_numpy(np.concatenate([np.diff(each["offsets"]) for each in about]))


def _rows(index: torch.Tensor | slice) -> Any:
    return index if isinstance(index, slice) else index.cpu().numpy()


def _in_pieces(store: Store, stream: str, names: list[str], numbers: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Small arrays of entries, one piece at least."""
    starts = range(0, max(1, len(numbers)), _PIECE)
    return [read_entries(store.library, stream, names, numbers[start : start + _PIECE]) for start in starts]


@lru_cache(2)
def _opened(place: str, list: str, split: str | None, most: int | None, position: Any, *about: bool) -> StoredTable:
    tokens, padded = about
    return StoredTable(
        open_store(place, list), split, max_frames=most, frame_position=position, tokens=tokens, padded=padded
    )
