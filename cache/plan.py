"""What a cache is to hold, item by item: annotations put in order, written to plan/ once, and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from glscl.cache.files import put_if_absent, written
from glscl.cache.records import checked
from glscl.cache.schema import Annotations, Expected, TextItem, VideoItem
from glscl.common.errors import CacheCorruptError, InputError, first_line

_KINDS: dict[str, type[VideoItem] | type[TextItem]] = {"video": VideoItem, "text": TextItem}


class Split(NamedTuple):
    """A split is a contiguous run of each stream: `videos` and `texts` are ranges of item numbers."""

    videos: range
    texts: range
    expected: Expected


def write_plan(root: Path, annotations: Annotations) -> None:
    """Write plan/{video,text}.jsonl of a cache, where they are not there yet."""
    for stream, items in (("video", annotations.videos), ("text", annotations.texts)):
        path = plan_file(root, stream)
        if not (written(path) if items else path.exists()):
            put_if_absent(path, _jsonl(items))


def read_plan(root: Path, stream: str, count: int) -> list[Any]:
    """The items of one stream, VideoItems or TextItems.

    Args:
        root: of the cache.
        count: so many there must be.

    Raises:
        CacheCorruptError: the file is not there, a line of it cannot be read, or it has another number of lines.
    """
    path, kind = plan_file(root, stream), _KINDS[stream]
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise CacheCorruptError(f"{path} is missing") from error
    except OSError as error:
        raise CacheCorruptError(f"{path} cannot be read: {first_line(error)}") from error
    try:
        items: list[Any] = msgspec.json.Decoder(kind).decode_lines(data)
    except (ValueError, RecursionError):
        items = _line_by_line(path, data, kind)
    if len(items) != count:
        raise CacheCorruptError(f"{path} has {len(items)} lines, expected {count}")
    return items


def _line_by_line(path: Path, data: bytes, kind: type[VideoItem] | type[TextItem]) -> list[Any]:
    """As msgspec decodes all lines at once; but an error names its line, and file names need not be UTF-8."""
    items = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            items.append(checked(kind, json.loads(line.decode("utf-8", "surrogatepass"))))
        except (ValueError, RecursionError) as error:
            raise CacheCorruptError(f"{path}, line {number} cannot be read: {first_line(error)}") from error
    return items


def plan_file(root: Path, stream: str) -> Path:
    """Where the items of one stream are written."""
    return root / "plan" / f"{stream}.jsonl"


def _jsonl(rows: Sequence[VideoItem] | Sequence[TextItem]) -> bytes:
    def compact(row: VideoItem | TextItem) -> dict[str, Any]:
        return {k: v for k, v in msgspec.structs.asdict(row).items() if v is not None or k == "path"}

    return "".join(json.dumps(compact(row), ensure_ascii=False) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def arrange(annotations: Annotations) -> tuple[Annotations, dict[str, Split]]:
    """Items sorted by split (stable, in order of first appearance), checked, and the runs that the splits became.

    Raises:
        InputError: an id stands twice, or a caption is in another split than its video.
    """
    order: dict[str, int] = {}
    for item in (*annotations.videos, *annotations.texts):
        order.setdefault(item.split, len(order))
    videos = sorted(annotations.videos, key=lambda item: order[item.split])
    texts = sorted(annotations.texts, key=lambda item: order[item.split])
    split_of_video: dict[str, str] = {}
    for video in videos:
        if video.id in split_of_video:
            raise InputError(f"The video id {video.id!r} of {annotations.dataset} stands twice")
        split_of_video[video.id] = video.split
    seen: set[str] = set()
    for text in texts:
        if text.id in seen:
            raise InputError(f"The caption id {text.id!r} of {annotations.dataset} stands twice")
        seen.add(text.id)
        if split_of_video.get(text.video, text.split) != text.split:
            raise InputError(
                f"The caption {text.id!r} is in split {text.split!r}, its video {text.video!r} in "
                f"{split_of_video[text.video]!r}: a video belongs to one split"
            )
    splits = {}
    for name in order:
        splits[name] = Split(
            _run([v.split for v in videos], name),
            _run([t.split for t in texts], name),
            annotations.expected.get(name, Expected(None, None)),
        )
    arranged = Annotations(
        dataset=annotations.dataset,
        videos=videos,
        texts=texts,
        expected=annotations.expected,
        notes=annotations.notes,
    )
    return arranged, splits


def _run(splits: list[str], name: str) -> range:
    count = splits.count(name)
    start = splits.index(name) if count else 0
    return range(start, start + count)
