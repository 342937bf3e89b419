"""A folder of video files, to be searched or trained on: captions from text files of the same name, one a line."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from glscl.cache.schema import Annotations
from glscl.common.errors import InputError, UsageError, telling
from glscl.common.tables import amount
from glscl.extract.datasets.annotation_rows import CheckedRow, RawRow, build_from_rows
from glscl.extract.datasets.own_videos import ContentHasher, OwnVideos
from glscl.extract.datasets.splits import SPLIT_NAMES, choose_protocol
from glscl.extract.datasets.text_files import examples, read_lines
from glscl.extract.datasets.video_files import VIDEO_EXTENSIONS, VideoFiles, split_extension

SUBTITLES = (".srt", ".vtt", ".ass")


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
    contents: ContentHasher | None = None,
    allow_shared: bool = False,
) -> Annotations:
    """List every video file below a folder; the id is its relative path.

    Captions stand in `clip.txt` or `clip.mp4.txt` beside `clip.mp4`, or at the same place below `annotations`.
    If every video lies in a first sub-folder named train, val or test, those are the splits; else captioned videos are
    divided by a hash of what is in them, and those without caption are test.

    Args:
        annotations: folder of the text files; that of the videos by default.
        videos: the folder of videos; that of the annotations by default.
        splits: only these.
        contents, allow_shared: see `DatasetEntry.read`.
    Raises:
        InputError: no video file, one text file for two videos, or one content in two splits.
        NotFoundError: no such folder.
        UsageError: no folder given.
    """
    choose_protocol(protocol, (), "folder")
    root = videos or annotations
    if root is None:
        raise UsageError("folder: no folder was given", hint="Give `videos=DIR`.")
    files = VideoFiles(root)
    names = files.videos()
    if not names:
        known = ", ".join(sorted(VIDEO_EXTENSIONS))
        raise InputError(f"{root}: no video among {amount(len(files.names), 'file')}; known extensions: {known}")
    notes: list[str] = []
    if annotations is not None and not annotations.is_dir():
        notes.append(f"no folder {annotations}: captions were looked for beside the videos")
        annotations = None
    with tempfile.TemporaryDirectory(prefix="glscl-captions-") as here:
        texts = _TextFiles(files if annotations is None or annotations == root else VideoFiles(annotations), Path(here))
        text_of = {name: texts.for_video(name) for name in names}
        captions_of = {name: read_lines(text) if (text := text_of[name]) else [] for name in names}

    split_of = {name: SPLIT_NAMES.get(name.split("/")[0].lower()) if "/" in name else None for name in names}
    divided = all(split_of.values())
    rows = []
    for name in names:
        split = split_of[name] if divided else None
        captions = [RawRow(text_of[name] or root, line, name, caption) for line, caption in captions_of[name]]
        rows += [CheckedRow(row, name, None, None, None, split) for row in captions or [RawRow(root, None, name, None)]]
    empty = [name for name in names if text_of[name] and not captions_of[name]]
    if empty:
        notes.append(f"{amount(len(empty), 'text file')} without a line, for example of {empty[0]}")
    if unused := texts.unused():
        notes.append(
            f"{amount(len(unused), 'text file')} of no video, or beside another of its own: {examples(unused)}"
        )
    subtitles = [name for name in files.names if name.lower().endswith(SUBTITLES)]
    if subtitles:
        kinds = f"{amount(len(subtitles), 'file')} of subtitles"
        notes.append(f"{kinds} not used: captions stand in .txt files: {examples(subtitles)}")
    with telling(notes):
        found = OwnVideos({name: files.full(name) for name in names}, contents, notes=files.notes)
        return build_from_rows("folder", root, rows, found, splits=splits, allow_shared=allow_shared, notes=notes)


class _TextFiles:
    """The text files that belong to videos, each to one; those of an address are brought below a folder here."""

    def __init__(self, files: VideoFiles, here: Path) -> None:
        self._files, self._here = files, here if isinstance(files.root, str) else None
        if self._here is not None:
            files.bring((name for name in files.names if name.lower().endswith(".txt")), self._here)
        self._names: dict[str, str] = {}  # as looked for → as it is called
        for name in files.names:
            stem, dot, extension = name.rpartition(".")
            if extension.lower() == "txt":
                self._names[f"{stem}{dot}txt"] = name
        self._video_of: dict[str, str] = {}

    def for_video(self, video: str) -> Path | None:
        folder, slash, name = video.rpartition("/")
        text = self._names.get(f"{video}.txt") or self._names.get(f"{folder}{slash}{split_extension(name)[0]}.txt")
        if text is None:
            return None
        other = self._video_of.setdefault(text, video)
        if other != video:
            raise InputError(
                f"{self._files.full(text)} belongs to two videos: {other} and {video}",
                hint=f"Name the captions {other}.txt and {video}.txt.",
            )
        return Path(self._files.full(text)) if self._here is None else self._here / text

    def unused(self) -> list[str]:
        """Those that no video was looked up for."""
        return [name for name in self._files.names if name.lower().endswith(".txt") and name not in self._video_of]
