"""A run as a model of mteb (extra `mteb`): its video retrieval tasks, judged by mteb itself.

    import mteb
    from glscl.evaluate.exporting.mteb_model import MtebModel

    model = MtebModel(glscl.load_run("runs/mine"))
    mteb.evaluate(model, mteb.get_tasks(["MSRVTTT2V", "MSRVTTV2T"]))

mteb hands over videos and sentences, and gets the best of each query; nothing of a cache is read but how it was made, so every
head takes part, whether it makes a vector a video or not. T texts, V videos, F frames, D embed_dim.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glscl.common.devices import arithmetic
from glscl.common.errors import InputError, NonFiniteError, UsageError
from glscl.evaluate.search.model import Model

BATCH = 64  # videos, or sentences, encoded at once


class MtebModel:
    """mteb's `SearchProtocol`: `index` takes what is searched, `search` answers queries; one of them videos, the other text.

    Args:
        model: from `glscl.load_run`, or `glscl.evaluate.search.model.zero_shot`.
        name: of the results, with an organisation before it; by default that of the run's folder or of the head.
    """

    def __init__(self, model: Model, *, name: str | None = None) -> None:
        self.model, self.name = model, name or f"glscl/{model.name}"
        self._ids: list[str] = []
        self._gallery: list[Any] = []
        self._holds_videos = False

    def __repr__(self) -> str:
        return f"MtebModel({self.name!r})"

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes into its results."""
        from mteb.models.model_meta import ModelMeta  # pyright: ignore[reportMissingImports]

        record, head = self.model.record, self.model.head
        return ModelMeta(
            loader=None,
            name=self.name,
            revision=record.get("run_id", "untrained"),
            release_date=None,
            languages=["eng-Latn"],
            n_parameters=sum(each.numel() for each in head.parameters()),
            memory_usage_mb=None,
            max_tokens=self.model.backbone.words,
            embed_dim=self.model.cache.embed_dim,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name=None,
            use_instructions=False,
            training_datasets=None,
            modalities=["text", "video"],
        )

    def index(self, corpus: Any, **about: Any) -> None:
        """Encode what is searched: rows with `id`, and `video` or `text` (and perhaps `title`). The rest is not looked at.

        Raises:
            UsageError: rows of both, or neither.
            DecodeError: a video gives no frames.
        """
        self._holds_videos = is_video(corpus)
        parts = [*self._encoded(corpus)]
        self._ids = [id for ids, _ in parts for id in ids]
        self._gallery = [side for _, side in parts]

    @torch.inference_mode()
    def search(self, queries: Any, *, top_k: int, top_ranked: Any = None, **about: Any) -> dict[str, dict[str, float]]:
        """For each query its `top_k` best with their scores.

        Args:
            top_ranked: query → the ids that may be answers; all by default.

        Raises:
            UsageError: nothing is indexed, or queries are of the same kind as what is searched.
            NonFiniteError: a score is NaN or infinite.
        """
        if not self._gallery:
            raise UsageError("there is nothing to search: `index` comes first")
        if is_video(queries) == self._holds_videos:
            kind = "videos" if self._holds_videos else "text"
            raise UsageError(f"queries and what is searched are both {kind}; a run scores text with videos")
        found: dict[str, dict[str, float]] = {}
        for ids, side in self._encoded(queries):
            scores = torch.cat([self._scores(side, part) for part in self._gallery], dim=1)
            if not torch.isfinite(scores).all():
                raise NonFiniteError(f"scores of the queries {ids[0]} to {ids[-1]} are NaN or infinite")
            found.update(zip(ids, self._best(ids, scores, top_k, top_ranked), strict=True))
        return found

    def _scores(self, queries: Any, part: Any) -> Tensor:
        score = self.model.head.score
        with arithmetic(self.model.device):
            return score(queries, part) if self._holds_videos else score(part, queries).T

    def _best(
        self, ids: list[str], scores: Tensor, top_k: int, top_ranked: Mapping[str, Iterable[str]] | None
    ) -> Iterator[dict[str, float]]:
        if top_ranked is not None:
            place = {id: column for column, id in enumerate(self._ids)}
            for row, id in enumerate(ids):
                left = torch.ones(scores.shape[1], dtype=torch.bool)
                left[[place[each] for each in top_ranked[id]]] = False
                scores[row, left.to(scores.device)] = -torch.inf
        best = torch.topk(scores, min(top_k, scores.shape[1]), dim=1)
        for values, columns in zip(best.values.tolist(), best.indices.tolist()):
            yield {self._ids[column]: value for value, column in zip(values, columns) if value > -float("inf")}

    @torch.inference_mode()
    def _encoded(self, rows: Any) -> Iterator[tuple[list[str], Any]]:
        """Ids of some rows, and what the head makes of them."""
        if is_video(rows):
            with tempfile.TemporaryDirectory() as folder:
                for ids, batch in _batches(undecoded(rows)):
                    paths = [video_file(row["video"], Path(folder, f"{i}.mp4")) for i, row in enumerate(batch)]
                    features = self.model.encode_videos(paths)
                    with arithmetic(self.model.device):
                        encoded = self.model.head.encode_video(features)
                    yield ids, encoded
        else:
            for ids, batch in _batches(rows):
                texts = [" ".join(filter(None, (row.get("title"), row["text"]))) for row in batch]
                features = self.model.encode_texts(texts)
                with arithmetic(self.model.device):
                    encoded = self.model.head.encode_text(features)
                yield ids, encoded


def is_video(rows: Any) -> bool:
    """Whether the rows of a data set are videos. Raises UsageError where they are neither videos alone nor text alone."""
    names = {*rows.column_names} & {"video", "text", "audio", "image"}
    if names not in ({"video"}, {"text"}):
        found = ", ".join(sorted(names)) or "nothing"
        raise UsageError(f"rows hold {found} beside their ids; expected `video` or `text`: a run knows nothing else")
    return names == {"video"}


def undecoded(rows: Any) -> Any:
    """The rows with videos as files, which are decoded here as extraction decodes them."""
    if not hasattr(rows, "cast_column"):
        return rows
    from datasets import Video  # pyright: ignore[reportMissingImports]

    return rows.cast_column("video", Video(decode=False))


def video_file(video: Any, aside: Path) -> Path:
    """The file of a video as a data set holds it: a path, or `{"path": …, "bytes": …}`, whose bytes are put `aside`."""
    held = video if isinstance(video, Mapping) else {"path": video}
    if held.get("bytes") is not None:
        aside.write_bytes(held["bytes"])
        return aside
    if not isinstance(held.get("path"), str | os.PathLike):
        raise InputError(f"a video is {type(video).__name__}, expected a path, or a mapping with `path` or `bytes`")
    return Path(held["path"])


def _batches(rows: Any) -> Iterator[tuple[list[str], list[Any]]]:
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH:
            yield [str(each["id"]) for each in batch], batch
            batch = []
    if batch:
        yield [str(each["id"]) for each in batch], batch
