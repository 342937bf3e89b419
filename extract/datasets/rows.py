"""Rows of video, caption, split and times, as tables and shards give them, become annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from glscl.extract.datasets.builder import AnnotationBuilder
from glscl.extract.datasets.splits import carve, carving_note, choose_present
from glscl.extract.datasets.text_files import refuse, show


class RawRow(NamedTuple):
    """One row as it stands: nothing checked but that it has these cells."""

    path: Path
    row: int | str
    video: Any
    caption: Any  # None where there is none
    split: Any = None
    start: Any = None
    end: Any = None
    id: Any = None


class CheckedRow(NamedTuple):
    """One row, checked."""

    source: RawRow
    file: str
    id: str
    start: float | None
    end: float | None
    split: str | None


def build_from_rows(
    dataset: str, path: Path, entries: Sequence[CheckedRow], splits: Sequence[str] | None
) -> AnnotationBuilder:
    """Give every row its split, and builder the chosen ones."""
    has_caption = [entry.source.caption is not None and bool(str(entry.source.caption).strip()) for entry in entries]
    captioned = dict.fromkeys(entry.file for entry, has in zip(entries, has_caption) if has)
    notes = []
    carved: Mapping[str, str] = {}
    if any(entry.split for entry in entries):
        for entry, has in zip(entries, has_caption):
            if entry.split is None and has:
                refuse(
                    entry.source.path,
                    entry.source.row,
                    f"no split for {show(entry.id)}, but other rows have one; expected train, val or test in every row",
                )
    else:
        carved = carve(captioned)
        notes += carving_note(path, captioned, carved)
    split_of = [entry.split or carved.get(entry.file, "test") for entry in entries]
    builder = AnnotationBuilder(dataset, choose_present(splits, split_of, path))
    chosen = set(builder.splits)
    everywhere: dict[str, str] = {}
    shared: dict[str, None] = {}
    by_id: dict[str, str] = {}
    by_part: dict[tuple[str, float | None, float | None], str] = {}
    for entry, split in zip(entries, split_of):
        if (other := by_part.setdefault((entry.file, entry.start or None, entry.end), entry.id)) != entry.id:
            refuse(
                entry.source.path,
                entry.source.row,
                f"{show(entry.id)} and {show(other)} are the same part of the same file, {show(entry.file)}",
                hint="An id names a video, not a caption: give all rows of a video the same id, or leave the column out.",
            )
        # checked over all splits, chosen or not: a leak does not go away by looking at one side
        if by_id.setdefault(entry.id, split) != split:
            refuse(
                entry.source.path,
                entry.source.row,
                f"the video {show(entry.id)} is in split {split}, but also in {by_id[entry.id]}",
                hint="A video belongs to one split: training on a test video makes every number worthless.",
            )
        if everywhere.setdefault(entry.file, split) != split:
            shared[entry.file] = None
        if split not in chosen:
            continue
        row = entry.source
        builder.video(
            entry.id, split=split, path=row.path, row=row.row, file=entry.file, start=entry.start, end=entry.end
        )
        if row.caption is not None:
            builder.text(entry.id, row.caption, path=row.path, row=row.row)
    builder.notes += notes
    if shared:
        builder.note(f"parts of {len(shared)} file(s) are in different splits, for example of {next(iter(shared))}")
    return builder
