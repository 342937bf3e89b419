"""Parts of videos that browsers cannot play as they are, made playable and kept on disk for a while."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from glscl.common.errors import NotFoundError
from glscl.common.tar_members import TarMember
from glscl.evaluate.serve.served_caches import Video
from glscl.extract.decode.jobs import JobPool
from glscl.extract.decode.previews import Preview, make_preview

SECONDS = 60.0  # of a part
BEFORE = 5.0  # seconds before the moment that a part begins
LIMIT = 120.0  # seconds to make one
BLOCK = 2**18  # bytes that are read at once
RANGE = re.compile(r"bytes=(\d*)-(\d*)")
BROWSERS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".ogv": "video/ogg"}


def media_type(path: Path) -> str:
    """How a file is announced to a browser, which decides by it whether to try."""
    return BROWSERS.get(path.suffix.lower(), "video/x-matroska" if path.suffix.lower() == ".mkv" else "video/unknown")


def member_response(member: TarMember, request: Request, *, media_type: str, headers: Mapping[str, str]) -> Response:
    """A video in a tar as starlette answers with a file: whole, or the one range of bytes that is asked for."""
    start, end, status = 0, member.size, 200
    about = {**headers, "Accept-Ranges": "bytes"}
    asked = RANGE.fullmatch(request.headers.get("range", ""))
    if asked is not None and any(asked.groups()):
        first, last = asked.groups()
        start = int(first) if first else max(0, member.size - int(last))
        end = min(member.size, int(last) + 1) if first and last else member.size
        if start >= end:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{member.size}"})
        status, about["Content-Range"] = 206, f"bytes {start}-{end - 1}/{member.size}"
    about["Content-Length"] = str(end - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=about, media_type=media_type)
    return StreamingResponse(_bytes(member, start, end), status, about, media_type)


def _bytes(member: TarMember, start: int, end: int) -> Iterator[bytes]:
    with open(member.archive, "rb") as file:
        file.seek(member.offset + start)
        while start < end and (block := file.read(min(BLOCK, end - start))):
            start += len(block)
            yield block


class PlayableClip(NamedTuple):
    """A playable part: its name in a URL, its file, and what it is of."""

    name: str
    path: Path
    preview: Preview


class Previews:
    """Makes and keeps playable parts, one after another, in a private folder.

    Args:
        jobs: makes them.
        max_bytes: of those that are kept.
    """

    def __init__(self, jobs: JobPool, *, max_bytes: int) -> None:
        self._jobs, self._max_bytes = jobs, max_bytes
        self._folder: Path | None = None
        self._kept: OrderedDict[str, PlayableClip] = OrderedDict()
        self._making: dict[str, asyncio.Future[PlayableClip]] = {}
        self._one = asyncio.Lock()  # so that it never takes all workers

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def get(self, key: str, find: Callable[[], Video], time: float, *, encode: bool = False) -> PlayableClip:
        """The part of a video around a time.

        Args:
            key: of the video's content; letters and digits.
            find: looks for its file.
            time: seconds.
            encode: anew, also what browsers should be able to play.

        Raises:
            NotFoundError: the file is not there. DecodeError: it cannot be made playable.
        """
        begin = max(0.0, (time - BEFORE) // (SECONDS / 2) * (SECONDS / 2))  # so that near moments share a part
        name = f"{key}-{begin:.0f}{'-encoded' if encode else ''}"
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        if name not in self._making:
            made = asyncio.ensure_future(self._make(name, find, begin, copy=not encode))
            self._making[name] = made
            made.add_done_callback(lambda _: self._making.pop(name))
        return await asyncio.shield(self._making[name])

    def named(self, name: str) -> Path:
        """The file of a part that was made. Raises NotFoundError."""
        made = self._kept.get(name)
        if made is None:
            raise NotFoundError("this preview is not kept any more")
        return made.path

    async def _make(self, name: str, find: Callable[[], Video], begin: float, *, copy: bool) -> PlayableClip:
        video = await asyncio.get_running_loop().run_in_executor(None, find)
        if video.path is None:
            raise NotFoundError(f"the file of {video.id[:200]!r} is not where it was last seen")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="glscl-previews-"))
        async with self._one:
            part = str(self._folder), name, begin, SECONDS, copy
            job = self._jobs.submit(make_preview, str(video.path), *part, limit=LIMIT)
            preview = await asyncio.wrap_future(job)
        made = self._kept[name] = PlayableClip(name, self._folder / preview.file, preview)
        total = sum(each.path.stat().st_size for each in self._kept.values())
        while total > self._max_bytes and len(self._kept) > 1:
            oldest = self._kept.popitem(last=False)[1]
            total -= oldest.path.stat().st_size
            oldest.path.unlink(missing_ok=True)
        return made
