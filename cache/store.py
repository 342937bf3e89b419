"""A list seen on a library: the entries of one version of a list, each with the item that its key leads to.

n entries, R rows of all of them together, D embed_dim.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from glscl.cache.keys import has_key
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import Library, open_library
from glscl.cache.lists import (
    NO_TIME,
    CacheList,
    current_version,
    list_names,
    read_flat_list,
    read_list,
    read_record,
    valid_name,
    versions_of,
)
from glscl.cache.reading import read_entries
from glscl.cache.schema import STREAMS, Annotations, Expected, FramePosition, Split, Status, TextItem, VideoItem
from glscl.cache.shard_arrays import FLOAT, LAYOUT, decode_features, pack_strings
from glscl.common.arguments import types_checked
from glscl.common.errors import CacheCorruptError, CacheIncompleteError, Hint, NotFoundError, UsageError
from glscl.common.recorded_commands import recorded_command

if TYPE_CHECKING:
    import torch

    from glscl.cache.table import FeatureTable

PENDING = -1  # number of an entry whose key no committed item has
NO_KEY = -2  # number of an entry that has no key: no file is known, or it was not to be encoded
_OF_LIST = ("id_bytes", "id_offsets", "text_bytes", "text_offsets")  # what a list says, not the items


@types_checked
def open_store(path: os.PathLike[str] | str, list: str | None = None) -> Store:
    """Open a cache for reading.

    Args:
        path: folder, or flat file.
        list: which list: a name, whose current version is taken, `name@hash`, or the hash of a version; None takes the
            only list there is.

    Raises:
        NotFoundError: nothing is there, or no such list.
        UsageError: there are several lists and `list` is None.
        CacheFormatError: something else is there, or a schema this version cannot read.
        CacheIncompleteError: the list was never finished.
    """
    library = open_library(path)
    return Store(library, choose_list(library, list))


def choose_list(library: Library, asked: str | None) -> CacheList:
    """The version of a list that is meant; see `open_store`."""
    root = library.path
    if library.is_flat:
        only = read_flat_list(root, library.header, library.header["format"])
        if asked not in (None, only.name, only.hash, f"{only.name}@{only.hash}"):
            raise NotFoundError(f"{root} has no list {asked}; it has {only.name}@{only.hash}")
        return only
    names = list_names(root)
    name, _, version = (asked or "").partition("@")
    if name and name not in names and valid_name(name) in names:  # as it was written for `list`
        name = valid_name(name)
    if asked is not None and name not in names and re.fullmatch("[0-9a-f]{16}", asked):
        name = next((each for each in names if (root / "lists" / each / f"{asked}.json").is_file()), name)
        version = asked if name in names else ""
    if asked is None:
        if len(names) > 1:
            raise UsageError(f"{root} has several lists: {', '.join(names)}", hint="Choose one with `list`")
        if not names:
            raise CacheIncompleteError(f"{root} has no list yet", hint="Extract into it")
        name = names[0]
    elif name not in names:
        raise NotFoundError(
            f"{root} has no list {asked or repr(asked)}",
            hint=f"It has {', '.join(names)}" if names else "It has none yet",
        )
    version = version or current_version(root, name) or ""
    if not version:
        raise CacheIncompleteError(f"The list {name} of {root} was never finished", hint=resume_hint(library, name))
    return read_list(root, name, version, library.header["format"])


def resume_hint(library: Library, name: str, text: str = "Finish it", *, command: str = "") -> Hint:
    """What goes on with a list: the command that was typed, with the folder and format that are true now.

    Args:
        command: the one that the list was made with; by default that of its newest version. One that glscl cannot have
            recorded is not told.
    """
    command = recorded_command(command or _typed(library.path, name)) or ""
    settings = {"out": library.path, "format": library.header["format"]}
    return Hint(text, command, settings) if command else Hint(text, "extract", {**settings, "list": name})


def _typed(root: Path, name: str) -> str:
    """The command of the newest version of a list; nothing where none is known."""
    told = []
    for version in versions_of(root, name):
        with contextlib.suppress(CacheCorruptError):
            record = read_record(root / "lists" / name / f"{version}.json")
            told.append((record.created, record.command))
    return max(told)[1] if told else ""


class Store:
    """One version of a list and the items of a cache. Obtain it from `open_store`.

    Attributes:
        library: the files of the cache.
        list: who asked for what.
        numbers: "video" and "text" → (n,) int64, number of each entry's item in the library; `PENDING` or `NO_KEY`.
    """

    MADE_BY = "`glscl.open_cache`"

    def __init__(self, library: Library, list: CacheList) -> None:
        self.library, self.list = library, list
        self.numbers: dict[str, np.ndarray] = {}
        for stream, keys in (("video", list.video_key), ("text", list.text_key)):
            self.numbers[stream] = np.where(has_key(keys), _numbers(library, stream, keys), NO_KEY)

    def __repr__(self) -> str:
        sizes = f"{self.num_items['video']} videos, {self.num_items['text']} texts"
        return f"Store({str(self.path)!r}, {self.list_name}@{self.list_hash}, {sizes}, fingerprint {self.fingerprint})"

    # --- of the list -------------------------------------------------------------------------------------------

    @property
    def lists(self) -> Sequence[str]:
        """Names of all lists of the cache."""
        return [self.list.name] if self.library.is_flat else list_names(self.path)

    def seen_at(self, list: str) -> Store:
        """The same cache at another of its lists; see `open_store`, also for what is raised."""
        return Store(self.library, choose_list(self.library, list))

    @property
    def list_name(self) -> str:
        return self.list.name

    @property
    def list_hash(self) -> str:
        return self.list.hash

    @property
    def dataset(self) -> str:
        return self.list.dataset

    @property
    def recipe(self) -> str:
        """Name of the training recipe that fits: the dataset's."""
        return self.list.recipe or self.list.dataset

    @property
    def splits(self) -> dict[str, Split]:
        return self.list.splits

    @property
    def everything(self) -> Split:
        """All entries of all splits."""
        videos, texts = (range(self.num_items[stream]) for stream in STREAMS)
        return Split(videos, texts, Expected(None, None))

    @property
    def num_items(self) -> dict[str, int]:
        """ "video" and "text" → entries."""
        return {"video": len(self.list.video_ids), "text": len(self.list.text_ids)}

    @cached_property
    def plan(self) -> Annotations:
        """The entries as a dataset reader would give them, with the files in which their contents were last seen."""
        known = KnownFiles.read(self.path)
        split_of = {stream: [""] * count for stream, count in self.num_items.items()}
        for name, split in self.splits.items():
            for stream, run in (("video", split.videos), ("text", split.texts)):
                split_of[stream][run.start : run.stop] = [name] * len(run)
        made = self.list
        videos = []
        for row, id in enumerate(made.video_ids):
            path = known.path_of(made.video_content[row].tobytes(), like=id)
            start, end = (None if t[row] == NO_TIME else t[row] / 1e6 for t in (made.video_start, made.video_end))
            videos.append(VideoItem(id, split_of["video"][row], None if path is None else str(path), start, end))
        owners = made.text_video.tolist()
        texts = [
            TextItem(
                id, "" if owners[row] < 0 else made.video_ids[owners[row]], split_of["text"][row], made.captions[row]
            )
            for row, id in enumerate(made.text_ids)
        ]
        expected = {name: split.expected for name, split in self.splits.items()}
        return Annotations(dataset=made.dataset, videos=videos, texts=texts, expected=expected, notes=[*made.notes])

    # --- of the library ----------------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self.library.path

    @property
    def place(self) -> str:
        return self.library.place

    @property
    def header(self) -> dict[str, Any]:
        return self.library.header

    @property
    def fingerprint(self) -> str:
        return self.library.fingerprint

    @property
    def configuration(self) -> dict[str, Any]:
        return self.library.configuration

    @property
    def embed_dim(self) -> int:
        return self.library.embed_dim

    @property
    def dtype(self) -> str:
        return self.library.dtype

    @property
    def has_tokens(self) -> bool:
        return self.library.has_tokens

    @property
    def frames(self) -> Any:
        return self.library.frames

    def backbone_tensors(self) -> dict[str, np.ndarray]:
        """See `Library.backbone_tensors`."""
        return self.library.backbone_tensors()

    # --- what is there -----------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether every key of the list has a committed item."""
        return not any((numbers == PENDING).any() for numbers in self.numbers.values())

    def require_complete(self, entries: Split | None = None) -> None:
        """Raise CacheIncompleteError, saying how much is there, unless every key (of some entries) has an item."""
        entries = entries or self.everything
        for stream, run in (("video", entries.videos), ("text", entries.texts)):
            numbers = self.numbers[stream][run.start : run.stop]
            pending = int((numbers == PENDING).sum())
            if pending:
                raise CacheIncompleteError(
                    f"{self.path} is not complete: {len(numbers) - pending} of {len(numbers)} {stream} items of the list "
                    f"{self.list_name} are there",
                    hint=resume_hint(self.library, self.list_name, command=self.list.command),
                )

    def status(self, stream: str = "video") -> np.ndarray:
        """(n,) uint8 `Status` of the entries; MISSING where there is no item."""
        numbers = self.numbers[stream]
        known = self.library.stream(stream).status
        return np.where(numbers >= 0, known[np.maximum(numbers, 0)] if len(known) else 0, int(Status.MISSING)).astype(
            np.uint8
        )

    def failures(self) -> list[dict[str, Any]]:
        """`{"id", "reason", "status"}` of every video without features, or with fewer than it should have."""
        imported = self.configuration.get("sampling", {}).get("source") == "imported"
        nothing = f"no {'features' if imported else 'file found'} for this id"
        noted, status, found = self.library.stream("video").failures, self.status(), []
        for row in np.flatnonzero(status != int(Status.OK)).tolist():
            id, number = self.list.video_ids[row], int(self.numbers["video"][row])
            if number == PENDING:
                continue
            reason = self.list.unreadable.get(id, nothing) if number == NO_KEY else noted[number]["reason"]
            found.append({"id": id, "reason": reason, "status": Status(int(status[row])).name.lower()})
        return found

    def count_frames(self) -> int:
        """Frames of all entries that have any: of two that share an item each has its own."""
        return int(read_entries(self.library, "video", ["offsets"], self.numbers["video"])["offsets"][-1])

    @types_checked
    def table(
        self,
        split: str | None,
        *,
        list: str | None = None,
        frames: int | None = None,
        frame_position: FramePosition = "uniform",
        tokens: bool | None = None,
        padded: bool = False,
        device: torch.device | str = "cpu",
    ) -> FeatureTable:
        """The tensors of one split: see `glscl.cache.table.FeatureTable`.

        Args:
            split: a name in `splits`; None takes the whole list.
            list: another list of the cache, as in `open_store`; None is the one that was opened.
            frames: frames kept a video; None keeps all of the longest video.
            frame_position: which frames where there are more.
            tokens: whether to read token features; None reads them where the cache has them.
            padded: read padding as GLSCL's program does.
            device: where the tensors live.

        Raises:
            InputError: the cache has no such split.
            UsageError: tokens or padding are asked for and the cache holds none.
            CacheIncompleteError, CacheCorruptError: see `arrays`.
        """
        from glscl.cache.table import FeatureTable  # with torch

        tokens = self.has_tokens if tokens is None else tokens or padded
        return FeatureTable.load(
            self if list is None else self.seen_at(list),
            split,
            max_frames=frames,
            frame_position=frame_position,
            tokens=tokens,
            padded=padded,
            device=device,
        )

    # --- reading -----------------------------------------------------------------------------------------------

    def arrays(
        self,
        stream: str,
        names: Sequence[str] | None = None,
        *,
        items: range | None = None,
        raw: bool = False,
    ) -> dict[str, np.ndarray]:
        """Arrays over the entries of the list (or over a run of them), boundaries made to fit.

        Args:
            stream: "video" or "text".
            names: which arrays; all by default, but for stored frames, which `glscl.cache.frames` reads.
            items: rows of the list, a contiguous range; all by default.
            raw: bfloat16 stays uint16.

        Returns:
            name → array: `values` (R, D), `offsets` (n + 1,) int64, `pooled` (n, D), `status` (n,) uint8, … as
            docs/cache-format.md lists them, ids and captions those of the list. bfloat16 comes as float32. An entry
            without an item has no rows, status MISSING and zeros.

        Raises:
            CacheIncompleteError: an item that is needed is not committed.
            CacheCorruptError: a shard contradicts its commit.
        """
        names = list(LAYOUT[stream]) if names is None else [*names]
        items = range(self.num_items[stream]) if items is None else items
        self._require_items(stream, items)
        numbers = self.numbers[stream][items.start : items.stop]
        needed = [name for name in names if name not in _OF_LIST]
        found = read_entries(self.library, stream, needed, numbers) | self._strings(stream, items)
        return {
            name: found[name]
            if raw or LAYOUT[stream][name].dtype != FLOAT
            else decode_features(found[name], self.dtype)
            for name in names
        }

    def ids(self, stream: str, items: range | None = None) -> list[str]:
        """Ids of the entries of a stream, or of a run of them."""
        ids = self.list.video_ids if stream == "video" else self.list.text_ids
        return ids if items is None else ids[items.start : items.stop]

    def captions(self, items: range | None = None) -> list[str]:
        """The captions, or a run of them."""
        return self.list.captions if items is None else self.list.captions[items.start : items.stop]

    def _require_items(self, stream: str, items: range) -> None:
        none = range(0)
        self.require_complete(
            Split(items, none, Expected(None, None)) if stream == "video" else Split(none, items, Expected(None, None))
        )

    def _strings(self, stream: str, items: range) -> dict[str, np.ndarray]:
        id_bytes, id_offsets = pack_strings(self.ids(stream, items))
        found = {"id_bytes": id_bytes, "id_offsets": id_offsets}
        if stream == "text":
            found["text_bytes"], found["text_offsets"] = pack_strings(self.captions(items))
        return found


def _numbers(library: Library, stream: str, keys: np.ndarray) -> np.ndarray:
    """(n,) int64, number of the item of each key, `PENDING` where there is none."""
    about = library.stream(stream)
    if len(about.additions) == 1 and about.is_committed.all() and np.array_equal(keys, about.keys):
        return np.arange(len(keys))
    return about.index.find(keys)
