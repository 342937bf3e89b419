"""How much each frame of a video counts for a caption.

T texts, V videos, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.attention_pool import AttentionPool
from glscl.train_head.heads.base import Head
from glscl.train_head.heads.dicosa import Dicosa
from glscl.train_head.heads.glscl import Glscl
from glscl.train_head.heads.pooling import attend_frames, masked_softmax
from glscl.train_head.heads.query_scoring import QueryScoring
from glscl.train_head.heads.wti import Wti
from glscl.train_head.heads.xpool import Xpool

ATTENTION = "share of the head's attention that the caption gives to each frame"
FIXED = "weight that the head gives to each frame, whatever the caption"
COSINE = "cosine of each frame with the caption, in the backbone's features (this head has no frame weights to show)"


class FrameWeights(NamedTuple):
    """`values` (V, F) float32, zero where padded; `meaning` is one of `ATTENTION`, `FIXED`, `COSINE`."""

    values: Tensor
    meaning: str


@torch.inference_mode()
def frame_weights(head: Head, text: TextFeatures, video: VideoFeatures) -> FrameWeights:
    """Frame weights of one caption in some videos.

    Args:
        head: in evaluation mode.
        text: features of one caption, (1, …).
        video: features of the videos, (V, F, D).

    Returns:
        What the head itself uses where it weighs frames, else how well each frame fits the caption.
    """
    mask = video.frame_mask
    if isinstance(head, (Glscl, Dicosa, QueryScoring, Xpool)):
        asked, frames, temperature = _attention_inputs(head, text, video)
        _, weights = attend_frames(asked, frames, mask, temperature)  # (V, F, 1)
        values, meaning = weights[..., 0], ATTENTION
    elif isinstance(head, Wti):
        values, meaning = head.encode_video(video).weights, FIXED
    elif isinstance(head, AttentionPool):
        frames = video.frame_features if head.video_adapter is None else head.video_adapter(video.frame_features)
        values, meaning = masked_softmax(head.frame_scorer(frames).squeeze(-1) / head.temperature, mask, dim=-1), FIXED
    else:
        cosines = F.normalize(video.frame_features, dim=-1) @ F.normalize(text.text_features[0], dim=-1)  # (V, F)
        values, meaning = cosines, COSINE
    return FrameWeights(values.float().masked_fill(~mask, 0.0), meaning)


def _attention_inputs(
    head: Glscl | Dicosa | QueryScoring | Xpool, text: TextFeatures, video: VideoFeatures
) -> tuple[Tensor, Tensor, float]:
    """(1, D) what asks, (V, F, D) what is asked, and the temperature of the softmax between them."""
    encoded_text, encoded_video = head.encode_text(text), head.encode_video(video)
    if isinstance(head, QueryScoring):
        return encoded_text.vectors, encoded_video.frames, head.temperature
    if isinstance(head, Xpool):
        return encoded_text.queries, encoded_video.keys, head.embed_dim**0.5
    return encoded_text.text_features, encoded_video.frame_features, head.temperature
