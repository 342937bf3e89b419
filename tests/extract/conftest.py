"""Decoding in the test's own process, for tests that ask nothing of the pool: starting its workers takes seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from glscl.cache.jpeg import encode_jpeg
from glscl.extract import pipeline
from glscl.extract.decode.video import Decoding, FrameChunk, VideoDone, VideoTask, decode_video


class DecodesHere:
    """Stands for `DecodePool`: one video after another."""

    def __init__(self, decoding: Decoding, **_: object) -> None:
        self.decoding = decoding

    def __enter__(self) -> DecodesHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def decode(self, tasks: Iterable[VideoTask]) -> Iterator[FrameChunk | VideoDone]:
        quality = self.decoding.jpeg_quality
        for task in tasks:
            for event in decode_video(task, self.decoding):
                if quality is not None and isinstance(event, FrameChunk):
                    event = event._replace(jpegs=tuple(encode_jpeg(frame, quality) for frame in event.frames))
                yield event


@pytest.fixture
def decoded_here(monkeypatch):
    """Extraction decodes in this process."""
    monkeypatch.setattr(pipeline, "DecodePool", DecodesHere)
