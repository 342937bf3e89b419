"""Pictures of moments: from the frames that a cache stores, else decoded from the video, each made once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from glscl.cache.frames import StoredFrames
from glscl.common.errors import DecodeError, NotFoundError
from glscl.evaluate.serve.served_caches import Collection
from glscl.extract.decode.jobs import JobPool
from glscl.extract.decode.stills import jpeg_of, still

SIZE = 320  # pixels, the longer side
LIMIT = 20.0  # seconds for one
WAITING = 2000  # that may wait; the newest are made first, for they are on the screen

Gone = Callable[[], Awaitable[bool]]


class Abandoned(NotFoundError):
    """Who asked has gone before it was made."""


class Thumbnails:
    """Makes and keeps thumbnails.

    Args:
        jobs: decodes videos.
        max_bytes: of those that are kept; the ones not asked for longest go.
    """

    def __init__(self, jobs: JobPool, *, max_bytes: int) -> None:
        self._jobs, self._max_bytes = jobs, max_bytes
        self._kept: OrderedDict[tuple[bytes, int], bytes] = OrderedDict()
        self._bytes = 0
        self._making: dict[tuple[bytes, int], asyncio.Future[bytes]] = {}
        self._frames: dict[Collection, StoredFrames] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="stored-frames")
        self._turns = NewestFirst(jobs.workers)

    def close(self) -> None:
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def get(self, where: Collection, id: str, time: float, gone: Gone) -> bytes:
        """A JPEG of the frame nearest to a time in seconds.

        Args:
            gone: whether whoever asks has gone, so that nothing needs to be made.

        Raises:
            NotFoundError: no such video, or neither frames of it are stored nor is its file there.
            DecodeError: it gives no frame.
        """
        item = where.store.list.video_key[where.row(id)].tobytes()
        key = item if any(item) else id.encode("utf-8", "surrogatepass"), round(time * 1000)
        while True:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            mine = key not in self._making
            if mine:
                self._making[key] = made = asyncio.ensure_future(self._make(where, id, time, gone))
                made.add_done_callback(lambda done: self._keep(key, done))
            try:
                return await asyncio.shield(self._making[key])
            except Abandoned:
                if mine:
                    raise

    def _keep(self, key: tuple[bytes, int], done: asyncio.Future[bytes]) -> None:
        del self._making[key]
        if done.cancelled() or done.exception() is not None:
            return
        self._kept[key] = done.result()
        self._bytes += len(done.result())
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._kept.popitem(last=False)[1])

    async def _make(self, where: Collection, id: str, time: float, gone: Gone) -> bytes:
        loop = asyncio.get_running_loop()
        if where.store.library.frames is not None:
            stored = await loop.run_in_executor(self._reader, self._stored, where, id, time)
            if stored is not None:
                return stored
        video = await loop.run_in_executor(None, where.video, id)
        if video.path is None:
            raise NotFoundError(f"the file of {id[:200]!r} is not where it was last seen")
        async with self._turns:
            if await gone():
                raise Abandoned("nobody waits for it any more")
            job = self._jobs.submit(still, str(video.path), time, SIZE, video.stamp, limit=LIMIT)
            return await asyncio.wrap_future(job)

    def _stored(self, where: Collection, id: str, time: float) -> bytes | None:
        """From the cache, in the thread that reads it; None where it holds no frame of this video."""
        frames, row = self._frames.setdefault(where, StoredFrames(where.store)), where.row(id)
        times = where.store.arrays("video", ["times"], items=range(row, row + 1))["times"]
        count = min(len(times), frames.count(row))
        return jpeg_of(frames.read(row, [int(np.abs(times[:count] - time).argmin())])[0]) if count else None


class NewestFirst:
    """A semaphore that lets in who came last: what was asked for a while ago has been scrolled away."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        if len(self._waiting) >= WAITING:
            oldest = self._waiting.pop(0)
            if not oldest.done():
                oldest.set_exception(DecodeError("too many pictures are asked for at once"))
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
