"""Decoding in the test's own process, for tests that ask nothing of the pool: starting its workers takes seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import ClassVar

from glscl.cache.jpeg import encode_jpeg
from glscl.cache.schema import Status
from glscl.extract.decode.video import Decoding, FrameChunk, VideoDone, VideoTask, decode_video


class DecodesHere:
    """Stands for `DecodePool`: one video after another.

    Attributes:
        begun: paths, of which the pool would have begun the first.
        decoded: paths, in the order in which they were asked for.
        failing: path → why nothing comes of it, as where a machine is too busy or short of memory.
    """

    begun: ClassVar[list[str]] = []
    decoded: ClassVar[list[str]] = []
    failing: ClassVar[dict[str, str]] = {}

    def __init__(self, decoding: Decoding, *, workers: int = 1, **_: object) -> None:
        self.decoding, self.workers = decoding, workers

    def __enter__(self) -> DecodesHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin(self, tasks: Iterable[VideoTask]) -> None:
        self.begun.extend(task.path for task in tasks)

    def decode(self, tasks: Iterable[VideoTask]) -> Iterator[FrameChunk | VideoDone]:
        quality = self.decoding.jpeg_quality
        for task in tasks:
            self.decoded.append(task.path)
            if task.path in self.failing:
                yield VideoDone(task.item, Status.TIMED_OUT, self.failing[task.path])
                continue
            for event in decode_video(task, self.decoding):
                if quality is not None and isinstance(event, FrameChunk):
                    event = event._replace(jpegs=tuple(encode_jpeg(frame, quality) for frame in event.frames))
                yield event
