"""One split of a cache as contiguous tensors, from which a batch is one gather.

T texts, V videos, L tokens, F frames, D embed_dim, R token rows of all texts together.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import torch

from glscl.cache.schema import FramePosition, Status, TextFeatures, VideoFeatures
from glscl.cache.shard_arrays import unpack_strings
from glscl.cache.store import Store, open_store
from glscl.common.errors import CacheCorruptError, InputError, UsageError


def require_tokens(store: Store) -> None:
    """Raise UsageError where a cache holds no token features."""
    if not store.has_tokens:
        imported = store.configuration.get("sampling", {}).get("source") == "imported"
        again = "Import with --token-features" if imported else "Extract with --tokens"
        raise UsageError(
            f"{store.path} is without token features",
            mend=f"{again} into another folder, or use a head that needs none",
        )


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a table holds beside what the split should hold. The keys of `counts` in a result file."""

    texts: int
    videos: int
    texts_without_video: int = 0
    videos_failed: int = 0
    expected_texts: int | None = None
    expected_videos: int | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Features of one split. A video without frames is not a row, nor is a caption whose video is not.

    Attributes:
        text_features: (T, D), float16, bfloat16 or float32.
        token_values: (R, D) of the same dtype, rows of all texts one after another; None without tokens.
        token_offsets: (T + 1,) int64; rows of text i are `token_offsets[i]:token_offsets[i + 1]`.
        frame_features: (V, F, D); padded frames are zero.
        frame_mask: (V, F) bool.
        frame_times: (V, F) float32, seconds; zero where padded.
        video_of_text: (T,) int64, row of the text's video.
        text_ids, video_ids, captions: T, V and T strings.
        counts: sizes, losses, published sizes.
        fingerprint: of the cache; "" for a table made from arrays.
    """

    text_features: torch.Tensor
    token_values: torch.Tensor | None
    token_offsets: torch.Tensor | None
    frame_features: torch.Tensor
    frame_mask: torch.Tensor
    frame_times: torch.Tensor
    video_of_text: torch.Tensor
    text_ids: list[str]
    video_ids: list[str]
    captions: list[str]
    counts: Counts
    fingerprint: str = ""

    @classmethod
    def load(
        cls,
        store: Store | os.PathLike[str] | str,
        split: str | None,
        *,
        max_frames: int | None = 12,
        frame_position: FramePosition = "uniform",
        tokens: bool = True,
        device: torch.device | str = "cpu",
    ) -> FeatureTable:
        """Read one split.

        Args:
            store: an open cache or its path.
            split: a name in `store.splits`; None takes the whole cache.
            max_frames: frames kept a video; None keeps all of the longest video.
            frame_position: which frames where there are more: `uniform` is
                `np.linspace(0, n - 1, max_frames, dtype=int)`, the rule of the public programs.
            tokens: whether to read token features.
            device: where the tensors live.

        Raises:
            InputError: the cache has no such split.
            UsageError: tokens are asked for and the cache holds none.
            CacheIncompleteError, CacheCorruptError: see `Store.arrays`.
        """
        store = store if isinstance(store, Store) else open_store(store)
        if split is not None and split not in store.splits:
            raise InputError(f"{store.path} has no split {split!r}; it has {', '.join(store.splits) or 'none'}")
        if tokens:
            require_tokens(store)
        run = store.splits[split] if split is not None else store.everything
        video = store.arrays("video", ["offsets", "status", "id_bytes", "id_offsets", "times"], items=run.videos)
        wanted = ["pooled", "offsets", "video_index", "id_bytes", "id_offsets", "text_bytes", "text_offsets"]
        text = store.arrays("text", wanted, items=run.texts, raw=True)

        frames_of = np.diff(video["offsets"])
        usable = np.isin(video["status"], [s for s in Status if s.usable]) & (frames_of > 0)
        kept_videos = np.flatnonzero(usable)
        row_of_video = np.full(len(usable) + 1, -1, np.int64)  # the last entry stands for "no such video"
        row_of_video[kept_videos] = np.arange(len(kept_videos))
        planned = text["video_index"]
        foreign = planned[(planned >= 0) & ((planned < run.videos.start) | (planned >= run.videos.stop))]
        if len(foreign):
            raise CacheCorruptError(f"{store.path}: captions of split {split} name video {foreign[0]} of another split")
        local = np.where(planned >= 0, planned - run.videos.start, len(usable))
        video_of_text = row_of_video[local]
        kept_texts = np.flatnonzero(video_of_text >= 0)

        width = max(1, min(int(frames_of.max(initial=1)), max_frames or np.iinfo(np.int64).max))
        rows, mask = _frame_view(video["offsets"][kept_videos], frames_of[kept_videos], width, frame_position)
        frame_features = store.take_rows("video", "values", rows.ravel(), items=run.videos)
        frame_features = frame_features.reshape(*rows.shape, store.embed_dim)  # (V, F, D)
        frame_times = video["times"][rows] if rows.size else np.zeros(rows.shape, np.float32)  # (V, F)
        if not mask.all():
            frame_features[~mask] = 0
            frame_times[~mask] = 0

        token_values = token_offsets = None
        if tokens:
            lengths = np.diff(text["offsets"])
            token_offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[kept_texts])])
            rows = _ragged_rows(text["offsets"][kept_texts], token_offsets)
            token_values = _tensor(store.take_rows("text", "values", rows, items=run.texts), store.dtype)
            token_offsets = torch.from_numpy(token_offsets)
        captions = unpack_strings(text["text_bytes"], text["text_offsets"])
        text_ids = unpack_strings(text["id_bytes"], text["id_offsets"])
        video_ids = unpack_strings(video["id_bytes"], video["id_offsets"])
        return cls(
            text_features=_tensor(_some(text["pooled"], kept_texts), store.dtype),
            token_values=token_values,
            token_offsets=token_offsets,
            frame_features=_tensor(frame_features, store.dtype),
            frame_mask=torch.from_numpy(mask),
            frame_times=torch.from_numpy(frame_times),
            video_of_text=torch.from_numpy(video_of_text[kept_texts]),
            text_ids=_some(text_ids, kept_texts),
            video_ids=_some(video_ids, kept_videos),
            captions=_some(captions, kept_texts),
            counts=Counts(
                texts=len(kept_texts),
                videos=len(kept_videos),
                texts_without_video=len(planned) - len(kept_texts),
                videos_failed=len(usable) - len(kept_videos),
                expected_texts=run.expected.captions,
                expected_videos=run.expected.videos,
            ),
            fingerprint=store.fingerprint,
        ).to(device)

    @classmethod
    def from_arrays(
        cls,
        text_features: torch.Tensor,
        frame_features: torch.Tensor,
        video_of_text: torch.Tensor | None = None,
        *,
        frame_mask: torch.Tensor | None = None,
        token_features: torch.Tensor | None = None,
        token_mask: torch.Tensor | None = None,
        text_ids: list[str] | None = None,
        video_ids: list[str] | None = None,
        captions: list[str] | None = None,
    ) -> FeatureTable:
        """A table without a cache: (T, D) texts, (V, F, D) frames, optionally (T, L, D) tokens and the masks.

        `video_of_text` defaults to the identity, masks to all real, ids to the row numbers.
        """
        T, V, F = len(text_features), *frame_features.shape[:2]
        if video_of_text is None:
            if T != V:
                raise ValueError(f"{T} texts and {V} videos need video_of_text")
            video_of_text = torch.arange(T)
        token_values = token_offsets = None
        if token_features is not None:
            if token_mask is None:
                token_mask = torch.ones(token_features.shape[:2], dtype=torch.bool)
            token_values = token_features[token_mask]  # (R, D)
            token_offsets = torch.cat([torch.zeros(1, dtype=torch.int64), token_mask.sum(1).cumsum(0)])
        if frame_mask is None:
            frame_mask = torch.ones((V, F), dtype=torch.bool)
        return cls(
            text_features=text_features,
            token_values=token_values,
            token_offsets=token_offsets,
            frame_features=frame_features * frame_mask[..., None],
            frame_mask=frame_mask,
            frame_times=torch.arange(F, dtype=torch.float32).expand(V, F) * frame_mask,
            video_of_text=video_of_text,
            text_ids=text_ids or [str(i) for i in range(T)],
            video_ids=video_ids or [str(i) for i in range(V)],
            captions=captions or [""] * T,
            counts=Counts(texts=T, videos=V),
        )

    @property
    def num_texts(self) -> int:
        return len(self.text_features)

    @property
    def num_videos(self) -> int:
        return len(self.frame_features)

    @property
    def embed_dim(self) -> int:
        return self.text_features.shape[1]

    @property
    def device(self) -> torch.device:
        return self.text_features.device

    def texts(self, index: torch.Tensor | slice, *, width: int | None = None) -> TextFeatures:
        """A batch of captions as float32.

        Args:
            index: (B,) int64, or a slice.
            width: tokens to pad to, at least as many as the longest has; None asks the device for the longest, which
                makes the host wait for a GPU. At least one column comes back.
        """
        index = self._index(index, self.num_texts)
        pooled = self.text_features.index_select(0, index).float()
        if self.token_values is None:
            return TextFeatures(pooled)
        first = self.token_offsets.index_select(0, index)  # (B,)
        lengths = self.token_offsets.index_select(0, index + 1) - first
        width = max(1, width if width is not None else int(lengths.max()) if len(index) else 0)
        steps = torch.arange(width, device=self.device)  # (L,)
        mask = steps < lengths[:, None]  # (B, L)
        rows = torch.where(mask, first[:, None] + steps, 0)
        values = self.token_values if len(self.token_values) else self.token_values.new_zeros(1, self.embed_dim)
        tokens = values.index_select(0, rows.flatten()).view(*rows.shape, self.embed_dim)  # (B, L, D)
        return TextFeatures(pooled, tokens.float() * mask[..., None], mask)

    def videos(self, index: torch.Tensor | slice) -> VideoFeatures:
        """A batch of videos as float32. `index`: (B,) int64, or a slice."""
        index = self._index(index, self.num_videos)
        return VideoFeatures(self.frame_features.index_select(0, index).float(), self.frame_mask.index_select(0, index))

    def subset(self, video_rows: torch.Tensor) -> FeatureTable:
        """The table of some videos (rows, in the order given) and of their captions (in their own order)."""
        video_rows = video_rows.to(self.device)
        new_row = torch.full((self.num_videos,), -1, dtype=torch.int64, device=self.device)
        new_row[video_rows] = torch.arange(len(video_rows), device=self.device)
        kept = torch.nonzero(new_row[self.video_of_text] >= 0)[:, 0]
        token_values = token_offsets = None
        if self.token_values is not None:
            lengths = self.token_offsets.diff()
            chosen = torch.zeros_like(lengths, dtype=torch.bool).index_fill_(0, kept, True)
            token_values = self.token_values[torch.repeat_interleave(chosen, lengths)]
            token_offsets = torch.cat([lengths.new_zeros(1), lengths[kept].cumsum(0)])
        return replace(
            self,
            text_features=self.text_features[kept],
            token_values=token_values,
            token_offsets=token_offsets,
            frame_features=self.frame_features[video_rows],
            frame_mask=self.frame_mask[video_rows],
            frame_times=self.frame_times[video_rows],
            video_of_text=new_row[self.video_of_text[kept]],
            text_ids=[self.text_ids[i] for i in kept.tolist()],
            video_ids=[self.video_ids[i] for i in video_rows.tolist()],
            captions=[self.captions[i] for i in kept.tolist()],
            counts=Counts(texts=len(kept), videos=len(video_rows)),
        )

    def to(self, device: torch.device | str) -> FeatureTable:
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        return replace(self, **moved)

    def _index(self, index: torch.Tensor | slice, length: int) -> torch.Tensor:
        if isinstance(index, slice):
            return torch.arange(*index.indices(length), device=self.device)
        return index.to(self.device)


def frame_positions(count: int, width: int, position: FramePosition) -> np.ndarray:
    """Which of `count` frames to keep: all where they fit in `width`, else `width` of them, int64, rising."""
    if count <= width or position == "first":
        return np.arange(min(count, width))
    if position == "last":
        return np.arange(count - width, count)
    if position == "uniform":
        return np.linspace(0, count - 1, width, dtype=np.int64)
    raise UsageError(f"Unknown frame position {position!r}; there are uniform, first, last")


def _frame_view(
    first: np.ndarray, count: np.ndarray, width: int, position: FramePosition
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (V, F) int64 of the frames to keep, the last one repeated, and the mask (V, F) of those that are real."""
    rows = np.zeros((len(first), width), np.int64)
    mask = np.zeros((len(first), width), bool)
    for n in np.unique(count):
        chosen = frame_positions(int(n), width, position)
        same = np.flatnonzero(count == n)
        padded = np.pad(chosen, (0, width - len(chosen)), mode="edge")
        rows[same] = first[same, None] + padded
        mask[same, : len(chosen)] = True
    return rows, mask


def _ragged_rows(first: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Rows (R,) int64 of ragged items: item i has `bounds[i + 1] - bounds[i]` of them, from `first[i]` on."""
    return np.repeat(first - bounds[:-1], np.diff(bounds)) + np.arange(bounds[-1])


def _some(values: np.ndarray | list[str], rows: np.ndarray) -> np.ndarray | list[str]:
    """The entries at some rows; `values` itself where those, in order, are all."""
    if len(rows) == len(values):
        return values
    return values[rows] if isinstance(values, np.ndarray) else [values[i] for i in rows.tolist()]


def _tensor(values: np.ndarray, dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
