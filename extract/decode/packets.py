"""What a video file holds, read without decoding: packets, their presentation times, and what depends on what.

Reading all packets of a ten-second clip costs 2 to 5 ms beyond opening it; decoding it costs a hundred.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glscl.common.errors import DecodeError, NotFoundError
from glscl.common.tar_members import ffmpeg_address, file_of
from glscl.extract.decode import bitstream

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

START_TOLERANCE = 2e-6  # seconds: containers tell their start in microseconds
MAX_PIXELS = 150_000_000  # of one frame (16k x 8k fits): 450 MB in RGB
DECORD_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # decord gives wrong frames of AVI and MPEG-TS
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9")
DECORD_PIXEL_FORMATS = ("yuv420p", "yuvj420p", "yuv444p", "yuvj444p")  # of others decord rounds colours differently
PLANNED_CONTAINERS = (*DECORD_CONTAINERS, "avi")  # that keep a stamp for every packet
HELD_BYTES = 32 << 20  # packets of one stream that are kept until they are decoded


class Held(NamedTuple):
    """An open stream and all of its packets, so that decoding opens and reads nothing a second time."""

    stream: VideoStream
    packets: list[Packet]


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The video stream of a file as its packets describe it.

    Attributes:
        pts: (n,) int64 ascending presentation stamps of the packets that are shown, in units of `time_base`; empty
            where `irregular` says that packets do not tell.
        irregular: why presentation times must be taken from decoded frames instead, or None.
        decord_doubt: why decord would give wrong frames of this file, or cannot decode it, or None.
        seek_doubt: why seeking to a key frame may give other pictures than decoding all before it, or None.
        unplanned: why every packet must be decoded, whatever is wanted, or None.
        start: seconds on the clock of `pts` at which the file begins, as a player counts: with its first stream, sound or
            picture; None where it does not say.
        fed: (m,) int64 stamps of all packets in the order of decoding, those that are not shown among them.
        groups: (g,) int64 positions in `fed`, the first 0, from which the decoder may start anew: what comes behind refers
            to nothing before. Empty where `unplanned`.
        leading: (m,) bool, packets behind such a start that are shown before it and refer to the group before.
        unused: (m,) bool, packets that no other refers to.
        headless: why some frames of the first group may not come, or None.
        held: the packets themselves, while `opened_index` keeps the file open; None where they are more than HELD_BYTES.
        average_rate: frames a second the file declares, or None.
        stored_frames: frames the header promises (0 where it says nothing); packets: how many there are.
    """

    path: str
    container: str
    codec: str
    width: int
    height: int
    pixel_format: str
    time_base: Fraction
    start: float | None
    average_rate: float | None
    stored_frames: int
    packets: int
    pts: NDArray[np.int64]
    irregular: str | None
    decord_doubt: str | None
    seek_doubt: str | None
    unplanned: str | None
    fed: NDArray[np.int64]
    groups: NDArray[np.int64]
    leading: NDArray[np.bool_]
    unused: NDArray[np.bool_]
    headless: str | None
    held: Held | None = None

    @property
    def times(self) -> NDArray[np.float64]:
        """(n,) seconds from the start of the file."""
        first = self.pts[:1] * self.time_base.numerator / self.time_base.denominator
        return seconds(self.pts, self.time_base) + (self.after_start(float(first[0])) if len(first) else 0.0)

    def after_start(self, first: float) -> float:
        """Seconds from the start of the file to the first frame, which is stamped `first` s; 0 where that is no later."""
        return _late(self.start, first)

    @property
    def colour_doubt(self) -> str | None:
        """Why others than PyAV would give other colours, or None."""
        return None if self.pixel_format in DECORD_PIXEL_FORMATS else f"pixel format {self.pixel_format or None}"

    @property
    def cut_short(self) -> str | None:
        """Says that a file ends before the frames its header promises, or None (MP4 lists every frame up front)."""
        if self.container == DECORD_CONTAINERS[0] and 0 < self.packets < self.stored_frames:
            return f"the file ends after {self.packets} of {self.stored_frames} frames"
        return None


def seconds(pts: NDArray[np.int64], time_base: Fraction) -> NDArray[np.float64]:
    """(n,) ascending stamps as seconds from the first of them."""
    return (pts - pts[:1]) * time_base.numerator / time_base.denominator


def duration_and_rate(times: NDArray[np.float64], rate: float | None) -> tuple[float, float]:
    """Seconds covered by frames at `times` (n,), the last one shown for the usual step, and frames a second."""
    if not len(times):
        return 0.0, 0.0
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1.0 / (rate or 25.0)
    duration = float(times[-1] - times[0]) + step
    return duration, len(times) / duration


def file_stamp(path: str) -> tuple[int, int]:
    """Size in bytes and modification time in ns, to notice a file that changes between listing and reading; see `Stat`.

    Raises:
        NotFoundError: there is nothing at `path`.
        DecodeError: it is not a regular file (a folder, a pipe that would never end).
    """
    try:
        found = os.stat(file_of(path))
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise DecodeError(f"{path}: {error}") from error
    if not stat.S_ISREG(found.st_mode):
        raise DecodeError(f"{path} is not a regular file")
    return found.st_size, found.st_mtime_ns


