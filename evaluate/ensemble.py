"""Several runs judged as one: the average of their similarities.

T texts, V videos, R runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.store import Store
from glscl.cache.stored_table import StoredTable
from glscl.cache.table import FeatureTable, FramePosition
from glscl.common.errors import FingerprintError, Hint, UsageError
from glscl.evaluate.evaluation import Evaluation, JudgedHead, OpenedRun, checked, judge, open_run, placed
from glscl.evaluate.judged_lists import version_of
from glscl.evaluate.parts import ByParts
from glscl.evaluate.settings import COMBINATIONS, EvaluateSettings
from glscl.evaluate.similarity import PairsDone
from glscl.train_head.checkpoint import read_run
from glscl.train_head.heads.base import Head


class Flat(tuple):
    """Tensors of several sides in a row, made as a NamedTuple is: from its fields."""

    def __new__(cls, *fields: Tensor) -> Flat:
        return super().__new__(cls, fields)


class Ensemble(nn.Module):
    """Heads that score together; similarity and ranks take it as they take a head.

    `S = Σ_r w_r S_r`. With "mean" all w are 1/R: a head whose similarities spread more weighs more in the order
    (`glscl` reaches 1.5, a cosine 1, and the free score of `tight_transf` drowns cosines). With "scaled"
    `w_r = τ_r / Σ τ`, so S orders as the mean of the logits does that the losses saw: right where heads differ in range.

    Args:
        heads: R heads for the same features.
        combine: "mean" or "scaled".
        views: for each head, which of the tables of a `JointTable` it looks at; None where there is one for all.
    """

    def __init__(self, heads: Sequence[Head], *, combine: str = "mean", views: Sequence[int] | None = None) -> None:
        super().__init__()
        if combine not in COMBINATIONS:
            raise UsageError(f"`combine` is {combine!r}; expected one of {', '.join(COMBINATIONS)}")
        self.members = list(heads)
        self.heads = nn.ModuleList(heads)
        self.views = list(views) if views is not None else [0] * len(heads)
        scales = [head.logit_scale.exp().item() if combine == "scaled" else 1.0 for head in heads]
        self.weights = [scale / sum(scales) for scale in scales]
        self._text_kinds: list[Any] = []
        self._video_kinds: list[Any] = []

    @property
    def needs_tokens(self) -> bool:
        return any(head.needs_tokens for head in self.members)

    def encode_text(self, text: TextFeatures) -> Flat:
        """What every head makes of the texts, one after another."""
        sides = [head.encode_text(text) for head in self.members]
        self._text_kinds = [type(side) for side in sides]
        return Flat(*(field for side in sides for field in side))

    def encode_video(self, video: tuple[Tensor, ...]) -> Flat:
        """What every head makes of the videos in its view; `video` is a `VideoFeatures`, or several as one `Flat`."""
        width = len(VideoFeatures._fields)
        views = [VideoFeatures(*video[width * i : width * (i + 1)]) for i in self.views]
        sides = [head.encode_video(view) for head, view in zip(self.members, views)]
        self._video_kinds = [type(side) for side in sides]
        return Flat(*(field for side in sides for field in side))

    def score(self, encoded_text: Flat, encoded_video: Flat) -> Tensor:
        """(T, V) weighted sum of the heads' similarities, before any logit scale."""
        texts, videos = _split(encoded_text, self._text_kinds), _split(encoded_video, self._video_kinds)
        parts = (
            head.score(text, video).float().mul_(weight)
            for head, weight, text, video in zip(self.members, self.weights, texts, videos)
        )
        scores = next(parts)
        for part in parts:
            scores.add_(part)
        return scores


class JointTable:
    """One split seen several ways, for heads that look at different frames: the texts of one, the videos of all.

    Everything else is that of the first table.
    """

    def __init__(self, tables: Sequence[FeatureTable | StoredTable]) -> None:
        self.tables, first = list(tables), tables[0]
        self.num_texts, self.num_videos = first.num_texts, first.num_videos
        self.text_ids, self.video_ids, self.video_of_text = first.text_ids, first.video_ids, first.video_of_text
        self.token_count = first.token_count
        self.frame_mask, self.frame_count = (getattr(first, name, None) for name in ("frame_mask", "frame_count"))
        self.captions, self.counts, self.padded = first.captions, first.counts, first.padded
        self.device = first.device

    def texts(self, index: Any) -> TextFeatures:
        return self.tables[0].texts(index)

    def videos(self, index: Any) -> Flat:
        """The `VideoFeatures` of every table in a row."""
        return Flat(*(field for table in self.tables for field in table.videos(index)))


