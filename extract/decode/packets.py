"""What a video file holds, read without decoding: packets, their presentation times, and whether decord can be trusted.

Reading all packets of a ten-second clip costs 2 to 5 ms beyond opening it; decoding it costs a hundred.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glscl.common.errors import DecodeError, NotFoundError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

START_TOLERANCE = 2e-6  # seconds: containers tell their start in microseconds
MAX_PIXELS = 150_000_000  # of one frame (16k x 8k fits): 450 MB in RGB
DECORD_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # decord gives wrong frames of AVI and MPEG-TS
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9")
DECORD_PIXEL_FORMATS = ("yuv420p", "yuvj420p", "yuv444p", "yuvj444p")  # of others decord rounds colours differently
H264_IDR, H264_SPS = (5,), 7
HEVC_IDR, HEVC_SPS = (19, 20), 33


@dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The video stream of a file as its packets describe it.

    Attributes:
        pts: (n,) int64 ascending presentation stamps of the packets that are shown, in units of `time_base`; empty
            where `irregular` says that packets do not tell.
        irregular: why presentation times must be taken from decoded frames instead, or None.
        decord_doubt: why decord would give wrong frames of this file, or cannot decode it, or None.
        start: seconds on the clock of `pts` at which the file begins, as a player counts: with its first stream, sound or
            picture; None where it does not say.
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

    @property
    def times(self) -> NDArray[np.float64]:
        """(n,) seconds from the start of the file."""
        first = self.pts[:1] * self.time_base.numerator / self.time_base.denominator
        return seconds(self.pts, self.time_base) + (self.after_start(float(first[0])) if len(first) else 0.0)

    def after_start(self, first: float) -> float:
        """Seconds from the start of the file to the first frame, which is stamped `first` s; 0 where that is no later."""
        return _late(self.start, first)

    @property
    def cut_short(self) -> str | None:
        """Says that a file ends before the frames its header promises, or None (MP4 lists every frame up front)."""
        if self.container == DECORD_CONTAINERS[0] and 0 < self.packets < self.stored_frames:
            return f"the file ends after {self.packets} of {self.stored_frames} frames"
        return None


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What `probe` tells: seconds, frames a second, presented frames, pixels before rotation."""

    duration: float
    fps: float
    frames: int
    codec: str
    container: str
    width: int
    height: int


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
    """Size in bytes and modification time in ns, to notice a file that changes between listing and reading.

    Raises:
        NotFoundError: there is nothing at `path`.
        DecodeError: it is not a regular file (a folder, a pipe that would never end).
    """
    try:
        found = os.stat(path)
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

    # "file:" keeps names with a colon or a leading dash from being taken for a protocol
    # PyAV 19 takes titles that are not UTF-8 as they are, and no longer the argument
    tolerant: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
    container = av.open(f"file:{os.fspath(path)}", **tolerant)
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
    from av.error import FFmpegError

    container, stream = open_video(path)
    with container:
        codec = stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise DecodeError(f"frames of {codec.width} x {codec.height} pixels are beyond {MAX_PIXELS:,} pixels")
        name = codec.codec.canonical_name if hasattr(codec.codec, "canonical_name") else codec.name
        survey = _PacketSurvey(name, codec.extradata)
        try:
            for packet in container.demux(stream):
                beat()
                if packet.size:
                    survey.add(packet)
        except (FFmpegError, OSError, ValueError) as error:
            survey.broken = describe_error(error)
        irregular = survey.irregular()
        if container.format.name == "avi" and codec.has_b_frames:
            irregular = irregular or "AVI keeps the order of decoding, not of showing"
        doubt = irregular or survey.decord_doubt()
        if container.format.name not in DECORD_CONTAINERS:
            doubt = f"container {container.format.name}"
        elif name not in DECORD_CODECS:
            doubt = f"codec {name}"
        elif codec.pix_fmt not in DECORD_PIXEL_FORMATS:
            doubt = f"pixel format {codec.pix_fmt}"
        elif len(container.streams.video) > 1:
            doubt = "several video streams"
        elif _interlaced(path, codec):
            doubt = "interlaced"
        rate = stream.average_rate
        return VideoIndex(
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


def _interlaced(path: str, codec: VideoCodecContext) -> bool:
    """As the container says; PyAV before 18.1 does not pass that on, so there the first frame is asked."""
    from av.error import FFmpegError

    if hasattr(codec, "field_order"):
        return str(codec.field_order) not in ("", "0", "1", "UNKNOWN", "PROGRESSIVE")
    container, stream = open_video(path)
    try:
        with container:
            return any(frame.interlaced_frame for frame in itertools.islice(container.decode(stream), 1))
    except (FFmpegError, OSError, ValueError):
        return False  # decoding meets that error as well, and says what it is


def probe(path: str) -> VideoInfo:
    """Duration, rate and frames of a video from its packets, without decoding.

    Raises:
        NotFoundError, DecodeError: as `read_index`, and for files that FFmpeg cannot open.
    """
    from av.error import FFmpegError

    file_stamp(path)
    try:
        index = read_index(path)
    except (FFmpegError, OSError) as error:
        raise DecodeError(f"{path}: {describe_error(error)}") from error
    if index.irregular is None:
        frames, (duration, fps) = len(index.pts), duration_and_rate(index.times, index.average_rate)
    else:
        frames, fps = index.packets, index.average_rate or 25.0
        duration = frames / fps
    return VideoInfo(
        duration=duration,
        fps=fps,
        frames=frames,
        codec=index.codec,
        container=index.container,
        width=index.width,
        height=index.height,
    )


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
        self.codec = codec
        self.packets = 0
        self.shown: list[int] = []
        self.hidden = self.unstamped = self.corrupt = 0
        self.broken: str | None = None
        self._keys: list[tuple[int, int]] = []  # position in decoding order, pts
        self._first_is_key = False
        self._keys_restart = True  # every key frame makes the decoder forget what was before
        self._parameter_sets: set[bytes] = set()
        self._new_parameters = False
        self._length_bytes = _nal_length_bytes(codec, extradata)

    def add(self, packet: Packet) -> None:
        if self.packets == 0:
            self._first_is_key = packet.is_keyframe
        self.packets += 1
        self.corrupt += packet.is_corrupt
        self._new_parameters |= self.packets > 1 and packet.has_sidedata("new_extradata")
        if packet.is_discard:
            self.hidden += 1
            return
        if packet.pts is None:
            self.unstamped += 1
            return
        if packet.is_keyframe:
            self._keys.append((len(self.shown), packet.pts))
            if self.codec in ("h264", "hevc"):
                self._look_into_key(bytes(packet))
        self.shown.append(packet.pts)

    def _look_into_key(self, data: bytes) -> None:
        idr, sps = (H264_IDR, H264_SPS) if self.codec == "h264" else (HEVC_IDR, HEVC_SPS)
        kinds = set()
        for unit in _nal_units(data, self._length_bytes):
            kind = unit[0] & 31 if self.codec == "h264" else unit[0] >> 1 & 63
            kinds.add(kind)
            if kind == sps:
                self._parameter_sets.add(unit)
        self._keys_restart &= not kinds.isdisjoint(idr)

    def irregular(self) -> str | None:
        """Why the packets do not tell the presentation times."""
        if self.unstamped:
            return f"{self.unstamped} of {self.packets} packets have no presentation time"
        if len(set(self.shown)) < len(self.shown):
            return "presentation times repeat"
        if not self.shown:
            return self.broken or "no packet of the video stream is shown"
        return None

    def decord_doubt(self) -> str | None:
        """Why decord's index or its seeking would go wrong; each found by comparing its frames with painted numbers."""
        if self.broken:
            return self.broken
        if self.hidden:
            return f"{self.hidden} hidden packets before the start (edit list)"
        if self.corrupt:
            return f"{self.corrupt} corrupt packets"
        if not self._first_is_key:
            return "does not start with a key frame"
        order = np.argsort(np.array(self.shown), kind="stable")
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        if any(rank[position] != position for position, _ in self._keys):
            return "open groups of pictures"
        if not self._keys_restart:
            return "key frames that are no restart (open groups or gradual refresh)"
        if self._new_parameters or len(self._parameter_sets) > 1:
            return "the stream changes its parameters"
        return None


def _nal_length_bytes(codec: str, extradata: bytes | None) -> int:
    """Width of the length before each NAL unit (ISO/IEC 14496-15, avcC byte 4, hvcC byte 21)."""
    where = 4 if codec == "h264" else 21
    return (extradata[where] & 3) + 1 if extradata and len(extradata) > where and extradata[0] == 1 else 4


def _nal_units(data: bytes, length_bytes: int) -> list[bytes]:
    units, at = [], 0
    while at + length_bytes < len(data):
        length = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if length == 0 or at + length > len(data):
            break
        units.append(data[at : at + length])
        at += length
    return units
