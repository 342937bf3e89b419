"""From one sentence to videos, with the moment that fits best; and from one video to captions.

V videos, T texts, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from glscl.cache.feature_table import FeatureTable
from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.errors import InputError, NonFiniteError
from glscl.train_head.heads.base import Head

BATCH = 512


class VideoHit(NamedTuple):
    """One video of an answer, best first."""

    rank: int
    video: str
    score: float  # the head's similarity, before the logit scale
    time: float  # seconds from the start of the file: the frame nearest to the sentence


class CaptionHit(NamedTuple):
    """One caption of an answer, best first."""

    rank: int
    caption: str
    video: str
    score: float


@torch.inference_mode()
def search_videos(head: Head, table: FeatureTable, text: TextFeatures, *, top: int = 10) -> list[VideoHit]:
    """The videos of a table that fit one sentence best.

    Args:
        text: features of exactly one caption: (1, D), and (1, L, D) tokens where the head needs them.
        top: how many; fewer where the table is smaller. Ties keep the table's order.

    Raises:
        InputError: the table holds no videos.
        NonFiniteError: a score is NaN or infinite.
    """
    if not table.num_videos:
        raise InputError("there are no videos to search: none of the cache gave frames")
    head.eval()
    encoded = head.encode_text(text)
    scores = torch.cat(
        [
            head.score(encoded, head.encode_video(table.videos(slice(start, start + BATCH))))[0]
            for start in range(0, table.num_videos, BATCH)
        ]
    )  # (V,)
    best = _best(scores, top)
    frames = table.videos(best)
    sentence = F.normalize(text.text_features[0].to(frames.frame_features.device), dim=-1)  # (D,)
    fit = F.normalize(frames.frame_features, dim=-1) @ sentence  # (top, F)
    moments = fit.masked_fill(~frames.frame_mask, -torch.inf).argmax(1)
    times = table.frame_times[best].gather(1, moments[:, None])[:, 0]
    return [
        VideoHit(rank + 1, table.video_ids[row], float(scores[row]), float(time))
        for rank, (row, time) in enumerate(zip(best.tolist(), times.tolist()))
    ]


@torch.inference_mode()
def search_captions(head: Head, table: FeatureTable, video: VideoFeatures, *, top: int = 10) -> list[CaptionHit]:
    """The captions of a table that fit one video, (1, F, D), best; see `search_videos`."""
    if not table.num_texts:
        raise InputError("there are no captions to search: the cache holds videos only")
    head.eval()
    encoded = head.encode_video(video)
    scores = torch.cat(
        [
            head.score(head.encode_text(table.texts(slice(start, start + BATCH))), encoded)[:, 0]
            for start in range(0, table.num_texts, BATCH)
        ]
    )  # (T,)
    return [
        CaptionHit(rank + 1, table.captions[row], table.video_ids[int(table.video_of_text[row])], float(scores[row]))
        for rank, row in enumerate(_best(scores, top).tolist())
    ]


def _best(scores: torch.Tensor, top: int) -> torch.Tensor:
    """Rows of the `top` highest scores, best first."""
    if not torch.isfinite(scores).all():
        raise NonFiniteError(f"{int((~torch.isfinite(scores)).sum())} of {len(scores)} scores are NaN or infinite")
    return torch.argsort(scores, descending=True, stable=True)[:top]
