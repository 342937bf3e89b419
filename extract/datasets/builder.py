"""What a reader finds becomes annotations: videos and captions in order, each in one split, with notes on what was dropped."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glscl.cache.schema import Annotations, Expected, TextItem, VideoItem
from glscl.common.errors import InputError
from glscl.common.tables import amount
from glscl.extract.datasets.columns import captions_in_cell
from glscl.extract.datasets.splits import SPLITS
from glscl.extract.datasets.text_files import examples, fold, is_clean, listing, location, refuse, show
from glscl.extract.datasets.video_files import VideoFiles, split_extension

NOT_LOOKED_FOR = "no folder of videos was given: no file was looked for"
EMPTY_WORDS = frozenset({"nan", "none", "null", "n/a", "<na>"})
LEAK = "A video belongs to one split: training on a test video makes every number worthless"


class _Video(NamedTuple):
    file: str  # what is looked for in the folder of videos
    start: float | None
    end: float | None


class AnnotationBuilder:
    """Collects the videos and captions of a dataset split by split, and checks what every dataset must keep.

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
        self._captions_of: dict[str, int] = {}  # that stand in the files, empty ones too
        self._captioned: set[str] = set()
        self._written: dict[str, list[str]] = {split: [] for split in splits}
        self._empty: dict[str, list[int | str]] = {}
        self._words: dict[str, list[int | str]] = {}  # captions that are such a word, see EMPTY_WORDS

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
                hint=LEAK,
            )
        entry = _Video(file if file is not None else id, start, end)
        if self._videos[split].setdefault(id, entry) != entry:
            refuse(path, row, f"the id {show(id)} stands for two different files or times")

    def text(self, video: str, caption: object, *, path: Path | str, row: int | str | None) -> bool:
        """Add a caption of a video that was added; an empty one is counted, not kept, and keeps its number. Whether it was kept."""
        if not isinstance(caption, str):
            refuse(path, row, f"the caption is {show(caption)}, expected a string")
        split = self._split_of[video]
        index = self._captions_of.get(video, 0)
        self._captions_of[video] = index + 1
        id = f"{video}#{index}"
        self._written[split].append(id)
        text = fold(caption)
        if captions_in_cell(text, path, row) != [text]:
            refuse(path, row, f"the caption is {show(text)}, a list, expected one caption")
        if not text:
            self._empty.setdefault(str(path), []).append("?" if row is None else row)
            return False
        if text.lower() in EMPTY_WORDS:
            self._words.setdefault(str(path), []).append("?" if row is None else row)
        if not is_clean(text):
            refuse(path, row, f"the caption {show(text)} is not valid Unicode")
        original = None if text == caption else caption
        self._texts[split].append(TextItem(id, video, split, text, original))
        self._captioned.add(video)
        return True

    def ids(self, split: str | None = None) -> set[str]:
        """Ids of the videos that were added, of one split or all."""
        return set(self._split_of) if split is None else set(self._videos[split])

    def drop_uncaptioned(self, reason: str, captioned: Iterable[str] = ()) -> None:
        """Remove the videos without caption, and note how many of each split.

        Args:
            reason: "without caption", for the note.
            captioned: ids that the caption files hold, one of which is shown where no id of a split fits any.
        Raises:
            InputError: not one video of a split has a caption, so its ids are written in another way.
        """
        for split, videos in self._videos.items():
            without = [id for id in videos if id not in self._captioned]
            if without and len(without) == len(videos):
                other = next(iter(captioned), None)
                raise InputError(
                    f"{self.dataset}: {split}: none of its {amount(len(videos), 'id')} has a caption, for example "
                    f"{show(without[0])}{'' if other is None else f'; the captions are of ids such as {show(other)}'}",
                    hint="Write the ids of the list as the caption file does: no column, quotes or extension beside them",
                )
            for id in without:
                del videos[id]
                del self._split_of[id]
            if without:
                self.note(f"{split}: dropped {amount(len(without), 'video')} {reason}: {examples(without)}")

    def note(self, line: str) -> None:
        """Say something about what was read that a user would want to know."""
        self.notes.append(line)

    def build(
        self,
        videos: Path | None,
        *,
        located: Mapping[str, str] | None = None,
        also: Callable[[str], Iterable[str]] | None = None,
        any_prefix: bool = False,
    ) -> Annotations:
        """Find the files and return everything, split after split.

        Args:
            videos: folder of videos; None leaves every path None.
            located: file → path where the reader knows them already; nothing is looked for.
            also, any_prefix: rules for file names, see `VideoFiles.locate`.
        Raises:
            InputError: no video in any split, or two candidate files for one, or one for two.
            NotFoundError: no such folder.
        """
        for path, rows in self._empty.items():
            self.note(f"dropped {amount(len(rows), 'empty caption')}: {location(path, examples(rows, 10))}")
        for path, rows in self._words.items():
            kinds = "as programs write an empty cell: taken as text"
            self.note(
                f"{amount(len(rows), 'caption')} of the word nan, none or null, {kinds}: {location(path, examples(rows, 10))}"
            )
        items = [(split, id, entry) for split, entries in self._videos.items() for id, entry in entries.items()]
        if not items:
            raise InputError(f"{self.dataset}: no video in {listing(self.splits)}")
        names = dict.fromkeys(entry.file for _, _, entry in items)
        if located is None and videos is None:
            self._refuse_spellings()
        if located is None and videos is not None:
            files = VideoFiles(videos)
            located = files.locate(names, also=also, any_prefix=any_prefix)
            self.notes.extend([*files.notes, *([] if located else files.strangers(located, names))])
        elif located is None:  # only absolute paths can be looked for
            located = {name: name for name in names if os.path.isabs(name) and os.path.isfile(name)}
            if len(located) < len(names):
                self.note(NOT_LOOKED_FOR)
        return Annotations(
            dataset=self.dataset,
            videos=[VideoItem(id, split, located.get(v.file), v.start, v.end) for split, id, v in items],
            texts=[text for texts in self._texts.values() for text in texts],
            expected=self.expected,
            notes=self.notes,
            written=[id for ids in self._written.values() for id in ids],
        )

    def _refuse_spellings(self) -> None:
        """Raise InputError where two ids differ in an extension alone: in a folder of videos they would be one file."""
        first: dict[str, str] = {}
        for id, split in self._split_of.items():
            other = first.setdefault(split_extension(unicodedata.normalize("NFC", id))[0], id)
            if other != id:
                where = (
                    f"in split {split}" if self._split_of[other] == split else f"in {self._split_of[other]} and {split}"
                )
                raise InputError(
                    f"{self.dataset}: the ids {show(other)} and {show(id)} {where} are one video in two spellings",
                    hint=LEAK,
                )


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
