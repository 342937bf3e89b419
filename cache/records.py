"""What stands in a cache's JSON files, checked field by field: the head, commits, and lines of the plan.

These files may have been damaged, or made by anybody: whatever is not as it should be is a ValueError saying what,
which the store turns into one line naming the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from glscl.cache.schema import STREAMS, TextItem, VideoItem
from glscl.cache.shard_arrays import FEATURE_DTYPES, LAYOUT, numpy_dtype

MAX_ITEMS, MAX_SHARDS, MAX_DIM, MAX_SIDE, MAX_SECONDS = (
    10**9,
    10**7,
    10**6,
    10**5,
    1e12,
)  # more is no cache but an attempt to fill the memory

_SECONDS = {"start", "end"}  # fields of an item
_OPTIONAL = {"path", "original", *_SECONDS}

Item = TypeVar("Item", VideoItem, TextItem)


class Commit(NamedTuple):
    """The record that makes one shard part of the cache."""

    stream: str
    shard: int
    revision: int
    items: tuple[int, int]
    path: str  # below the cache
    arrays: dict[str, dict[str, Any]]  # name → shape, dtype, crc32
    failures: list[dict[str, Any]]


def check_header(header: Mapping[str, Any]) -> None:
    """Raise ValueError unless the head has every field that a reader uses, of its type and within its bounds."""
    configuration = _of(header, "configuration", dict)
    _of(header, "fingerprint", str)
    _of(configuration, "dataset", str)
    _of(configuration, "tokens", bool)
    _whole(configuration, "embed_dim", 1, MAX_DIM)
    if _of(configuration, "dtype", str) not in FEATURE_DTYPES:
        raise ValueError(f"dtype is {_short(configuration['dtype'])}, expected one of {', '.join(FEATURE_DTYPES)}")
    check_backbones(configuration)
    streams = _of(header, "streams", dict)
    items = {}
    for stream in STREAMS:
        items[stream] = _whole(_of(streams, stream, dict), "items", 0, MAX_ITEMS)
        size = _whole(streams[stream], "shard_items", 1, MAX_ITEMS)
        if items[stream] > size * MAX_SHARDS:
            raise ValueError(f"{items[stream]} items in shards of {size} would be more than {MAX_SHARDS} shards")
    for name, entry in _of(header, "splits", dict).items():
        for key, stream in (("videos", "video"), ("texts", "text")):
            run = _of(_of(header["splits"], name, dict), key, list)
            if len(run) != 2 or not all(_is_whole(at) for at in run) or not 0 <= run[0] <= run[1] <= items[stream]:
                raise ValueError(f"split {_short(name)} has {key} {_short(run)} of {items[stream]}")
        for key in ("expected_videos", "expected_captions"):
            if entry[key] is not None:
                _whole(entry, key, 0, MAX_ITEMS)
    if not all(isinstance(note, str) for note in _of({"notes": [], **header}, "notes", list)):
        raise ValueError("its notes are not strings")
    if header.get("stored_frames") is not None:
        frames = _of(header, "stored_frames", dict)
        if len(sides := _of(frames, "size", list)) != 2 or not all(_is_whole(n) and 0 < n <= MAX_SIDE for n in sides):
            raise ValueError(f"size of the stored frames is {_short(sides)}")
        if frames.get("quality") is not None:
            _whole(frames, "quality", 1, 100)
    provenance = _of({"provenance": {}, **header}, "provenance", dict)
    for key in ("command", "recipe"):
        _of({key: "", **provenance}, key, str)


def check_backbones(configuration: Mapping[str, Any]) -> None:
    """Raise ValueError unless what a configuration says of its backbone, and of one for captions alone, can be used."""
    for key in ("backbone", "text_backbone"):
        if key == "text_backbone" and key not in configuration:
            continue
        made = _of(configuration, key, dict)
        _of(made, "name", str), _of(made, "pretrained", str)
        _of({"weights": "", **made}, "weights", str)
        _of({"method": "", **_of({"preprocessing": {}, **made}, "preprocessing", dict)}, "method", str)
        _whole({"words": 1, **made}, "words", 1, MAX_ITEMS)


def parse_commit(row: Any, header: Mapping[str, Any], *, stream: str) -> Commit:
    """A commit as a record. Raises ValueError where it is not one of this cache."""
    if not isinstance(row, Mapping):
        raise ValueError(f"found {_short(row)}, expected an object")
    about = header["streams"][stream]
    if _of(row, "stream", str) != stream:
        raise ValueError(f"stream is {_short(row['stream'])}, expected {stream}")
    shard = _whole(row, "shard", 0, MAX_SHARDS)
    first = shard * about["shard_items"]
    expected = [first, min(first + about["shard_items"], about["items"])]
    if list(_of(row, "items", (list, tuple))) != expected or expected[0] > expected[1]:
        raise ValueError(f"items of shard {shard} are {_short(row['items'])}, expected {expected}")
    path = _of(row, "path", str)
    if path.startswith("/") or "\\" in path or "\0" in path or not {"..", ""}.isdisjoint(path.split("/")):
        raise ValueError(f"path is {_short(path)}, expected one below the cache")
    failures = _of(row, "failures", list)
    if not all(isinstance(f, dict) and {"id", "reason", "status"} <= f.keys() for f in failures):
        raise ValueError("failures are not objects with id, reason and status")
    if not all(isinstance(f["id"], str) and isinstance(f["status"], str) for f in failures):
        raise ValueError("a failure's id or status is not a string")
    if not all(isinstance(f["reason"], str | None) for f in failures):
        raise ValueError("a failure's reason is not a string")
    arrays = _of(row, "arrays", dict)
    _check_arrays(arrays, stream, expected[1] - expected[0], header["configuration"])
    if stream == "video" and header.get("stored_frames") is not None:
        _check_frames(arrays, header["stored_frames"])
    return Commit(stream, shard, _whole(row, "revision", 0, MAX_ITEMS), tuple(expected), path, arrays, failures)


def _check_arrays(arrays: dict[str, Any], stream: str, count: int, configuration: Mapping[str, Any]) -> None:
    """Shapes and types as the layout says; the lengths of ragged arrays agree with each other."""
    rows: dict[str, int] = {}
    for name, spec in LAYOUT[stream].items():
        about = _of(arrays, name, dict)
        shape, crc = _of(about, "shape", (list, tuple)), about.get("crc32")
        dtype = numpy_dtype(spec, configuration["dtype"]).name
        columns = [configuration["embed_dim"]] if spec.columns else []
        if not shape or not all(_is_whole(length) and length >= 0 for length in shape) or list(shape[1:]) != columns:
            raise ValueError(f"{name} has the shape {_short(shape)}, expected {['n', *columns]}")
        if about.get("dtype") != dtype or not _is_whole(crc):
            raise ValueError(f"{name} has dtype {_short(about.get('dtype'))} and crc32 {_short(crc)}, expected {dtype}")
        length = {"items": count, "boundaries": count + 1}.get(spec.along)
        length = rows.setdefault(spec.boundaries or "", shape[0]) if length is None else length
        if shape[0] != length:
            raise ValueError(f"{name} has the length {shape[0]}, expected {length}")


def _check_frames(arrays: dict[str, Any], frames: Mapping[str, Any]) -> None:
    """The arrays of stored frames: a picture, or a boundary of one, for each row of features."""
    rows = arrays["values"]["shape"][0]
    expected = {
        "uint8": {"frames": [rows, *frames["size"], 3]},
        "jpeg": {"frame_offsets": [rows + 1], "frame_bytes": None},
    }
    for name, shape in expected[frames["encoding"]].items():
        found = list(_of(_of(arrays, name, dict), "shape", (list, tuple)))
        if found != shape and not (shape is None and len(found) == 1 and _is_whole(found[0])):
            raise ValueError(f"{name} has the shape {_short(found)}, expected {shape or ['n']}")


def parse_item(row: Any, kind: type[Item]) -> Item:
    """A line of the plan as a VideoItem or TextItem. Raises ValueError where it is not one."""
    if not isinstance(row, Mapping):
        raise ValueError(f"found {_short(row)}, expected an object")
    unknown = sorted(row.keys() - set(kind._fields))
    if unknown:
        raise ValueError(f"found {_short(unknown[0])}, expected {', '.join(kind._fields)}")
    for name in kind._fields:
        value = row.get(name)
        if value is None and name in _OPTIONAL:
            continue
        if name in _SECONDS:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < MAX_SECONDS:
                raise ValueError(f"{name} is {_short(value)}, expected seconds")
        elif not isinstance(value, str):
            raise ValueError(f"{name} is {_short(value)}, expected a string")
    return kind(**{"path": None, **row} if kind is VideoItem else row)


def parse_lines(lines: list[str], kind: type[Item]) -> list[Item] | None:
    """Lines of the plan at once, in a third of the time; None where one of them is not as it should be, or may not be."""
    try:
        found = json.loads(
            f"[{',0,'.join(lines)}]"
        )  # the zeros show that no value begins on one line and ends on another
    except (ValueError, RecursionError):
        return None
    rows, between = found[::2], found[1::2]
    if len(found) != 2 * len(lines) - 1 or set(map(type, rows)) != {dict} or any(map(bool, between)):
        return None
    columns = [[row.get(name) for row in rows] for name in kind._fields]
    if not set().union(*rows) <= set(kind._fields):
        return None
    for name, column in zip(kind._fields, columns):
        allowed = {int, float} if name in _SECONDS else {str}
        if not set(map(type, column)) <= (allowed | {type(None)} if name in _OPTIONAL else allowed):
            return None
        if name in _SECONDS and not all(value is None or 0 <= value < MAX_SECONDS for value in column):
            return None
    return list(map(kind, *columns))


def _of(row: Mapping[str, Any], key: str, kind: type | tuple[type, ...]) -> Any:
    value = row.get(key)
    if not isinstance(value, kind):
        raise ValueError(f"{key} is {_short(value)}")
    return value


def _whole(row: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = row.get(key)
    if not _is_whole(value) or not low <= value <= high:
        raise ValueError(f"{key} is {_short(value)}, expected a whole number from {low} to {high}")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: Any) -> str:
    """A value as it may stand in a message."""
    if isinstance(value, (dict, list, tuple)) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)}"
    text = ascii(value) if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    return text if len(text) <= 80 else f"{text[:77]}..."