def evaluate_ensemble(
    store: Store,
    runs: Sequence[Path | str],
    settings: EvaluateSettings | None = None,
    *,
    device: torch.device | str | ByParts = "cpu",
    command: str = "",
    progress: PairsDone | None = None,
    note: Callable[[str], None] = lambda text: None,
) -> Evaluation:
    """Judge the average of the similarities of several runs, each with the frames it was trained on.

    Args:
        store: an open cache, at the list to judge on.
        runs: two run folders or more, trained on features of one kind; their lists may differ.
        settings: `combine` says how similarities are averaged, see `Ensemble`.
        The others: as in `glscl.evaluate.evaluation.evaluate_run`, also what is raised.

    Returns:
        An evaluation whose result has `runs` and `combine` beside the usual; `run` is null, and `selection` is the
        least strict of the runs' own.

    Raises:
        FingerprintError: the runs belong to different caches.
        UsageError: fewer than two runs, one twice, or no such combination.
    """
    started, settings = time.perf_counter(), checked(settings)
    runs = [Path(run) for run in runs]
    if len(runs) < 2:
        raise UsageError(f"{len(runs)} run is no ensemble; name two or more with `run`")
    if len({run.resolve() for run in runs}) < len(runs):
        raise UsageError(f"a run is named twice: {', '.join(map(str, runs))}")
    check_same_cache(runs)
    members = [open_run(run, store, settings, note=note) for run in runs]
    frames: list[tuple[int | None, FramePosition]]
    frames = list(dict.fromkeys((member.max_frames, member.frame_position) for member in members))
    views = [frames.index((member.max_frames, member.frame_position)) for member in members]
    if len({member.head.mask_padding for member in members}) > 1:
        raise UsageError(
            "some of the runs read padding and others do not (`mask_padding`); they need tables of their own"
        )
    padded = not members[0].head.mask_padding
    ensemble = Ensemble([member.head for member in members], combine=settings.combine, views=views)
    ensemble, table_of = placed(ensemble, device)

    def load(split: str) -> FeatureTable | StoredTable | JointTable:
        tables = [
            table_of(
                store,
                split,
                max_frames=most,
                frame_position=position,
                tokens=ensemble.needs_tokens and i == 0,
                padded=padded,
            )
            for i, (most, position) in enumerate(frames)
        ]
        return tables[0] if len(tables) == 1 else JointTable(tables)

    facts = {
        "head": " + ".join(member.name for member in members),
        "run": None,
        "runs": [str(run) for run in runs],
        "combine": settings.combine,
        "selection": _selection(members),
        "frozen_backbone": all(member.frozen_backbone for member in members),
    }
    judged = JudgedHead(ensemble, load, facts, runs)
    return judge(judged, store, settings, started=started, device=device, command=command, progress=progress, note=note)


def check_same_cache(runs: Sequence[Path]) -> None:
    """Refuse runs of different caches: their heads read different features.

    Raises:
        FingerprintError: names two of them.
        NotFoundError, CheckpointError: see `read_run`.
    """
    records = [read_run(run) for run in runs]
    for run, record in zip(runs[1:], records[1:]):
        if record["cache_fingerprint"] != records[0]["cache_fingerprint"]:
            raise FingerprintError(
                f"{run} belongs to the cache {record['cache']} (fingerprint {record['cache_fingerprint']}), {runs[0]} "
                f"to {records[0]['cache']} ({records[0]['cache_fingerprint']}): their similarities cannot be averaged",
                hint=Hint("Train them on the same cache", "train-head", {"cache": "CACHE"}),
            )


def sharing_list(runs: Sequence[Path]) -> Path:
    """The first of some runs that says which list it was trained on, else the first: they are judged on its list.

    Raises:
        UsageError: they were trained on different lists.
        Others: see `check_same_cache`.
    """
    check_same_cache(runs)
    known = [(run, record) for run in runs if (record := read_run(run)).get("list_hash")]
    for run, record in known[1:]:
        if record["list_hash"] != known[0][1]["list_hash"]:
            raise UsageError(
                f"{known[0][0]} was trained on the list {version_of(known[0][1])}, {run} on {version_of(record)}",
                hint="Choose the one to judge them on with `list`",
            )
    return known[0][0] if known else runs[0]


def _selection(members: Sequence[OpenedRun]) -> str:
    """How the epochs were chosen, said as strictly as the loosest of them."""
    found = {member.selection for member in members}
    return next((way for way in ("test", "validation") if way in found), "last")


def _split(flat: Flat, kinds: Sequence[Any]) -> list[Any]:
    """The sides that `flat` holds in a row."""
    sides, start = [], 0
    for kind in kinds:
        stop = start + len(kind._fields)
        sides.append(kind(*flat[start:stop]))
        start = stop
    return sides
