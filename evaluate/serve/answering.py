"""Answers of a server: a question and a collection → JSON, computed in one thread.

n frames of a video, D embed_dim.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
import torch

from glscl.common.errors import UsageError
from glscl.evaluate.search.answers import Where
from glscl.evaluate.search.model import Model, Query
from glscl.evaluate.serve.asking import Asked
from glscl.evaluate.serve.served_caches import Catalog, Collection

POINTS = 160  # of the score over time, a video
FEWER_POINTS = 48  # where many videos are answers
MANY = 100  # answers
SENTENCES_KEPT = 256


class Answers:
    """Computes answers, for one thread.

    Args:
        paths: whether an answer tells where files lie.
    """

    def __init__(self, catalog: Catalog, *, paths: bool) -> None:
        self.catalog, self.paths = catalog, paths
        self._sentences: OrderedDict[tuple[Any, ...], Query] = OrderedDict()

    def warm(self) -> None:
        """Read the frames and ask once, so that the first who asks waits for nothing."""
        first = self.catalog.first
        model = first.model()
        model.index()
        if first.encoder.backbone is not None:
            model.find(model.sentence("a video"), top=1)

    def of_sentence(self, asked: Asked) -> dict[str, Any]:
        """Videos for a sentence. Raises UsageError, NotFoundError, InputError."""
        where = self.catalog.find(asked.cache, asked.list)
        if asked.q is None:
            raise UsageError("q is needed: what to look for")
        if where.encoder.backbone is None:
            raise UsageError(f"{where.cache} cannot be asked in words: {where.encoder.problem}")
        model = where.model(asked.head)
        key = where.store.fingerprint, asked.q, asked.also, asked.without
        query = self._sentences.pop(key, None) or model.sentence(asked.q, also=asked.also, without=asked.without)
        self._sentences[key] = query
        while len(self._sentences) > SENTENCES_KEPT:
            self._sentences.popitem(last=False)
        sentences = (asked.q, *asked.also, *asked.without)
        doubts = [line for sentence in sentences for line in model.backbone.doubts(sentence)]
        return self._answer(where, model, query, asked, {"query": asked.q, "doubts": [*dict.fromkeys(doubts)]})

    def of_listed(self, id: str, asked: Asked) -> dict[str, Any]:
        """Videos that look like one of the list, or like what it shows at `t`. Raises NotFoundError."""
        where = self.catalog.find(asked.cache, asked.list)
        model = where.model(asked.head)
        where.row(id)
        return self._answer(where, model, model.listed(id, time=asked.t), asked, {"like": id, "t": asked.t})

    def of_frames(self, kind: str, frames: np.ndarray, asked: Asked) -> dict[str, Any]:
        """Videos that look like a picture or a clip, given its frames (n, S, S, 3) uint8 as the backbone wants them."""
        where = self.catalog.find(asked.cache, asked.list)
        if where.encoder.backbone is None or not where.encoder.sees:
            raise UsageError(f"{where.cache} cannot be asked with pictures: how its frames were encoded is not known")
        model = where.model(asked.head)
        features = torch.from_numpy(where.encoder.backbone.encode_frames(frames)).to(model.device)  # (n, D)
        query = Query(features[0]) if kind == "picture" else Query.of_frames(features)
        return self._answer(where, model, query, asked, {"query": None, "kind": kind})

    def _answer(
        self, where: Collection, model: Model, query: Query, asked: Asked, about: dict[str, Any]
    ) -> dict[str, Any]:
        began = time.perf_counter()
        hits = model.answer(query, asked.settings)
        index = model.index(Where.of(asked.settings), exact=asked.settings.exact)
        rows = np.array([where.rows[hit.video] for hit in hits], np.int64)
        videos = np.searchsorted(index.entries, rows)
        cosines = index.cosines(query.vector, videos) if len(videos) else []
        points = POINTS if len(hits) <= MANY else FEWER_POINTS
        shown = []
        for hit, row, video, scores in zip(hits, rows.tolist(), videos.tolist(), cosines):
            path, told = hit.path, hit.as_dict()
            told["path"] = path if self.paths else None
            shown.append(
                {
                    **told,
                    "split": where.split_of(row),
                    "duration": round(float(np.nan_to_num(index.durations[video])), 3),
                    "there": path is not None,
                    "strip": strip_of(index.times_of(video), scores, points),
                    "links": links_of(where, hit.video, row, hit.time),
                }
            )
        return {
            **about,
            "cache": where.cache,
            "list": where.name,
            "head": asked.head or where.heads[0],
            "split": asked.settings.split,
            "searched": {
                "videos": index.num_videos,
                "frames": index.num_frames,
                "exact": index.is_exact,
            },
            "hits": shown,
            "seconds": round(time.perf_counter() - began, 4),
        }


def strip_of(times: np.ndarray, scores: np.ndarray, points: int) -> dict[str, list[float]]:
    """The scores (n,) of a video's frames over its times (n,), of long ones the highest of each of `points` parts."""
    if len(scores) > points:
        first = np.linspace(0, len(scores), points, endpoint=False).astype(np.int64)
        times, scores = times[first], np.maximum.reduceat(scores, first)
    return {"times": times.astype(float).round(3).tolist(), "scores": scores.astype(float).round(4).tolist()}


def links_of(where: Collection, id: str, row: int, time: float) -> dict[str, str]:
    """Where a video, its moment as a picture, and what looks like it are asked for, whatever its id holds."""
    content = where.store.list.video_content[row].tobytes().hex()[:8]  # another file is another address
    name, names = quote(id.encode("utf-8", "surrogatepass"), safe=""), where.query
    if id in (".", ".."):  # no names in a path: they stand behind it
        name, names = "", f"{names}&{urlencode({'id': id})}"
    return {
        "video": f"/video/{name}?{names}&v={content}",
        "thumb": f"/thumb/{name}?{names}&t={time:.3f}&v={content}",
        "about": f"/api/video/{name}?{names}",
        "preview": f"/api/preview/{name}?{names}",
        "similar": f"/api/similar/{name}?{names}",
    }


def to_json(value: Any) -> bytes:
    """JSON in ASCII, for ids may hold half surrogates; NaN cannot stand in it."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
