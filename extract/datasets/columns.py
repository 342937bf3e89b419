"""What stands in a cell, a column or a key of somebody's annotations, checked here for every reader.

What has one reading is read; what has none, or several, is refused with its row and column.
"""

from __future__ import annotations

import ast
import io
import math
import re
import tokenize
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from glscl.common.tables import amount
from glscl.extract.datasets.text_files import read_text, refuse, show, table_records
from glscl.extract.datasets.video_files import split_extension

NAMES: dict[str, tuple[str, ...]] = {  # column → how it is spelled; the first that is there is the column
    "video": ("video", "video_id", "videoid", "video_path", "path", "file", "filename", "file_name"),
    "caption": ("caption", "sentence", "text", "description", "name"),
    "split": ("split", "subset"),
    "start": ("start", "start_time", "start_sec", "start_seconds"),
    "end": ("end", "end_time", "end_sec", "end_seconds"),
    "id": ("id",),
}
_SPELLINGS = frozenset(each for spellings in NAMES.values() for each in spellings)
_SAID_SEPARATOR = re.compile(r"sep=([\t;,])", re.IGNORECASE)  # a first line for Excel
WANTED = "expected the columns video,caption[,split,start,end,id]"
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_CLOCK = re.compile(r"(\d+):([0-5]?\d):([0-5]?\d(?:\.\d*)?)", re.ASCII)  # 1:02:03.5
_FILM_TIME = re.compile(r"\d{1,2}([.:]\d{1,2}){2}([.:,]\d{1,3})?", re.ASCII)  # 01.23.45.678


# ------------------------------------------------------------------------------------------------ cells


def number(value: object, name: str, path: Path, row: int | str | None) -> float:
    """A finite number of seconds, not negative, from a JSON number or the text of a cell.

    A cell holds `12.5` or `0:01:02.5`; not `1_0`, and not `1:30`, which programs write for minutes and for hours.
    """
    result = math.nan
    if isinstance(value, str) and (clock := _CLOCK.fullmatch(value.strip())):
        result = int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
    elif (isinstance(value, (int, float)) and not isinstance(value, bool)) or (
        isinstance(value, str) and _NUMBER.fullmatch(value.strip())
    ):
        with suppress(ValueError, OverflowError):
            result = float(value)
    if not math.isfinite(result) or result < 0:
        refuse(path, row, f"{name} is {show(value)}, expected seconds, a number from 0, or h:mm:ss")
    return result


def check_film_times(cells: Sequence[str], names: Sequence[str], path: Path, row: int) -> None:
    """Refuse cells that are not hh.mm.ss.mmm, naming the column."""
    for name, cell in zip(names, cells):
        if not _FILM_TIME.fullmatch(cell.strip()):
            refuse(path, row, f"{name} is {show(cell)}, expected a time, hh.mm.ss.mmm")


def names_a_file(cell: str) -> bool:
    """Whether a cell can only be the name of a video file."""
    return bool(split_extension(cell.strip())[1])


def captions_in_cell(cell: str, path: Path | str, row: int | str | None) -> list[str]:
    """The captions of a cell: its text, or those of a list as Python writes it (`['a cat', 'a dog']`)."""
    text = cell.strip()
    if text[:1] + text[-1:] not in ("[]", "()"):
        return [cell]
    try:
        with warnings.catch_warnings(action="ignore"):  # of back slashes in it
            items = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return [cell]  # a sentence in brackets
    if not isinstance(items, (list, tuple)) or not items or not all(isinstance(item, str) for item in items):
        return [cell]
    if sum(token.type == tokenize.STRING for token in tokenize.generate_tokens(io.StringIO(text).readline)) != len(
        items
    ):
        refuse(path, row, f"the caption is {show(cell)}, a list whose strings no comma separates; expected one caption")
    return list(items)


def check_captions(captions: Iterable[tuple[Path, int | str | None, object]]) -> None:
    """Refuse captions (each with its file and row) that all are names of files: the columns are others than they seem."""
    filled = [(path, row, text) for path, row, text in captions if isinstance(text, str) and text.strip()]
    if filled and all(names_a_file(text) and len(text.split()) == 1 for _, _, text in filled):
        path, row, text = filled[0]
        refuse(
            path,
            row,
            f"the caption is {show(text)}, the name of a file, and so is every other; {WANTED}",
            hint="Name the columns in a first row.",
        )


# ------------------------------------------------------------------------------------------------ tables


def header(cells: Sequence[str]) -> dict[str, int]:
    """Column → where it stands, of those `NAMES` that a row spells; empty where it is no header."""
    names = [cell.strip().lower() for cell in cells]
    return {
        column: names.index(spelling)
        for column, spellings in NAMES.items()
        for spelling in [next((each for each in spellings if each in names), None)]
        if spelling is not None
    }


