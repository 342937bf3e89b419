"""Frames of one video file: sampled, upright, RGB, in chunks, with an account of how it went.

A plain function without global state, for use in this process or in any pool; `DecodePool` runs it in processes that
may hang or die.

n frames of a chunk, S side of the prepared square picture, H, W sides of a frame as it is stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glscl.cache.schema import Status
from glscl.common.arguments import types_checked
from glscl.common.errors import DecodeError, NotFoundError, UsageError
from glscl.extract.decode.decoders import (
    Beat,
    Damage,
    Distrust,
    Picture,
    counted_pictures,
    decoded_stamps,
    decord_pictures,
    planned_pictures,
    torchcodec_pictures,
    with_true_head,
)
from glscl.extract.decode.packets import (
    VideoIndex,
    describe_error,
    duration_and_rate,
    file_stamp,
    interlaced,
    opened_index,
)
from glscl.extract.decode.plan import DecodePlan
from glscl.extract.decode.sampling import TOLERANCE, Sampling, first_stamp, repair_times, select_frames, window

if TYPE_CHECKING:
    from PIL.Image import Image

BY_SEEKING = {"decord": decord_pictures, "torchcodec": torchcodec_pictures}
DECODERS = ("auto", "pyav", *BY_SEEKING)
Prepare = Callable[["Image"], "Image | NDArray[np.uint8]"]  # what a model does to a picture, until (S, S, 3) uint8


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How videos become chunks of frames, the same for every video of a run. Picklable where `prepare` is.

    Attributes:
        sampling: which frames are taken.
        prepare: PIL picture → (S, S, 3) uint8, what the model does to a picture before it becomes a tensor; None keeps
            native sizes (a chunk then ends where the size changes).
        decoder: of `DECODERS`: "auto" and "pyav" decode with PyAV what the wanted frames depend on; "decord" and "torchcodec" ask
            those packages, and refuse files that they are known to get wrong. Frames are the same.
        jpeg_quality: of the JPEG that comes with every frame, 1 to 100; None makes none.
        chunk_frames, chunk_bytes: a chunk ends at whichever comes first.
        time_limit: seconds that a video may stand still. Slow progress, however long, is no reason to give up.
        video_limit: seconds for one video in all, against files that never end.
        memory_limit: bytes that a decoding process may allocate beyond what it holds at its start (Linux); None for no limit.

    The limits and JPEGs are a `DecodePool`'s: they take a process that may be ended.

    Raises:
        UsageError: an unknown decoder, or a limit that is not above 0.
    """

    sampling: Sampling = Sampling()
    prepare: Prepare | None = None
    decoder: str = "auto"
    jpeg_quality: int | None = None
    chunk_frames: int = 256
    chunk_bytes: int = 16 << 20
    time_limit: float = 60.0
    video_limit: float = 6 * 3600.0
    memory_limit: int | None = 4 << 30

    def __post_init__(self) -> None:
        if self.decoder not in DECODERS:
            raise UsageError(f"decoder is {self.decoder!r}; expected one of {', '.join(DECODERS)}")
        if not (self.time_limit > 0 and self.video_limit > 0):
            raise UsageError(f"time limits are {self.time_limit} s and {self.video_limit} s; expected more than 0")

    @classmethod
    def of_cache(cls, sampling: Mapping[str, Any], **others: Any) -> Decoding:
        """As the frames of a cache were decoded: `sampling` is that of its configuration, `others` the remaining fields."""
        rule = {name: value for name, value in sampling.items() if name != "decoder"}
        return cls(sampling=Sampling(**rule), decoder=sampling.get("decoder", "auto"), **others)


class VideoTask(NamedTuple):
    """One video to decode, or its part from `start` to `end` seconds; `item` is copied to what comes of it.

    `stamp` is `packets.file_stamp(path)` as it was when the file was listed, where the caller wants to hear of a
    file that changed since.
    """

    item: int
    path: str
    start: float | None = None
    end: float | None = None
    stamp: tuple[int, int] | None = None


class FrameChunk(NamedTuple):
    """Some frames of video `item`, prepared as the model wants them.

    Attributes:
        frames: (n, S, S, 3) uint8 RGB. times: (n,) float32 seconds from the start of the file, ascending.
        jpegs: JPEG of each frame, where a decode pool was asked for them; else empty.
    """

    item: int
    frames: NDArray[np.uint8]
    times: NDArray[np.float32]
    jpegs: tuple[bytes, ...] = ()


