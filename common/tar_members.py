"""Videos in a tar are read where they lie. The place of one is a string, and may stand wherever the path of a file does:

    /data/00000.tar@1536+204800/cooking/egg.mp4

is the member `cooking/egg.mp4` of `/data/00000.tar`, its 204,800 bytes from byte 1,536 on. A file of just that name comes
first: what is no archive before the `@` is no such place.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_RANGE = re.compile(r"@(\d+)\+(\d+)/")


class TarMember(NamedTuple):
    """Where a video lies: in which archive, under which name, from which byte on, and how many."""

    archive: str
    name: str
    offset: int
    size: int

    @classmethod
    def at(cls, path: os.PathLike[str] | str) -> TarMember | None:
        """The member that a path means; None for a plain path."""
        text = os.fspath(path)
        for found in _RANGE.finditer(text):
            if os.path.isfile(archive := text[: found.start()]):
                return cls(archive, text[found.end() :], int(found[1]), int(found[2]))
        return None

    def __str__(self) -> str:
        return f"{self.archive}@{self.offset}+{self.size}/{self.name}"

    def read(self) -> bytes:
        """All of it. Raises OSError."""
        with open(self.archive, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def file_of(path: os.PathLike[str] | str) -> str:
    """The file in which a video lies: its own, or the archive."""
    member = TarMember.at(path)
    return os.fspath(path) if member is None else member.archive


def ffmpeg_address(path: os.PathLike[str] | str) -> str:
    """What FFmpeg opens: a file whatever its name looks like, or the bytes of an archive that are a video."""
    member = TarMember.at(path)
    if member is None:
        return f"file:{os.fspath(path)}"
    return f"subfile,,start,{member.offset},end,{member.offset + member.size},,:file:{member.archive}"
