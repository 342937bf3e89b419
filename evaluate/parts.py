"""Ranks in a gallery that one machine does not hold: parts of the matrix are scored anywhere, and what is counted of them adds up.

T texts, V videos. A part is a block of consecutive spans of texts and one of videos. Whoever scores a part reads its texts and
videos alone, and cuts and encodes them as who scores the whole does: the counts are whole numbers, so their sum is exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from glscl.common.ray_cluster import RayCluster
from glscl.evaluate.ranks import (
    RANKINGS,
    TEXT_TO_VIDEO,
    Pairing,
    Span,
    Targets,
    counts,
    pair,
    pair_scores,
    ranks_of_counts,
    whole,
)
from glscl.evaluate.similarity import BATCHES, Pairs, PairsDone, Scoring, memory_on, scoring, tile_spans
from glscl.evaluate.watched import Watched

SPANS = (16, 16)  # of texts and of videos in a part: 8,192 texts, 16,384 videos


class Spans(NamedTuple):
    """Some spans of texts and of videos."""

    texts: Sequence[Span]
    videos: Sequence[Span]


class Workers(Protocol):
    """Who scores parts: a `RayCluster`, or what calls as it does."""

    gpus: int

    def map(self, function: Callable[..., Any], calls: Iterable[Any], *shared: Any) -> Iterator[tuple[int, Any]]: ...


class ByParts:
    """Gives ranks as `glscl.evaluate.similarity.ranks`, computed by others; what each of them holds is a part of either side.

    Args:
        workers: who computes.
        spans: of texts and of videos in a part.
        batches: most texts and videos in a span, as in `glscl.evaluate.similarity.ranks`.
    """

    def __init__(self, workers: Workers, *, spans: tuple[int, int] = SPANS, batches: tuple[int, int] = BATCHES) -> None:
        self.workers, self.spans, self.batches = workers, spans, batches

    @classmethod
    def on_ray(cls, address: str = "auto") -> ByParts:
        """On a Ray cluster. Raises UsageError: Ray is not installed, or there is no cluster."""
        return cls(RayCluster(address))

    def ranks(
        self,
        head: Watched,
        table: Pairs,
        *,
        directions: Sequence[str] = RANKINGS,
        seconds: dict[str, float] | None = None,
        progress: PairsDone | None = None,
    ) -> dict[str, np.ndarray]:
        """Ranks of every query, with what is raised as there.

        Args:
            head: what was seen of the scores is added to it.
            table: pickled to the workers, as a `glscl.cache.stored_table.StoredTable` is: by where it is read from.
            seconds: what workers spent is added, summed over all of them.
        """
        clock = seconds if seconds is not None else {}
        device = "cuda" if self.workers.gpus else "cpu"
        bare, pairing = (
            head.unwatched,
            pair(table.video_of_text, num_texts=table.num_texts, num_videos=table.num_videos),
        )
        text_spans, video_spans = tile_spans(table, self.batches, memory_on(device))
        galleries = [video_spans[at : at + self.spans[1]] for at in range(0, len(video_spans), self.spans[1])]
        pairs = [Spans(text_spans, videos) for videos in galleries if len(range(*pairing.texts_of(videos)))]
        own = [torch.empty(0)] * len(pairs)
        scored = bare, table, self.batches, device
        for number, (found, spent) in self.workers.map(_pair_scores, pairs, *scored):
            own[number] = found
            _add(clock, spent)
        began = time.perf_counter()
        targets = Targets.of(torch.cat(own), pairing)
        parts = [Spans(texts, videos) for texts in _blocks(text_spans, pairing, self.spans[0]) for videos in galleries]
        total = {
            name: torch.zeros(2, table.num_texts if name == TEXT_TO_VIDEO else table.num_videos, dtype=torch.int64)
            for name in directions
        }
        clock["metrics"] = clock.get("metrics", 0.0) + time.perf_counter() - began
        done = 0
        for number, (found, seen, spent) in self.workers.map(_counts, parts, *scored, targets, tuple(directions)):
            part = parts[number]
            for name, counted in found.items():
                total[name][:, slice(*whole(part.texts if name == TEXT_TO_VIDEO else part.videos))] += counted
            head.add(seen)
            _add(clock, spent)
            done += int(np.prod([stop - start for start, stop in map(whole, part)]))
            if progress is not None:
                progress(done, table.num_texts * table.num_videos)
        return ranks_of_counts(total, targets, pairing)


def _pair_scores(
    part: Spans, head: Scoring, table: Pairs, batches: tuple[int, int], device: str
) -> tuple[Tensor, dict[str, float]]:
    spent: dict[str, float] = {}
    with scoring(head, table, batches, device=device, seconds=spent) as scorer:
        own = pair_scores(scorer.tile, scorer.pairing, text_spans=part.texts, video_spans=part.videos)
    return own.cpu(), spent


def _counts(
    part: Spans,
    head: Scoring,
    table: Pairs,
    batches: tuple[int, int],
    device: str,
    targets: Targets,
    directions: Sequence[str],
) -> tuple[dict[str, Tensor], Any, dict[str, float]]:
    spent: dict[str, float] = {}
    watched: Any = Watched(head)
    with scoring(watched, table, batches, device=device, seconds=spent) as scorer:
        found = counts(
            scorer.tile,
            scorer.pairing,
            Targets(*(each.to(scorer.device) for each in targets)),
            text_spans=part.texts,
            video_spans=part.videos,
            directions=directions,
        )
    return {name: each.cpu() for name, each in found.items()}, watched.seen(), spent


def _blocks(text_spans: Sequence[Span], pairing: Pairing, most: int) -> list[Sequence[Span]]:
    """Runs of `most` spans, longer where the captions of one video go on in the next run."""
    blocks, begin = [], 0
    for at, (_, stop) in enumerate(text_spans, start=1):
        ends = stop == len(pairing.video_of_text) or pairing.video_of_text[stop - 1] != pairing.video_of_text[stop]
        if (at - begin >= most and ends) or at == len(text_spans):
            blocks.append(text_spans[begin:at])
            begin = at
    return blocks


def _add(clock: dict[str, float], spent: dict[str, float]) -> None:
    for stage, seconds in spent.items():
        clock[stage] = clock.get(stage, 0.0) + seconds