class VideoDone(NamedTuple):
    """How video `item` went; comes after all of its chunks.

    Attributes:
        reason: why the status is not OK. decoder_note: why more was decoded than the wanted frames depend on, where it was.
        duration, fps, frames_total: seconds, frames a second and frames as decoded, of the part asked for.
        seconds, cpu_seconds: time spent, by the clock and of the processor. frames: how many were given in chunks. packets: how many PyAV decoded for them.
    """

    item: int
    status: Status
    reason: str | None = None
    decoder: str = "none"
    duration: float = 0.0
    fps: float = 0.0
    frames_total: int = 0
    codec: str = ""
    seconds: float = 0.0
    frames: int = 0
    decoder_note: str | None = None
    packets: int = 0
    cpu_seconds: float = 0.0


def decode_video(
    task: VideoTask, decoding: Decoding, *, resume_after: float | None = None, beat: Beat = lambda: None
) -> Iterator[FrameChunk | VideoDone]:
    """Decodes the frames that `decoding` takes; memory holds one chunk whatever the length of the video.

    Nothing about the file raises: whatever is wrong with it stands in the VideoDone.

    Args:
        resume_after: seconds; leaves out frames up to this time, which an earlier attempt gave.
        beat: called at every packet or short batch, to show that work goes on.

    Yields:
        FrameChunk in time order, then one VideoDone.
    """
    clock, cpu = time.monotonic(), time.process_time()
    part = _Attempts(task, decoding, resume_after, beat)
    frames = 0
    status, reason = Status.OK, None
    chunk = _Chunk(task.item, decoding.chunk_frames, decoding.chunk_bytes)
    try:
        for picture in part.pictures():
            beat()
            if picture is None:
                chunk.take()
                continue
            ready = chunk.add(picture.time, prepared(picture.pixels, decoding.prepare))
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
        item=task.item,
        status=status,
        reason=_nameless(reason, task.path),
        decoder=part.used,
        duration=part.duration,
        fps=part.fps,
        frames_total=part.frames_total,
        codec=part.codec,
        seconds=time.monotonic() - clock,
        frames=frames,
        decoder_note=_nameless(part.note, task.path),
        packets=part.packets,
        cpu_seconds=time.process_time() - cpu,
    )


def _nameless(text: str | None, path: str) -> str | None:
    """What is said of a file without its path: it is kept in caches, which name no file."""
    return None if text is None else text.replace(path, "the file")


def prepared(pixels: NDArray[np.uint8], prepare: Prepare | None) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB as `prepare` makes it, (S, S, 3) uint8.

    Raises:
        DecodeError: it gave something else than such a picture.
    """
    if prepare is None:
        return pixels
    from PIL import Image

    result = np.asarray(prepare(Image.fromarray(pixels)))
    if result.dtype != np.uint8 or result.ndim != 3 or result.shape[2] != 3:
        raise DecodeError(f"preprocessing gave {result.dtype} {result.shape}; expected uint8 (S, S, 3)")
    return result


@types_checked
def decode(
    path: str | Path,
    fps: float | None = 1.0,
    *,
    start: float | None = None,
    end: float | None = None,
    decoder: str = "auto",
    prepare: Prepare | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Frames of one file, in this process: (n, H, W, 3) uint8 RGB, upright, and their times, (n,) seconds.

        frames, times = glscl.decode("clip.mp4", fps=1.0)

    Args:
        fps: frames a second, those presented nearest to start + 0, 1/fps, 2/fps, … seconds; None takes every frame.
        start, end: seconds; only frames with start <= time < end.
        decoder: see `Decoding`.
        prepare: PIL picture → (S, S, 3) uint8 for every frame, such as `Backbone.transform`; None keeps them as they are.

    Returns:
        Frames, and times from the start of the file (as a player shows them), in time order. A damaged file gives the frames that it has.

    Raises:
        NotFoundError: there is no such file.
        DecodeError: not one frame can be decoded, or frames of several sizes come and nothing prepares them.
    """
    decoding = Decoding(sampling=Sampling(fps=fps), prepare=prepare, decoder=decoder)
    chunks, reason = [], None
    for event in decode_video(VideoTask(0, str(path), start, end), decoding):
        if isinstance(event, FrameChunk):
            chunks.append(event)
        elif event.status is Status.MISSING:
            raise NotFoundError(f"No video file at {path}")
        else:
            reason = event.reason
    if not chunks:
        raise DecodeError(f"{path} gives no frames: {reason}")
    sizes = sorted({chunk.frames.shape[1:3] for chunk in chunks})
    if len(sizes) > 1:
        found = " and ".join(f"{height} x {width}" for height, width in sizes[:2])
        raise DecodeError(
            f"{path} has frames of several sizes, {found} pixels", hint="Bring them to one with `prepare`"
        )
    return np.concatenate([chunk.frames for chunk in chunks]), np.concatenate([chunk.times for chunk in chunks])


