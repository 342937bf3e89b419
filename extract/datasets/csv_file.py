"""Your own annotations: a table of video, caption[, split, start, end, id] as CSV, TSV, JSON Lines or JSON.

    video,caption,split
    kitchen/egg.mp4,a man cracks an egg into a pan,train
    talk.mp4,"she laughs, and sits down",test

Several rows of a video are several captions; a video without caption is only searched. Columns may stand in any order
under a header; without a header they are video, caption, split.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from glscl.cache.schema import Annotations
from glscl.common.errors import InputError, NotFoundError, telling
from glscl.common.tables import amount
from glscl.extract.datasets.annotation_rows import CheckedRow, RawRow, build_from_rows
from glscl.extract.datasets.columns import (
    NAMES,
    WANTED,
    captions_in_cell,
    captions_of,
    check_captions,
    header,
    is_header,
    names_a_file,
    number,
    repeated_headers,
    separator,
    unused_keys,
    unused_note,
)
from glscl.extract.datasets.own_videos import ContentHasher, OwnVideos
from glscl.extract.datasets.splits import SPLIT_NAMES, choose_protocol, split_name
from glscl.extract.datasets.text_files import (
    check_id,
    check_relative_path,
    location,
    parse_json,
    read_text,
    refuse,
    show,
    table_records,
)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
    contents: ContentHasher | None = None,
    allow_shared: bool = False,
) -> Annotations:
    """Read a table of videos and captions.

    Args:
        annotations: the file, or a folder that holds one such file (or train/val/test ones).
        videos: folder that relative paths start from; a bare name or id is found in any sub-folder too.
        splits: only these.
        contents, allow_shared: see `DatasetEntry.read`.
    Raises:
        InputError: naming file, row, what was found and what was expected.
        NotFoundError: no such file or folder.
        UsageError: a protocol was asked for; there is none.
    """
    choose_protocol(protocol, (), "csv")
    if annotations is None:
        raise NotFoundError("csv: no annotation file was given", hint="Give `annotations=FILE.csv` (video,caption).")
    notes: list[str] = []
    with telling(notes):
        files = _files(annotations)
        entries = [_entry(row, videos) for path, split in files for row in _rows(path, split, notes)]
        check_captions((entry.source.path, entry.source.row, entry.source.caption) for entry in entries)
        found = OwnVideos.below(videos, [entry.file for entry in entries], contents)
        return build_from_rows(
            "csv", annotations, entries, found, splits=splits, allow_shared=allow_shared, notes=notes
        )


# ------------------------------------------------------------------------------------------------ files


def _files(annotations: Path) -> list[tuple[Path, str | None]]:
    """The files to read, with their split where their names say it."""
    if not annotations.is_dir():
        return [(annotations, None)]
    try:
        files = sorted(p for p in annotations.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    except OSError as error:
        raise InputError(f"{annotations}: cannot be listed: {error.strerror or error}") from None
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        raise NotFoundError(f"{annotations} has no annotation file; expected one of {', '.join(SUFFIXES)}")
    if len(files) == 1:
        return [(files[0], SPLIT_NAMES.get(files[0].stem.lower()))]
    named = [(file, SPLIT_NAMES.get(file.stem.lower())) for file in files]
    if all(split for _, split in named) and len({split for _, split in named}) == len(named):
        return named
    raise InputError(
        f"{annotations} has {len(files)} annotation files: {', '.join(file.name for file in files[:4])}",
        hint="Give `annotations` the one you mean.",
    )


def _rows(path: Path, split: str | None, notes: list[str]) -> Iterator[RawRow]:
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path}: the file is empty; {WANTED}")
    suffix = path.suffix.lower()
    unused: dict[str, None] = {}
    if suffix in (".jsonl", ".ndjson"):
        rows = _json_lines(text, path, unused)
    elif suffix == ".json":
        rows = _json_rows(parse_json(text, path), path, unused)
    else:
        rows = _table_rows(text, path, unused, notes)
    row = None
    for row in rows:
        yield row._replace(split=split) if row.split is None and split else row
    if row is None:
        raise InputError(f"{path}: no row; {WANTED}")
    notes.extend(unused_note(path, unused))


# ------------------------------------------------------------------------------------------------ tables


def _table_rows(text: str, path: Path, unused: dict[str, None], notes: list[str]) -> Iterator[RawRow]:
    at: dict[str, int] = {}  # column → where it stands
    first: list[str] = []
    doubtful: tuple[int, list[str]] | None = None  # a first row that may be a header with other names
    repeated: list[int] = []
    headed = False
    for row, cells in table_records(text, path, delimiter=separator(text, path)):
        if not first and [cell.lower() for cell in cells] == ["sep=", ""]:  # says what separates
            continue
        if not first:
            first, at = cells, _header(cells, path, row)
            headed = bool(at)
            if headed:
                named = dict(enumerate(name.strip() for name in cells))
                unused |= {name: None for where, name in named.items() if name and where not in at.values()}
                continue
            if len(cells) > 3:
                found = f"no header and {len(cells)} cells"
                refuse(path, row, f"{found}; {WANTED}", hint="Put captions with commas in quotes.")
            at = dict(zip(("video", "caption", "split"), range(len(cells))))
            doubtful = None if names_a_file(cells[0]) else (row, cells)
        elif headed and cells == first:
            repeated.append(row)
            continue
        elif doubtful is not None:
            if names_a_file(cells[0]):
                refuse(path, doubtful[0], f"no video column; found {_names(doubtful[1])}; {WANTED}")
            doubtful = None
        if len(cells) != len(first):
            refuse(
                path,
                row,
                f"{amount(len(cells), 'cell')}, expected {len(first)} as in the first row",
                hint="Put captions that hold the separator in double quotes." if len(cells) > len(first) else None,
            )
        if "caption" in at and is_header(cells):
            refuse(path, row, f"found {_names(cells)}, another header; {WANTED} in the first row")
        named = {name: cells[where] for name, where in at.items()}
        for caption in captions_in_cell(named.pop("caption"), path, row) if "caption" in at else (None,):
            yield RawRow(path, row, caption=caption, **named)
    notes.extend(repeated_headers(path, repeated))


def _header(cells: list[str], path: Path, row: int) -> dict[str, int]:
    """Where each column stands; empty where the first row is data."""
    names, at = [cell.strip().lower() for cell in cells], header(cells)
    for where in at.values():
        if names.count(names[where]) > 1:
            refuse(path, row, f"{names.count(names[where])} columns are named {names[where]}")
    if "video" in at:
        if "caption" not in at and len(set(names) - {""}) > len(at):
            refuse(path, row, f"no caption column; found {_names(cells)}; {WANTED}")
        return at
    if {"caption", "sentence", "split"} & set(names) and not any(map(names_a_file, cells)):
        refuse(path, row, f"no video column; found {_names(cells)}; {WANTED}")
    return {}


def _names(cells: Sequence[object]) -> str:
    return ", ".join(show(cell, limit=30) for cell in cells[:8]) + (", ..." if len(cells) > 8 else "")


# ------------------------------------------------------------------------------------------------ JSON


def _json_lines(text: str, path: Path, unused: dict[str, None]) -> Iterator[RawRow]:
    for row, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield from _object_rows(parse_json(line, path, row), path, row, unused)


def _json_rows(value: object, path: Path, unused: dict[str, None]) -> Iterator[RawRow]:
    """A list of objects; their columns; {video: [captions]}; or {"train": [objects], "test": …}."""
    if isinstance(value, dict) and {"video", "caption"} <= header(list(value)).keys():
        value = _transposed(value, path)
    if isinstance(value, list):
        for row, entry in enumerate(value, 1):
            yield from _object_rows(entry, path, row, unused)
    elif isinstance(value, dict) and value and all(name.lower() in SPLIT_NAMES for name in value):
        for name, entries in value.items():
            if not isinstance(entries, list):
                refuse(path, show(name), "expected a list of objects with 'video' and 'caption'")
            for index, entry in enumerate(entries, 1):
                for found in _object_rows(entry, path, f"{index} of {name}", unused):
                    yield found if found.split is not None else found._replace(split=name)
    elif isinstance(value, dict):
        for video, captions in value.items():
            yield from _object_rows({"video": video, "captions": captions}, path, show(video), unused)
    else:
        refuse(path, None, 'expected a list of objects {"video": ..., "caption": ...}')


def _transposed(columns: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Objects from their columns, each a list or numbered by row, as pandas writes both."""
    lists = {name: [*column.values()] if isinstance(column, dict) else column for name, column in columns.items()}
    rows = {tuple(column) if isinstance(column, dict) else None for column in columns.values()}
    if (
        not all(isinstance(column, list) for column in lists.values())
        or len({*map(len, lists.values())}) > 1
        or len(rows) > 1
    ):
        refuse(path, None, f"found the columns {_names(list(columns))} of different rows, expected a list of objects")
    return [dict(zip(lists, cells)) for cells in zip(*lists.values())]


