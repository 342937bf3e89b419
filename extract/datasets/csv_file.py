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

from glscl.cache.schema import Annotations
from glscl.common.errors import InputError, NotFoundError
from glscl.extract.datasets.rows import CheckedRow, RawRow, build_from_rows
from glscl.extract.datasets.splits import SPLIT_NAMES, choose_protocol, split_name
from glscl.extract.datasets.text_files import (
    check_id,
    check_relative_path,
    clip_id,
    location,
    number,
    parse_json,
    read_text,
    refuse,
    show,
    table_records,
)
from glscl.extract.datasets.video_files import VIDEO_EXTENSIONS

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
COLUMNS: dict[str, tuple[str, ...]] = {  # the first name that is there is the column
    "video": ("video", "video_id", "videoid", "video_path", "path", "file", "filename", "file_name"),
    "caption": ("caption", "sentence", "text", "description", "name"),
    "split": ("split", "subset"),
    "start": ("start",),
    "end": ("end",),
    "id": ("id",),
}
_EXPECTED = "expected the columns video,caption[,split,start,end,id]"


def read(
    annotations: Path | None,
    videos: Path | None,
    *,
    splits: Sequence[str] | None = None,
    protocol: str | None = None,
) -> Annotations:
    """Read a table of videos and captions.

    Args:
        annotations: the file, or a folder that holds one such file (or train/val/test ones).
        videos: folder that relative paths start from; a bare name or id is found in any sub-folder too.
        splits: only these.
    Raises:
        InputError: naming file, row, what was found and what was expected.
        NotFoundError: no such file or folder.
        UsageError: a protocol was asked for; there is none.
    """
    choose_protocol(protocol, (), "csv")
    if annotations is None:
        raise NotFoundError("csv: no annotation file was given", hint="Give `annotations=FILE.csv` (video,caption).")
    entries = [_entry(row, videos) for path, split in _files(annotations) for row in _rows(path, split)]
    if not entries:
        raise InputError(f"{annotations}: no row; {_EXPECTED}")
    return build_from_rows("csv", annotations, entries, splits).build(videos, as_paths=True)


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


def _rows(path: Path, split: str | None) -> Iterator[RawRow]:
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path}: the file is empty; {_EXPECTED}")
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        rows = _json_lines(text, path)
    elif suffix == ".json":
        rows = _json_rows(parse_json(text, path), path)
    else:
        rows = _table_rows(text, path)
    for row in rows:
        yield row._replace(split=split) if row.split is None and split else row


# ------------------------------------------------------------------------------------------------ tables


def _table_rows(text: str, path: Path) -> Iterator[RawRow]:
    first_line = text.lstrip("\r\n").splitlines()[0]
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    delimiter = next((d for d in (usual, "\t", ";", ",") if d in first_line), usual)
    columns: dict[str, int] | None = None
    width = 0
    doubtful: tuple[int, list[str]] | None = None  # a first row that may be a header with other names
    for row, cells in table_records(text, path, delimiter=delimiter):
        if columns is None:
            width = len(cells)
            columns = _header(cells, path, row)
            if columns is not None:
                continue
            if width > 3:
                found = f"no header and {width} cells"
                refuse(path, row, f"{found}; {_EXPECTED}", hint="Put captions with commas in quotes.")
            columns = dict(zip(("video", "caption", "split"), range(width)))
            doubtful = None if _names_a_file(cells[0]) else (row, cells)
        elif doubtful is not None:
            if _names_a_file(cells[0]):
                refuse(path, doubtful[0], f"no video column; found {_names(doubtful[1])}; {_EXPECTED}")
            doubtful = None
        if len(cells) != width:
            refuse(
                path,
                row,
                f"{len(cells)} cells, expected {width} as in the first row",
                hint="Put captions that hold the separator in double quotes." if len(cells) > width else None,
            )
        yield RawRow(path, row, **{"caption": None, **{name: cells[at] for name, at in columns.items()}})


