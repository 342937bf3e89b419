"""X-CLIP: the mean of a coarse, two mixed and one fine match between texts and videos.

T texts, V videos, L tokens, F frames, D embed_dim.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import UsageError
from glscl.train_head.heads.aggregator import AggregatingHead
from glscl.train_head.heads.base import require_at_least, require_positive, tokens_of
from glscl.train_head.heads.pooling import masked_softmax, mean_of_normalised


class XclipText(NamedTuple):
    """sentence (T, D) and words (T, L, D), both L2-normalised; word_mask (T, L)."""

    sentence: Tensor
    words: Tensor
    word_mask: Tensor


class XclipVideo(NamedTuple):
    """video (V, D) and frames (V, F, D), both L2-normalised; both as captions look for them; frame_mask (V, F)."""

    video: Tensor
    frames: Tensor
    mapped_video: Tensor
    mapped_frames: Tensor
    frame_mask: Tensor


class Xclip(AggregatingHead):
    """Mean of text-video, word-video, text-frame and word-frame scores (Ma et al. 2022).

    A list of scores is reduced by attention over similarity: `Σ_i (softmax(s / temperature) A)_i s_i`, A learned and
    the identity at start. The word-frame matrix is reduced over words, then frames, and the other way round; the mean
    of the two counts.
    Frames are compared as the backbone gave them; the video is `mean_pool` of the aggregated ones.

    Args:
        embed_dim: D.
        max_words: longest caption; size of the maps over words.
        max_frames: longest clip; size of the maps over frames.
        temperature: of the attention over similarities.
        **common: see `AggregatingHead`.
    """

    needs_tokens = True

    def __init__(
        self,
        *,
        embed_dim: int,
        max_words: int = 32,
        max_frames: int = 12,
        temperature: float = 0.01,
        **common: Any,
    ) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        require_at_least("max_words", max_words, 1)
        require_at_least("max_frames", max_frames, 1)
        require_positive("temperature", temperature)
        self.temperature = temperature
        self.global_map = nn.Parameter(torch.eye(embed_dim))
        self.local_map = nn.Parameter(torch.eye(embed_dim))
        self.video_word_map = nn.Parameter(torch.eye(max_words))
        self.text_frame_map = nn.Parameter(torch.eye(max_frames))
        self.word_map = nn.Parameter(torch.eye(max_words))
        self.frame_of_word_map = nn.Parameter(torch.eye(max_frames))
        self.frame_map = nn.Parameter(torch.eye(max_frames))
        self.word_of_frame_map = nn.Parameter(torch.eye(max_words))

    def text_side(self, text: TextFeatures) -> XclipText:
        tokens, mask = tokens_of(text)
        self._check_length("max_words", "tokens", mask.shape[1], len(self.word_map))
        return XclipText(F.normalize(text.text_features, dim=-1), F.normalize(tokens, dim=-1), mask)

    def video_side(self, video: VideoFeatures) -> XclipVideo:
        self._check_length("max_frames", "frames", video.frame_mask.shape[1], len(self.frame_map))
        aggregated = self.aggregator(video.frame_features, video.frame_mask)  # (V, F, D)
        pooled = mean_of_normalised(aggregated, video.frame_mask)  # (V, D)
        frames = F.normalize(video.frame_features, dim=-1)
        # `t A · x = t · (A x)`: there are fewer frames than words. A part of the score, so in full precision
        with torch.autocast(device_type=frames.device.type, enabled=False):
            mapped_video, mapped_frames = pooled.to(self.dtype) @ self.global_map.T, frames @ self.local_map.T
        return XclipVideo(pooled, frames, mapped_video, mapped_frames, video.frame_mask)

    def pair_scores(self, text: XclipText, video: XclipVideo) -> Tensor:
        (texts, words), (videos, frames) = text.word_mask.shape, video.frame_mask.shape
        word_mask, frame_mask = text.word_mask.unsqueeze(-1), video.frame_mask.unsqueeze(-1)
        all_words = text.words.flatten(0, 1)  # (TL, D)
        text_video = text.sentence @ video.mapped_video.T  # (T, V)
        video_word = (all_words @ video.video.T).view(texts, words, videos)
        video_word = self._reduce(video_word, word_mask, self.video_word_map)  # (T, V)
        text_frame = (video.frames.flatten(0, 1) @ text.sentence.T).view(videos, frames, texts)
        text_frame = self._reduce(text_frame, frame_mask, self.text_frame_map)  # (V, T)
        frame_word = video.mapped_frames.flatten(0, 1) @ all_words.T  # (VF, TL)
        word_frame = frame_word.T.contiguous().view(texts, words, videos * frames)
        over_words = self._reduce(word_frame, word_mask, self.word_map).view(texts, videos, frames)
        frame_word = frame_word.view(videos, frames, texts * words)
        over_frames = self._reduce(frame_word, frame_mask, self.frame_of_word_map).view(videos, texts, words)
        by_frames = self._reduce(over_words.permute(1, 2, 0), frame_mask, self.frame_map)  # (V, T)
        by_words = self._reduce(over_frames.permute(1, 2, 0), word_mask, self.word_of_frame_map)  # (T, V)
        return (text_video + video_word + text_frame.T + 0.5 * (by_frames.T + by_words)) / 4

    def _reduce(self, scores: Tensor, mask: Tensor, mapping: Tensor) -> Tensor:
        """Attention over the middle of (N, S, M) scores with mask (N, S, 1) → (N, M).

        Padded entries get no attention, and what the map gives them counts nothing: their vectors, so their scores, are 0.
        The dimension in the middle, a long one last: so every step runs along memory.
        """
        length = scores.shape[1]
        weights = masked_softmax(scores / self.temperature, mask, dim=1)
        mapping = mapping[:length, :length].T.expand(len(scores), -1, -1)
        return (torch.bmm(mapping, weights) * scores).sum(1)

    def pair_bytes(self, text: XclipText, video: XclipVideo) -> int:
        length, frames = text.word_mask.shape[1], video.frame_mask.shape[1]
        return (10 * length * frames + 10 * (length + frames)) * text.words.element_size()

    def _check_length(self, option: str, what: str, found: int, limit: int) -> None:
        if found > limit:
            raise UsageError(f"{found} {what} do not fit a head built with {option}={limit}", hint=f"Raise {option}")
