"""Lists: who asked for what. Ids, splits, captions and times, and the keys under which a cache holds them.

A list names no path, so it is the same on every machine, and no item: it meets the items of a cache through keys alone, when
it is opened. It is written once and never changed; another version of it stands beside it, and `current` says which counts.

T texts, V videos.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from glscl.cache.files import (
    dump_json,
    listed,
    plain,
    put_if_absent,
    refuse_unread,
    remove,
    storage_errors,
    sync_directory,
    sync_tree,
    write_atomically,
    written,
)
from glscl.cache.formats import STORES
from glscl.cache.keys import KEY_BYTES, clip, has_key
from glscl.cache.records import StoredArray
from glscl.cache.schema import Annotations, Expected, Split
from glscl.cache.shard_arrays import pack_strings, unpack_strings
from glscl.cache.shards import describe_array
from glscl.common.errors import CacheCorruptError, InputError, NotFoundError, first_line

SCHEMA = "glscl.list/1"
NO_TIME = -1  # microseconds: the file's own beginning or end
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_HASH = re.compile(r"[0-9a-f]{16}")
_ARRAYS: dict[str, tuple[str, Literal["V", "T", "V+1", "T+1", "bytes"], bool]] = {  # name → dtype, length, keys
    "video_id_bytes": ("uint8", "bytes", False),
    "video_id_offsets": ("int64", "V+1", False),
    "video_key": ("uint8", "V", True),
    "video_content": ("uint8", "V", True),
    "video_start": ("int64", "V", False),
    "video_end": ("int64", "V", False),
    "text_id_bytes": ("uint8", "bytes", False),
    "text_id_offsets": ("int64", "T+1", False),
    "text_key": ("uint8", "T", True),
    "text_bytes": ("uint8", "bytes", False),
    "text_offsets": ("int64", "T+1", False),
    "text_video": ("int64", "T", False),
}


class SplitRecord(msgspec.Struct, forbid_unknown_fields=True):
    videos: tuple[int, int]
    texts: tuple[int, int]
    expected_videos: int | None = None
    expected_captions: int | None = None


class Unreadable(msgspec.Struct, forbid_unknown_fields=True):
    id: str
    reason: str


class ListRecord(msgspec.Struct, kw_only=True):
    """What the JSON file of a list holds."""

    schema: Literal["glscl.list/1"] = SCHEMA
    name: str
    dataset: str
    family: str
    recipe: str
    annotations: str
    hash: str
    splits: dict[str, SplitRecord]
    notes: list[str] = []
    unreadable: list[Unreadable] = []
    known_by_id: int = 0
    path: str
    arrays: dict[str, StoredArray]
    command: str = ""
    settings: dict[str, Any] = {}
    created: str = ""
    versions: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class CacheList:
    """One version of a list.

    Attributes:
        name: what it is called, such as "msrvtt-9k".
        dataset: name of the data set. family: lists of which ids mean the same videos: a benchmark's name, or the list's own.
        recipe: training recipe that fits.
        splits: contiguous runs of videos and texts.
        video_ids, text_ids, captions: V, T and T strings; captions with white space folded, as they are encoded.
        video_key, video_content: (V, 16) uint8; zero where no file is known.
        video_start, video_end: (V,) int64 microseconds, `NO_TIME` where it is the file's own.
        text_key: (T, 16) uint8; zero where the caption is not to be encoded.
        text_video: (T,) int64, row of the text's video; −1 where the list has none.
        notes: what the reader dropped or chose. unreadable: files that could not be read, with the reason.
        known_by_id: videos whose key comes from an earlier version, without a file.
        command, settings, created, versions: provenance, not hashed.
    """

    name: str
    dataset: str
    family: str
    recipe: str
    splits: dict[str, Split]
    video_ids: list[str]
    video_key: np.ndarray
    video_content: np.ndarray
    video_start: np.ndarray
    video_end: np.ndarray
    text_ids: list[str]
    text_key: np.ndarray
    captions: list[str]
    text_video: np.ndarray
    notes: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)
    known_by_id: int = 0
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    annotations: str = ""  # hash of ids, splits, times and captions
    hash: str = ""  # of the same and the keys

    def __repr__(self) -> str:
        splits = ", ".join(f"{name} {len(s.videos)}/{len(s.texts)}" for name, s in self.splits.items())
        return f"CacheList({self.name}@{self.hash}, {len(self.video_ids)} videos, {len(self.text_ids)} texts: {splits})"


def valid_name(text: str) -> str:
    """A name of a list: ASCII letters, digits, `._-`; anything else becomes `-`.

    A few digits of a hash keep apart what is not told apart by that: names in other scripts, and beyond 100 characters.
    """
    text = unicodedata.normalize("NFC", text)
    name = re.sub(r"[^A-Za-z0-9._-]", "-", text).lstrip("._-")
    if not text.isascii() or len(name) > 100:
        digits = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:6]
        name = f"{name[:93].rstrip('._-')}-{digits}".lstrip("-")
    return name or "list"


def make_list(annotations: Annotations, *, video_key: np.ndarray, video_content: np.ndarray, **about: Any) -> CacheList:
    """A list from what a dataset reader found, in its order of splits (see `arrange`), and from keys.

    Args:
        annotations: arranged.
        video_key, video_content: (V, 16) uint8 in the order of `annotations.videos`; zero where no file is known.
        **about: the other fields of `CacheList`, `text_key` (T, 16) among them.
    """
    times = [clip(video.start, video.end) for video in annotations.videos]
    row_of_video = {video.id: row for row, video in enumerate(annotations.videos)}
    start, end = (
        ([NO_TIME if each is None else each for each in column] for column in zip(*times)) if times else ([], [])
    )
    made = CacheList(
        dataset=annotations.dataset,
        splits=runs_of(annotations),
        video_ids=[video.id for video in annotations.videos],
        video_key=video_key,
        video_content=video_content,
        video_start=np.array(start, np.int64),
        video_end=np.array(end, np.int64),
        text_ids=[text.id for text in annotations.texts],
        captions=[text.text for text in annotations.texts],
        text_video=np.array([row_of_video.get(text.video, -1) for text in annotations.texts], np.int64),
        notes=list(annotations.notes),
        **about,
    )
    return _hashed(made)


def runs_of(annotations: Annotations) -> dict[str, Split]:
    """The runs that the splits of arranged annotations are."""
    found: dict[str, list[int]] = {}  # name → first and last + 1 of the videos, then of the texts
    for position, items in ((0, annotations.videos), (2, annotations.texts)):
        for row, item in enumerate(items):
            run = found.setdefault(item.split, [0, 0, 0, 0])
            if run[position + 1] == 0:
                run[position] = row
            run[position + 1] = row + 1
    none = Expected(None, None)
    return {
        name: Split(range(a, b), range(c, d), annotations.expected.get(name, none))
        for name, (a, b, c, d) in found.items()
    }


def arrange(annotations: Annotations) -> Annotations:
    """Items sorted by split (stable, in order of first appearance), and checked.

    Raises:
        InputError: an id stands twice, or a caption is in another split than its video.
    """
    order: dict[str, int] = {}
    for item in (*annotations.videos, *annotations.texts):
        order.setdefault(item.split, len(order))
    split_of_video: dict[str, str] = {}
    for video in annotations.videos:
        if video.id in split_of_video:
            raise InputError(f"The video id {video.id!r} of {annotations.dataset} stands twice")
        split_of_video[video.id] = video.split
    seen: set[str] = set()
    for text in annotations.texts:
        if text.id in seen:
            raise InputError(f"The caption id {text.id!r} of {annotations.dataset} stands twice")
        seen.add(text.id)
        if split_of_video.get(text.video, text.split) != text.split:
            raise InputError(
                f"The caption {text.id!r} is in split {text.split!r}, its video {text.video!r} in "
                f"{split_of_video[text.video]!r}: a video belongs to one split"
            )
    return Annotations(
        dataset=annotations.dataset,
        videos=sorted(annotations.videos, key=lambda item: order[item.split]),
        texts=sorted(annotations.texts, key=lambda item: order[item.split]),
        expected=annotations.expected,
        notes=annotations.notes,
    )


# --- on disk -------------------------------------------------------------------------------------------------------------


def write_list(root: Path, made: CacheList, format: str) -> None:
    """Write a version of a list, unless the very same is there: its arrays first, its JSON last. Raises StorageError."""
    folder = root / "lists" / made.name
    record, store = folder / f"{made.hash}.json", STORES[format]
    if written(record):
        return
    arrays = list_arrays(made)
    place = folder / f"{made.hash}{store.suffix}"
    with storage_errors(root):
        aside = root / "partial" / f"list-{made.hash}-{uuid.uuid4().hex[:8]}{store.suffix}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside.parent.mkdir(exist_ok=True)
            store.write(aside, arrays, {"schema": SCHEMA, "hash": made.hash})
            sync_tree(aside)
            if not written(record):  # arrays without a record are what a killed writer left
                remove(place, root)
                os.rename(aside, place)
                sync_directory(folder)
        except BaseException:
            remove(aside, root)
            raise
    put_if_absent(record, dump_json(msgspec.to_builtins(list_record(made, arrays, place.relative_to(root).as_posix()))))


def read_list(root: Path, name: str, hash: str, format: str) -> CacheList:
    """Read a version of a list back, checksums compared.

    Raises:
        NotFoundError: there is no such version.
        CacheCorruptError: it cannot be read, or is not what its name says.
    """
    path = root / "lists" / name / f"{hash}.json"
    if not _NAME.fullmatch(name) or not _HASH.fullmatch(hash) or not written(path):
        raise NotFoundError(f"{root} has no list {name}@{hash}; it has {', '.join(_all_versions(root)) or 'none'}")
    record = read_record(path)
    try:
        if record.path != f"lists/{name}/{hash}{STORES[format].suffix}":
            raise ValueError(f"its arrays are said to be {record.path!r}")
        made = from_arrays(record, _read_arrays(root / record.path, record, format))
    except CacheCorruptError:
        raise
    except Exception as error:  # libraries raise whatever they like on damaged files
        refuse_unread(error, path)
        raise CacheCorruptError(f"The list {path} cannot be read: {first_line(error)}") from error
    return made


def _read_arrays(path: Path, record: ListRecord, format: str) -> dict[str, np.ndarray]:
    """The arrays of a list, of the sizes that its record tells. Raises ValueError, and whatever damaged files provoke."""
    readers = STORES[format].rows(path, [*_ARRAYS])
    for name, reader in readers.items():
        if record.arrays[name]["shape"] != [*reader.shape]:
            raise ValueError(f"{name} has the shape {[*reader.shape]}, expected {record.arrays[name]['shape']}")
    return {name: reader.read(0, reader.shape[0]) for name, reader in readers.items()}


def read_record(path: Path) -> ListRecord:
    """What the JSON file of a version says, its arrays left alone. Raises CacheCorruptError."""
    try:
        record = msgspec.json.decode(plain(path).read_bytes(), type=ListRecord)
        if (record.name, record.hash) != (path.parent.name, path.stem):
            raise ValueError(f"it is {record.name}@{record.hash}")
    except (OSError, msgspec.DecodeError, ValueError) as error:
        refuse_unread(error, path)
        raise CacheCorruptError(f"The list {path} cannot be read: {first_line(error)}") from error
    return record


def from_arrays(record: ListRecord, arrays: Mapping[str, np.ndarray]) -> CacheList:
    """A list from its record and arrays. Raises ValueError where they contradict each other or the list's hash."""
    V, T = (len(arrays[name]) for name in ("video_key", "text_key"))
    lengths = {"V": V, "T": T, "V+1": V + 1, "T+1": T + 1}
    for name, (dtype, length, keys) in _ARRAYS.items():
        array = arrays[name]
        if record.arrays.get(name) != describe_array(array):
            raise ValueError(f"{name} is not what was written")
        if array.dtype != dtype or array.ndim != 1 + keys or (keys and array.shape[1] != KEY_BYTES):
            raise ValueError(f"{name} is {array.dtype}{list(array.shape)}")
        if length != "bytes" and len(array) != lengths[length]:
            raise ValueError(f"{name} has {len(array)} rows, expected {lengths[length]}")
    for name in ("video_id", "text_id", "text"):
        offsets, size = arrays[f"{name}_offsets"], len(arrays[f"{name}_bytes"])
        if offsets[0] != 0 or offsets[-1] != size or (np.diff(offsets) < 0).any():
            raise ValueError(f"{name}_offsets does not rise from 0 to {size}")
    if T and not -1 <= arrays["text_video"].min() <= arrays["text_video"].max() < V:
        raise ValueError(f"text_video names videos that are not there, of {V}")
    splits = {}
    for name, split in record.splits.items():
        for (start, stop), count in ((split.videos, V), (split.texts, T)):
            if not 0 <= start <= stop <= count:
                raise ValueError(f"split {name[:50]!r} is {start} to {stop} of {count}")
        expected = Expected(split.expected_captions, split.expected_videos)
        splits[name] = Split(range(*split.videos), range(*split.texts), expected)
    made = CacheList(
        name=record.name,
        dataset=record.dataset,
        family=record.family,
        recipe=record.recipe,
        splits=splits,
        video_ids=unpack_strings(arrays["video_id_bytes"], arrays["video_id_offsets"]),
        text_ids=unpack_strings(arrays["text_id_bytes"], arrays["text_id_offsets"]),
        captions=unpack_strings(arrays["text_bytes"], arrays["text_offsets"]),
        video_key=arrays["video_key"],
        video_content=arrays["video_content"],
        video_start=arrays["video_start"],
        video_end=arrays["video_end"],
        text_key=arrays["text_key"],
        text_video=arrays["text_video"],
        notes=record.notes,
        unreadable={each.id: each.reason for each in record.unreadable},
        known_by_id=record.known_by_id,
        command=record.command,
        settings=record.settings,
        created=record.created,
        versions=record.versions,
    )
    hashed = _hashed(made, arrays)
    if (hashed.annotations, hashed.hash) != (record.annotations, record.hash):
        raise ValueError(f"its content is that of {hashed.hash}")
    return hashed


