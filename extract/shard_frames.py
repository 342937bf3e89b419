"""Frames of a shard on their way into the cache: kept on disk until the shard is committed, so that memory stays small.

Videos of a shard come interleaved; the shard wants them one after another. H, W: sides of the model's input in pixels.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from glscl.cache.files import storage_errors
from glscl.cache.formats.blocks import Blocks
from glscl.cache.frame_format import FrameSpec
from glscl.extract.decode.video import FrameChunk


class _Stretch(NamedTuple):
    """Frames that lie one after another in the spool."""

    start: int  # byte
    lengths: list[int]  # bytes of each frame


class ShardFrames:
    """The frames of one shard, in a nameless file below the cache's folder `partial`, which vanishes with its writer.

    Args:
        cache: folder of the cache.
        spec: how the cache stores frames.
    """

    def __init__(self, cache: Path, spec: FrameSpec) -> None:
        self.cache, self.spec = cache, spec
        self._stretches: dict[int, list[_Stretch]] = defaultdict(list)
        self._file: IO[bytes] | None = None
        self._end = 0

    def add(self, chunk: FrameChunk) -> None:
        """The next frames of a video. Raises StorageError where they cannot be written."""
        if self.spec.encoding == "uint8":
            data: bytes | memoryview = np.ascontiguousarray(chunk.frames).data.cast("B")
            lengths = [chunk.frames[0].nbytes] * len(chunk.frames)
        else:
            data, lengths = b"".join(chunk.jpegs), [len(jpeg) for jpeg in chunk.jpegs]
        with storage_errors(self.cache):
            file = self._opened()
            file.seek(self._end)
            file.write(data)
        self._stretches[chunk.item].append(_Stretch(self._end, lengths))
        self._end += sum(lengths)

    def discard(self, item: int) -> None:
        """Forget the frames of a video."""
        self._stretches.pop(item, None)

    def arrays(self, items: range) -> dict[str, np.ndarray | Blocks]:
        """The arrays that a shard of these items holds, read from the spool when they are written."""
        lengths = np.array(
            [n for item in items for stretch in self._stretches[item] for n in stretch.lengths], np.int64
        )
        if self.spec.encoding == "uint8":
            shape = (len(lengths), *self.spec.size, 3)
            return {"frames": Blocks(shape, np.uint8, lambda: (b.reshape(-1, *shape[1:]) for b in self._bytes(items)))}
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return {
            "frame_bytes": Blocks((int(offsets[-1]),), np.uint8, lambda: self._bytes(items)),
            "frame_offsets": offsets,
        }

    def _bytes(self, items: range) -> Iterator[np.ndarray]:
        for item in items:
            for stretch in self._stretches[item]:
                file = self._opened()
                file.seek(stretch.start)
                yield np.frombuffer(file.read(sum(stretch.lengths)), np.uint8)

    def _opened(self) -> IO[bytes]:
        if self._file is None:
            folder = self.cache / "partial"
            folder.mkdir(exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by close)
        return self._file

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
