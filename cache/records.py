"""What stands in a cache's JSON files, as types: the head and the commits. (Lists: `glscl.cache.lists`.)

These files may have been damaged, or made by anybody: whatever is not as it should be is a ValueError naming the field,
which whoever reads them turns into one line naming the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict, TypeVar

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from glscl.cache.additions import MAX_ITEMS, Addition
from glscl.cache.frame_format import FrameSpec
from glscl.cache.schema import Format
from glscl.cache.shard_arrays import LAYOUT, numpy_dtype

# More is no cache but an attempt to fill the memory.
MAX_SHARDS, MAX_DIM = 10**7, 10**6

Count = Annotated[int, Meta(ge=0, le=MAX_ITEMS)]
Positive = Annotated[int, Meta(ge=1, le=MAX_ITEMS)]

Kind = TypeVar("Kind")


class PreprocessingRecord(Struct, frozen=True):
    method: str = ""


class BackboneRecord(Struct, frozen=True):
    name: str
    pretrained: str
    weights: str = ""
    preprocessing: PreprocessingRecord = PreprocessingRecord()
    words: Positive = 1


class Backbones(Struct, frozen=True):
    """What a configuration says of its backbone, and of one for captions alone."""

    backbone: BackboneRecord
    text_backbone: BackboneRecord | UnsetType = UNSET


class Configuration(Backbones, frozen=True, kw_only=True):
    tokens: bool
    pad_tokens: bool = False
    embed_dim: Annotated[int, Meta(ge=1, le=MAX_DIM)]
    dtype: Literal["float16", "float32", "bfloat16"]
    sampling: dict[str, Any] = {}


class Header(Struct):
    """The fields of store.json that a reader uses; a flat file has `commits` and `list` too."""

    format: Format
    fingerprint: str
    configuration: Configuration
    stored_frames: FrameSpec | None = None


class FlatItems(Struct):
    video: Count
    text: Count


class FlatHeader(Struct):
    """What the head of a flat file says besides: how many items of each stream it holds."""

    items: FlatItems


class StoredArray(TypedDict):
    """What a commit says of an array."""

    shape: list[Annotated[int, Meta(ge=0)]]
    dtype: str
    crc32: int  # of its raw bytes


class Failure(TypedDict):
    """An item without features, or with fewer than it should have."""

    key: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    reason: str | None
    status: Literal["missing", "decode_error", "partial", "timed_out"]


class Commit(Struct, frozen=True):
    """The record that makes one shard part of the cache."""

    stream: str
    addition: str
    shard: Annotated[int, Meta(ge=0, le=MAX_SHARDS)]
    items: tuple[int, int]  # within the addition
    path: str  # below the cache
    arrays: dict[str, StoredArray]
    failures: list[Failure]
    # of the addition, so that it can be written again from its shards
    shard_items: Count = 0
    attempt: Count = 0


def checked(kind: type[Kind], value: Any) -> Kind:
    """What was read from JSON as a type, its fields too. Raises ValueError naming the first field that does not fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        what, _, where = ascii(str(error))[1:-1].replace("`", "").partition(" - at $")
        field = where.lstrip(".")
        raise ValueError(f"{field}: {what[:1].lower()}{what[1:]}" if field else what) from None


def parse_header(header: Mapping[str, Any]) -> Header:
    """Raises ValueError unless the head has every field that a reader uses, of its type and within its bounds."""
    found = checked(Header, header)
    if "commits" in header:
        checked(FlatHeader, header)
    return found


def check_backbones(configuration: Mapping[str, Any]) -> None:
    """Raise ValueError unless what a configuration says of its backbone, and of one for captions alone, can be used."""
    checked(Backbones, configuration)


def parse_commit(row: Any, header: Header, addition: Addition) -> Commit:
    """A commit as a record. Raises ValueError where it is not one of this cache and addition."""
    commit = checked(Commit, row)
    if (commit.stream, commit.addition) != (addition.stream, addition.name):
        raise ValueError(f"it is of {_short(commit.stream)}, {_short(commit.addition)}, expected {addition.name}")
    items = addition.shard_range(commit.shard)
    if commit.items != (items.start, items.stop) or not len(items):
        raise ValueError(f"items of shard {commit.shard} are {commit.items}, expected {items.start} to {items.stop}")
    if (
        commit.path.startswith("/")
        or "\\" in commit.path
        or "\0" in commit.path
        or not {"..", ""}.isdisjoint(commit.path.split("/"))
    ):
        raise ValueError(f"path is {_short(commit.path)}, expected one below the cache")
    _check_arrays(commit, header.configuration)
    if commit.stream == "video" and header.stored_frames is not None:
        _check_frames(commit.arrays, header.stored_frames)
    return commit


def _check_arrays(commit: Commit, configuration: Configuration) -> None:
    """Shapes and types as the layout says; the lengths of ragged arrays agree with each other."""
    rows: dict[str, int] = {}
    count = commit.items[1] - commit.items[0]
    for name, spec in LAYOUT[commit.stream].items():
        shape, dtype = _array(commit.arrays, name)["shape"], commit.arrays[name]["dtype"]
        columns = [configuration.embed_dim] if spec.columns else []
        expected = numpy_dtype(spec, configuration.dtype).name
        if not shape or shape[1:] != columns:
            raise ValueError(f"{name} has the shape {_short(shape)}, expected {['n', *columns]}")
        if dtype != expected:
            raise ValueError(f"{name} has dtype {_short(dtype)}, expected {expected}")
        length = {"items": count, "boundaries": count + 1}.get(spec.along)
        length = rows.setdefault(spec.boundaries or "", shape[0]) if length is None else length
        if shape[0] != length:
            raise ValueError(f"{name} has the length {shape[0]}, expected {length}")


def _check_frames(arrays: dict[str, StoredArray], frames: FrameSpec) -> None:
    """The arrays of stored frames: a picture, or a boundary of one, for each row of features."""
    rows = arrays["values"]["shape"][0]
    for name, expected in frames.shapes(rows).items():
        shape = _array(arrays, name)["shape"]
        if shape != list(expected) and not (len(shape) == 1 and expected == (None,)):
            raise ValueError(
                f"{name} has the shape {_short(shape)}, expected {['n' if n is None else n for n in expected]}"
            )


def _array(arrays: dict[str, StoredArray], name: str) -> StoredArray:
    if name not in arrays:
        raise ValueError(f"arrays: {name} is not among them")
    return arrays[name]


def _short(value: Any) -> str:
    """A value as it may stand in a message."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
