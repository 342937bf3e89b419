"""The records that cross the walls between rooms: entries of a list, features in batches, and the status of an item.

T texts, V videos, L tokens, F frames, D embed_dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, get_args

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    import torch

SCHEMA = "glscl.cache/2"
STREAMS = ("video", "text")
Format = Literal["zarr", "hdf5"]  # of a cache: keys of `glscl.cache.formats.STORES`
FORMATS: tuple[Format, ...] = get_args(Format)
FramePosition = Literal["uniform", "first", "last"]  # which frames of a video where there are more than are wanted
PAD = -1  # token id of what stands behind a caption, in a cache that stores it
DEPTH = 3  # names from the root of a cache to a shard or a commit: nothing deeper is ever written
SAME_VIDEO = ("separate", "mask", "negative")  # what a training batch does with captions of one video


class Status(IntEnum):
    """What became of one item; stored as uint8 in the array `status`."""

    OK = 0
    MISSING = 1  # no such file
    DECODE_ERROR = 2  # the file gives no frame at all, or its decoder died
    PARTIAL = 3  # frames until an error part-way; they are kept
    TIMED_OUT = 4  # the decoder made no progress within the time limit

    @property
    def usable(self) -> bool:
        """Whether the item has features."""
        return self in (Status.OK, Status.PARTIAL)


# Of both kinds, for a number is written down as it was given: 12 and 12.0 are not the same bytes in a hash.
Seconds = Annotated[int, Meta(ge=0, lt=10**12)] | Annotated[float, Meta(ge=0, lt=1e12)]


class VideoItem(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One gallery entry: a video file, or the part [start, end) seconds of one. `path` is None where no file was found."""

    id: str
    split: str
    path: str | None
    start: Seconds | None = None
    end: Seconds | None = None


class TextItem(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One caption. `text` is what is encoded (white space folded); `original` only where it differs from `text`."""

    id: str
    video: str
    split: str
    text: str
    original: str | None = None


class Expected(NamedTuple):
    """Published size of a split; None where nothing is published."""

    captions: int | None
    videos: int | None


class Split(NamedTuple):
    """A split is a contiguous run of the videos and of the texts of a list."""

    videos: range
    texts: range
    expected: Expected


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What a dataset reader returns: every video and caption of the chosen splits, with what it dropped and why.

    Attributes:
        written: ids of all captions in the order in which they stand in their files, with those that were dropped or
            that fall into splits not chosen; empty where the order is that of `texts`.
    """

    MADE_BY: ClassVar = "`glscl.read_dataset`"

    dataset: str
    videos: list[VideoItem]
    texts: list[TextItem]
    expected: dict[str, Expected] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # one line each: what was dropped, counted, and the reason
    written: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Annotations({self.dataset!r}, {len(self.videos)} videos, {len(self.texts)} texts)"


class TextFeatures(NamedTuple):
    """A batch of encoded captions: raw projected features, not L2-normalised.

    Attributes:
        text_features: (T, D) pooled text feature, the projected state at end-of-text.
        token_features: (T, L, D) projected states of all tokens, or None where a cache holds none.
        token_mask: (T, L) bool, True = real token; None exactly where `token_features` is.
    """

    text_features: torch.Tensor
    token_features: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None

    def __repr__(self) -> str:
        return f"TextFeatures({_shapes(self._asdict())})"


class VideoFeatures(NamedTuple):
    """A batch of encoded videos: raw projected features, not L2-normalised.

    Attributes:
        frame_features: (V, F, D) projected frame features; padded frames are zero.
        frame_mask: (V, F) bool, True = real frame; every video has at least one.
    """

    frame_features: torch.Tensor
    frame_mask: torch.Tensor

    def __repr__(self) -> str:
        return f"VideoFeatures({_shapes(self._asdict())})"


def _shapes(tensors: dict[str, torch.Tensor | None]) -> str:
    return ", ".join(f"{name}={None if t is None else (*t.shape,)}" for name, t in tensors.items())