def read_flat_list(root: Path, head: Any, format: str) -> CacheList:
    """The list of a flat file. Raises CacheCorruptError."""
    try:
        record = msgspec.convert(head.get("list"), ListRecord)
        return from_arrays(record, _read_arrays(root / "list", record, format))
    except CacheCorruptError:
        raise
    except Exception as error:  # libraries raise whatever they like on damaged files
        refuse_unread(error, root)
        raise CacheCorruptError(f"The list in {root} cannot be read: {first_line(error)}") from error


def list_names(root: Path) -> list[str]:
    """Names of the lists of a cache, in order."""
    return [path.name for path in listed(root / "lists") if path.is_dir() and _NAME.fullmatch(path.name)]


def versions_of(root: Path, name: str) -> list[str]:
    """Hashes of the versions of a list that are there, in order of the hashes."""
    found = listed(root / "lists" / name, "*.json")
    return [p.stem for p in found if _HASH.fullmatch(p.stem) and written(p)]


def _all_versions(root: Path) -> list[str]:
    return [f"{name}@{version}" for name in list_names(root) for version in versions_of(root, name)]


def current_version(root: Path, name: str) -> str | None:
    """Hash of the version that counts; None where none was ever finished. Raises CacheCorruptError."""
    path = root / "lists" / name / "current"
    try:
        text = plain(path).read_bytes()[:64].decode("ascii", "replace").strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        refuse_unread(error, path)
        raise CacheCorruptError(f"{path} cannot be read: {error.strerror}") from error
    if not _HASH.fullmatch(text):
        raise CacheCorruptError(f"{path} holds {text[:40]!r}, expected 16 hexadecimal digits")
    return text


