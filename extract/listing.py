"""Annotations become a list: each video by the content of its file, each caption by its text, and what that changes.

V videos, T texts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from glscl.cache.keys import KEY_BYTES, clip, has_key, text_key, video_key
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
from glscl.common.progress import Progress
from glscl.extract.datasets.text_files import examples

NO_KEY = bytes(KEY_BYTES)
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

    def of(self, dataset: str) -> ListOrigin:
        """With the names that are not given."""
        name = valid_name(self.name or dataset)
        return ListOrigin(**{**vars(self), "name": name, "family": self.family or name})


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
        return {"video": _as_keys(self.sources), "text": _as_keys(self.captions)}


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
            start, end = (None if t is None else t / 1e6 for t in clip(video.start, video.end))
            sources.setdefault(videos[video.id].key, Source(video.id, video.path, start, end))
    return Listing(made, sources, {key: text.text for key, text in captions.items()})


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

    A video without a key keeps the item that it has under the same id and times in a list of the same family, as long as
    those that know it agree, or else that of the current version. Captions of videos without an item get no key.

    Args:
        annotations: arranged.
        videos: id → key, of those that are at hand.
        key_of: key of a caption.
        unreadable: id → why its file could not be read; it keeps no item.
        all_captions, settings: as in `list_of`.
    """
    origin, unreadable = origin.of(annotations.dataset), dict(unreadable or {})
    by_id = _known_by_id(library, origin, [v for v in annotations.videos if v.id not in {*videos, *unreadable}])
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
        video_key=_array([each.key for each in keyed]),
        video_content=_array([each.content for each in keyed]),
        text_key=_array(text_keys),
        unreadable=unreadable,
        known_by_id=sum(v.id not in videos and _entry(v) in by_id for v in annotations.videos),
        command=origin.command,
        settings=dict(settings or {}),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        versions=origin.versions,
    )
    made.notes.extend(_notes_on_copies(made))
    return made, captions


class Changes(NamedTuple):
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

    def as_dict(self) -> dict[str, int]:
        return self._asdict()


def changes_since(before: CacheList | None, made: CacheList) -> Changes:
    """What changed since a version, or since nothing."""
    then = {} if before is None else _contents_by_id(before)
    now = _contents_by_id(made)
    contents = {*then.values()} - {NO_KEY}
    new = [id for id in now if id not in then]
    return Changes(
        new=len(new),
        gone=sum(id not in now for id in then),
        replaced=sum(NO_KEY != then.get(id, content) != content != NO_KEY for id, content in now.items()),
        moved=sum(now[id] in contents for id in new),
        without_file=int((~has_key(made.video_key)).sum()),
        known_by_id=made.known_by_id,
    )


def current_list(library: Library | None, name: str) -> CacheList | None:
    """The version of a list that counts; None where there is none."""
    if library is None or library.is_flat or name not in list_names(library.path):
        return None
    version = current_version(library.path, name)
    return (version and read_list(library.path, name, version, library.header["format"])) or None


def copies_across_splits(made: CacheList) -> list[tuple[str, str]]:
    """Pairs of ids in different splits that share a file's content and times."""
    split_of = _splits(made)
    return [(a, b) for a, b in _copies(made) if split_of[a] != split_of[b]]


def _contents(videos: list[VideoItem], known: KnownFiles, progress: Progress) -> tuple[list[bytes], dict[str, str]]:
    """Hash of each video's content, zero where there is no file; and id → reason of the files that cannot be read."""
    paths = list(dict.fromkeys(video.path for video in videos if video.path is not None))
    with progress.task("hash", len(paths), "files") as task:  # at once where they are known
        found = dict(zip(paths, known.contents(paths, progress=task.advance)))
    contents, unreadable = [], {}
    for video in videos:
        content = NO_KEY if video.path is None else found[video.path]
        if isinstance(content, OSError):
            unreadable[video.id] = content.strerror or str(content)
            content = NO_KEY
        contents.append(content)
    return contents, unreadable


def _known_by_id(
    library: Library | None, origin: ListOrigin, videos: list[VideoItem]
) -> dict[tuple[str, int, int], Keyed]:
    """(id, start, end) → what those videos are in the lists of the family, where that item is there."""
    wanted = {_entry(video) for video in videos}
    if library is None or library.is_flat or not wanted:
        return {}
    found: dict[tuple[str, int, int], set[Keyed]] = {}
    current: dict[tuple[str, int, int], Keyed] = {}
    for name in list_names(library.path):
        now = current_version(library.path, name)
        for version in versions_of(library.path, name):
            if read_record(library.path / "lists" / name / f"{version}.json").family != origin.family:
                continue
            for entry, *each in keys_by_id([read_list(library.path, name, version, library.header["format"])]):
                if entry in wanted:
                    found.setdefault(entry, set()).add(Keyed(*each))
                    if (name, version) == (origin.name, now):
                        current[entry] = Keyed(*each)
    agreed = {entry: next(iter(each)) for entry, each in found.items() if len(each) == 1} | current
    about = library.stream("video")
    numbers = about.index.find(_array([each.key for each in agreed.values()]))
    there = {entry for entry, number in zip(agreed, numbers) if number >= 0 and about.status[number] != Status.MISSING}
    return {entry: each for entry, each in agreed.items() if entry in there}


def _entry(video: VideoItem) -> tuple[str, int, int]:
    start, end = (NO_TIME if t is None else t for t in clip(video.start, video.end))
    return video.id, start, end


def _contents_by_id(made: CacheList) -> dict[str, bytes]:
    return {id: content.tobytes() for id, content in zip(made.video_ids, made.video_content)}


def _splits(made: CacheList) -> dict[str, str]:
    return {made.video_ids[row]: name for name, split in made.splits.items() for row in split.videos}


def _copies(made: CacheList) -> list[tuple[str, str]]:
    """Pairs of ids with the same key, each later id with the first."""
    first: dict[bytes, str] = {}
    pairs = []
    for row in np.flatnonzero(has_key(made.video_key)).tolist():
        key, id = made.video_key[row].tobytes(), made.video_ids[row]
        if first.setdefault(key, id) != id:
            pairs.append((first[key], id))
    return pairs


def _notes_on_copies(made: CacheList) -> list[str]:
    """Contents that stand under several ids, which are counted as often as they stand."""
    notes, split_of, pairs = [], _splits(made), _copies(made)
    across = [(a, b) for a, b in pairs if split_of[a] != split_of[b]]
    if pairs:
        shown = examples([f"{a} = {b}" for a, b in pairs], SHOWN)
        notes.append(
            f"videos with the content of another, which count as often as they are listed: {len(pairs)}, {shown}"
        )
    if across:
        shown = examples([f"{a} ({split_of[a]}) = {b} ({split_of[b]})" for a, b in across], SHOWN)
        notes.append(f"of these in different splits: {len(across)}, {shown}")
    return notes


def _array(keys: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES).copy()


def _as_keys(found: Mapping[bytes, object]) -> np.ndarray:
    return _array(list(found))
