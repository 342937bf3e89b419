"""Parts of videos that browsers cannot play as they are, made playable and kept on disk for a while."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from glscl.common.errors import NotFoundError
from glscl.evaluate.serve.served_caches import Video
from glscl.extract.decode.jobs import JobPool
from glscl.extract.decode.previews import Preview, make_preview

SECONDS = 60.0  # of a part
BEFORE = 5.0  # seconds before the moment that a part begins
LIMIT = 120.0  # seconds to make one
BROWSERS = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/mp4", ".webm": "video/webm", ".ogv": "video/ogg"}


def media_type(path: Path) -> str:
    """How a file is announced to a browser, which decides by it whether to try."""
    return BROWSERS.get(path.suffix.lower(), "video/x-matroska" if path.suffix.lower() == ".mkv" else "video/unknown")


class Made(NamedTuple):
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
        self._kept: OrderedDict[str, Made] = OrderedDict()
        self._making: dict[str, asyncio.Future[Made]] = {}
        self._one = asyncio.Lock()  # so that it never takes all workers

    def close(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def get(self, key: str, find: Callable[[], Video], time: float) -> Made:
        """The part of a video around a time.

        Args:
            key: of the video's content; letters and digits.
            find: looks for its file.
            time: seconds.

        Raises:
            NotFoundError: the file is not there. DecodeError: it cannot be made playable.
        """
        begin = max(0.0, (time - BEFORE) // (SECONDS / 2) * (SECONDS / 2))  # so that near moments share a part
        name = f"{key}-{begin:.0f}"
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        if name not in self._making:
            made = asyncio.ensure_future(self._make(name, find, begin))
            self._making[name] = made
            made.add_done_callback(lambda _: self._making.pop(name))
        return await asyncio.shield(self._making[name])

    def named(self, name: str) -> Path:
        """The file of a part that was made. Raises NotFoundError."""
        made = self._kept.get(name)
        if made is None:
            raise NotFoundError("this preview is not kept any more")
        return made.path

    async def _make(self, name: str, find: Callable[[], Video], begin: float) -> Made:
        video = await asyncio.get_running_loop().run_in_executor(None, find)
        if video.path is None:
            raise NotFoundError(f"the file of {video.id[:200]!r} is not where it was last seen")
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="glscl-previews-"))
        async with self._one:
            job = self._jobs.submit(make_preview, str(video.path), str(self._folder), name, begin, SECONDS, limit=LIMIT)
            preview = await asyncio.wrap_future(job)
        made = self._kept[name] = Made(name, self._folder / preview.file, preview)
        total = sum(each.path.stat().st_size for each in self._kept.values())
        while total > self._max_bytes and len(self._kept) > 1:
            oldest = self._kept.popitem(last=False)[1]
            total -= oldest.path.stat().st_size
            oldest.path.unlink(missing_ok=True)
        return made
