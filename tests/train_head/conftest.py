"""Made-up features in which captions and videos belong together behind a rotation that a head can learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from glscl.cache.feature_table import FeatureTable


def planted_table(
    videos: int = 48, captions: int = 3, *, dim: int = 16, frames: int = 4, seed: int = 0
) -> FeatureTable:
    """Captions are their video's vector, rotated, with noise; frames are the vector with more noise."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    rotation = torch.from_numpy(np.linalg.qr(rng.standard_normal((dim, dim)))[0].astype(np.float32))
    meaning = normal(videos, dim)
    video_of_text = torch.arange(videos).repeat_interleave(captions)
    text = (meaning @ rotation)[video_of_text] + 0.3 * normal(videos * captions, dim)
    tokens = text[:, None] + 0.3 * normal(videos * captions, 5, dim)
    lengths = torch.from_numpy(rng.integers(2, 6, videos * captions))
    real = torch.from_numpy(rng.integers(1, frames + 1, videos))
    return FeatureTable.from_arrays(
        text,
        meaning[:, None] + 0.5 * normal(videos, frames, dim),
        video_of_text,
        frame_mask=torch.arange(frames) < real[:, None],
        token_features=tokens,
        token_mask=torch.arange(5) < lengths[:, None],
        text_ids=[f"video{v}#{i}" for i, v in enumerate(video_of_text.tolist())],
        video_ids=[f"video{v}" for v in range(videos)],
    )


@pytest.fixture
def planted() -> Callable[..., FeatureTable]:
    return planted_table
