"""Annotations become a list: each video by the content of its file, each caption by its text, and what that changes.

V videos, T texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from glscl.cache.keys import EMPTY, KEY_BYTES, as_array, clip, has_key, text_key, video_key
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import Library
from glscl.cache.lists import (
    NO_TIME,
    CacheList,
    arrange,
    current_version,
    keys_by_id,
    list_names,
    make_list,
    read_list,
    read_record,
    valid_name,
    versions_of,
)
from glscl.cache.schema import Annotations, Status, TextItem, VideoItem
from glscl.common.errors import InputError
from glscl.common.progress import Progress, counted
from glscl.common.tables import amount
from glscl.extract.datasets.text_files import examples

NO_KEY = bytes(KEY_BYTES)
VideoSpan = tuple[str, int, int]  # id, start and end of a video, microseconds
SHOWN = 3  # contents that stand twice, in a note


@dataclass(frozen=True, kw_only=True)
class ListOrigin:
    """Where a list comes from.

    Attributes:
        name: what it is called; the data set's name where empty.
        family: lists in which an id means the same video: a benchmark's name; the list's own where empty.
        recipe: training recipe that fits.
        command: what was typed to make it. versions: of packages.
    """

    name: str = ""
    family: str = ""
    recipe: str = ""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def named(self, dataset: str) -> ListOrigin:
        """With the names that are not given."""
        name = valid_name(self.name or dataset)
        return replace(self, name=name, family=self.family or name)


class Source(NamedTuple):
    """A file, or a part of one, that an item can be made from; times in seconds."""

    id: str
    path: str
    start: float | None
    end: float | None


class Listing(NamedTuple):
    """A list and the files it was made from.

    Attributes:
        made: the list.
        sources: key of a video → the first file with this content that the list names.
        captions: key of a text → its caption.
    """

    made: CacheList
    sources: dict[bytes, Source]
    captions: dict[bytes, str]

    @property
    def wanted(self) -> dict[str, np.ndarray]:
        """ "video" and "text" → (n, 16) uint8 keys that are to be encoded, each once, in the order of the list."""
        return {"video": as_array(self.sources), "text": as_array(self.captions)}


def list_of(
    annotations: Annotations,
    known: KnownFiles,
    origin: ListOrigin,
    library: Library | None = None,
    *,
    all_captions: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Listing:
    """Make a list of videos by the contents of their files, and of captions by their text; nothing is written.

    Args:
        annotations: from a dataset reader.
        known: where contents were last seen; learns what is hashed here.
        library: the cache, where there is one.
        all_captions: encode the captions of videos without an item too.
        settings: in force, kept with the list.

    Raises:
        InputError: see `arrange`.
    """
    annotations = arrange(annotations)
    contents, unreadable = _contents(annotations.videos, known, progress or Progress(quiet=True))
    videos = {
        video.id: Keyed(video_key(content, *clip(video.start, video.end)), content)
        for video, content in zip(annotations.videos, contents)
        if content != NO_KEY
    }
    made, captions = assemble(
        annotations,
        origin,
        library,
        videos,
        lambda text: text_key(text.text),
        unreadable=unreadable,
        all_captions=all_captions,
        settings=settings,
    )
    sources: dict[bytes, Source] = {}
    for video in annotations.videos:
        if video.id in videos and video.path is not None:
            sources.setdefault(videos[video.id].key, Source(video.id, video.path, *seconds_of(video)))
    return Listing(made, sources, {key: text.text for key, text in captions.items()})


def seconds_of(video: VideoItem) -> tuple[float | None, float | None]:
    """Where a clip starts and ends in its file, to the microsecond."""
    start, end = (None if t is None else t / 1e6 for t in clip(video.start, video.end))
    return start, end


class Keyed(NamedTuple):
    """Key of a video's item, and the hash of its file's content; zero where no file was seen."""

    key: bytes
    content: bytes = NO_KEY


def assemble(
    annotations: Annotations,
    origin: ListOrigin,
    library: Library | None,
    videos: Mapping[str, Keyed],
    key_of: Callable[[TextItem], bytes],
    *,
    unreadable: Mapping[str, str] | None = None,
    all_captions: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> tuple[CacheList, dict[bytes, TextItem]]:
    """A list from keys; and key of a text → the first caption that has it.

    A video without a key keeps the item that it has under the same id and times in lists of the same family, where they
    agree. Captions of videos without an item get no key.

    Args:
        annotations: arranged.
        videos: id → key, of those that are at hand.
        key_of: key of a caption.
        unreadable: id → why its file could not be read; it keeps no item.
        all_captions, settings: as in `list_of`.
    """
    origin, unreadable = origin.named(annotations.dataset), dict(unreadable or {})
    told = {*videos, *unreadable}
    at_hand = {keyed.key for keyed in videos.values()}
    by_id = _known_by_id(library, origin, [video for video in annotations.videos if video.id not in told], at_hand)
    keyed = [videos.get(v.id) or by_id.get(_entry(v)) or Keyed(NO_KEY) for v in annotations.videos]
    with_item = {video.id for video, each in zip(annotations.videos, keyed) if each.key != NO_KEY}
    text_keys, captions = [], {}
    for text in annotations.texts:
        text_keys.append(key_of(text) if all_captions or text.video in with_item else NO_KEY)
        if text_keys[-1] != NO_KEY:
            captions.setdefault(text_keys[-1], text)
    made = make_list(
        annotations,
        name=origin.name,
        family=origin.family,
        recipe=origin.recipe,
        video_key=as_array([each.key for each in keyed]),
        video_content=as_array([each.content for each in keyed]),
        text_key=as_array(text_keys),
        unreadable=unreadable,
        known_by_id=sum(v.id not in videos and _entry(v) in by_id for v in annotations.videos),
        command=origin.command,
        settings=dict(settings or {}),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        versions=origin.versions,
    )
    return replace(made, notes=[*made.notes, *_notes_on_copies(made)]), captions


class ListChanges(NamedTuple):
    """How a list differs from the version before: counts of entries.

    Attributes:
        new: ids that were not in it. gone: ids that are no more.
        replaced: the same id with another content.
        moved: of `new`, those whose content was in it under another id.
        without_file: no file and no item is known.
        known_by_id: no file, but an item from before.
    """

    new: int
    gone: int
    replaced: int
    moved: int
    without_file: int
    known_by_id: int


def changes_since(before: CacheList | None, made: CacheList) -> ListChanges:
    """What changed since a version, or since nothing."""
    then = {} if before is None else _contents_by_id(before)
    now = _contents_by_id(made)
    contents = {*then.values()} - {NO_KEY}
    new = [id for id in now if id not in then]
    return ListChanges(
        new=len(new),
        gone=sum(id not in now for id in then),
        replaced=sum(NO_KEY != then.get(id, content) != content != NO_KEY for id, content in now.items()),
        moved=sum(now[id] in contents for id in new),
        without_file=int((~has_key(made.video_key)).sum()),
        known_by_id=made.known_by_id,
    )


def another_set(before: CacheList | None, made: CacheList, at_hand: Collection[str]) -> list[str]:
    """A warning where ids keep what a list of this name had, though no video at hand is what it had: another table, perhaps.

    Args:
        before: the version that counted. at_hand: ids of the videos whose files are there.
    """
    if before is None or not made.known_by_id or made.family != made.name:  # in benchmarks an id is one video
        return []
    then, now = _contents_by_id(before), _contents_by_id(made)
    told = [id for id in at_hand if NO_KEY not in (then.get(id, NO_KEY), now[id])]
    if not told or any(then[id] == now[id] for id in told):
        return []
    return [
        f"warning: no video at hand is what the list {made.name} had under its id, for example {told[0]}, and "
        f"{amount(made.known_by_id, 'video')} without a file {'keeps' if made.known_by_id == 1 else 'keep'} what it had: where these are other videos, give their list "
        "a name of its own (`list`)"
    ]


def current_list(library: Library, name: str) -> CacheList | None:
    """The version of a list that counts; None where there is none."""
    version = current_version(library.path, name)
    return None if version is None else read_list(library.path, name, version, library.header["format"])


def require_apart(made: CacheList) -> None:
    """Raise InputError where two videos in different splits have the same content and times."""
    split_of = _splits(made)
    across = [(a, b) for a, b in _copies(made) if split_of[a] != split_of[b]]
    if across:
        a, b = across[0]
        more = f", and so have {len(across) - 1} more" if across[1:] else ""
        raise InputError(
            f"{a!r} in split {split_of[a]} and {b!r} in {split_of[b]} have the same content{more}: training on a test video "
            "makes every number worthless",
            hint="Take one away, or leave out `strict`",
        )


def _contents(videos: list[VideoItem], known: KnownFiles, progress: Progress) -> tuple[list[bytes], dict[str, str]]:
    """Hash of each video's content, zero where there is no file; and id → reason of the files that cannot be read."""
    paths = list(dict.fromkeys(video.path for video in videos if video.path is not None))
    with counted(progress, "hash", "files") as tell:
        found = dict(zip(paths, known.contents(paths, progress=tell)))
    contents, unreadable = [], {}
    for video in videos:
        content = NO_KEY if video.path is None else found[video.path]
        if isinstance(content, FileNotFoundError):  # it was there when the files were looked for
            content = NO_KEY
        elif isinstance(content, OSError):
            unreadable[video.id] = content.strerror or str(content)
            content = NO_KEY
        contents.append(content)
    return contents, unreadable