def make_current(root: Path, made: CacheList) -> bool:
    """Let a version count, in one step; False where it does already. Raises StorageError."""
    path, data = root / "lists" / made.name / "current", f"{made.hash}\n".encode()
    if put_if_absent(path, data):
        return True
    with storage_errors(path):
        same = plain(path).read_bytes() == data
    if not same:
        write_atomically(path, data)
    return not same


def keys_by_id(lists: Sequence[CacheList]) -> Iterator[tuple[tuple[str, int, int], bytes, bytes]]:
    """((id, start, end), key, content) of every entry of some lists that has a key."""
    for each in lists:
        rows = np.flatnonzero(has_key(each.video_key)).tolist()
        for row in rows:
            entry = each.video_ids[row], int(each.video_start[row]), int(each.video_end[row])
            yield entry, each.video_key[row].tobytes(), each.video_content[row].tobytes()


def list_arrays(made: CacheList) -> dict[str, np.ndarray]:
    video_id_bytes, video_id_offsets = pack_strings(made.video_ids)
    text_id_bytes, text_id_offsets = pack_strings(made.text_ids)
    text_bytes, text_offsets = pack_strings(made.captions)
    return {
        "video_id_bytes": video_id_bytes,
        "video_id_offsets": video_id_offsets,
        "video_key": made.video_key,
        "video_content": made.video_content,
        "video_start": made.video_start,
        "video_end": made.video_end,
        "text_id_bytes": text_id_bytes,
        "text_id_offsets": text_id_offsets,
        "text_key": made.text_key,
        "text_bytes": text_bytes,
        "text_offsets": text_offsets,
        "text_video": made.text_video,
    }


