"""A folder of video files, to be searched or trained on: captions from text files of the same name, one a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from glscl.cache.schema import Annotations
from glscl.common.errors import InputError, UsageError
from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.splits import SPLIT_NAMES, carve, carving_note, choose_present, choose_protocol
from glscl.extract.datasets.text_files import read_lines
from glscl.extract.datasets.video_files import VIDEO_EXTENSIONS, VideoFiles, split_extension


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
) -> Annotations:
    """List every video file below a folder; the id is its relative path.

    Captions stand in `clip.txt` or `clip.mp4.txt` beside `clip.mp4`, or at the same place below `annotations`.
    If every video lies in a first sub-folder named train, val or test, those are the splits; else captioned videos are
    divided by a hash of their names, and those without caption are test.

    Args:
        annotations: folder of the text files; that of the videos by default.
        videos: the folder of videos; that of the annotations by default.
        splits: only these.
    Raises:
        InputError: no video file, or one text file for two videos.
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
        raise InputError(f"{root}: none of its {len(files.names)} files is a video; known extensions: {known}")
    notes = []
    if annotations is not None and not annotations.is_dir():
        notes.append(f"no folder {annotations}: captions were looked for beside the videos")
        annotations = None
    texts = _TextFiles(files if annotations is None or annotations == root else VideoFiles(annotations))
    text_of = {name: texts.for_video(name) for name in names}
    captions_of = {name: read_lines(text) if (text := text_of[name]) else [] for name in names}

    split_of = {name: SPLIT_NAMES.get(name.split("/")[0].lower(), "") if "/" in name else "" for name in names}
    if not all(split_of.values()):
        captioned = {name: None for name in names if captions_of[name]}
        carved = carve(captioned)
        split_of = {name: carved.get(name, "test") for name in names}
        notes += carving_note(root, captioned, carved)
    builder = AnnotationBuilder("folder", choose_present(splits, split_of.values(), root))
    for name in names:
        if split_of[name] not in builder.splits:
            continue
        builder.video(name, split=split_of[name], path=root, row=None)
        for line, caption in captions_of[name]:
            builder.text(name, caption, path=text_of[name] or root, row=line)
    builder.notes += notes
    empty = [name for name in names if text_of[name] and not captions_of[name]]
    if empty:
        builder.note(f"{len(empty)} text file(s) without a line, for example of {empty[0]}")
    return builder.build(root, as_paths=True)


class _TextFiles:
    """The text files that belong to videos, each to one."""

    def __init__(self, files: VideoFiles) -> None:
        self._files = files
        self._names = set(files.names)
        self._video_of: dict[str, str] = {}

    def for_video(self, video: str) -> Path | None:
        folder, slash, name = video.rpartition("/")
        if f"{video}.txt" in self._names:
            return Path(self._files.full(f"{video}.txt"))
        text = f"{folder}{slash}{split_extension(name)[0]}.txt"
        if text not in self._names:
            return None
        other = self._video_of.setdefault(text, video)
        if other != video:
            raise InputError(
                f"{self._files.full(text)} belongs to two videos: {other} and {video}",
                hint=f"Name the captions {other}.txt and {video}.txt.",
            )
        return Path(self._files.full(text))