def _known_by_id(
    library: Library | None, origin: ListOrigin, videos: list[VideoItem], at_hand: Collection[bytes]
) -> dict[VideoSpan, Keyed]:
    """What videos are in the lists of the family, of items that are there or will be, their keys being `at_hand`.

    The list's own current version is asked first, then what counts in other lists, then all versions: of the first of these
    that know a video all must agree.
    """
    wanted = {_entry(video) for video in videos}
    if library is None or not wanted:
        return {}
    found: dict[VideoSpan, dict[Keyed, int]] = {}  # → how near the list is that says so
    for name in list_names(library.path):
        current = current_version(library.path, name)
        for version in versions_of(library.path, name):
            if read_record(library.path / "lists" / name / f"{version}.json").family != origin.family:
                continue
            distance = (name != origin.name) if version == current else 2
            for entry, *each in keys_by_id([read_list(library.path, name, version, library.header["format"])]):
                if entry in wanted:
                    known = found.setdefault(entry, {})
                    known[Keyed(*each)] = min(distance, known.get(Keyed(*each), distance))
    there = {*at_hand, *_answered(library, {keyed.key for known in found.values() for keyed in known})}
    agreed = {}
    for entry, known in found.items():
        known = {keyed: distance for keyed, distance in known.items() if keyed.key in there}
        nearest = [keyed for keyed, distance in known.items() if distance == min(known.values())]
        if len(nearest) == 1:
            agreed[entry] = nearest[0]
    return agreed


