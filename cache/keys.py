"""Keys: hashes of what an item was made from, so that equal keys mean equal work.

A key is 16 bytes of BLAKE2b, in text files 32 hexadecimal digits. Many of them are an array (n, 16) uint8; zero is no key.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from hashlib import blake2b
from typing import IO, BinaryIO, NamedTuple

import numpy as np

from glscl.common.staged import Reading, remote_file, stamp_of
from glscl.common.tar_members import TarMember, file_of

KEY_BYTES = 16
WHOLE_BYTES = 2 << 20  # up to here the whole file is hashed
# Of a larger one so many pieces, evenly spread: few enough to be quick, enough to see the holes of a broken download.
PIECES, PIECE_BYTES = 16, 128 << 10
ATTEMPTS = 3  # at a file that changes while it is read

EMPTY = blake2b(b"0\0", digest_size=KEY_BYTES).digest()  # content of a file of 0 bytes

_HEX = np.full(256, 255, np.uint8)  # byte of a lower-case hexadecimal digit → its value
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)


class Stat(NamedTuple):
    """What tells cheaply whether a file is still the same: size in bytes and time of its last change.

    Of a video in a tar it is that of the whole archive, of a file at an address what its store tells.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: os.PathLike[str] | str) -> Stat:
        """Raises OSError; of a file at an address see `stamp_of`."""
        if (address := remote_file(path)) is not None:
            return cls(*stamp_of(address))
        found = os.stat(file_of(path))
        return cls(found.st_size, found.st_mtime_ns)


def content_of(path: os.PathLike[str] | str) -> tuple[Stat, bytes]:
    """What a file is and the hash of its content, (16,) bytes: of all of it up to 2 MiB, else of 16 pieces, evenly spread.

    The file is looked at before and after: one that changed meanwhile is read again.

    Raises:
        OSError: it cannot be read, or changes again and again.
    """
    if (address := remote_file(path)) is not None:
        return _content_there(address)
    for _ in range(ATTEMPTS):
        before, member = Stat.of(path), TarMember.at(path)
        with open(path if member is None else member.archive, "rb") as file:
            content = stream_content(file, *((before.size,) if member is None else (member.size, member.offset)))
        if Stat.of(path) == before:
            return before, content
    raise OSError(errno.EAGAIN, "it changes while it is read", os.fspath(path))


def _content_there(address: str) -> tuple[Stat, bytes]:
    for _ in range(ATTEMPTS):
        before = stamp_of(address)
        content = stream_content(Reading(address), before.size)
        if stamp_of(address, anew=True) == before:
            return Stat(*before), content
    raise OSError(errno.EAGAIN, "it changes while it is read", address)


def stream_content(file: BinaryIO | IO[bytes] | Reading, size: int, offset: int = 0) -> bytes:
    """Hash of `size` bytes of an open file from `offset` on, (16,) bytes."""
    digest = blake2b(f"{size}\0".encode(), digest_size=KEY_BYTES)
    if size <= WHOLE_BYTES:
        file.seek(offset)
        digest.update(file.read(size))
    else:
        for number in range(PIECES):
            file.seek(offset + number * (size - PIECE_BYTES) // (PIECES - 1))
            digest.update(file.read(PIECE_BYTES))
    return digest.digest()


def microseconds(seconds: float | None) -> int | None:
    """Times are compared in whole microseconds: 12, 12.0 and 12.0000004 s are one."""
    return None if seconds is None else round(seconds * 1_000_000)


def clip(start: float | None, end: float | None) -> tuple[int | None, int | None]:
    """The part [start, end) s of a video in microseconds; None where it is the file's own beginning or end."""
    return microseconds(start) or None, microseconds(end)


def video_key(content: bytes, start: int | None = None, end: int | None = None) -> bytes:
    """Key of a video file of this content, or of its part from `start` to `end`, in microseconds (see `clip`)."""
    times = "\0".join("" if time is None else str(time) for time in (start, end))
    return blake2b(b"video\0" + content + b"\0" + times.encode(), digest_size=KEY_BYTES).digest()


def text_key(text: str) -> bytes:
    """Key of a caption as it is encoded, white space folded and nothing else: a tokenizer may see any other difference."""
    return blake2b(b"text\0" + text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def rows_key(rows: np.ndarray, fps: float | None, start: int | None) -> bytes:
    """Key of features that others made: (F, D) rows, their rate a second, and the microsecond where they begin."""
    head = f"rows\0{rows.shape}\0{'' if fps is None else fps!r}\0{'' if start is None else start}\0".encode()
    digest = blake2b(head, digest_size=KEY_BYTES)
    digest.update(np.ascontiguousarray(rows, "<f4").data)
    return digest.digest()


def captioned_rows_key(text: str, rows: np.ndarray) -> bytes:
    """Key of a caption with features that others made: its text, and its pooled and token features (1 + L, D)."""
    return blake2b(rows_key(rows, None, None) + text.encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES).digest()


def as_array(keys: Iterable[bytes]) -> np.ndarray:
    """Keys as (n, 16) uint8."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES).copy()


def from_array(keys: np.ndarray) -> list[bytes]:
    """The reverse of `as_array`."""
    return np.ascontiguousarray(keys).view(f"V{KEY_BYTES}")[:, 0].tolist()


def to_lines(keys: np.ndarray) -> bytes:
    """(n, 16) uint8 → n lines of 32 hexadecimal digits."""
    return b"".join(key.hex().encode() + b"\n" for key in from_array(keys))


def from_lines(data: bytes) -> np.ndarray:
    """The reverse of `to_lines`, (n, 16) uint8. Raises ValueError for anything else."""
    width = 2 * KEY_BYTES + 1
    if len(data) % width:
        raise ValueError(f"the keys are cut short: {len(data)} bytes are no lines of {width}")
    lines = np.frombuffer(data, np.uint8).reshape(-1, width)
    digits = _HEX[lines[:, :-1]]
    if (lines[:, -1] != ord("\n")).any() or (digits == 255).any():
        raise ValueError(f"a key is not {width - 1} hexadecimal digits and the end of its line")
    return digits[:, 0::2] << 4 | digits[:, 1::2]


def has_key(keys: np.ndarray) -> np.ndarray:
    """(n,) bool: which of (n, 16) are keys, not zero."""
    return np.any(keys != 0, axis=1)
