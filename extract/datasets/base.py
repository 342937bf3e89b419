"""What every annotation reader shares: its files found, splits chosen, items gathered in order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from glscl.cache.schema import Annotations, Expected, TextItem, VideoItem
from glscl.common.errors import InputError, NotFoundError, UsageError
from glscl.extract.datasets.text_files import fold, is_clean, place, refuse, show
from glscl.extract.datasets.video_files import VideoFiles

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
CARVE_AT_LEAST = 20  # captioned videos; fewer are all test
NOT_LOOKED_FOR = "no folder of videos was given: no file was looked for"

_EXAMPLES = 3


class AnnotationFolder:
    """The folder of a benchmark's annotations: finds its files by name, directly or one folder below.

    Args:
        path: what the user gave.
        dataset: name for messages.
        source: one sentence on where the files are to be had.
        files: the files it should hold, for messages.
    Raises:
        NotFoundError: no folder given, or it is not there, naming the files that were looked for.
    """

    def __init__(self, path: Path | None, *, dataset: str, source: str, files: Sequence[str]) -> None:
        self.dataset, self.source, self.files = dataset, source, files
        if path is None:
            raise NotFoundError(
                f"{dataset}: no folder with annotations was given; expected {_listing(files)}",
                mend=f"Give --annotations DIR. {source}",
            )
        if not path.is_dir():
            found = "is a file, not a folder" if path.exists() else "there is no such folder"
            raise NotFoundError(
                f"{dataset}: {path}: {found}; expected {_listing(files)} in it",
                mend=f"Name the folder with --annotations DIR. {source}",
            )
        self.path = path

    def find(self, *names: str) -> Path | None:
        """The first of `names` that is there, or None; two copies in different sub-folders are refused."""
        for name in names:
            if (self.path / name).is_file():
                return self.path / name
            below = sorted(folder / name for folder in self._sub_folders if (folder / name).is_file())
            if len(below) > 1:
                raise InputError(
                    f"{self.dataset}: {name} is there {len(below)} times: {', '.join(map(str, below[:_EXAMPLES]))}",
                    mend="Give --annotations the folder that holds the one you mean.",
                )
            if below:
                return below[0]
        return None

    def need(self, *names: str) -> Path:
        """As `find`; NotFoundError naming folder, files and source where there is none."""
        return self.find(*names) or self.missing([" or ".join(names)])

    def missing(self, names: Iterable[str]) -> NoReturn:
        """Raise the NotFoundError for files that are not in the folder."""
        raise NotFoundError(f"{self.dataset}: {self.path} has no {', no '.join(names)}", mend=self.source)

    def of_splits(
        self, splits: Sequence[str], needs: Mapping[str, Sequence[Sequence[str]]], *, asked: bool
    ) -> tuple[dict[str, list[Path]], list[str]]:
        """The files of each split that has all of its files.

        Args:
            splits: the splits that are wanted.
            needs: split → one sequence of alternative names per file.
            asked: the user named the splits, so a missing file is an error, not a note.
        Returns:
            split → its files in the order of `needs`, and a note on each split left out.
        Raises:
            NotFoundError: a file of a split that was asked for, or the files of every split, are missing.
        """
        found: dict[str, list[Path]] = {}
        notes = []
        all_absent: dict[str, None] = {}
        for split in splits:
            paths = [self.find(*names) for names in needs[split]]
            absent = [" or ".join(names) for names, path in zip(needs[split], paths) if path is None]
            if absent and asked:
                self.missing(absent)
            if absent:
                notes.append(f"{split} was not read: {self.path} has no {_listing(absent)}")
                all_absent.update(dict.fromkeys(absent))
            else:
                found[split] = [path for path in paths if path is not None]
        if not found:
            self.missing(all_absent)
        return found, notes

    @cached_property
    def _sub_folders(self) -> list[Path]:
        try:
            with os.scandir(self.path) as entries:
                return [self.path / e.name for e in entries if not e.name.startswith(".") and e.is_dir()]
        except OSError as error:
            raise InputError(f"{self.path}: cannot be listed: {error.strerror or error}") from None


def _listing(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# ------------------------------------------------------------------------------------------------ splits and protocols


def choose_protocol(protocol: str | None, protocols: Sequence[str], dataset: str) -> str:
    """`protocol`, or the first of `protocols` for None; UsageError for any other."""
    if protocol is None:
        return protocols[0] if protocols else ""
    if protocol not in protocols:
        known = f"expected one of {', '.join(protocols)}" if protocols else "it has only one"
        raise UsageError(f"{dataset} has no protocol {show(protocol)}; {known}")
    return protocol


def choose_splits(splits: Sequence[str] | None, available: Sequence[str], dataset: str) -> list[str]:
    """The chosen splits in the order train, val, test; all that are available for None.

    Raises:
        UsageError: an unknown split, or none at all.
    """
    if splits is None:
        return [split for split in SPLITS if split in available]
    if isinstance(splits, str):
        splits = [splits]
    for split in splits:
        if split not in available:
            raise UsageError(f"{dataset} has no split {show(split)}; it has {', '.join(available)}")
    if not splits:
        raise UsageError(f"{dataset}: no split was chosen; it has {', '.join(available)}")
    return [split for split in SPLITS if split in splits]


def split_name(value: object, path: Path | str, row: int | str) -> str:
    """train, val or test for any usual spelling of them."""
    name = SPLIT_NAMES.get(value.strip().lower()) if isinstance(value, str) else None
    if name is None:
        refuse(path, row, f"the split is {show(value)}, expected train, val or test")
    return name


def carve(files: Iterable[str]) -> dict[str, str]:
    """Split for each video file, by a hash of its name: about 80/10/10 of train, val, test; all test where few.

    A file keeps its split when others are added (but for sets so small that val or test would be empty: these take
    the training files whose hashes are nearest).
    """
    place_of = {file: int.from_bytes(hashlib.sha256(file.encode()).digest()[:8], "big") / 2**64 for file in files}
    if len(place_of) < CARVE_AT_LEAST:
        return dict.fromkeys(place_of, "test")
    split_of = {file: "train" if at < 0.8 else "val" if at < 0.9 else "test" for file, at in place_of.items()}
    for split in ("test", "val"):
        if split not in split_of.values():
            training = [file for file in split_of if split_of[file] == "train"]
            split_of[max(training, key=lambda file: (place_of[file], file))] = split
    return split_of


# ------------------------------------------------------------------------------------------------ gathering


class _Video(NamedTuple):
    file: str  # what is looked for in the folder of videos
    start: float | None
    end: float | None


class Gather:
    """Collects the items of a dataset split by split, and checks what every dataset must keep.

    Args:
        dataset: name for messages and for the result.
        splits: the splits to be read, in the order of the result.
        expected: published sizes of these splits.
    """

    def __init__(self, dataset: str, splits: Sequence[str], expected: Mapping[str, Expected] | None = None) -> None:
        self.dataset = dataset
        self.splits = list(splits)
        self.expected = {split: expected[split] for split in splits if split in expected} if expected else {}
        self.notes: list[str] = []
        self._videos: dict[str, dict[str, _Video]] = {split: {} for split in splits}
        self._texts: dict[str, list[TextItem]] = {split: [] for split in splits}
        self._split_of: dict[str, str] = {}
        self._captions_of: dict[str, int] = {}
        self._empty: dict[str, list[int | str]] = {}

    def video(
        self,
        id: str,
        *,
        split: str,
        path: Path | str,
        row: int | str | None,
        file: str | None = None,
        start: float | None = None,
        end: float | None = None,
    ) -> None:
        """Add a gallery entry; the same again is no harm.

        Args:
            id: a checked id (`check_id`, `check_relative_path`).
            path: the annotation file it comes from, with its row, for messages.
            file: what to look for in the folder of videos, the id by default.
        Raises:
            InputError: the id is already in another split (test videos in training), or is another part of a file.
        """
        known = self._split_of.setdefault(id, split)
        if known != split:
            refuse(
                path,
                row,
                f"the video {show(id)} is in split {split}, but also in {known}",
                mend="A video belongs to one split: training on a test video makes every number worthless.",
            )
        entry = _Video(file if file is not None else id, start, end)
        if self._videos[split].setdefault(id, entry) != entry:
            refuse(path, row, f"the id {show(id)} stands for two different files or times")

    def text(self, video: str, caption: object, *, path: Path | str, row: int | str | None) -> bool:
        """Add a caption of a video that was added; an empty one is counted instead. Whether it was kept."""
        if not isinstance(caption, str):
            refuse(path, row, f"the caption is {show(caption)}, expected a string")
        text = fold(caption)
        if not text:
            self._empty.setdefault(str(path), []).append("?" if row is None else row)
            return False
        if not is_clean(text):
            refuse(path, row, f"the caption {show(text)} is not valid Unicode")
        split = self._split_of[video]
        index = self._captions_of.get(video, 0)
        self._captions_of[video] = index + 1
        original = None if text == caption else caption
        self._texts[split].append(TextItem(f"{video}#{index}", video, split, text, original))
        return True

    def ids(self, split: str | None = None) -> set[str]:
        """Ids of the videos that were added, of one split or all."""
        return set(self._split_of) if split is None else set(self._videos[split])

    def drop_uncaptioned(self, reason: str) -> None:
        """Remove the videos without caption, and note how many of each split."""
        for split, videos in self._videos.items():
            without = [id for id in videos if id not in self._captions_of]
            for id in without:
                del videos[id]
                del self._split_of[id]
            if without:
                self.note(f"{split}: dropped {len(without)} {_plural('video', without)} {reason}: {examples(without)}")

    def note(self, line: str) -> None:
        """Say something about what was read that a user would want to know."""
        self.notes.append(line)

    def annotations(
        self,
        videos: Path | None,
        *,
        located: Mapping[str, str] | None = None,
        also: Callable[[str], Iterable[str]] | None = None,
        any_prefix: bool = False,
        as_paths: bool = False,
    ) -> Annotations:
        """Find the files and return everything, split after split.

        Args:
            videos: folder of videos; None leaves every path None.
            located: file → path where the reader knows them already; nothing is looked for.
            also, any_prefix, as_paths: rules for file names, see `VideoFiles.locate`.
        Raises:
            InputError: no video in any split, or two candidate files for one.
            NotFoundError: no such folder.
        """
        for path, rows in self._empty.items():
            shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
            self.note(f"dropped {len(rows)} empty {_plural('caption', rows)}: {place(path, shown)}")
        items = [(split, id, entry) for split, entries in self._videos.items() for id, entry in entries.items()]
        if not items:
            raise InputError(f"{self.dataset}: no video in {_listing(self.splits)}")
        names = dict.fromkeys(entry.file for _, _, entry in items)
        if located is None and videos is not None:
            files = VideoFiles(videos)
            located = files.locate(names, also=also, any_prefix=any_prefix, as_paths=as_paths)
            self.notes.extend(files.notes)
        elif located is None:  # only absolute paths can be looked for
            located = {name: name for name in names if os.path.isabs(name) and os.path.isfile(name)}
        if videos is None and len(located) < len(names):
            self.note(NOT_LOOKED_FOR)
        return Annotations(
            dataset=self.dataset,
            videos=[VideoItem(id, split, located.get(v.file), v.start, v.end) for split, id, v in items],
            texts=[text for texts in self._texts.values() for text in texts],
            expected=self.expected,
            notes=self.notes,
        )


def examples(names: Iterable[object], count: int = _EXAMPLES) -> str:
    """The first few of a longer list, for a note."""
    names = list(names)
    shown = ", ".join(str(name) for name in names[:count])
    return f"{shown}, ..." if len(names) > count else shown


def _plural(word: str, items: Sequence[object]) -> str:
    return word if len(items) == 1 else f"{word}s"


def summary(annotations: Annotations) -> dict[str, Any]:
    """What a dry run prints: sizes of each split beside the published ones, and what was not found.

    Returns:
        {"splits": {name: {"captions", "videos", "found", "missing", "expected_captions", "expected_videos"}},
        "missing_examples": {name: up to five ids}, "notes": [line, ...]}; the published sizes may be None.
    """
    names = dict.fromkeys([*(video.split for video in annotations.videos), *(text.split for text in annotations.texts)])
    order = [s for s in SPLITS if s in names or s in annotations.expected]
    order += [s for s in [*names, *annotations.expected] if s not in SPLITS]
    splits = {}
    missing_examples = {}
    for split in dict.fromkeys(order):
        videos = [video for video in annotations.videos if video.split == split]
        missing = [video.id for video in videos if video.path is None]
        expected = annotations.expected.get(split, Expected(None, None))
        splits[split] = {
            "captions": sum(text.split == split for text in annotations.texts),
            "videos": len(videos),
            "found": len(videos) - len(missing),
            "missing": len(missing),
            "expected_captions": expected.captions,
            "expected_videos": expected.videos,
        }
        if missing:
            missing_examples[split] = missing[:5]
    return {"splits": splits, "missing_examples": missing_examples, "notes": list(annotations.notes)}
