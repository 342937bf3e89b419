"""Compressed shards are unpacked once, each to one plain tar, from which its videos are read as from any other."""

from __future__ import annotations

import os
import tarfile
import time
import uuid
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import IO, Protocol

from glscl.cache.files import listed, refuse_links
from glscl.common.errors import InputError, StorageError

BLOCK_BYTES = 2**20
BLOCKS_AT_END = 2  # of zeros
ABANDONED_SECONDS = 3600.0  # what nobody has written to for so long


def plain_tar(shard: Path, videos: Path, stem: str) -> Path:
    """Where a compressed shard is unpacked to: another name for another shard, and for one that was made again.

    Args:
        videos: the folder for it. stem: what the shard is called, with the folders it lies in.
    Raises:
        StorageError: a link stands in the folder, which could lead elsewhere.
    """
    refuse_links(videos)
    stat = shard.stat()
    told = f"{os.path.abspath(shard)}\0{stat.st_size}\0{stat.st_mtime_ns}".encode("utf-8", "surrogateescape")
    return videos / f"{stem}.{blake2b(told, digest_size=6).hexdigest()}.tar"


def unpack(archive: tarfile.TarFile, target: Path) -> None:
    """Write the content of a compressed archive, whose headers have all been seen, aside and move it into place.

    Raises:
        StorageError: it cannot be written. tarfile.ReadError, OSError and more: the archive cannot be read.
    """
    content = archive.fileobj
    assert content is not None
    left = archive.offset + BLOCKS_AT_END * tarfile.BLOCKSIZE  # behind the end mark anything may stand
    content.seek(0)
    told = target.stem[-12:]  # of the digits that tell shards apart; the whole name may leave no room for more
    aside = target.with_name(f".{told}.{uuid.uuid4().hex[:8]}.part")  # several machines may unpack one shard
    for part in listed(target.parent, f".{told}.*.part"):  # of one that was killed
        with suppress(OSError):
            if part.lstat().st_mtime < time.time() - ABANDONED_SECONDS:
                part.unlink()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as out:
            while left > 0 and (block := _block(content, min(left, BLOCK_BYTES))):
                out.write(block)
                left -= len(block)
        os.replace(aside, target)
    except OSError as error:
        raise StorageError(f"{target}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def member_content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    """The bytes of a member, to be read. Raises tarfile.ReadError."""
    content = archive.extractfile(member)
    if content is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    return content


def content_of_member(shard: Path, member: tarfile.TarInfo) -> bytes:
    """Hash of a video in a compressed shard, the same as where it is unpacked. Raises InputError."""
    from glscl.cache.keys import stream_content  # loads numpy

    try:
        with tarfile.open(shard) as archive:  # whose headers `read` has seen
            return stream_content(member_content(archive, member), member.size)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise InputError(f"{shard}: {member.name} cannot be read: {error}") from None


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _block(content: _Readable, size: int) -> bytes:
    """The next bytes of an archive; that it cannot be read is no fault of the disk written to."""
    try:
        return content.read(size)
    except OSError as error:
        raise tarfile.ReadError(str(error)) from None