def is_header(cells: Sequence[str]) -> bool:
    """Whether a row names a column for videos and one for captions."""
    return cells[0].strip().lower() in _SPELLINGS and {"video", "caption"} <= header(cells).keys()


def separator(text: str, path: Path) -> str:
    """What separates the cells of a table: of tab, semicolon and comma the one by which it makes sense.

    Raises:
        InputError: it makes sense by several.
    """
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    first_line = text.lstrip("\r\n").splitlines()[0]
    if said := _SAID_SEPARATOR.fullmatch(first_line):
        return said[1]
    there = [each for each in dict.fromkeys((usual, "\t", ";", ",")) if each in first_line] or [usual]
    if len(there) > 1:
        headed = [each for each in there if "video" in header(next(table_records(text, path, delimiter=each))[1])]
        even = headed or [each for each in there if _is_even(text, path, each)]
        there = [each for each in even if headed or _begins_with_files(text, path, each)] or even or there[:1]
    if len(there) > 1:
        found = " or ".join(map(show, there))
        refuse(path, 1, f"the cells can be separated by {found}; {WANTED}", hint="Name the columns in a first row.")
    return there[0]


def _is_even(text: str, path: Path, delimiter: str) -> bool:
    with suppress(ValueError):  # quotes that do not fit this separator
        return len({len(cells) for _, cells in table_records(text, path, delimiter=delimiter)}) == 1
    return False


def _begins_with_files(text: str, path: Path, delimiter: str) -> bool:
    return all(names_a_file(cells[0]) for _, cells in table_records(text, path, delimiter=delimiter))


def read_table(
    path: Path, columns: Sequence[str], *, delimiter: str = ",", notes: list[str]
) -> Iterator[tuple[int, list[str]]]:
    """(row from 1, the cells of `columns` in that order) of a table with a header; other columns are left out.

    Args:
        notes: learns of a header that stands again in the middle, as in tables that were put together.
    """
    names: list[str] = []
    at: list[int] = []
    repeated: list[int] = []
    for row, cells in table_records(read_text(path), path, delimiter=delimiter):
        stripped = [cell.strip() for cell in cells]
        if not names:
            names = stripped
            if any(names.count(column) != 1 for column in columns):
                wanted = f"expected the columns {', '.join(columns)}, each once"
                refuse(path, row, f"the header is {show(delimiter.join(names))}; {wanted}")
            at = [names.index(column) for column in columns]
        elif stripped == names:
            repeated.append(row)
        elif len(cells) != len(names):
            refuse(path, row, f"{amount(len(cells), 'cell')}, expected {len(names)} as in the header")
        else:
            yield row, [cells[index] for index in at]
    if not names:
        refuse(path, None, f"the file is empty; expected the columns {', '.join(columns)}")
    notes.extend(line for line in repeated_headers(path, repeated) if line not in notes)


def repeated_headers(path: Path, rows: Sequence[int]) -> list[str]:
    """The note on headers in the middle of a table."""
    if not rows:
        return []
    shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
    return [f"left out the header where it stands again: {path}, row {shown}"]


# ------------------------------------------------------------------------------------------------ objects


def captions_of(entry: Mapping[str, Any], path: Path, row: int | str) -> list[str]:
    """The captions of a JSON object: of the first key of `NAMES` that holds one, and of `captions`, none twice.

    Raises:
        InputError: a value that is neither a string nor a list of strings.
    """
    found: list[list[str]] = []
    for key in (*NAMES["caption"], "captions"):
        value = entry.get(key)
        items = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(item, str) for item in items):
            if isinstance(value, list):
                refuse(path, row, f"captions are {show(value)}, expected strings")
            refuse(path, row, f"the caption is {show(value)}, expected a string or a list of strings")
        items = [caption for item in items for caption in captions_in_cell(item, path, row)]
        if items and (key == "captions" or not any(map(_has_text, found))):
            found.append(items)
    filled = [items for items in found if _has_text(items)] or found[:1]
    if len(filled) < 2:
        return filled[0] if filled else []
    single, several = filled
    return [*(caption for caption in single if caption not in several), *several]


def unused_keys(entry: Mapping[str, Any], used: Container[str]) -> list[str]:
    """Keys of a JSON object that hold something, and neither are in `used` nor give its captions."""
    captions = next((key for key in NAMES["caption"] if entry.get(key)), None)
    return [
        key for key, value in entry.items()
        if value not in (None, "", []) and key not in used and key not in (captions, "captions")
    ]  # fmt: skip


def unused_note(path: Path, names: Iterable[str]) -> list[str]:
    """The note on columns or keys that mean nothing here: a split or times that are called otherwise would be lost."""
    shown = [show(name, limit=30) for name in dict.fromkeys(names)]
    return [f"columns not used: {', '.join(shown[:8])}{', ...' if shown[8:] else ''}: {path}"] if shown else []


def _has_text(captions: Sequence[str]) -> bool:
    return any(caption.strip() for caption in captions)
