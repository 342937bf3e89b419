"""Frames of one video file: sampled, upright, RGB, in chunks, with an account of how it went.

A plain function without global state, for use in this process or in any pool; `decode_pool` runs it in processes that
may hang or die.

n frames of a chunk, S side of the prepared square picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glscl.cache.schema import Status
from glscl.common.errors import DecodeError, NotFoundError
from glscl.extract.decode.decoders import (
    Damage,
    Distrust,
    Picture,
    counted_pictures,
    decoded_stamps,
    decord_pictures,
    planned_pictures,
)
from glscl.extract.decode.packets import (
    VideoIndex,
    VideoInfo,
    describe_error,
    duration_and_rate,
    file_stamp,
    probe,
    read_index,
)
from glscl.extract.decode.sampling import TOLERANCE, Sampling, repair_times, select_frames, window

__all__ = ["FrameChunk", "Sampling", "VideoDone", "VideoInfo", "VideoTask", "decode_video", "probe"]

Decoder = Literal["auto", "decord", "pyav"]
Geometry = Callable[[Any], Any]  # PIL.Image -> PIL.Image or (S, S, 3) uint8
CHUNK_FRAMES = 256
CHUNK_BYTES = 16 << 20
DENSE = 8  # where more than every eighth frame is wanted PyAV takes half of decord's time and a quarter of its memory


class VideoTask(NamedTuple):
    """One video to decode, or its part from `start` to `end` seconds.

    `stamp` is `container.file_stamp(path)` as it was when the file was listed, where the caller wants to hear of a
    file that changed since.
    """

    index: int  # type: ignore[assignment]
    path: str
    start: float | None = None
    end: float | None = None
    stamp: tuple[int, int] | None = None


class FrameChunk(NamedTuple):
    """Some frames of video `index`, after the geometric part of the model's preprocessing.

    Attributes:
        frames: (n, S, S, 3) uint8 RGB. times: (n,) float32 seconds from the first frame of the whole video, ascending.
        pictures: JPEG of each frame, where a decode pool was asked for them; else empty.
    """

    index: int  # type: ignore[assignment]
    frames: NDArray[np.uint8]
    times: NDArray[np.float32]
    pictures: tuple[bytes, ...] = ()


class VideoDone(NamedTuple):
    """How video `index` went; comes after all of its chunks.

    Attributes:
        reason: why the status is not OK. decoder_note: why not decord, where decord was not used.
        duration, fps, frames_total: seconds, frames a second and frames as decoded, of the part asked for.
        seconds: time spent. frames: how many were given in chunks.
    """

    index: int  # type: ignore[assignment]
    status: Status
    reason: str | None
    decoder: Literal["decord", "pyav", "none"]
    duration: float
    fps: float
    frames_total: int
    codec: str
    seconds: float
    frames: int
    decoder_note: str | None = None


def decode_video(
    path: str,
    sampling: Sampling,
    *,
    geometry: Geometry | None = None,
    decoder: Decoder = "auto",
    index: int = 0,
    start: float | None = None,
    end: float | None = None,
    stamp: tuple[int, int] | None = None,
    resume_after: float | None = None,
    beat: Callable[[], None] = lambda: None,
    chunk_frames: int = CHUNK_FRAMES,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[FrameChunk | VideoDone]:
    """Decodes the frames `sampling` takes; memory holds one chunk whatever the length of the video.

    Nothing about the file raises: whatever is wrong with it stands in the VideoDone.

    Args:
        geometry: what the model does to a picture before it becomes a tensor; None gives native sizes (a chunk then
            ends where the size changes).
        decoder: "auto" takes decord where the packets show that its frames are right and PyAV otherwise; "decord"
            refuses the other files; "pyav" never asks decord.
        index: copied to what is yielded.
        start, end: seconds; only frames with start <= time < end.
        stamp: size and modification time the file must still have (see `container.file_stamp`).
        resume_after: seconds; leaves out frames up to this time, which an earlier attempt gave.
        beat: called at every packet or short batch, to show that work goes on.
        chunk_frames, chunk_bytes: a chunk ends at whichever comes first.

    Yields:
        FrameChunk in time order, then one VideoDone.
    """
    clock = time.monotonic()
    part = _Part(path, sampling, decoder, start, end, stamp, resume_after, beat)
    frames = 0
    status, reason = Status.OK, None
    chunk = _Chunk(index, chunk_frames, chunk_bytes)
    try:
        for picture in part.pictures():
            beat()
            if picture is None:
                chunk.take()
                continue
            ready = chunk.add(picture.time, prepare(picture.pixels, geometry))
            if ready is not None:
                frames += len(ready.frames)
                part.given = True
                yield ready
    except NotFoundError as error:
        status, reason = Status.MISSING, str(error)
    except MemoryError:
        reason = "out of memory"
    except DecodeError as error:
        reason = str(error)
    except Exception as error:  # whatever one file provokes must cost only that file
        reason = describe_error(error)
    ready = chunk.take()
    if ready is not None:
        frames += len(ready.frames)
        yield ready
    if status is Status.OK:
        reason = "; ".join(dict.fromkeys([*([reason] if reason else []), *part.shortfalls()])) or None
    if reason is not None and status is Status.OK:
        status = Status.PARTIAL if frames or resume_after is not None else Status.DECODE_ERROR
    yield VideoDone(
        index=index,
        status=status,
        reason=reason,
        decoder=part.used,
        duration=part.duration,
        fps=part.fps,
        frames_total=part.frames_total,
        codec=part.codec,
        seconds=time.monotonic() - clock,
        frames=frames,
        decoder_note=part.note,
    )


def prepare(pixels: NDArray[np.uint8], geometry: Geometry | None) -> NDArray[np.uint8]:
    """Applies `geometry` to (H, W, 3) uint8 RGB and returns (S, S, 3) uint8.

    Raises:
        DecodeError: geometry gave something else than such a picture.
    """
    if geometry is None:
        return pixels
    from PIL import Image

    result = np.asarray(geometry(Image.fromarray(pixels)))
    if result.dtype != np.uint8 or result.ndim != 3 or result.shape[2] != 3:
        raise DecodeError(f"preprocessing gave {result.dtype} {result.shape}; expected uint8 (S, S, 3)")
    return result


class _Part:
    """The wanted part of one file: chooses the decoder, falls back, and remembers what VideoDone tells."""

    def __init__(
        self,
        path: str,
        sampling: Sampling,
        decoder: Decoder,
        start: float | None,
        end: float | None,
        stamp: tuple[int, int] | None,
        resume_after: float | None,
        beat: Callable[[], None],
    ) -> None:
        self.path, self.sampling, self.decoder = path, sampling, decoder
        self.start, self.end, self.stamp, self.beat = start, end, stamp, beat
        self.resume_after = self.last_time = -np.inf if resume_after is None else resume_after
        self.given = False  # whether pictures have left; until then a second attempt starts afresh
        self.used: Literal["decord", "pyav", "none"] = "none"
        self.note: str | None = None
        self.duration = self.fps = 0.0
        self.frames_total = 0
        self.codec = ""
        self.read_as: tuple[int, int] | None = None
        self._cut_short: str | None = None
        self._damage = Damage()

    def pictures(self) -> Iterator[Picture | None]:
        """Wanted pictures in time order; None takes back all those before it.

        Raises:
            NotFoundError, DecodeError, av.error.FFmpegError: no (further) frame can be had.
        """
        found = file_stamp(self.path)
        if self.stamp is not None and found != tuple(self.stamp):
            raise DecodeError(f"{self.path} changed since it was listed ({self.stamp[0]} bytes, now {found[0]})")
        self.read_as = found
        index = read_index(self.path, beat=self.beat)
        self.codec = index.codec
        self._cut_short = index.cut_short
        for picture in self._attempts(index):
            if picture is None or picture.time > self.last_time + TOLERANCE:
                self.last_time = self.resume_after if picture is None else picture.time
                yield picture

    def _attempts(self, index: VideoIndex) -> Iterator[Picture | None]:
        doubts = []
        if self.decoder != "pyav":
            try:
                if index.decord_doubt is not None:
                    raise Distrust(index.decord_doubt)
                wanted = self._choose(index.times, index.average_rate)
                if self.decoder == "auto" and len(wanted) * DENSE > self.frames_total:
                    raise Distrust("so many frames are wanted that reading on beats seeking")
                self.used = "decord"
                yield from decord_pictures(index, wanted, beat=self.beat)
                return
            except Distrust as doubt:
                if self.decoder == "decord":
                    raise DecodeError(f"decord cannot be trusted with this file: {doubt}") from doubt
                doubts.append(str(doubt))
                yield from self._afresh()
        self.used = "pyav"
        self._note(doubts)
        if index.irregular is None:
            try:
                wanted = self._choose(index.times, index.average_rate)
                yield from planned_pictures(index, wanted, beat=self.beat, suspect=bool(doubts))
                return
            except Distrust as doubt:
                doubts.append(str(doubt))
                yield from self._afresh()
        else:
            doubts.append(index.irregular)
        self._note(dict.fromkeys(doubts))
        raw = decoded_stamps(self.path, self._damage, index.time_base, beat=self.beat)
        if not raw:
            raise DecodeError(str(self._damage) or index.irregular or "the stream holds no frame that can be decoded")
        times = repair_times(raw, rate=index.average_rate)
        wanted = self._choose(times, index.average_rate)
        yield from counted_pictures(self.path, wanted.tolist(), times, beat=self.beat)

    def _afresh(self) -> Iterator[None]:
        """Takes back pictures of a distrusted attempt where none has left yet; otherwise the next one goes on."""
        if not self.given:
            yield None

    def _note(self, doubts: Any) -> None:
        self.note = "; ".join(doubts) or None

    def _choose(self, times: NDArray[np.float64], rate: float | None) -> NDArray[np.int64]:
        """Frames still to be given, as indices; notes what the part covers."""
        part = times[window(times, self.start, self.end)]
        if not len(part):
            between = f"between {self.start or 0:.2f} s and {'the end' if self.end is None else f'{self.end:.2f} s'}"
            raise DecodeError(f"no frame {between}; the video lasts {duration_and_rate(times, rate)[0]:.2f} s")
        self.frames_total = len(part)
        self.duration, self.fps = duration_and_rate(part, rate)
        wanted = select_frames(times, self.sampling, start=self.start, end=self.end, average_rate=rate)
        return wanted[times[wanted] > self.last_time + TOLERANCE]

    def shortfalls(self) -> list[str]:
        """What is missing or doubtful beside an error that ended it all."""
        found = [str(self._damage)] if self._damage else []
        if self._cut_short and self.end is None:
            found.append(self._cut_short)
        if self.read_as is not None:
            try:
                if file_stamp(self.path) != self.read_as:
                    found.append(f"{self.path} changed while it was read")
            except (NotFoundError, DecodeError):
                found.append(f"{self.path} vanished while it was read")
        return found


class _Chunk:
    """Gathers prepared frames of equal shape up to the limits of a chunk."""

    def __init__(self, index: int, max_frames: int, max_bytes: int) -> None:
        self.index, self.max_frames, self.max_bytes = index, max_frames, max_bytes
        self._frames: list[NDArray[np.uint8]] = []
        self._times: list[float] = []

    def add(self, seconds: float, frame: NDArray[np.uint8]) -> FrameChunk | None:
        """Adds a frame; returns the chunk before it where that is full."""
        full = bool(self._frames) and (
            len(self._frames) >= self.max_frames
            or (len(self._frames) + 1) * frame.nbytes > self.max_bytes
            or frame.shape != self._frames[0].shape
        )
        ready = self.take() if full else None
        self._frames.append(frame)
        self._times.append(seconds)
        return ready

    def take(self) -> FrameChunk | None:
        """What was gathered, or None."""
        if not self._frames:
            return None
        chunk = FrameChunk(self.index, np.stack(self._frames), np.array(self._times, np.float32))
        self._frames, self._times = [], []
        return chunk
