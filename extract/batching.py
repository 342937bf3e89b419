"""Frames of the videos of a shard, in full batches.

Which frames share a batch is decided by the plan alone, never by which worker was faster: a video's own full batches, then the
remainders of a shard's videos in order. So a run that was killed and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from glscl.cache.encoded_items import EncodedVideo
from glscl.cache.schema import Status
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.decode.video import FrameChunk, VideoDone
from glscl.extract.shard_frames import ShardFrames

AHEAD = 2  # batches that a GPU may have to do while the host makes the next one ready


@dataclass
class Stopwatch:
    """Seconds of the stages, which overlap, seconds of processors (`cpu`), and frames that were encoded."""

    waiting: float = 0.0  # for frames
    encoding: float = 0.0
    writing: float = 0.0
    decoding: float = 0.0  # in the workers, summed
    decoding_cpu: float = 0.0
    encoding_cpu: float = 0.0
    frames: int = 0


class ShardInProgress:
    """Encodes the videos of one shard in an order that only the plan decides.

    Args:
        items: numbers of its videos.
        frames: takes the frames that are to be stored; None where none are.
    """

    def __init__(
        self, items: range, backbone: Backbone, batch_frames: int, watch: Stopwatch, frames: ShardFrames | None
    ) -> None:
        self.videos = {item: _Video() for item in items}
        self.frames = frames
        self.backbone, self.batch_frames, self.watch = backbone, batch_frames, watch
        self.next = items.start  # first video whose remainder has not joined the shared batch
        self.shared: list[tuple[_Video, np.ndarray]] = []
        self._under_way: deque[tuple[Callable[[], np.ndarray], list[tuple[_Video, int]]]] = deque()

    def add(self, chunk: FrameChunk) -> None:
        """Encode as many batches as these frames fill."""
        video = self.videos[chunk.item]
        video.waiting.append(chunk.frames)
        video.times.append(chunk.times)
        if self.frames is not None:
            self.frames.add(chunk)
        while video.num_waiting >= self.batch_frames:
            self._encode([(video, video.take(self.batch_frames))])

    def close(self, done: VideoDone) -> None:
        """No more frames of a video come; those of one that is MISSING after all are thrown away."""
        if done.status == Status.MISSING:
            self.videos[done.item] = _Video()
            if self.frames is not None:
                self.frames.discard(done.item)
        self.videos[done.item].done = done
        while self.next in self.videos and self.videos[self.next].done is not None:
            video = self.videos[self.next]
            if video.waiting:
                self.shared.append((video, video.take()))
            self.next += 1
            while sum(len(frames) for _, frames in self.shared) >= self.batch_frames:
                self._encode_shared()
        if self.complete and self.shared:
            self._encode_shared()

    @property
    def complete(self) -> bool:
        """Every video has been closed."""
        return self.next not in self.videos

    def records(self) -> dict[int, EncodedVideo]:
        """What became of each video, by number, once the shard is complete."""
        self._settle(0)
        dim = self.backbone.embed_dim
        return {item: video.record(dim) for item, video in self.videos.items()}

    def _encode_shared(self) -> None:
        """One batch of the remainders; what does not fit stays for the next."""
        room, batch, rest = self.batch_frames, [], []
        for video, frames in self.shared:
            taken = frames[:room]
            if len(taken):
                batch.append((video, taken))
            if len(frames) > len(taken):
                rest.append((video, frames[len(taken) :]))
            room -= len(taken)
        self._encode(batch)
        self.shared = rest

    def _encode(self, batch: list[tuple[_Video, np.ndarray]]) -> None:
        """Begin with frames of some videos; their features join them in the order of the calls."""
        clock, cpu = time.perf_counter(), time.process_time()
        features = self.backbone.encode_later([frames for _, frames in batch])
        self.watch.encoding += time.perf_counter() - clock
        self.watch.encoding_cpu += time.process_time() - cpu
        counts = [(video, len(frames)) for video, frames in batch]
        self.watch.frames += sum(count for _, count in counts)
        self._under_way.append((features, counts))
        self._settle(AHEAD if self.backbone.device.type == "cuda" else 0)

    def _settle(self, left: int) -> None:
        """Wait for batches until so many are under way."""
        clock = time.perf_counter()
        while len(self._under_way) > left:
            features, counts = self._under_way.popleft()
            bounds = np.cumsum([count for _, count in counts])[:-1]
            for (video, _), rows in zip(counts, np.split(features(), bounds)):
                video.features.append(rows)
        self.watch.encoding += time.perf_counter() - clock


class _Video:
    """Frames and features of one video on their way through the encoder."""

    def __init__(self) -> None:
        self.waiting: list[np.ndarray] = []  # frames not yet encoded
        self.features: list[np.ndarray] = []
        self.times: list[np.ndarray] = []
        self.done: VideoDone | None = None

    @property
    def num_waiting(self) -> int:
        return sum(len(frames) for frames in self.waiting)

    def take(self, count: int | None = None) -> np.ndarray:
        """The first `count` waiting frames (all by default), (n, S, S, 3)."""
        frames = np.concatenate(self.waiting)
        count = len(frames) if count is None else count
        self.waiting = [frames[count:]] if count < len(frames) else []
        return frames[:count]

    def record(self, embed_dim: int) -> EncodedVideo:
        """What the cache keeps of it, once it is done."""
        done = self.done
        assert done is not None, "asked for when the shard is complete"
        return EncodedVideo(
            frame_features=np.concatenate(self.features) if self.features else np.zeros((0, embed_dim), np.float32),
            times=np.concatenate(self.times) if self.times else np.zeros(0, np.float32),
            status=done.status,
            reason=done.reason,
            duration=done.duration,
            fps=done.fps,
            frames_total=done.frames_total,
            ledger={
                "decoder": done.decoder,
                "note": done.decoder_note,
                "codec": done.codec,
                "packets": done.packets,
                "seconds": round(done.seconds, 3),
            },
        )