def _hashed(made: CacheList, arrays: Mapping[str, np.ndarray] | None = None) -> CacheList:
    """The list with its two hashes; what is not hashed: name, command, time, versions, notes, and where files lie."""
    arrays = list_arrays(made) if arrays is None else arrays
    digest = hashlib.sha256()
    for name, split in made.splits.items():
        runs = f"{split.videos.start}:{split.videos.stop}:{split.texts.start}:{split.texts.stop}"
        digest.update(name.encode("utf-8", "surrogatepass") + f"\0{runs}\n".encode())
    keys = ("video_key", "video_content", "text_key")
    annotations = ""
    for name in (*(each for each in _ARRAYS if each not in keys), *keys):
        if name == keys[0]:
            annotations = digest.hexdigest()[:16]
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"\0{name}\0{array.shape}\0".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    fields = {name: value for name, value in vars(made).items() if name not in ("annotations", "hash")}
    return CacheList(**fields, annotations=annotations, hash=digest.hexdigest()[:16])


def list_record(made: CacheList, arrays: Mapping[str, np.ndarray], path: str) -> ListRecord:
    return ListRecord(
        name=made.name,
        dataset=made.dataset,
        family=made.family,
        recipe=made.recipe,
        annotations=made.annotations,
        hash=made.hash,
        splits={
            name: SplitRecord(
                videos=(split.videos.start, split.videos.stop),
                texts=(split.texts.start, split.texts.stop),
                expected_videos=split.expected.videos,
                expected_captions=split.expected.captions,
            )
            for name, split in made.splits.items()
        },
        notes=made.notes,
        unreadable=[Unreadable(id, reason) for id, reason in made.unreadable.items()],
        known_by_id=made.known_by_id,
        path=path,
        arrays={name: describe_array(array) for name, array in arrays.items()},
        command=made.command,
        settings=dict(made.settings),
        created=made.created,
        versions=dict(made.versions),
    )
