"""Videos at addresses are brought here while others are decoded, and deleted once they are: a bounded number of bytes at once."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from glscl.cache.schema import Status
from glscl.common.errors import NotFoundError
from glscl.common.remote import AT_ONCE
from glscl.common.staged import bring, remote_file, require_room, scratch, stage_bytes, stamp_of
from glscl.extract.decode.video import FrameChunk, VideoDone, VideoTask

Decode = Callable[[Iterable[VideoTask]], Iterator[FrameChunk | VideoDone]]


def decode_from_anywhere(decode: Decode, tasks: Iterable[VideoTask]) -> Iterator[FrameChunk | VideoDone]:
    """`decode(tasks)`, also where videos are at addresses; one that is no more there is MISSING.

    They are decoded in rounds of at most half of `GLSCL_STAGE_GB`, while those of the next round come.

    Raises:
        StorageError: one cannot be had, or is larger than a round. What `decode` raises.
    """
    source = iter(tasks)
    first = next(source, None)
    if first is None or remote_file(first.path) is None:  # of one list all or none are
        yield from decode(itertools.chain([] if first is None else [first], source))
        return
    with scratch() as folder, ThreadPoolExecutor(AT_ONCE) as threads:
        rounds = (_Round(some, folder, threads) for some in _rounds(itertools.chain([first], source)))
        current = next(rounds)
        try:
            while True:
                following = next(rounds, None)  # comes meanwhile
                yield from current.decoded(decode)
                if following is None:
                    return
                current = following
        finally:
            threads.shutdown(wait=True, cancel_futures=True)


def _rounds(tasks: Iterable[VideoTask]) -> Iterator[list[VideoTask]]:
    """Runs of videos of which half of the room takes all; what is gone takes none."""
    some: list[VideoTask] = []
    room = size = 0
    for task in tasks:
        try:
            size = stamp_of(remote_file(task.path) or "").size
        except NotFoundError:
            size = 0
        if size > stage_bytes() // 2:
            require_room(task.path, 2 * size)
        if some and size > room:
            yield some
            some = []
        room = (room if some else stage_bytes() // 2) - size
        some.append(task)
    yield some


class _Round:
    """Some videos, on their way here."""

    def __init__(self, tasks: list[VideoTask], folder: Path, threads: ThreadPoolExecutor) -> None:
        self._tasks: dict[int, tuple[VideoTask, Path, Future[None]]] = {}
        for task in tasks:
            target = folder / f"{task.item}{Path(task.path).suffix}"
            self._tasks[task.item] = task, target, threads.submit(bring, remote_file(task.path) or "", target)

    def decoded(self, decode: Decode) -> Iterator[FrameChunk | VideoDone]:
        gone: list[VideoDone] = []
        for event in decode(self._here(gone)):
            yield event
            if isinstance(event, VideoDone):
                self._tasks[event.item][1].unlink(missing_ok=True)
        yield from gone

    def _here(self, gone: list[VideoDone]) -> Iterator[VideoTask]:
        for task, target, coming in self._tasks.values():
            try:
                coming.result()
            except NotFoundError as error:
                gone.append(VideoDone(task.item, Status.MISSING, str(error)))
            else:
                yield task._replace(path=str(target), stamp=None)