def _header(cells: list[str], path: Path, row: int) -> dict[str, int] | None:
    """Column of each name, or None where the first row is data."""
    names = [cell.strip().lower() for cell in cells]
    columns = {}
    for column, spellings in COLUMNS.items():
        for spelling in spellings:
            if spelling in names:
                if names.count(spelling) > 1:
                    refuse(path, row, f"{names.count(spelling)} columns are named {spelling}")
                columns[column] = names.index(spelling)
                break
    if "video" in columns:
        if "caption" not in columns and len(set(names) - {""}) > len(columns):
            refuse(path, row, f"no caption column; found {_names(cells)}; {_EXPECTED}")
        return columns
    if {"caption", "sentence", "split"} & set(names) and not any(map(_names_a_file, cells)):
        refuse(path, row, f"no video column; found {_names(cells)}; {_EXPECTED}")
    return None


def _names_a_file(cell: str) -> bool:
    return "." in cell and cell.rpartition(".")[2].strip().lower() in VIDEO_EXTENSIONS


def _names(cells: Sequence[object]) -> str:
    return ", ".join(show(cell, limit=30) for cell in cells[:8]) + (", ..." if len(cells) > 8 else "")


# ------------------------------------------------------------------------------------------------ JSON


def _json_lines(text: str, path: Path) -> Iterator[RawRow]:
    for row, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield from _object_rows(parse_json(line, path, row), path, row)


def _json_rows(value: object, path: Path) -> Iterator[RawRow]:
    """A list of objects; {"video": [captions]}; or {"train": [objects], "test": …}."""
    if isinstance(value, list):
        for row, entry in enumerate(value, 1):
            yield from _object_rows(entry, path, row)
    elif isinstance(value, dict) and value and all(name.lower() in SPLIT_NAMES for name in value):
        for name, entries in value.items():
            if not isinstance(entries, list):
                refuse(path, show(name), "expected a list of objects with 'video' and 'caption'")
            for index, entry in enumerate(entries, 1):
                for found in _object_rows(entry, path, f"{index} of {name}"):
                    yield found if found.split is not None else found._replace(split=name)
    elif isinstance(value, dict):
        for video, captions in value.items():
            yield from _object_rows({"video": video, "captions": captions}, path, show(video))
    else:
        refuse(path, None, 'expected a list of objects {"video": ..., "caption": ...}')


def _object_rows(entry: object, path: Path, row: int | str) -> Iterator[RawRow]:
    if not isinstance(entry, dict):
        refuse(path, row, f'found {show(entry)}, expected an object {{"video": ..., "caption": ...}}')
    cells = {}
    for column, spellings in COLUMNS.items():
        for spelling in spellings:
            if spelling in entry:
                cells[column] = entry[spelling]
                break
    if "video" not in cells:
        refuse(path, row, f"no 'video'; found {_names(list(entry)) or 'nothing'}")
    captions = entry.get("captions")
    if "caption" in cells:
        captions = cells.pop("caption")
    if isinstance(captions, list):
        if not all(isinstance(caption, str) for caption in captions):
            refuse(path, row, f"captions are {show(captions)}, expected strings")
        for caption in captions or (None,):
            yield RawRow(path, row, caption=caption, **cells)
    elif captions is None or isinstance(captions, str):
        yield RawRow(path, row, caption=captions, **cells)
    else:
        refuse(path, row, f"the caption is {show(captions)}, expected a string or a list of strings")


# ------------------------------------------------------------------------------------------------ one row


def _entry(row: RawRow, videos: Path | None) -> CheckedRow:
    file = _file(row, videos)
    start, end = (
        None if value is None or value == "" else round(number(value, name, row.path, row.row), 6)
        for name, value in (("start", row.start), ("end", row.end))
    )
    if end is not None:
        start = start or 0.0
        if end <= start:
            refuse(row.path, row.row, f"the part ends at {end:g} s, not after its start {start:g} s")
    id = clip_id(file, start, end)
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
