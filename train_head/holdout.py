"""The part of the training data that chooses the epoch."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch

from glscl.cache.table import FeatureTable
from glscl.common.errors import UsageError
from glscl.common.tables import amount

FEWEST_VIDEOS = 20  # with fewer, a tenth says nothing
_SHARE, _MOST = 0.1, 1000


class Holdout(NamedTuple):
    """What to train on and what to validate on (None: nothing held out), with a line that says so."""

    train: FeatureTable
    validation: FeatureTable | None
    note: str


def hold_out(table: FeatureTable, *, size: float | None, seed: int) -> Holdout:
    """Carve a validation part from the training split, by a hash of the video ids.

    Which videos are held out depends on their ids and the seed alone, not on their order.

    Args:
        table: the training split.
        size: a share below 1, a number of videos from 1, 0 for none; None is a tenth, at most 1,000 videos, and none
            where there are fewer than 20.

    Raises:
        UsageError: nothing would be left to train on.
    """
    captioned = torch.unique(table.video_of_text).tolist()
    count = len(captioned)
    if size == 0:
        return Holdout(table, None, "no validation part was asked for: the last epoch is kept as best")
    if size is None:
        if count < FEWEST_VIDEOS:
            return Holdout(
                table,
                None,
                f"{amount(count, 'training video')} with captions: too few to hold some out (fewer than {FEWEST_VIDEOS}), so "
                "all are trained on, and the last epoch is kept as best",
            )
        held = min(round(count * _SHARE), _MOST)
    else:
        held = max(1, round(count * size)) if size < 1 else round(size)
    if held >= count:
        raise UsageError(f"`validation={size:g}` would hold out {held} of {count} training videos: none would be left")
    ranked = sorted(captioned, key=lambda row: _hash(seed, table.video_ids[row]))
    chosen = sorted(ranked[:held])
    keep = torch.ones(table.num_videos, dtype=torch.bool)
    keep[chosen] = False
    train = table.subset(torch.nonzero(keep)[:, 0])
    validation = table.subset(torch.tensor(chosen))
    return Holdout(
        train,
        validation,
        f"validation: {amount(validation.num_videos, 'video')} with {amount(validation.num_texts, 'caption')} held out of {count} "
        "training videos",
    )


def _hash(seed: int, video_id: str) -> bytes:
    return hashlib.sha256(f"{seed}:{video_id}".encode("utf-8", "surrogatepass")).digest()
