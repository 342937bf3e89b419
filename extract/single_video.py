"""Features of a single file, made as those of a cache were: a query for `glscl search --video`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glscl.cache.table import frame_positions
from glscl.common.errors import DecodeError, NotFoundError
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.decode.pool import DecodePool, FrameChunk, VideoTask
from glscl.extract.decode.sampling import Sampling


def encode_video_file(
    path: Path, backbone: Backbone, sampling: Mapping[str, Any], *, width: int, time_limit: float = 60.0
) -> np.ndarray:
    """Frame features (F, D) float32 of one file, sampled as a cache was; at most `width` frames, spread evenly.

    Args:
        sampling: `configuration["sampling"]` of the cache.

    Raises:
        NotFoundError, DecodeError: the file is not there or gives no frames.
    """
    if not path.is_file():
        raise NotFoundError(f"No video file at {path}")
    rule = Sampling(**{k: v for k, v in sampling.items() if k != "decoder"})
    features, done = [], None
    pool = DecodePool(
        workers=1, sampling=rule, geometry=backbone.geometry, decoder=sampling["decoder"], time_limit=time_limit
    )
    with pool:
        for event in pool.decode([VideoTask(index=0, path=str(path))]):
            if isinstance(event, FrameChunk):
                features.append(backbone.encode_frames(event.frames))
            else:
                done = event
    if not features:
        raise DecodeError(f"{path} gives no frames: {done.reason}")
    frames = np.concatenate(features)
    return frames[frame_positions(len(frames), width, "uniform")]
