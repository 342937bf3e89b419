"""Encoded videos and captions, and the arrays of a shard made of them, with the checks that keep nonsense out of a cache.

L tokens, F frames, D embed_dim, n items of the shard, R rows of all items together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from glscl.cache.schema import Status
from glscl.cache.shard_arrays import decode_features, encode_features, pack_strings
from glscl.common.errors import Hint, NonFiniteError


class EncodedVideo(NamedTuple):
    """One encoded video. Without frames: `frame_features` (0, D), `times` (0,), and `reason` says why."""

    frame_features: np.ndarray  # (F, D) float32, raw
    times: np.ndarray  # (F,) float32, seconds from the start of the file
    status: Status = Status.OK
    reason: str | None = None
    duration: float = 0.0  # seconds
    fps: float = 0.0
    frames_total: int = 0
    ledger: dict[str, Any] | None = None  # decoder, codec, seconds, …


class EncodedText(NamedTuple):
    """One encoded caption; `token_features` (0, D) and `token_ids` (0,) in a cache without tokens."""

    text_features: np.ndarray  # (D,) float32, raw
    token_features: np.ndarray  # (L, D) float32, raw, start and end tokens included
    token_ids: np.ndarray  # (L,) int32
    status: Status = Status.OK
    reason: str | None = None


def video_arrays(
    keys: np.ndarray, records: Sequence[EncodedVideo], *, embed_dim: int, dtype: str
) -> dict[str, np.ndarray]:
    """The arrays of a video shard, as `glscl.cache.shard_arrays.LAYOUT["video"]` lists them. `keys`: (n, 16) uint8."""
    pooled = np.zeros((len(keys), embed_dim), np.float32)
    for row, record in enumerate(records):
        if len(record.frame_features):
            frames = record.frame_features.astype(np.float32)
            pooled[row] = (frames / np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-12)).mean(0)
    return _common_arrays(keys, records, [r.frame_features for r in records], pooled, embed_dim, dtype) | {
        "times": _concatenate([r.times for r in records], np.float32),
        "duration": np.array([r.duration for r in records], np.float32),
        "fps": np.array([r.fps for r in records], np.float32),
        "frames_total": np.array([r.frames_total for r in records], np.int32),
    }


def text_arrays(
    keys: np.ndarray, texts: Sequence[str], records: Sequence[EncodedText], *, embed_dim: int, dtype: str
) -> dict[str, np.ndarray]:
    """The arrays of a text shard, as `glscl.cache.shard_arrays.LAYOUT["text"]` lists them. `keys`: (n, 16) uint8."""
    pooled = np.stack([r.text_features for r in records]) if records else np.zeros((0, embed_dim), np.float32)
    text_bytes, text_offsets = pack_strings(list(texts))
    return _common_arrays(keys, records, [r.token_features for r in records], pooled, embed_dim, dtype) | {
        "token_ids": _concatenate([r.token_ids for r in records], np.int32),
        "text_bytes": text_bytes,
        "text_offsets": text_offsets,
    }


def _common_arrays(
    keys: np.ndarray,
    records: Sequence[EncodedVideo] | Sequence[EncodedText],
    features: list[np.ndarray],
    pooled: np.ndarray,
    embed_dim: int,
    dtype: str,
) -> dict[str, np.ndarray]:
    if len(keys) != len(records):
        raise ValueError(f"a shard of {len(keys)} items was given {len(records)} records")
    offsets = np.zeros(len(keys) + 1, np.int64)
    np.cumsum([len(f) for f in features], out=offsets[1:])
    values = np.concatenate([f.reshape(-1, embed_dim) for f in features]) if features else np.zeros((0, embed_dim))
    values = encode_features(values, dtype)
    stored_pooled = encode_features(pooled, dtype)
    _require_finite(keys, values, offsets, dtype)
    _require_finite(keys, stored_pooled, np.arange(len(keys) + 1), dtype)
    id_bytes, id_offsets = pack_strings([key.tobytes().hex() for key in keys])
    return {
        "values": values,
        "offsets": offsets,
        "pooled": stored_pooled,
        "id_bytes": id_bytes,
        "id_offsets": id_offsets,
        "status": np.array([int(r.status) for r in records], np.uint8),
    }


def _concatenate(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.asarray(p, dtype) for p in parts]) if parts else np.zeros(0, dtype)


def _require_finite(keys: np.ndarray, values: np.ndarray, offsets: np.ndarray, dtype: str) -> None:
    bad = np.flatnonzero(~np.isfinite(decode_features(values, dtype)).all(axis=1))
    if len(bad):
        key = keys[int(np.searchsorted(offsets, bad[0], side="right")) - 1].tobytes()
        raise NonFiniteItem(key, f"as {dtype}; {len(bad)} rows of this shard")


class NonFiniteItem(NonFiniteError):
    """Features of one item are NaN or infinite. Whoever knows what the item is says so with `named`."""

    def __init__(self, key: bytes, detail: str, name: str | None = None) -> None:
        self.key, self.detail = key, detail
        super().__init__(
            f"The backbone gave NaN or infinite features for {key.hex() if name is None else repr(name)} ({detail})",
            hint=Hint("Extract with `precision=fp32` `dtype=float32`"),
        )

    def named(self, name: str) -> NonFiniteItem:
        """The same error with the name of the item."""
        return NonFiniteItem(self.key, self.detail, name)