def open_video(path: str) -> tuple[InputContainer, VideoStream]:
    """Opens a file and its video stream, decoding in one thread.

    Of several video streams it is the one FFmpeg itself calls best (largest picture, then bit rate), which is what
    ffmpeg and decord show; cover pictures do not count.

    Raises:
        DecodeError: no video stream. av.error.FFmpegError: not a media file.
    """
    import av
    from av.stream import Disposition

    # PyAV 19 takes titles that are not UTF-8 as they are, and no longer the argument
    tolerant: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
    container = av.open(ffmpeg_address(path), **tolerant)
    try:
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            raise DecodeError("no video stream")
        best = container.streams.best("video")
        stream = next((s for s in streams if s == best), streams[0])
        if stream.codec_context is None:
            raise DecodeError("no decoder for the video stream")
        stream.thread_count = 1
        stream.thread_type = "NONE"
        return container, stream
    except BaseException:
        container.close()
        raise


def read_index(path: str, *, beat: Callable[[], None] = lambda: None) -> VideoIndex:
    """Reads every packet of the video stream and decodes none.

    Args:
        beat: called at every packet, to show that work goes on.

    Raises:
        DecodeError: no video stream, or frames beyond MAX_PIXELS. av.error.FFmpegError: not a media file.
    """
    with opened_index(path, beat=beat) as index:
        return replace(index, held=None)


@contextlib.contextmanager
def opened_index(path: str, *, beat: Callable[[], None] = lambda: None) -> Iterator[VideoIndex]:
    """`read_index` for whoever decodes next: in the block the file stays open, and `held` are its packets."""
    from av.error import FFmpegError

    container, stream = open_video(path)
    with container:
        codec = stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise DecodeError(f"frames of {codec.width} x {codec.height} pixels are beyond {MAX_PIXELS:,} pixels")
        name = codec.codec.canonical_name if hasattr(codec.codec, "canonical_name") else codec.name
        survey, size = _PacketSurvey(name, codec.extradata), 0
        packets: list[Packet] = []
        try:
            for packet in container.demux(stream):
                beat()
                if packet.size:
                    survey.add(packet)
                    size += packet.size
                    packets.append(packet)
                    if size > HELD_BYTES:
                        packets.clear()
        except (FFmpegError, OSError, ValueError) as error:
            survey.broken = describe_error(error)
        irregular = survey.irregular()
        if container.format.name == "avi" and codec.has_b_frames:
            irregular = irregular or "AVI keeps the order of decoding, not of showing"
        groups, leading, unused = survey.groups()
        unplanned = irregular or survey.unplanned()
        if container.format.name not in PLANNED_CONTAINERS:
            unplanned = unplanned or f"container {container.format.name}"
        doubt = seek_doubt = irregular or survey.doubt(groups)
        if container.format.name not in DECORD_CONTAINERS:
            doubt = f"container {container.format.name}"
        elif name not in DECORD_CODECS:
            doubt = f"codec {name}"
        elif codec.pix_fmt not in DECORD_PIXEL_FORMATS:
            doubt = f"pixel format {codec.pix_fmt}"
        elif len(container.streams.video) > 1:
            doubt = "several video streams"
        rate = stream.average_rate
        yield VideoIndex(
            path=path,
            container=container.format.name,
            codec=name,
            width=codec.width,
            height=codec.height,
            pixel_format=codec.pix_fmt or "",
            time_base=stream.time_base or Fraction(1, 1000),
            start=_start(container),
            average_rate=float(rate) if rate else None,
            stored_frames=stream.frames,
            packets=survey.packets,
            pts=np.zeros(0, np.int64) if irregular else np.sort(np.array(survey.shown, np.int64)),
            irregular=irregular,
            decord_doubt=doubt,
            seek_doubt=seek_doubt,
            unplanned=unplanned,
            fed=np.array(survey.fed, np.int64),
            groups=groups[:0] if unplanned else groups,
            leading=leading,
            unused=unused,
            headless=survey.headless,
            held=None if survey.broken or size > HELD_BYTES else Held(stream, packets),
        )


def _start(container: InputContainer) -> float | None:
    """See `VideoIndex.start`."""
    # AVI tells no times of showing: what FFmpeg puts before the first frame is the delay of the decoder
    return None if container.format.name == "avi" or container.start_time is None else container.start_time / 1e6


def _late(start: float | None, first: float) -> float:
    late = 0.0 if start is None else first - start
    return late if late > START_TOLERANCE else 0.0


def stamp_of_start(container: InputContainer, stream: VideoStream, first: int) -> int:
    """The stamp of the start of a file, from which a player counts; `first` is that of its first presented frame."""
    clock = stream.time_base or Fraction(1, 1000)
    return first - round(_late(_start(container), float(first * clock)) / clock)