def _object_rows(entry: object, path: Path, row: int | str, unused: dict[str, None]) -> Iterator[RawRow]:
    if not isinstance(entry, dict):
        refuse(path, row, f'found {show(entry)}, expected an object {{"video": ..., "caption": ...}}')
    spelled = {
        column: spelling
        for column, spellings in NAMES.items()
        for spelling in [next((each for each in spellings if each in entry), None)]
        if spelling is not None and column != "caption"
    }
    cells = {column: entry[spelling] for column, spelling in spelled.items()}
    unused |= dict.fromkeys(unused_keys(entry, spelled.values()))
    if "video" not in cells:
        refuse(path, row, f"no 'video'; found {_names(list(entry)) or 'nothing'}")
    for caption in captions_of(entry, path, row) or (None,):
        yield RawRow(path, row, caption=caption, **cells)


# ------------------------------------------------------------------------------------------------ one row


def _entry(row: RawRow, videos: Path | None) -> CheckedRow:
    file = _file(row, videos)
    start, end = (
        None if value is None or value == "" else number(value, name, row.path, row.row)
        for name, value in (("start", row.start), ("end", row.end))
    )
    if end is not None:
        start = start or 0.0
        if end <= start:
            refuse(row.path, row.row, f"the part ends at {end:g} s, not after its start {start:g} s")
    id = None
    if row.id is not None and row.id != "":
        id = check_id(str(row.id) if isinstance(row.id, int) else row.id, row.path, row.row)
    split = None if row.split is None or row.split == "" else split_name(row.split, row.path, row.row)
    return CheckedRow(row, file, id, start, end, split)


def _file(row: RawRow, videos: Path | None) -> str:
    """The video's path below the folder of videos; an absolute one stays only where no folder was given."""
    value = str(row.video) if isinstance(row.video, int) and not isinstance(row.video, bool) else row.video
    if not isinstance(value, str) or not value.strip().startswith("/"):
        return check_relative_path(value, row.path, row.row)
    value = value.strip()
    inside = check_relative_path(value.lstrip("/"), row.path, row.row)
    if videos is None:
        return f"/{inside}"
    for root in (os.path.abspath(videos), os.path.realpath(videos)):
        if f"/{inside}".startswith(f"{root.rstrip('/')}/"):
            return f"/{inside}"[len(root.rstrip("/")) + 1 :]
    raise InputError(
        f"{location(row.path, row.row)}: the video {show(value)} is not below the folder of videos {videos}",
        hint="Give `videos` the folder that holds all of them.",
    )
