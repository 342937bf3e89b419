"""Reading annotation files safely: text, tables and JSON, ids that lead nowhere else, and one line on what is wrong."""

from __future__ import annotations

import csv
import io
import json
import pickletools
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from glscl.common.errors import InputError, NotFoundError

_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
EXAMPLES = 3  # of a longer list, in a note
_UNITS = {".json": "entry", ".jsonl": "line", ".ndjson": "line", ".txt": "line", ".pkl": "entry"}


# ------------------------------------------------------------------------------------------------ words and ids


def fold(text: str) -> str:
    """One line: white space of any kind and length (Unicode's) becomes one space, none at either end."""
    return " ".join(text.split())


def location(path: Path | str, row: int | str | None = None) -> str:
    """`captions.csv, row 7`: how every message names where something stands."""
    if row is None:
        return str(path)
    unit = _UNITS.get(Path(path).suffix.lower(), "row")
    return f"{path}, {unit} {row}"


def refuse(path: Path | str, row: int | str | None, found: str, *, hint: str | None = None) -> NoReturn:
    """Raise the one clear line about a file: where, what was found, what was expected."""
    raise InputError(f"{location(path, row)}: {found}", hint=hint)


def show(value: object, *, limit: int = 60) -> str:
    """A value as it may stand in a one-line message: quoted, control characters escaped, cut."""
    try:
        text = repr(value) if isinstance(value, str) and value.isprintable() else ascii(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, lists in lists without end
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def examples(names: Iterable[object], count: int = EXAMPLES) -> str:
    """The first few of a longer list, for a note."""
    names = list(names)
    shown = ", ".join(str(name) for name in names[:count])
    return f"{shown}, ..." if len(names) > count else shown


def listing(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def is_clean(text: str) -> bool:
    """Whether text can be written as UTF-8 (JSON escapes and file names can hold half a surrogate pair)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_id(value: object, path: Path | str, row: int | str | None) -> str:
    """Return the video id as it stands, or refuse one that could leave the folder of videos or break a line.

    Refused: anything but a string, empty or blank, `.` and `..`, path separators, control characters, half surrogates.
    """
    if not isinstance(value, str):
        refuse(path, row, f"found {show(value)} as video id, expected a string")
    if not value.strip():
        refuse(path, row, "the video id is empty")
    if value in (".", "..") or "/" in value or "\\" in value:
        refuse(path, row, f"the video id {show(value)} is a path; expected a name without separators")
    return _check_characters(value, path, row)


def check_relative_path(value: object, path: Path | str, row: int | str | None) -> str:
    """Return a path below the folder of videos in its plain form (`./a//b.mp4` → `a/b.mp4`), or refuse it.

    Refused: what `check_id` refuses in each part, `..`, absolute paths and back slashes.
    """
    if not isinstance(value, str):
        refuse(path, row, f"found {show(value)} as video, expected a string")
    value = value.strip()
    if not value:
        refuse(path, row, "the video is empty")
    if "\\" in value:
        refuse(path, row, f"the video {show(value)} has a back slash; expected forward slashes between folders")
    if re.match(r"[a-z][a-z0-9+.-]*://", value, re.IGNORECASE):
        refuse(path, row, f"the video {show(value)} is an address; expected a path below the folder of videos")
    if value.startswith("/"):
        refuse(path, row, f"the video {show(value)} is an absolute path; expected one below the folder of videos")
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        refuse(path, row, f"the video {show(value)} leaves the folder of videos; expected a path below it")
    return _check_characters("/".join(parts), path, row)


def _check_characters(value: str, path: Path | str, row: int | str | None) -> str:
    if not value.isprintable() and any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in value):
        refuse(path, row, f"the video {show(value)} has a control character")
    if not is_clean(value):
        refuse(path, row, f"the video {show(value)} is not valid Unicode")
    return value


# ------------------------------------------------------------------------------------------------ files


def read_text(path: Path) -> str:
    """Content of a UTF-8 file, with or without byte order mark; line ends untouched.

    Raises:
        NotFoundError: no such file.
        InputError: unreadable, or not UTF-8, naming the line of the first bad byte.
    """
    data = read_bytes(path)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        refuse(path, None, "the file is UTF-16, expected UTF-8", hint="Save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # utf-8-sig counts from behind the mark
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, start) + 1
        raise InputError(
            f"{path}, line {line}: byte 0x{data[start]:02x} is not UTF-8 (perhaps Latin-1 or Windows-1252)",
            hint="Save it as UTF-8.",
        ) from None


def read_bytes(path: Path) -> bytes:
    """Content of a file or pipe; NotFoundError or InputError where there is none. A device has no end, so it is refused."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            refuse(path, None, "is a device, expected a file")
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a null character in the name
        raise InputError(f"{show(str(path))}: not a path: {error}") from None


def check_memo(data: bytes) -> None:
    """Raise ValueError for a pickle that numbers an object beyond its size: unpickling would reserve memory for all."""
    stream = io.BytesIO(data)
    while opcode := _OPCODES.get(stream.read(1).decode("latin-1")):  # the unpickler refuses unknown ones
        if opcode.name == "STRING":  # its bytes may be in any encoding, which `pickletools.genops` does not take
            stream.readline()
            continue
        argument = opcode.arg.reader(stream) if opcode.arg else None
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= (argument or 0) <= len(data):
            raise ValueError(f"it numbers an object {argument}, with {len(data)} bytes in all")
        if opcode.name == "STOP":
            return


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, stripped line) of every line that is not blank; with or without a final newline."""
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def table_records(text: str, path: Path, *, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(row from 1, cells) of every record of a table that is not blank; quoted cells may hold separators and newlines.

    Raises:
        InputError: quotes that open or close inside a cell or never close, naming the row.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    row = 0
    while True:
        row += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            refuse(
                path,
                row,
                f"up to line {reader.line_num}: {error}; expected quotes only around a whole cell, doubled inside it",
            )
        if cells:
            yield row, cells


def read_json(path: Path, expected: type | tuple[type, ...]) -> Any:
    """The value of a JSON file, whose outermost type must be `expected`."""
    value = parse_json(read_text(path), path)
    if not isinstance(value, expected):
        refuse(path, None, f"found {_json_name(type(value))}, expected {_json_name(expected)}")
    return value


def parse_json(text: str, path: Path, row: int | None = None) -> Any:
    """The value of one JSON text, whose objects hold no key twice; InputError naming the line and column otherwise."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except _TwiceError as error:
        refuse(path, row, f"the key {show(error.args[0])} stands twice in one object; expected it once")
    except json.JSONDecodeError as error:
        line = error.lineno if row is None else row
        refuse(path, None, f"line {line}, column {error.colno}: not JSON ({error.msg})")
    except (RecursionError, ValueError) as error:  # nested too deeply; an integer of thousands of digits
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        refuse(path, row, f"not JSON that can be read: {reason}")


class _TwiceError(Exception): ...


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON text; its second value of a key would replace the first without a word."""
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _TwiceError(max(counts, key=lambda key: counts[key]))
    return made


def member(entry: object, key: str, kind: type | tuple[type, ...], path: Path, row: int | str) -> Any:
    """entry[key] of the given type, from a JSON object; the clear line otherwise."""
    if not isinstance(entry, dict):
        refuse(path, row, f"found {_json_name(type(entry))}, expected an object with {key!r}")
    if key not in entry:
        refuse(path, row, f"no {key!r}; found {', '.join(map(show, islice(entry, 8))) or 'nothing'}")
    value = entry[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        refuse(path, row, f"{key!r} is {show(value)}, expected {_json_name(kind)}")
    return value


def clip_id(video: str, start: float | None, end: float | None) -> str:
    """Id of a part of a video: `talk.mp4@12.5-17`; the video's own id where no time is given."""
    if start is None and end is None:
        return video
    return f"{video}@{_seconds(start or 0.0)}-{'' if end is None else _seconds(end)}"


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


_JSON_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}


def _json_name(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(dict.fromkeys(_JSON_NAMES.get(k, k.__name__) for k in kinds))
