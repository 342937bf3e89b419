"""A training ends where its loss or its weights are no numbers any more; the batch that did it is named.

B captions a batch, S steps an epoch.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from glscl.cache.table import FeatureTable
from glscl.common.errors import Hint, NonFiniteError
from glscl.train_head.resume_state import TrainingState


def check_losses(
    losses: list[float], table: FeatureTable, rows: np.ndarray, state: TrainingState, *, first: int, out: Path | None
) -> None:
    """Raise for the first loss that is not finite, naming the batch, or the item whose features are to blame.

    Args:
        losses: of the steps from `first` (counted from 0) of the epoch under way.
        rows: (S, B) captions of all steps of the epoch.
    """
    bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if bad is None:
        return
    batch = torch.from_numpy(rows[first + bad])
    message = f"The loss is {losses[bad]} in epoch {state.epoch + 1}, step {first + bad + 1} of {state.steps}"
    culprit = _broken_features(table, batch)
    if culprit:
        raise NonFiniteError(
            f"{message}: {culprit} has features that are NaN or infinite",
            hint=Hint("See", "inspect", {"": "CACHE", "verify": True}),
        )
    raise _broken(message, table, batch, state, out)


def check_weights(
    module: nn.Module, table: FeatureTable, rows: np.ndarray, state: TrainingState, *, out: Path | None
) -> None:
    """Raise where the last step, of a finite loss, made a weight NaN or infinite, so that it is never saved."""
    if not torch.stack([p.detach().isfinite().all() for p in module.parameters()]).all():
        message = f"The weights became NaN or infinite in epoch {state.epoch + 1}, step {state.step} of {state.steps}"
        raise _broken(message, table, torch.from_numpy(rows[state.step - 1]), state, out)


def _broken(message: str, table: FeatureTable, batch: Tensor, state: TrainingState, out: Path | None) -> NonFiniteError:
    ids = [table.text_ids[row] for row in batch.tolist()]
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    kept = f"; {out} keeps the weights of epoch {state.epoch}" if out is not None and state.epoch else ""
    return NonFiniteError(f"{message}, on the captions {shown}{kept}", hint="Try a lower `lr`")


def _broken_features(table: FeatureTable, rows: Tensor) -> str | None:
    text, video = table.texts(rows), table.videos(table.video_of_text[rows.to(table.device)])
    for row, i in zip(rows.tolist(), range(len(rows))):
        if not all(f[i].isfinite().all() for f in (text.text_features, text.token_features) if f is not None):
            return f"caption {table.text_ids[row]!r}"
        if not video.frame_features[i].isfinite().all():
            return f"video {table.video_ids[int(table.video_of_text[row])]!r}"
    return None
