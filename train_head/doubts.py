"""Numbers that look like a result and are none: a loss that does not fall, scores that are all alike, one video for all.

t captions and v videos that are scored with each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.common.devices import arithmetic
from glscl.common.tables import amount
from glscl.train_head.heads.base import Head

ALIKE = 1e-3  # of the largest score: how far apart all of them lie at most for them to say nothing
HUB = 0.25  # share of the queries that may find the same item first; of a small gallery more
LEARNT = 0.01  # of the loss of who guesses: there is no more to learn
FELL = 0.001  # of the same: by less a loss falls by chance, too
FEW = 8  # queries, or steps, from which nothing is concluded


class ScoreSummary(NamedTuple):
    """Attributes:
    low, high: least and largest score.
    queries, gallery: how many captions, and videos.
    hub: row of the video that most captions find first.
    hits: how many they are.
    """

    low: float
    high: float
    queries: int
    gallery: int
    hub: int
    hits: int


def summary_of(scores: Tensor) -> ScoreSummary:
    """Of (t, v) scores."""
    low, high = torch.aminmax(scores)
    first = torch.bincount(scores.argmax(1), minlength=scores.shape[1])
    (queries, gallery), hub = scores.shape, int(first.argmax())
    return ScoreSummary(float(low), float(high), queries, gallery, hub, int(first[hub]))


@torch.no_grad()
def sampled_scores(head: Head, table: FeatureTable, size: int) -> ScoreSummary:
    """How a head scores some captions with the videos of all of them, spread over a table; it is left as it was.

    Args:
        size: most captions.

    Returns:
        With a row of the table as the hub.
    """
    training, device = head.training, head.logit_scale.device
    rows = torch.linspace(0, table.num_texts - 1, min(size, table.num_texts)).long().to(table.device)
    gallery = table.video_of_text[rows].unique()
    text, video = table.texts(rows), table.videos(gallery)
    tokens = (text.token_features, text.token_mask) if head.needs_tokens else ()
    try:
        head.eval()
        text = TextFeatures(
            text.text_features.to(device), *(each if each is None else each.to(device) for each in tokens)
        )
        video = VideoFeatures(*(field.to(device) for field in video))
        with arithmetic(device):
            found = summary_of(head.score(head.encode_text(text), head.encode_video(video)).float())
        return found._replace(hub=int(gallery[found.hub]))
    finally:
        head.train(training)


def score_doubts(found: ScoreSummary, hub: str) -> list[str]:
    """What is wrong with scores, each with the numbers that show it; none where nothing is. `hub`: its id."""
    if found.queries < FEW or found.gallery < 2:
        return []
    if found.high - found.low <= ALIKE * max(abs(found.low), abs(found.high)):
        return [
            f"the head scores all alike: the scores of {amount(found.queries, 'caption')} with {amount(found.gallery, 'video')} lie between "
            f"{found.low:.6g} and {found.high:.6g}"
        ]
    share = found.hits / found.queries
    if found.hits >= FEW and share > max(HUB, min(0.9, 10 / found.gallery)):
        return [
            f"one video is a hub: {found.hits:,} of {amount(found.queries, 'caption')} ({100 * share:.0f} %) find {hub} first among "
            f"{found.gallery:,}"
        ]
    return []


def loss_doubt(history: Sequence[Mapping[str, Any]], losses: Sequence[float], batch_size: int) -> str | None:
    """Whether the loss of a training did not fall, or by next to nothing, with the numbers that show it; of one that is next to nothing none are.

    Args:
        history: rows of its epochs.
        losses: of the steps of the last epochs; looked at where there was one epoch alone.
        batch_size: B; who guesses has a loss of log B.
    """
    if len(history) > 1:
        first, last, when = history[0]["loss"], history[-1]["loss"], ("the first epoch", "the last")
    elif len(losses) >= FEW:
        quarter = len(losses) // 4
        first, last = sum(losses[:quarter]) / quarter, sum(losses[-quarter:]) / quarter
        when = ("the first quarter of the steps", "the last")
    else:
        return None
    guessed = math.log(batch_size)
    if first - last > FELL * guessed or last < LEARNT * guessed:
        return None
    return (
        f"the loss {'hardly fell' if last < first else 'did not fall'}: {first:.4f} in {when[0]}, {last:.4f} in {when[1]}; guessing among {batch_size} gives "
        f"{guessed:.4f}"
    )
