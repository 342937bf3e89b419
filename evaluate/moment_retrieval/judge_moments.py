"""A head judged by when: the moments that it finds in each caption's own video beside those of a file.

T captions, n frames of a video, D embed_dim.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.common.arguments import types_checked
from glscl.common.devices import arithmetic
from glscl.common.errors import UsageError
from glscl.evaluate.evaluation import checked, open_judged, seen_at
from glscl.evaluate.moment_retrieval.window_metrics import window_metrics
from glscl.evaluate.moment_retrieval.windows import moments_of_captions, read_windows
from glscl.evaluate.search.frame_index import FrameIndex
from glscl.evaluate.search.moments import moments_of
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head.heads.base import Head

COUNT = 10  # moments of a video that are ranked, at most


@types_checked
def judge_moments(
    cache: Store | os.PathLike[str] | str | None,
    run: os.PathLike[str] | str | None,
    path: os.PathLike[str] | str,
    settings: EvaluateSettings | None = None,
    *,
    list: str | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """How well a head finds when a caption happens in its own video: the content of `moments` of a result file.

    Every stored frame is scored alone, as if it were the whole video, and moments are the runs of frames that `search` shows,
    by these scores instead of cosines; those of `mean_pool` and `best_frames` are the cosines.

    Args:
        path: file of the right moments, see `glscl.evaluate.moment_retrieval.windows`.
        The others: see `glscl.evaluate.evaluation.evaluate_run`.

    Raises:
        UsageError: the head reads padding, which a frame alone has none of.
        NotFoundError, InputError: the file cannot be read, or names none of the captions.
        Others: see `evaluate_run`.
    """
    settings, written = checked(settings), read_windows(Path(path))
    folder = None if run is None else Path(run)
    store = seen_at(cache, folder, list)
    head = open_judged(folder, store, settings).head.to(torch.device(device))
    if not head.mask_padding:
        raise UsageError("`mask_padding=False` reads the padding of whole videos; moments are found by single frames")
    table = store.table(settings.split, frames=1, tokens=head.needs_tokens)  # its captions; frames are read below
    owners = [table.video_ids[video] for video in table.video_of_text.tolist()]
    right = moments_of_captions(written, table.text_ids, table.captions, owners)
    found = find_moments(head, store, table, [*right])
    metrics = window_metrics(found, [*right.values()])
    return {"file": str(path), **metrics, "captions": table.num_texts}


@torch.inference_mode()
def find_moments(head: Head, store: Store, table: FeatureTable, rows: Sequence[int]) -> list[np.ndarray]:
    """For each caption (row of a table) up to `COUNT` windows (n, 2) of its own video, in seconds, best first."""
    device, owner = next(iter(head.parameters())).device, table.video_of_text[torch.tensor(rows)].tolist()
    entry_of = {id: entry for entry, id in enumerate(store.list.video_ids)}
    entries = np.array([entry_of[table.video_ids[video]] for video in owner])
    index = FrameIndex.load(store, np.unique(entries))
    found: dict[int, np.ndarray] = {}
    with arithmetic(device):
        for number, entry in enumerate(index.entries.tolist()):
            places = np.flatnonzero(entries == entry).tolist()
            texts = table.texts(torch.tensor([rows[place] for place in places]))
            scores = frame_scores(head, texts, index.features_of(number), device).cpu().numpy()
            times, duration = index.times_of(number), float(index.durations[number])
            for place, of_frames in zip(places, scores, strict=True):
                moments = moments_of(of_frames, times, duration, count=COUNT)
                found[place] = np.array([(moment.start, moment.end) for moment in moments])
    return [found[place] for place in range(len(rows))]


def frame_scores(head: Head, texts: TextFeatures, frames: Tensor, device: torch.device) -> Tensor:
    """(T, n) float32 scores of captions with each of the frames (n, D) alone."""
    alone = VideoFeatures(
        frames.float()[:, None].to(device), torch.ones(len(frames), 1, dtype=torch.bool, device=device)
    )
    tokens, mask = (None if field is None else field.to(device) for field in texts[1:])
    texts = TextFeatures(texts.text_features.to(device), tokens, mask)
    return head.score(head.encode_text(texts), head.encode_video(alone)).float()
