"""Videos of a shard as files: unpacked once, and compared where another shard may have been there before."""

from __future__ import annotations

import json
import os
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from glscl.common.errors import InputError, StorageError

STAMP = ".shard.json"  # beside the videos of a shard: which shard they come from, and what it was then


class Unpacked:
    """The folder that the videos of one shard are unpacked into.

    Args:
        folder: its own, made if need be.
        shard: the archive.
    """

    def __init__(self, folder: Path, shard: Path) -> None:
        self.folder, self.shard = folder, shard
        stat = shard.stat()
        self._now = {"shard": os.path.abspath(shard), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        self._then = self._read()
        self._begun = False

    def is_trusted(self, member: tarfile.TarInfo, name: str) -> bool:
        """Whether a video lies there as this shard holds it, as far as sizes and times tell."""
        with suppress(OSError):
            return self._then == self._now and (self.folder / name).stat().st_size == member.size
        return False

    def put(self, archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> None:
        """Write a video aside and move it into place, unless it is there already.

        Raises:
            InputError: another video is there, of another shard.
            StorageError: it cannot be written.
        """
        target = self.folder / name
        if self.is_trusted(member, name):
            return
        if self._then != self._now and target.exists():
            if _equal(archive, member, target):
                return
            if self._then.get("shard") != self._now["shard"]:
                raise InputError(
                    f"{target} is there already and is not the video of {self.shard}, which would be unpacked there",
                    hint="Give `videos` a folder of its own for each data set",
                )
        self._begin()
        make_folder(target.parent)
        aside = target.with_name(f".{os.getpid()}.part")
        content = member_content(archive, member)
        try:
            with open(aside, "wb") as out:
                while block := _block(content):
                    out.write(block)
            if aside.stat().st_size != member.size:
                raise tarfile.ReadError(f"{member.name} ends early")
            os.replace(aside, target)
        except OSError as error:
            raise StorageError(f"{target}: cannot be written: {error.strerror or error}") from None
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def finish(self) -> None:
        """Remember that all videos of the shard as it is now are there."""
        if self._then != self._now and self.folder.is_dir():
            self._write(self._now)

    def _begin(self) -> None:
        """Say whose videos these are before the first is there: a shard made again may replace its own."""
        if not self._begun:
            make_folder(self.folder)
            self._write({"shard": self._now["shard"]})
            self._begun = True

    def _read(self) -> dict[str, object]:
        try:
            found = json.loads((self.folder / STAMP).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, stamp: dict[str, object]) -> None:
        path = self.folder / STAMP
        aside = path.with_name(f".{os.getpid()}.part")
        try:
            aside.write_text(json.dumps(stamp))
            os.replace(aside, path)
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from None


def member_content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """The bytes of a member, to be read. Raises tarfile.ReadError."""
    content = archive.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    return content


def content_of_member(shard: Path, member: tarfile.TarInfo) -> bytes:
    """Hash of a video in a shard, the same as of the file that it becomes. Raises InputError."""
    from glscl.cache.keys import stream_content  # loads numpy

    try:
        with tarfile.open(shard) as archive:  # whose headers `read` has seen
            return stream_content(member_content(archive, member), member.size)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{shard}: {member.name} cannot be read: {error}") from None


def _equal(archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> bool:
    try:
        if target.stat().st_size != member.size:
            return False
        with open(target, "rb") as there:
            content = member_content(archive, member)
            while block := _block(content):
                if there.read(len(block)) != block:
                    return False
    except OSError as error:
        raise StorageError(f"{target}: cannot be read: {error.strerror or error}") from None
    return True


def _block(content: IO[bytes]) -> bytes:
    """The next megabyte of a member; a shard that cannot be read is no fault of the disk written to."""
    try:
        return content.read(2**20)
    except OSError as error:
        raise tarfile.ReadError(str(error)) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. Raises StorageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made: {error.strerror or error}") from None