def _answered(library: Library, keys: Collection[bytes]) -> set[bytes]:
    """Those of some videos' keys that have an item which says more than that no file was there."""
    about, keys = library.stream("video"), list(keys)
    numbers = about.index.find(as_array(keys))
    return {key for key, n in zip(keys, numbers) if n >= 0 and about.status[n] != int(Status.MISSING)}


def _entry(video: VideoItem) -> VideoSpan:
    start, end = (NO_TIME if t is None else t for t in clip(video.start, video.end))
    return video.id, start, end


def _contents_by_id(made: CacheList) -> dict[str, bytes]:
    return {id: content.tobytes() for id, content in zip(made.video_ids, made.video_content)}


def _splits(made: CacheList) -> dict[str, str]:
    return {made.video_ids[row]: name for name, split in made.splits.items() for row in split.videos}


def _copies(made: CacheList) -> list[tuple[str, str]]:
    """Pairs of ids with the same key, each later id with the first. What is empty is a copy of nothing."""
    first: dict[bytes, str] = {}
    pairs = []
    for row in np.flatnonzero(has_key(made.video_key)).tolist():
        key, id = made.video_key[row].tobytes(), made.video_ids[row]
        if made.video_content[row].tobytes() != EMPTY and first.setdefault(key, id) != id:
            pairs.append((first[key], id))
    return pairs


def _notes_on_copies(made: CacheList) -> list[str]:
    """Contents that stand under several ids, which are counted as often as they stand."""
    notes, split_of, pairs = [], _splits(made), _copies(made)
    across = [(a, b) for a, b in pairs if split_of[a] != split_of[b]]
    if pairs:
        shown = examples([f"{a} = {b}" for a, b in pairs], SHOWN)
        notes.append(
            f"{len(pairs)} videos have the content of others, and count for themselves: {shown}"
            if pairs[1:]
            else f"1 video has the content of another, and counts for itself: {shown}"
        )
    if across:
        shown = examples([f"{a} ({split_of[a]}) = {b} ({split_of[b]})" for a, b in across], SHOWN)
        notes.append(f"{len(across)} of these in different splits: {shown}")
    return notes
