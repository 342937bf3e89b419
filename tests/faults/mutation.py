"""Hostile files from good ones: every case is a number, and the same number gives the same bytes on every machine.

Bytes are flipped, cut, doubled and spliced whatever the file is. Where the format is known, its own parts are replaced
too, and its lengths and checksums made right again, so that what is wrong lies deeper than the first check.
"""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

DEEP = 30_000  # levels of nesting; beyond what any parser takes
_RAW = "\ue000"  # marks a string that stands for JSON text to be put in as it is

_NUMBERS = [0, 1, -1, 2, 255, 2**31, 2**32, 2**63, -(2**63) - 1, 10**400, 1.5, -0.0, 1e308, -1e308, 1e-320]
_STRINGS = [
    *("", " ", "\n", "\t", "\x00", "a\x00b", "\ud800", "x\udfffy", "\ufeff", "\u2028", "\u202e", "é", "👍" * 9),
    *("..", ".", "../../outside", "/etc/passwd", "a/b", "a\\b", "C:\\x", "-rf", "~", "video1", "true", "null", "nan"),
    *(
        "1e999",
        "-1",
        "0x10",
        "1" * 5000,
        "x" * 20_000,
        "%s%n",
        "{0}",
        "${HOME}",
        "train",
        "test",
        "float16",
        "bfloat16",
    ),
]
_CONTAINERS: list[Any] = [[], {}, [[]], [None], {"": None}, {"video": []}, [[[["x"]]]], list(range(300))]
_TEXTS = [
    "NaN",
    "Infinity",
    "-Infinity",
    "[" * DEEP,
    "[" * DEEP + "]" * DEEP,
    '{"a":' * DEEP,
    "1" * 5000,
    "01",
    "'x'",
    "",
]
_BYTES = [b"", b"\x00", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\r", b"\n", b"\t", b",", b'"', b'""', b"\xe9"]
_BYTES += [b"\xed\xa0\x80", b"\x1a", b"../", b"/", b"\\", b"=1+1", b"-1", b"nan", b"x" * 9000, b"\xff" * 8, b"\x7f" * 8]
_BYTES += [struct.pack("<Q", 2**63 - 1), struct.pack("<I", 2**31), struct.pack(">I", 2**31), b"9" * 400]


def hostile(rng: random.Random) -> Any:
    """A JSON value that a reader may not expect."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(_NUMBERS)
    if kind < 0.65:
        return rng.choice(_STRINGS)
    if kind < 0.8:
        return rng.choice(_CONTAINERS)
    return rng.choice([None, True, False]) if kind < 0.9 else _RAW + rng.choice(_TEXTS)


# --- bytes ------------------------------------------------------------------------------------------------------------


def bytes_of(data: bytes, rng: random.Random) -> bytes:
    """One change that knows nothing of the format."""
    if not data:
        return rng.choice(_BYTES)
    at, to = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    near = min(at + rng.choice((1, 2, 4, 8, 16)), len(data))
    kind = rng.randrange(8)
    if kind <= 1:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 3, 20))):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data[:at] + data[to:] if rng.random() < 0.5 else data[:at] + data[near:]
    if kind == 4:
        return data[:to] + data[at:]  # a part twice
    if kind == 5:
        return data[:at] + rng.choice(_BYTES) + data[near:]
    if kind == 6:
        return data[:at] + rng.choice(_BYTES) + data[at:]
    where = rng.randrange(len(data))  # a part of the file over another
    return data[:at] + data[where : where + near - at] + data[near:]


# --- text and JSON ----------------------------------------------------------------------------------------------------


def text_of(data: bytes, rng: random.Random) -> bytes:
    """One change to a table or a list: cells, lines, separators, quotes, encodings."""
    lines = data.split(b"\n")
    at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(10)
    if kind <= 3:
        separator = rng.choice((b",", b"\t", b" ", b'"'))
        cells = lines[at].split(separator)
        cell = rng.choice(_BYTES) if rng.random() < 0.5 else str(hostile(rng)).encode("utf-8", "surrogatepass")
        cells[rng.randrange(len(cells)) :][:1] = [cell]
        cells[rng.randrange(len(cells))] = cell
        lines[at] = separator.join(cells)
    elif kind == 4:
        lines.insert(other, lines[at])
    elif kind == 5:
        del lines[at]
    elif kind == 6:
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 7:
        return rng.choice((b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), data.replace(b"\n", b"\r")))
    elif kind == 8:
        text = data.decode("utf-8", "replace")
        return text.encode(rng.choice(("latin-1", "utf-16", "utf-32", "cp500", "utf-7")), "replace")
    else:
        return data.replace(*rng.choice(((b",", b"\t"), (b",", b";"), (b'"', b""), (b"\n", b""), (b" ", b"\xa0"))))
    return b"\n".join(lines)


def json_of(data: bytes, rng: random.Random) -> bytes:
    """One change to a JSON text's tree: a value replaced, a key lost, doubled or renamed, a list shuffled."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return bytes_of(data, rng)
    places: list[tuple[Any, Any]] = []
    _collect(tree, places)
    if not places or rng.random() < 0.03:
        return _dump(hostile(rng), rng)
    holder, key = rng.choice(places)
    kind = rng.random()
    if kind < 0.6:
        holder[key] = hostile(rng)
    elif kind < 0.75:
        del holder[key]
    elif kind < 0.85:
        other, there = rng.choice(places)  # a value from elsewhere in the tree, which must not hold itself
        copied = json.loads(json.dumps(other[there])) if there in other or isinstance(there, int) else None
        holder[key] = copied
    elif isinstance(holder, list):
        holder.insert(rng.randrange(len(holder) + 1), holder[key])
    else:
        holder[str(rng.choice(_STRINGS))] = holder.pop(key)
    return _dump(tree, rng)


def lines_of(data: bytes, rng: random.Random) -> bytes:
    """JSON Lines: a change inside one line, or to the lines."""
    if rng.random() < 0.3:
        return text_of(data, rng)
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = json_of(lines[at], rng)
    return b"\n".join(lines)


def _collect(tree: Any, places: list[tuple[Any, Any]]) -> None:
    for key, value in list(
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        places.append((tree, key))
        _collect(value, places)


def _dump(tree: Any, rng: random.Random) -> bytes:
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    for mark in (_RAW, "\\ue000"):
        while (start := text.find(f'"{mark}')) >= 0:
            end = text.index('"', start + 1 + len(mark))
            text = text[:start] + text[start + 1 + len(mark) : end].replace("\\", "") + text[end + 1 :]
    return text.encode("utf-8", "surrogatepass")


# --- containers -------------------------------------------------------------------------------------------------------


def safetensors_of(data: bytes, rng: random.Random) -> bytes:
    """A change to the head of a safetensors file, its length made to fit."""
    if len(data) < 8 or rng.random() < 0.3:
        return bytes_of(data, rng)
    size = min(struct.unpack("<Q", data[:8])[0], len(data) - 8)
    head = json_of(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(head)) + head + data[8 + size :]


def zip_of(data: bytes, rng: random.Random) -> bytes:
    """A change to a member of a zip archive, packed again (.npz, .pt)."""
    if rng.random() < 0.3:
        return bytes_of(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(name, archive.read(name)) for name in archive.namelist()]
    except Exception:
        return bytes_of(data, rng)
    if not members:
        return bytes_of(data, rng)
    at = rng.randrange(len(members))
    name, content = members[at]
    kind = rng.random()
    if kind < 0.7:
        # the head of a member says what it is, so it is changed more often than the numbers behind it
        front = content[:160]
        content = bytes_of(front, rng) + content[160:] if rng.random() < 0.7 else bytes_of(content, rng)
        members[at] = (name, content)
    elif kind < 0.8:
        members[at] = (str(rng.choice(_STRINGS)).replace("\x00", "_")[:200] or "_", content)
    elif kind < 0.9:
        members.append(members[at])
    else:
        del members[at]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name.encode("utf-8", "replace").decode()), content)
    return out.getvalue()