class _Attempts:
    """One file: chooses the decoder, falls back to the other, and remembers what VideoDone tells."""

    def __init__(self, task: VideoTask, decoding: Decoding, resume_after: float | None, beat: Beat) -> None:
        self.path, self.start, self.end, self.stamp = task.path, task.start, task.end, task.stamp
        self.sampling, self.decoder, self.beat = decoding.sampling, decoding.decoder, beat
        self.resume_after = self.last_time = -np.inf if resume_after is None else resume_after
        self.given = False  # whether pictures have left; until then a second attempt starts afresh
        self.used = "none"
        self.note: str | None = None
        self.duration = self.fps = 0.0
        self.frames_total = self.packets = 0
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
        with opened_index(self.path, beat=self.beat) as index:
            self.codec = index.codec
            self._cut_short = index.cut_short
            for picture in self._attempts(index):
                if picture is None or picture.time > self.last_time + TOLERANCE:
                    self.last_time = self.resume_after if picture is None else picture.time
                    yield picture

    def _attempts(self, index: VideoIndex) -> Iterator[Picture | None]:
        if self.decoder in BY_SEEKING:
            self.used, pictures = self.decoder, BY_SEEKING[self.decoder]
            try:
                doubt = index.decord_doubt if self.decoder == "decord" else index.seek_doubt or index.colour_doubt
                doubt = doubt or ("interlaced" if interlaced(self.path) else None)
                if doubt:
                    raise Distrust(doubt)
                yield from pictures(index, self._choose(index.times, index.average_rate), beat=self.beat)
            except Distrust as doubt:
                raise DecodeError(f"{self.decoder} cannot be trusted with this file: {doubt}") from doubt
            return
        self.used, self.note = "pyav", index.unplanned
        if index.irregular is None:
            try:
                known = with_true_head(index, beat=self.beat)
                wanted = self._choose(known.times, known.average_rate)
                plan = DecodePlan.of(known, known.pts[wanted]) if len(wanted) else None
                self.packets += int(plan.feeds.sum()) if plan else index.packets
                yield from planned_pictures(known, wanted, plan, beat=self.beat)
                return
            except Distrust as doubt:
                self.note = str(doubt)
                if not self.given:
                    yield None  # takes back pictures of which none has left yet; otherwise the next one goes on
        self.packets += 2 * index.packets
        raw = decoded_stamps(self.path, self._damage, index.time_base, beat=self.beat)
        if not raw:
            raise DecodeError(str(self._damage) or index.irregular or "the stream holds no frame that can be decoded")
        first = first_stamp(raw)
        late = 0.0 if first is None else index.after_start(first)
        times = repair_times(raw, rate=index.average_rate) + late
        wanted = self._choose(times, index.average_rate)
        yield from counted_pictures(self.path, wanted.tolist(), times, beat=self.beat)

    def _choose(self, times: NDArray[np.float64], rate: float | None) -> NDArray[np.int64]:
        """Frames still to be given, as indices; notes what the part covers."""
        part = times[window(times, self.start, self.end)]
        if not len(part):
            between = f"between {self.start or 0:.2f} s and {'the end' if self.end is None else f'{self.end:.2f} s'}"
            shown = f"{times[0]:.2f} s to {times[0] + duration_and_rate(times, rate)[0]:.2f} s"
            raise DecodeError(f"no frame {between}; the picture is there from {shown}")
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

    def __init__(self, item: int, max_frames: int, max_bytes: int) -> None:
        self.item, self.max_frames, self.max_bytes = item, max_frames, max_bytes
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
        chunk = FrameChunk(self.item, np.stack(self._frames), np.array(self._times, np.float32))
        self._frames, self._times = [], []
        return chunk
