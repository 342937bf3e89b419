"""A trained head with the cache it searches and the backbone that encodes more: ask it in sentences, pictures and clips.

T sentences, V videos, L tokens, n frames, D embed_dim.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.common.arguments import types_checked
from glscl.common.devices import arithmetic
from glscl.common.errors import NotFoundError, UsageError
from glscl.evaluate.evaluation import seen_at, zero_shot_head
from glscl.evaluate.search.answers import CaptionHit, ListedFiles, MomentHit, VideoHit, Where
from glscl.evaluate.search.frame_index import BEST_FRAMES, FoundVideo, FrameIndex
from glscl.evaluate.search.indexes import EVERYWHERE, Indexes
from glscl.evaluate.search.moments import Moment, around_best, moments_of
from glscl.evaluate.search.search import Search
from glscl.evaluate.search.settings import SearchSettings
from glscl.train_head.checkpoint import load_run as load_weights
from glscl.train_head.heads.base import Head
from glscl.train_head.heads.best_frames import BestFrames
from glscl.train_head.recipes import RECIPES
from glscl.train_head.run_cache import check_cache

if TYPE_CHECKING:
    from glscl.extract.backbone.encoder import Backbone

REORDERED = 100  # videos found by their frames that a head puts in order


@types_checked
def load_run(
    run: os.PathLike[str] | str,
    cache: Store | os.PathLike[str] | str | None = None,
    *,
    list: str | None = None,
    weights: str = "best",
    device: str | torch.device = "cpu",
) -> Model:
    """A trained head, ready for sentences.

    Args:
        run: folder of a run.
        cache: what it searches; None is the cache that it was trained on.
        list: which list of the cache; None is that of an open cache, else the version that the run was trained on, else
            the only one.
        weights: "best" or "last".
        device: where to compute.

    Raises:
        NotFoundError, CheckpointError: there is no such run, or it cannot be read.
        FingerprintError: its head cannot understand this cache.
        UsageError: the cache has several lists, and none of them is the run's.
    """
    folder = Path(run)
    head, record = load_weights(folder, which=weights)
    store = seen_at(cache, folder, list)
    check_cache(folder, record, store)
    settings = record["settings"]
    frames, position = settings.get("max_frames"), settings.get("frame_position", "uniform")
    return Model(head, store, record=record, frames=frames, frame_position=position, device=device)


@types_checked
def zero_shot(store: Store, head: str = "best_frames", *, device: str | torch.device = "cpu") -> Model:
    """A head that needs no training; where it looks at few frames, at as many as the recipe of the data set names."""
    frames = RECIPES.get(store.recipe, RECIPES["default"]).frames
    return Model(zero_shot_head(head, store), store, record={"head": head}, frames=frames, device=device)


class Query(NamedTuple):
    """What is looked for.

    Attributes:
        vector: (D,) that frames are compared with.
        sentences: features of one caption each, with the weight of its scores; empty for pictures and clips.
        frames: (n, D) of a clip.
        itself: row of the list that is not an answer, for it is the question.
    """

    vector: Tensor
    sentences: tuple[tuple[TextFeatures, float], ...] = ()
    frames: Tensor | None = None
    itself: int | None = None

    @classmethod
    def of_frames(cls, frames: Tensor) -> Query:
        """A clip by the features of its frames (n, D)."""
        return cls(F.normalize(frames, dim=-1).mean(0), frames=frames)

    def __repr__(self) -> str:
        what = (
            f"{len(self.sentences)} sentences" if self.sentences else "a picture" if self.frames is None else "a clip"
        )
        return f"Query({what})"


class Model:
    """Obtain it from `load_run`, or `zero_shot`.

    Every stored frame is looked at: videos are found by their best frames, and a trained head re-orders the best of
    them, each on the frames around its best moment.

    Attributes:
        head: scores encoded sides.
        cache: what is searched.
        record: run.json; without a run the name of the head alone.
        frames, frame_position: which frames of a video the head looks at where it is not told the moment.
        device: where it computes.
        indexes: the frames that it looks at.
    """

    def __init__(
        self,
        head: Head,
        cache: Store,
        *,
        record: dict[str, Any] | None = None,
        frames: int | None = None,
        frame_position: Any = "uniform",
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        self.head, self.cache, self.record = head.to(self.device).eval(), cache, record or {}
        self.frames, self.frame_position = frames, frame_position
        self.files = ListedFiles(cache)
        self._searches: dict[tuple[str | None, str | None], Search] = {}
        self.indexes = Indexes(cache, self.files, self.device)

    def __repr__(self) -> str:
        return f"Model({self.name}, {str(self.cache.path)!r}, on {self.device})"

    @property
    def name(self) -> str:
        """Of the head."""
        return self.record.get("head", type(self.head).__name__)

    @property
    def padded(self) -> bool:
        """Whether the head reads what stands behind captions and frames."""
        return not self.head.mask_padding

    @cached_property
    def backbone(self) -> Backbone:
        """What the cache was encoded with, its weights compared by hash. Raises UsageError, BackboneError."""
        return self.load_backbone()

    def load_backbone(self, weights: str | None = None, *, texts_only: bool = False) -> Backbone:
        """The backbone, from a file of `weights` where the cache was made from one; used from now on.

        Args:
            texts_only: only sentences will be asked for, for which less is read.
        """
        from glscl.extract.backbone.encoder import backbone_of_cache

        found = backbone_of_cache(
            self.cache.configuration, self.cache.path, weights, device=self.device, texts_only=texts_only
        )
        self.__dict__["backbone"] = found
        return found

    # --- features and scores -----------------------------------------------------------------------------------

    def table(self, split: str | None = None) -> FeatureTable:
        """Features of a split as this head wants them; None is the whole list."""
        return self.cache.table(
            split,
            frames=self.frames,
            frame_position=self.frame_position,
            tokens=self.head.needs_tokens,
            padded=self.padded,
            device=self.device,
        )

    def index(self, where: Where = EVERYWHERE, *, exact: bool = False) -> FrameIndex:
        """The frames of the videos chosen; see `Indexes.get`."""
        return self.indexes.get(where, exact=exact)

    def share(self, other: Model) -> Model:
        """Look at what another model of the same list has read: its frames, its files, its backbone. Returns itself."""
        self.indexes, self.files = other.indexes, other.files
        if "backbone" in other.__dict__:
            self.__dict__["backbone"] = other.backbone
        return self

    @types_checked
    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Sentences → (T, D) and (T, L, D) features as the cache holds them, white space folded."""
        found = self.backbone.encode_texts([" ".join(text.split()) for text in texts], padded=self.padded)
        tokens, mask = (None if each is None else each.to(self.device) for each in found[1:])
        return TextFeatures(found.text_features.to(self.device), tokens, mask)

    @types_checked
    def encode_videos(self, paths: Sequence[os.PathLike[str] | str]) -> VideoFeatures:
        """Video files → (V, F, D) features of the frames that the head looks at. Raises NotFoundError, DecodeError."""
        from glscl.cache.table import frame_positions

        videos = []
        for path in paths:
            frames, _ = self._encode_clip(Path(path), None, None)
            chosen = frame_positions(len(frames), self.frames or len(frames), self.frame_position)
            videos.append(torch.from_numpy(frames[chosen]))
        return self._looked_at(videos)

    @types_checked
    @torch.inference_mode()
    def similarity(self, texts: Sequence[str] | TextFeatures, table: FeatureTable | None = None) -> Tensor:
        """(T, V) float32: how well each sentence fits each video of a table; the whole list by default."""
        text = texts if isinstance(texts, TextFeatures) else self.encode_texts(texts)
        search = self.searching(None) if table is None else Search(self.head, table)
        return search.similarity(text)

    # --- what is looked for ------------------------------------------------------------------------------------

    @types_checked
    def sentence(self, text: str, *, also: Sequence[str] = (), without: Sequence[str] = ()) -> Query:
        """A sentence, with others that count as much, and others that count against it by half.

        Raises:
            UsageError: a sentence is empty.
        """
        weighted = [(text, 1.0), *((each, 1.0) for each in also), *((each, -0.5) for each in without)]
        if not all(each.strip() for each, _ in weighted):
            raise UsageError("The sentence is empty")
        features = [(self.encode_texts([each]), weight) for each, weight in weighted]
        vector = torch.stack([weight * F.normalize(t.text_features[0], dim=-1) for t, weight in features]).sum(0)
        return Query(vector, tuple(features))

    def picture(self, path: os.PathLike[str] | str) -> Query:
        """A picture file. Raises NotFoundError, InputError."""
        return Query(torch.from_numpy(self.backbone.encode_picture(Path(path))).to(self.device))

    def clip(self, path: os.PathLike[str] | str, *, start: float | None = None, end: float | None = None) -> Query:
        """A video file, or its part from `start` to `end` seconds. Raises NotFoundError, DecodeError."""
        frames, _ = self._encode_clip(Path(path), start, end)
        return Query.of_frames(torch.from_numpy(frames).to(self.device))

    def listed(self, video: str, *, time: float | None = None) -> Query:
        """A video of the list, or what it shows at a time in seconds. Raises NotFoundError."""
        try:
            row = self.cache.list.video_ids.index(video)
        except ValueError:
            raise NotFoundError(f"The list {self.cache.list_name} has no video {video!r}") from None
        index = FrameIndex.load(self.cache, np.array([row]), device=self.device)
        frames = index.features_of(0).float()
        if time is None:
            return Query.of_frames(frames)._replace(itself=row)
        return Query(frames[int(np.abs(index.times - time).argmin())])

    # --- answers -----------------------------------------------------------------------------------------------

    def answer(self, query: Query, settings: SearchSettings) -> Sequence[VideoHit | MomentHit]:
        """What settings ask for: `find`, `find_moments` or `find_as_judged`."""
        minimum = -math.inf if settings.minimum is None else settings.minimum
        if settings.normalise is not None or settings.max_frames is not None:
            return self.find_as_judged(
                query, settings.normalise, top=settings.top, split=settings.split, moments=settings.moments
            )
        where = Where.of(settings)
        if settings.by == "moment":
            return self.find_moments(query, top=settings.top, where=where, minimum=minimum, exact=settings.exact)
        return self.find(
            query, top=settings.top, where=where, moments=settings.moments, minimum=minimum, exact=settings.exact
        )

    @types_checked
    def search(
        self, sentence: str, *, top: int = 10, split: str | None = None, normalise: str | None = None
    ) -> list[VideoHit]:
        """The videos that fit a sentence best, each with the moment that fits best; see `find`.

        Raises:
            UsageError: the sentence is empty, or `normalise` (see `glscl.evaluate.hubness.ONLINE`) cannot be.
        """
        query = self.sentence(sentence)
        return self.find(query, top=top, where=Where(split)) if normalise is None else self.find_as_judged(
            query, normalise, top=top, split=split
        )  # fmt: skip

    def find(
        self,
        query: Query,
        *,
        top: int = 10,
        where: Where = EVERYWHERE,
        moments: int = 1,
        minimum: float = -math.inf,
        exact: bool = False,
    ) -> list[VideoHit]:
        """The videos that fit best, with their best moments.

        Args:
            top: how many at most.
            where: which videos are searched.
            moments: how many a video at most.
            minimum: only those whose score is at least this.
            exact: look at every frame, also where there is an approximate index.
        """
        index = self.index(where, exact=exact)
        best = self.head.count if isinstance(self.head, BestFrames) else BEST_FRAMES
        if query.frames is None and not query.sentences:  # a picture is found where it is seen
            best = 1
        reorder = self._reordering(query)
        found = index.search(
            query.vector,
            top=top + 1 if reorder is None else max(top + 1, REORDERED),
            best=best,
            minimum=minimum if reorder is None else -math.inf,
        )
        found = [each for each in found if index.entries[each.video] != query.itself]
        if reorder is not None:
            scores = reorder(index, found)
            found = [each._replace(score=score) for each, score in zip(found, scores.tolist()) if score >= minimum]
            found.sort(key=lambda each: -each.score)
        return [
            self._hit(rank, int(index.entries[each.video]), each.score, None, self._moments(index, each, moments))
            for rank, each in enumerate(found[:top], 1)
        ]

    def find_moments(
        self,
        query: Query,
        *,
        top: int = 10,
        where: Where = EVERYWHERE,
        minimum: float = -math.inf,
        exact: bool = False,
    ) -> list[MomentHit]:
        """The moments of all videos that fit best; a score is the cosine of a moment's best frame. Arguments as in `find`."""
        index = self.index(where, exact=exact)
        found = [
            (moment, int(index.entries[each.video]))
            for each in index.search(query.vector, top=top + 1, best=1, minimum=minimum)
            if index.entries[each.video] != query.itself
            for moment in self._moments(index, each, top)
            if moment.score >= minimum
        ]
        found.sort(key=lambda each: -each[0].score)
        return [
            MomentHit(rank, self.cache.list.video_ids[row], self.files.path_of(row), moment.score, (moment,))
            for rank, (moment, row) in enumerate(found[:top], 1)
        ]

    def find_as_judged(
        self, query: Query, normalise: str | None, *, top: int = 10, split: str | None = None, moments: int = 1
    ) -> list[VideoHit]:
        """The videos of a split as an evaluation ranks them: by the head on the frames it was trained with, normalised or not.

        Raises:
            UsageError: the query is not one sentence, or see `search`.
        """
        if len(query.sentences) != 1:
            raise UsageError("Only one sentence can be judged as in an evaluation")
        search = self.searching(split, normalise)
        ranked = search.videos(query.sentences[0][0], top=top)
        row_of = {id: row for row, id in enumerate(self.cache.list.video_ids)}
        rows = np.array([row_of[search.table.video_ids[each]] for each in ranked.rows])
        index = FrameIndex.load(self.cache, np.sort(rows), device=self.device)
        videos = np.searchsorted(index.entries, rows)
        found = [FoundVideo(v, 0.0, c) for v, c in zip(videos.tolist(), index.cosines(query.vector, videos))]
        return [
            self._hit(rank, int(row), score, normalised, self._moments(index, each, moments))
            for rank, (row, each, score, normalised) in enumerate(zip(rows, found, *ranked[1:]), 1)
        ]

    def search_captions(
        self, video: os.PathLike[str] | str, *, top: int = 10, split: str | None = None, normalise: str | None = None
    ) -> list[CaptionHit]:
        """The captions that fit a video file best. Raises NotFoundError, DecodeError."""
        from glscl.cache.table import frame_positions

        search = self.searching(split, normalise)
        frames, _ = self._encode_clip(Path(video), None, None)
        chosen = frame_positions(len(frames), search.table.frame_features.shape[1], "uniform")
        return search.captions(self._looked_at([torch.from_numpy(frames[chosen])]), top=top)

    def searching(self, split: str | None, normalise: str | None = None) -> Search:
        """The head on the table of a split, its gallery encoded once."""
        key = split, normalise
        if key not in self._searches:
            train: Callable[[], FeatureTable] | None = (lambda: self.table("train")) if normalise else None
            self._searches[key] = Search(self.head, self.table(split), normalise=normalise, train=train)
        return self._searches[key]

    def _encode_clip(self, path: Path, start: float | None, end: float | None) -> tuple[np.ndarray, np.ndarray]:
        from glscl.extract.decode.video import Decoding

        decoding = Decoding.of_cache(self.cache.configuration["sampling"])
        return self.backbone.encode_video(path, decoding, start=start, end=end)

    def _reordering(self, query: Query) -> Callable[[FrameIndex, list[FoundVideo]], Tensor] | None:
        """What scores the videos found by their frames anew, (n,); None where they are in order already."""
        if query.frames is not None:
            frames = query.frames
            return lambda index, found: _likeness(index, found, frames)
        if query.sentences and not isinstance(self.head, BestFrames):
            return lambda index, found: self._scores(index, found, query)
        return None

    @torch.inference_mode()
    def _scores(self, index: FrameIndex, found: list[FoundVideo], query: Query) -> Tensor:
        """(n,) scores of the head, of each video on the frames around its best moment."""
        positions = [around_best(each.cosines, self.frames or len(each.cosines)) for each in found]
        stored = index.features(np.array([each.video for each in found], np.int64))
        frames = [rows[torch.from_numpy(chosen)] for rows, chosen in zip(stored, positions)]
        with arithmetic(self.device):
            encoded = self.head.encode_video(self._looked_at(frames))
            return torch.stack(
                [weight * self.head.score(self.head.encode_text(text), encoded)[0] for text, weight in query.sentences]
            ).sum(0)

    def _looked_at(self, videos: list[Tensor]) -> VideoFeatures:
        """Frames (F, D) of some videos as the head wants them: padded with zeros, or as in a table that is `padded`."""
        width = max([1, (self.padded and self.frames) or 1, *map(len, videos)])
        features = torch.zeros(len(videos), width, self.cache.embed_dim, device=self.device)
        mask = torch.zeros(len(videos), width, dtype=torch.bool, device=self.device)
        if self.padded:
            features += torch.from_numpy(self.cache.backbone_tensors()["padded_frame"]).to(self.device)
        for row, frames in enumerate(videos):
            features[row, : len(frames)] = frames.float()
            mask[row, : len(frames)] = True
        return VideoFeatures(features, mask)

    def _moments(self, index: FrameIndex, found: FoundVideo, count: int) -> tuple[Moment, ...]:
        times, duration = index.times_of(found.video), float(index.durations[found.video])
        return tuple(moments_of(found.cosines, times, duration, count=count))

    def _hit(
        self, rank: int, row: int, score: float, normalised: float | None, moments: tuple[Moment, ...]
    ) -> VideoHit:
        id, path = self.cache.list.video_ids[row], self.files.path_of(row)
        return VideoHit(rank, id, path, score, normalised, moments[0].time, moments)


@torch.inference_mode()
def _likeness(index: FrameIndex, found: list[FoundVideo], frames: Tensor) -> Tensor:
    """(n,) how much of a clip is in each video: the mean over its frames of the highest cosine with one of the video's."""
    ours = F.normalize(frames.float(), dim=-1)
    stored = index.features(np.array([each.video for each in found], np.int64))
    theirs = (F.normalize(each.float(), dim=-1) for each in stored)
    return torch.stack([(ours @ each.T).amax(1).mean() for each in theirs]) if found else torch.zeros(0)
