"""Rows of video, caption, split and times, as tables, folders and shards give them, become annotations.

A gallery entry is a file, or a part of one, however often and in whatever way its name is written.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from glscl.cache.schema import Annotations
from glscl.common.tables import amount
from glscl.extract.datasets.builder import LEAK, NOT_LOOKED_FOR, AnnotationBuilder
from glscl.extract.datasets.own_videos import OwnVideos
from glscl.extract.datasets.splits import carve, carving_note, choose_present
from glscl.extract.datasets.text_files import clip_id, examples, refuse, show

SHARED = f"{LEAK}; if you mean it, `allow_shared` lets it pass"


class RawRow(NamedTuple):
    """One row as it stands: nothing checked but that it has these cells."""

    path: Path
    row: int | str | None
    video: Any
    caption: Any  # None where there is none
    split: Any = None
    start: Any = None
    end: Any = None
    id: Any = None


class CheckedRow(NamedTuple):
    """One row, checked. `id` is what the row calls its entry, None where it does not."""

    source: RawRow
    file: str
    id: str | None
    start: float | None
    end: float | None
    split: str | None

    @property
    def written(self) -> str:
        """The entry as the row writes it: its file, or the part of one."""
        return clip_id(self.file, self.start, self.end)

    @property
    def has_caption(self) -> bool:
        return self.source.caption is not None and bool(str(self.source.caption).strip())

    def refuse(self, found: str, *, hint: str | None = None) -> NoReturn:
        """Raise the InputError that names this row."""
        refuse(self.source.path, self.source.row, found, hint=hint)


class _Entry:
    """A gallery entry: a file, or a part of one, with all rows that are about it."""

    def __init__(self, first: CheckedRow) -> None:
        self.first = first  # whose spelling counts
        self.split = ""
        self.rows: list[CheckedRow] = []
        self._named: CheckedRow | None = None  # the first row that gives it an id …
        self._placed: CheckedRow | None = None  # … and a split

    @property
    def id(self) -> str:
        return self._named.id if self._named and self._named.id else self.first.written

    @property
    def given_split(self) -> str | None:
        return self._placed.split if self._placed else None

    @property
    def spellings(self) -> list[str]:
        return list(dict.fromkeys(row.written for row in self.rows))

    def add(self, row: CheckedRow) -> None:
        """Add a row about it. Raises InputError where it has another id, or lies in another split."""
        if row.id is not None:
            self._named = self._named or row
            if row.id != self._named.id:
                row.refuse(
                    f"the ids {show(self._named.id)} and {show(row.id)} stand for one video, {show(row.written)}",
                    hint="Give a video one id, or leave the column out.",
                )
        if row.split:
            self._placed = self._placed or row
            if row.split != self._placed.split:
                as_other = row.written != self._placed.written
                also = f", as {show(self._placed.written)}: both are one file" if as_other else ""
                row.refuse(
                    f"the video {show(row.id or row.written)} is in split {row.split}, but also in "
                    f"{self._placed.split}{also}",
                    hint=SHARED if as_other else LEAK,
                )
        self.rows.append(row)


def build_from_rows(
    dataset: str,
    path: Path,
    rows: Sequence[CheckedRow],
    found: OwnVideos,
    *,
    splits: Sequence[str] | None,
    allow_shared: bool,
    notes: list[str],
) -> Annotations:
    """Rows of one file and the same times become one entry, each with its split; the chosen splits are returned.

    Args:
        path: where the annotations come from, for messages.
        found: the files.
        splits: only these; None for all.
        allow_shared: one content may lie in several splits.
        notes: what was noticed so far; learns more.
    Raises:
        InputError: one video under several ids, one content in several splits, or captions with and without a split.
    """
    rows = _without_numbering(rows, found, notes)
    entries = _entries(rows, found, allow_shared)
    _divide(path, rows, entries, found, notes)
    _note_spellings(entries, notes)
    _note_parts(entries, found, notes)
    if not allow_shared:
        _refuse_copies(entries, found)
    builder = AnnotationBuilder(dataset, choose_present(splits, (entry.split for entry in entries), path))
    entry_of = {id(row): entry for entry in entries for row in entry.rows}
    written: list[str] = []
    count: Counter[str] = Counter()
    for row in rows:
        entry, (source_path, number, _, caption, *_) = entry_of[id(row)], row.source
        if caption is not None:
            written.append(f"{entry.id}#{count[entry.id]}")
            count[entry.id] += 1
        if entry.split in builder.splits:
            _, file, _, start, end, _ = entry.first
            builder.video(entry.id, split=entry.split, path=source_path, row=number, file=file, start=start, end=end)
            if caption is not None:
                builder.text(entry.id, caption, path=source_path, row=number)
    notes.extend([*found.notes, *([] if found.looked else [NOT_LOOKED_FOR])])
    builder.notes = notes
    return replace(builder.build(None, located=found.paths), written=written)


def _times(row: CheckedRow) -> tuple[int | None, int | None]:
    """Of the part that a row is about, as it is decoded: in microseconds."""
    from glscl.cache.keys import clip  # loads numpy

    return clip(row.start, row.end)


def _without_numbering(rows: Sequence[CheckedRow], found: OwnVideos, notes: list[str]) -> Sequence[CheckedRow]:
    """Rows without their ids where these number the rows of a table, not its videos: 18 sentences of 6 files are 6 videos."""
    places: dict[tuple[Path, str], set[object]] = defaultdict(set)
    ids_of: dict[Hashable, set[str]] = defaultdict(set)
    for row in rows:
        if row.id is None:
            return rows
        places[row.source.path, row.id].add(row.source.row)
        ids_of[found.identity(row.file), _times(row)].add(row.id)
    if any(len(each) > 1 for each in places.values()) or all(len(each) == 1 for each in ids_of.values()):
        return rows
    notes.append(
        f"the ids number {len(places)} rows of {amount(len(ids_of), 'video')}: entries are called after their files"
    )
    return [row._replace(id=None) for row in rows]


def _entries(rows: Sequence[CheckedRow], found: OwnVideos, allow_shared: bool) -> list[_Entry]:
    """An entry for each file and times, in the order in which they first stand; where shared, one for each split."""
    entries: dict[Hashable, _Entry] = {}
    first_split: dict[Hashable, str | None] = {}
    for row in rows:
        key: Hashable = (found.identity(row.file), _times(row))
        if allow_shared:
            key = (key, row.split or first_split.get(key))
            first_split.setdefault(key[0], row.split)
        entries.setdefault(key, _Entry(row)).add(row)
    return list(entries.values())


def _divide(
    path: Path, rows: Sequence[CheckedRow], entries: Sequence[_Entry], found: OwnVideos, notes: list[str]
) -> None:
    """Give every entry the split that its rows name, or where none does one that follows from what is in its file."""
    file_of: dict[Hashable, str] = {}
    for entry in entries:
        file_of.setdefault(found.identity(entry.first.file), entry.first.file)
    captioned = [entry for entry in entries if any(row.has_caption for row in entry.rows)]
    carved: dict[str, str] = {}
    if any(row.split for row in rows):
        for entry in captioned:
            if entry.given_split is None:
                row = next(row for row in entry.rows if row.has_caption)
                row.refuse(
                    f"no split for {show(entry.id)}, but other rows have one; expected train, val or test in every row"
                )
    else:
        files = list(dict.fromkeys(file_of[found.identity(entry.first.file)] for entry in captioned))
        contents = found.contents(files)
        carved = carve(files, contents)
        notes.extend(carving_note(path, files, carved, contents))
    for entry in entries:
        entry.split = entry.given_split or carved.get(file_of[found.identity(entry.first.file)], "test")


def _note_spellings(entries: Sequence[_Entry], notes: list[str]) -> None:
    several = [" = ".join(entry.spellings) for entry in entries if len(entry.spellings) > 1]
    if several:
        notes.append(f"videos written in several ways, each one entry: {len(several)}, {examples(several)}")


def _note_parts(entries: Sequence[_Entry], found: OwnVideos, notes: list[str]) -> None:
    splits_of: dict[Hashable, set[str]] = defaultdict(set)
    file_of: dict[Hashable, str] = {}
    for entry in entries:
        identity = found.identity(entry.first.file)
        splits_of[identity].add(entry.split)
        file_of.setdefault(identity, entry.first.file)
    shared = [file_of[identity] for identity, splits in splits_of.items() if len(splits) > 1]
    if shared:
        notes.append(f"files with parts in different splits: {len(shared)}, {examples(shared)}")


def _refuse_copies(entries: Sequence[_Entry], found: OwnVideos) -> None:
    """Raise InputError where files of one content, and the same times, lie in different splits; only equal sizes are read."""
    alike: dict[Hashable, list[_Entry]] = defaultdict(list)
    for entry in entries:
        if size := found.size(entry.first.file):
            alike[size, _times(entry.first)].append(entry)
    suspects = [group for group in alike.values() if len({entry.split for entry in group}) > 1]
    contents = found.contents(list(dict.fromkeys(entry.first.file for group in suspects for entry in group)))
    for group in suspects:
        first: dict[bytes, _Entry] = {}
        for entry in group:
            content = contents.get(entry.first.file)
            other = entry if content is None else first.setdefault(content, entry)
            if other.split != entry.split:
                entry.first.refuse(
                    f"the video {show(entry.id)} is in split {entry.split}, but {show(other.id)} in {other.split} "
                    "is a copy of it",
                    hint=SHARED,
                )