def interlaced(path: str) -> bool:
    """Whether pictures are made of two fields. As the container says; PyAV before 18.1 does not pass that on, so there the
    first frame is asked."""
    from av.error import FFmpegError

    container, stream = open_video(path)
    try:
        with container:
            if hasattr(stream.codec_context, "field_order"):
                return str(stream.codec_context.field_order) not in ("", "0", "1", "UNKNOWN", "PROGRESSIVE")
            return any(frame.interlaced_frame for frame in itertools.islice(container.decode(stream), 1))
    except (FFmpegError, OSError, ValueError):
        return False  # decoding meets that error as well, and says what it is


def header_seconds(path: str) -> float | None:
    """How long a video file is as its header says, None where it does not. Raises as `open_video`."""
    import av

    container, _ = open_video(path)
    with container:
        return container.duration / av.time_base if container.duration else None


def describe_error(error: BaseException) -> str:
    """An exception of FFmpeg or decord as one short line; the name of its class is told of those alone that say little more."""
    text = getattr(error, "strerror", None) or str(error)
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    if lines and isinstance(error, (OSError, ValueError, RuntimeError)):
        return lines[0][:200]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


class _PacketSurvey:
    """Collects what decides how a stream must be read, packet by packet in decoding order."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self.packets = 0
        self.fed: list[int] = []
        self.shown: list[int] = []
        self.hidden = self.unstamped = self.corrupt = 0
        self.broken: str | None = None
        self.headless: str | None = None
        self._keys: list[int] = []  # positions of packets that the container calls key frames
        self._restarts: list[int] = []
        self._pictures: list[bitstream.CodedPicture] = []
        self._codec = codec
        self._look = bitstream.reader(codec, extradata)
        self._known = extradata or b""
        self._sets: set[bytes] = set()
        self._new_parameters = False

    def add(self, packet: Packet) -> None:
        self.packets += 1
        self.corrupt += packet.is_corrupt
        self._new_parameters |= self.packets > 1 and packet.has_sidedata("new_extradata")
        if packet.pts is None:
            self.unstamped += 1
            return
        picture = self._look(memoryview(packet)) if self._look else bitstream.CodedPicture()
        if picture.parameters:
            self._learn(picture.parameters)
        restart = picture.restart and packet.is_keyframe
        if picture.refers_back and self._restarts and packet.pts < self.fed[self._restarts[-1]]:
            picture = picture._replace(leading=True)
        if self.packets == 1 and not restart:
            self.headless = "does not start with a key frame"
        elif picture.leading and len(self._restarts) < 2:
            self.headless = self.headless or "starts with an open group of pictures"
        if packet.is_keyframe:
            self._keys.append(len(self.fed))
        if restart:
            self._restarts.append(len(self.fed))
        self.fed.append(packet.pts)
        self._pictures.append(picture)
        if packet.is_discard:
            self.hidden += 1
        else:
            self.shown.append(packet.pts)

    def _learn(self, sets: tuple[bytes, ...]) -> None:
        for unit in sets:
            if unit not in self._sets and unit not in self._known:
                self._new_parameters |= self.packets > 1
                self._sets.add(unit)

    def irregular(self) -> str | None:
        """Why the packets do not tell the presentation times."""
        if self.unstamped:
            return f"{self.unstamped} of {self.packets} packets have no presentation time"
        if len(set(self.shown)) < len(self.shown):
            return "presentation times repeat"
        if not self.shown:
            return self.broken or "no packet of the video stream is shown"
        return None

    def unplanned(self) -> str | None:
        """Why what packets depend on is not known."""
        if self.broken:
            return self.broken
        if self._look is None:
            return f"codec {self._codec}"
        if self.corrupt:
            return f"{self.corrupt} corrupt packets"
        if self._new_parameters:
            return "the stream changes its parameters"
        return None if len(set(self.fed)) == len(self.fed) else "hidden packets repeat presentation times"

    def groups(self) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
        """`groups`, `leading` and `unused` of a VideoIndex.

        A group begins at a restart behind which nothing is shown that would be shown before it, leading pictures apart.
        """
        highest = max((picture.layer for picture in self._pictures), default=0)
        leading = np.array([picture.leading for picture in self._pictures], bool)
        unused = np.array([picture.unused and picture.layer == highest for picture in self._pictures], bool)
        if not self.fed:
            return np.zeros(0, np.int64), leading, unused
        fed, restarts = np.array(self.fed, np.int64), np.array(self._restarts, np.int64)
        limits = np.iinfo(np.int64)
        before = np.maximum.accumulate(np.where(leading, limits.min, fed))
        behind = np.minimum.accumulate(np.where(leading, limits.max, fed)[::-1])[::-1]
        restarts = restarts[restarts > 0]
        return np.append(0, restarts[before[restarts - 1] < behind[restarts]]), leading, unused

    def doubt(self, groups: NDArray[np.int64]) -> str | None:
        """Why an index of frames or seeking in it would go wrong; each found by comparing decord's frames with painted
        numbers."""
        if self.hidden:
            return f"{self.hidden} hidden packets before the start (edit list)"
        if self.headless or self.unplanned():
            return self.headless or self.unplanned()
        if any(picture.leading for picture in self._pictures) or not np.isin(self._keys, groups).all():
            return "key frames that are no restart (open groups or gradual refresh)"
        return None
