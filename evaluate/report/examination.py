"""A run scored again and looked at closely: hubs of its gallery, and its best and worst captions with the frames they look at.

T texts, V videos, F frames, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from glscl.cache.schema import VideoItem
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.common.devices import arithmetic
from glscl.common.errors import GlsclError
from glscl.evaluate.evaluated_run import EvaluatedRun
from glscl.evaluate.neighbours import Neighbours, nearest_neighbours, occurrences
from glscl.evaluate.ranks import TEXT_TO_VIDEO
from glscl.evaluate.report.attention import frame_weights
from glscl.train_head.checkpoint import load_run
from glscl.train_head.heads.base import Head
from glscl.train_head.recipes import RECIPES

NEIGHBOURS = 10


class Retrieved(NamedTuple):
    """One video of an answer.

    Attributes:
        id: of the video. rank: its place in the answer. correct: whether the caption describes it.
        score: the head's similarity, before the logit scale.
        times: seconds of the frames looked at. weights: of those frames, see `glscl.evaluate.report.attention`.
    """

    id: str
    rank: float
    correct: bool
    score: float
    times: tuple[float, ...]
    weights: tuple[float, ...]


class Example(NamedTuple):
    """A caption, the rank of its video, and the videos found: the first few and the correct one."""

    text_id: str
    caption: str
    rank: float
    retrieved: tuple[Retrieved, ...]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What `examine` found.

    Attributes:
        neighbours: k.
        video_occurrences: (V,) of how many captions each video is among the k nearest.
        text_occurrences: (T,) of how many videos each caption is among the k nearest.
        weights_meaning: what the weights of frames are.
        best, worst: captions answered most clearly right, and furthest from right.
        sources: the shown videos by id, for thumbnails.
    """

    neighbours: int
    video_occurrences: np.ndarray
    text_occurrences: np.ndarray
    weights_meaning: str
    best: tuple[Example, ...]
    worst: tuple[Example, ...]
    sources: dict[str, VideoItem]

    def __repr__(self) -> str:
        return f"Examination({len(self.best)} best and {len(self.worst)} worst captions, {self.neighbours} neighbours)"


@dataclass(frozen=True, kw_only=True, repr=False)
class ExaminedRun(EvaluatedRun):
    """An evaluated run that was scored again; `examination` is None where that could not be, which a note explains."""

    examination: Examination | None = None


def examination_of(run: EvaluatedRun) -> Examination | None:
    """What `examine` found about a run; None where it was not looked at, or could not be."""
    return run.examination if isinstance(run, ExaminedRun) else None


