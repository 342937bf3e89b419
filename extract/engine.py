"""Where shards are made: in this process, or by an engine on other machines (`glscl.extract.cluster`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from glscl.cache.additions import Addition
from glscl.cache.formats.blocks import Blocks
from glscl.cache.frame_format import FrameSpec
from glscl.cache.keys import Stat
from glscl.cache.library import Library, Place
from glscl.common.devices import has_matrix_tiles
from glscl.common.progress import Progress
from glscl.extract.backbone.encoder import Backbone, Description, load_backbone
from glscl.extract.backbone.parameters import MILLIONS
from glscl.extract.backbone.picture_transform import PictureTransform
from glscl.extract.batching import Stopwatch
from glscl.extract.decode.video import FrameChunk, VideoDone, VideoTask
from glscl.extract.listing import Source
from glscl.extract.settings import ExtractSettings

LARGE = 80  # million parameters: from ViT-B on, of which ViT-B-32 was measured, bfloat16 pays


class Keys(Protocol):
    """The items of a stream, as far as who encodes them needs to know."""

    def keys_at(self, place: Place, /) -> np.ndarray: ...


class Destination(Protocol):
    """What takes the shards that are made: a `Library`, or elsewhere what stands for one."""

    @property
    def path(self) -> Path: ...
    @property
    def frames(self) -> FrameSpec | None: ...
    @property
    def embed_dim(self) -> int: ...
    @property
    def dtype(self) -> str: ...

    def stream(self, name: str, /) -> Keys: ...

    def commit(
        self,
        addition: Addition,
        shard: int,
        arrays: Mapping[str, np.ndarray | Blocks],
        *,
        failures: Sequence[Mapping[str, Any]] = (),
        ledger: Sequence[Mapping[str, Any]] = (),
    ) -> bool: ...


class Pool(Protocol):
    """What decodes: a `DecodePool`, or decoders elsewhere."""

    def decode(self, tasks: Iterable[VideoTask], /) -> Iterator[FrameChunk | VideoDone]: ...


@dataclass(frozen=True)
class AboutBackbone:
    """A backbone, here or elsewhere, as far as a cache keeps it.

    Attributes:
        gives_tokens, is_causal: as of its text tower.
        tensors: that heads start from. Others: as of `Backbone`.
    """

    description: Description
    embed_dim: int
    transform: PictureTransform
    gives_tokens: bool
    is_causal: bool
    tensors: Mapping[str, np.ndarray]
    notes: Sequence[str]

    @classmethod
    def of(cls, backbone: Backbone) -> AboutBackbone:
        return cls(
            description=backbone.description,
            embed_dim=backbone.embed_dim,
            transform=backbone.transform,
            gives_tokens=backbone.text_tower.gives_tokens,
            is_causal=backbone.text_tower.is_causal,
            tensors=backbone.tensors_for_heads(),
            notes=[*backbone.notes],
        )


@runtime_checkable
class Engine(Protocol):
    """Makes shards elsewhere; they come back as they would be made here, and are committed by who asked."""

    @property
    def precision(self) -> str:
        """What the setting `precision` is there."""
        ...

    def backbone(self) -> AboutBackbone:
        """The backbone, once it is loaded there. Raises as `load_backbone`."""
        ...

    def captions(
        self, library: Library, places: Sequence[Place], captions: Mapping[bytes, str], progress: Progress
    ) -> int:
        """As `extract_captions`."""
        ...

    def videos(
        self,
        library: Library,
        places: Sequence[Place],
        sources: Mapping[bytes, Source],
        listed: Callable[[str], Stat | None],
        progress: Progress,
    ) -> Stopwatch:
        """As `VideoExtraction.run`; seconds are summed over all machines."""
        ...


def backbone_of(settings: ExtractSettings, device: str | torch.device) -> Backbone:
    """The backbone of an extraction. Raises as `load_backbone`."""
    backbone = load_backbone(
        settings.backbone,
        settings.pretrained,
        words=settings.max_words,
        device=device,
        precision=settings.precision,
        preprocess=settings.preprocess,
        asked=settings,
    )
    if settings.compile:
        backbone.compile(settings.batch_frames)
    return backbone


def precision_in_force(settings: ExtractSettings, device: torch.device, made_with: str | None) -> str:
    """What the setting `precision` is on this machine.

    `auto` goes on as the cache began; else it is fp16 on a GPU, and bf16 where the processor multiplies it in tiles and the
    backbone is large enough for products to be what it waits for.

    Args:
        made_with: precision of the backbone that made the cache; None where there is none yet.
    """
    if settings.precision != "auto":
        return settings.precision
    known = {"fp32": "fp32"}
    known |= {"fp16": "fp16", "bf16": "bf16"} if device.type == "cuda" else {"bf16 weights": "bf16"}
    if made_with in known:
        return known[made_with]
    if device.type == "cuda":
        return "fp16"
    large = MILLIONS.get(settings.backbone, 0) >= LARGE and device.type == "cpu"
    return "bf16" if large and has_matrix_tiles() else "fp32"
