"""A trained head with the cache it searches and the backbone that encodes more: ask it in sentences.

T sentences, V videos, L tokens, D embed_dim.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from glscl.cache.schema import TextFeatures
from glscl.cache.store import Store
from glscl.cache.table import FeatureTable
from glscl.common.errors import UsageError
from glscl.evaluate.evaluation import seen_at, zero_shot_head
from glscl.evaluate.search.search import CaptionHit, Search, VideoHit
from glscl.train_head.checkpoint import check_cache
from glscl.train_head.checkpoint import load_run as load_weights
from glscl.train_head.heads.base import Head
from glscl.train_head.recipes import RECIPES

if TYPE_CHECKING:
    from glscl.extract.backbone.encoder import Backbone


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


def zero_shot(store: Store, head: str = "mean_pool", *, device: str | torch.device = "cpu") -> Model:
    """A head that needs no training, on the frames that the recipe of the cache's data set names."""
    frames = RECIPES.get(store.recipe, RECIPES["default"]).frames
    return Model(zero_shot_head(head, store), store, frames=frames, device=device)


class Model:
    """Obtain it from `load_run`.

    Attributes:
        head: scores encoded sides.
        cache: what is searched.
        record: run.json; empty without a run.
        frames, frame_position: which frames of a video it looks at.
        device: where it computes.
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
        self._searches: dict[tuple[str | None, str | None], Search] = {}

    def __repr__(self) -> str:
        return f"Model({self.record.get('head', 'zero-shot')}, {str(self.cache.path)!r}, on {self.device})"

    @cached_property
    def backbone(self) -> Backbone:
        """What the cache was encoded with, its weights compared by hash. Raises UsageError, BackboneError."""
        return self.load_backbone()

    def load_backbone(self, weights: str | None = None) -> Backbone:
        """The backbone, from a file of `weights` where the cache was made from one; used from now on."""
        from glscl.extract.backbone.encoder import backbone_of_cache

        found = backbone_of_cache(self.cache.configuration, self.cache.path, weights, device=self.device)
        self.__dict__["backbone"] = found
        return found

    def table(self, split: str | None = None) -> FeatureTable:
        """Features of a split as this head wants them; None is the whole list."""
        return self.cache.table(
            split,
            frames=self.frames,
            frame_position=self.frame_position,
            tokens=self.head.needs_tokens,
            device=self.device,
        )

    def encode_texts(self, texts: Sequence[str]) -> TextFeatures:
        """Sentences → (T, D) and (T, L, D) features as the cache holds them, white space folded."""
        found = self.backbone.encode_texts([" ".join(text.split()) for text in texts])
        tokens, mask = (None if each is None else each.to(self.device) for each in found[1:])
        return TextFeatures(found.text_features.to(self.device), tokens, mask)

    @torch.inference_mode()
    def similarity(self, texts: Sequence[str] | TextFeatures, table: FeatureTable | None = None) -> Tensor:
        """(T, V) float32: how well each sentence fits each video of a table; the whole list by default."""
        text = texts if isinstance(texts, TextFeatures) else self.encode_texts(texts)
        search = self.searching(None) if table is None else Search(self.head, table)
        return search.similarity(text)

    def search(
        self, sentence: str, *, top: int = 10, split: str | None = None, normalise: str | None = None
    ) -> list[VideoHit]:
        """The videos that fit a sentence best, each with the moment that fits best.

        Raises:
            UsageError: the sentence is empty, or `normalise` (see `glscl.evaluate.hubness.ONLINE`) cannot be.
        """
        if not sentence.strip():
            raise UsageError("The sentence is empty")
        return self.searching(split, normalise).videos(self.encode_texts([sentence]), top=top)

    def search_captions(
        self, video: os.PathLike[str] | str, *, top: int = 10, split: str | None = None, normalise: str | None = None
    ) -> list[CaptionHit]:
        """The captions that fit a video file best. Raises NotFoundError, DecodeError."""
        from glscl.cache.schema import VideoFeatures
        from glscl.cache.table import frame_positions
        from glscl.extract.decode.video import Decoding

        search = self.searching(split, normalise)
        frames, _ = self.backbone.encode_video(Path(video), Decoding.of_cache(self.cache.configuration["sampling"]))
        chosen = frame_positions(len(frames), search.table.frame_features.shape[1], "uniform")
        features = torch.from_numpy(frames[chosen]).to(self.device)[None]  # (1, F, D)
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=self.device)
        return search.captions(VideoFeatures(features, mask), top=top)

    def searching(self, split: str | None, normalise: str | None = None) -> Search:
        """The search of a split, its gallery encoded once."""
        key = split, normalise
        if key not in self._searches:
            train: Callable[[], FeatureTable] | None = (lambda: self.table("train")) if normalise else None
            self._searches[key] = Search(self.head, self.table(split), normalise=normalise, train=train)
        return self._searches[key]