def examine(
    run: EvaluatedRun,
    store: Store,
    *,
    examples: int = 3,
    retrieved: int = 3,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> ExaminedRun:
    """Score a run's split again and look closely; what cannot be done becomes a note of the run.

    Args:
        run: as `glscl.evaluate.evaluated_run` reads it.
        store: the cache it was judged on.
        examples: best captions shown, and as many worst.
        retrieved: videos shown for each, beside the correct one.
        device: where to compute.
        progress: called with pairs done and pairs in all.
    """
    run = ExaminedRun(**{field.name: getattr(run, field.name) for field in fields(EvaluatedRun)})
    if run.result.get("runs"):
        return run.with_notes(
            "Several runs were judged as one, so neither hubs nor examples are shown; report each by itself."
        )
    try:
        head, settings = _head_of(run, store)
        split, padded = run.result["split"], not head.mask_padding
        table = FeatureTable.load(store, split, tokens=head.needs_tokens, padded=padded, **settings)
    except GlsclError as error:
        return run.with_notes(
            f"The head of {run.title} cannot be had again ({error}), so hubs and examples are not shown."
        )
    table, head = table.to(device), head.to(device)
    found = nearest_neighbours(head, table, NEIGHBOURS, device=device, progress=progress)
    examination = Examination(
        neighbours=found.videos.shape[1],
        video_occurrences=occurrences(found.videos, table.num_videos),
        text_occurrences=occurrences(found.texts, table.num_texts),
        weights_meaning="",
        best=(),
        worst=(),
        sources={},
    )
    if run.ranks is None:
        return replace(run, examination=examination)
    if list(run.text_ids) != list(table.text_ids) or not _agree(run.ranks[TEXT_TO_VIDEO], table, found):
        return run.with_notes(
            f"{run.title} ranks otherwise than when it was judged (other weights or another cache), so neither hubs "
            "nor examples are shown. Judge it again."
        )
    ranks = run.ranks[TEXT_TO_VIDEO]
    best, worst = _choose(ranks, table.video_of_text.cpu().numpy(), found, examples)
    shown = [[_example(head, table, found, ranks, row, retrieved) for row in rows] for rows in (best, worst)]
    meaning = next((meaning for found in shown for _, meaning in found), "")
    videos = {video.id for found in shown for example, _ in found for video in example.retrieved}
    examination = replace(
        examination,
        weights_meaning=meaning,
        best=tuple(example for example, _ in shown[0]),
        worst=tuple(example for example, _ in shown[1]),
        sources={video.id: video for video in store.plan.videos if video.id in videos},
    )
    return replace(run, examination=examination)


def _head_of(run: EvaluatedRun, store: Store) -> tuple[Head, dict[str, Any]]:
    """The head that made a result, and how it looked at frames."""
    from glscl.evaluate.evaluation import zero_shot_head

    if run.folder is None and run.result.get("run") is None:
        frames = RECIPES.get(store.recipe, RECIPES["default"]).frames
        return zero_shot_head(run.result["head"], store), {"max_frames": frames, "frame_position": "uniform"}
    folder = run.folder or run.result["run"]
    selection = (run.run or {}).get("selection")
    which = "last" if run.result["selection"] == "last" and selection != "last" else "best"
    head, record = load_run(folder, which)
    settings = record["settings"]
    return head, {
        "max_frames": settings.get("max_frames"),
        "frame_position": settings.get("frame_position", "uniform"),
    }


def _agree(ranks: np.ndarray, table: FeatureTable, found: Neighbours) -> bool:
    """Whether the neighbours and the recorded ranks tell the same first places, where one video alone is first."""
    scores, first = found.video_scores, found.videos[:, 0] == table.video_of_text.cpu().numpy()
    alone = scores[:, 0] > scores[:, 1] if scores.shape[1] > 1 else np.ones(len(first), bool)
    return float(((first != (ranks < 1.5)) & alone).mean()) <= 0.01


def _choose(ranks: np.ndarray, video: np.ndarray, found: Neighbours, count: int) -> tuple[list[int], list[int]]:
    """Captions ranked first by the widest margin, and those ranked worst; one a video, the earlier of equal ones."""
    scores = found.video_scores
    margin = scores[:, 0] - scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(scores))
    right = np.flatnonzero(ranks == 1)
    wrong = np.flatnonzero(ranks > 1)

    def first_of_each_video(order: np.ndarray) -> list[int]:
        chosen: dict[int, int] = {}
        for row in order.tolist():
            chosen.setdefault(int(video[row]), row)
            if len(chosen) == count:
                break
        return list(chosen.values())

    best = right[np.argsort(-margin[right], kind="stable")]
    worst = wrong[np.argsort(-ranks[wrong], kind="stable")]
    return first_of_each_video(best), first_of_each_video(worst)


@torch.inference_mode()
def _example(
    head: Head, table: FeatureTable, found: Neighbours, ranks: np.ndarray, row: int, count: int
) -> tuple[Example, str]:
    correct = int(table.video_of_text[row])
    places = {int(video): float(place) for place, video in enumerate(found.videos[row, :count], 1)}
    places[correct] = float(ranks[row])
    rows = torch.tensor(list(places), device=table.device)
    text, video = table.texts(torch.tensor([row], device=table.device)), table.videos(rows)
    with arithmetic(table.device):
        scores = head.score(head.encode_text(text), head.encode_video(video))[0].tolist()
        weights = frame_weights(head, text, video)
    answer = []
    for i, (item, place) in enumerate(places.items()):
        real = video.frame_mask[i]
        answer.append(
            Retrieved(
                table.video_ids[item],
                place,
                item == correct,
                scores[i],
                tuple(table.frame_times[item][real].tolist()),
                tuple(weights.values[i][real].tolist()),
            )
        )
    return Example(table.text_ids[row], table.captions[row], float(ranks[row]), tuple(answer)), weights.meaning