def tar_of(data: bytes, rng: random.Random) -> bytes:
    """A change to a member of a tar archive: name, kind, size, link, content, with its checksum made right."""
    if rng.random() < 0.3:
        return bytes_of(data, rng)
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            members = [(member, archive.extractfile(member).read()) for member in archive if member.isreg()]
    except Exception:
        return bytes_of(data, rng)
    if not members:
        return bytes_of(data, rng)
    at = rng.randrange(len(members))
    member, content = members[at]
    kind = rng.randrange(6)
    names = [s for s in _STRINGS if len(s) < 100]
    if kind == 0:
        member.name = rng.choice(names) + rng.choice(("", ".mp4", ".txt", ".json"))
    elif kind == 1:
        member.name = rng.choice(("../../outside.mp4", "/tmp/outside.mp4", "a/../../../b.mp4", "..", "./.", "a//b.mp4"))
    elif kind == 2:
        member.type = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE))
        member.linkname = rng.choice(("/etc/passwd", "../..", "a.mp4"))
        content = b""
    elif kind == 3:
        content = json_of(content, rng)
    elif kind == 4:
        content = bytes_of(content, rng)
    else:
        members.append(members[at])
    members[at] = (member, content)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as archive:
        for member, content in members:
            member.size = len(content)
            member.pax_headers = {}
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def gzip_of(inner: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    """The same inside a gzip stream."""

    def change(data: bytes, rng: random.Random) -> bytes:
        try:
            content = zlib.decompress(data, 31)
        except zlib.error:
            return bytes_of(data, rng)
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        return packer.compress(inner(content, rng)) + packer.flush()

    return change


_BY_SUFFIX: dict[str, Callable[[bytes, random.Random], bytes]] = {
    ".json": json_of,
    ".jsonl": lines_of,
    ".csv": text_of,
    ".tsv": text_of,
    ".txt": text_of,
    ".safetensors": safetensors_of,
    ".npz": zip_of,
    ".pt": zip_of,
    ".tar": tar_of,
    ".tgz": gzip_of(tar_of),
}


def mutate(name: str, data: bytes, case: int) -> bytes:
    """The hostile bytes of case number `case` of a file: one to three changes, fitting its suffix or not."""
    rng = random.Random(f"{name} {case}")
    known = _BY_SUFFIX.get(name[name.rfind(".") :], bytes_of)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        try:
            data = known(data, rng) if rng.random() < 0.8 else bytes_of(data, rng)
        except (tarfile.TarError, ValueError, UnicodeError, OverflowError):  # a value its format cannot hold
            data = bytes_of(data, rng)
    return data
