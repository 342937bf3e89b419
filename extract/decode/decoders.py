"""PyAV, which decodes what a plan says, and decord and torchcodec for whoever asks for them.

All give native pixels: RGB of the stored size, turned upright, pixel aspect left alone. On 8-bit video they agree to the last
bit.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glscl.common.errors import DecodeError
from glscl.common.tar_members import TarMember
from glscl.extract.decode.packets import MAX_PIXELS, Held, VideoIndex, describe_error, open_video
from glscl.extract.decode.plan import DecodePlan

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

WORTH_SEEKING = 300  # packets before the first wanted group: reading over fewer costs no more than seeking
Beat = Callable[[], None]
CALL_SPAN = 256  # frames decord and torchcodec may have to decode within one call, so that a call stays short
CALL_BYTES = 64 << 20
DECORD_REOPEN_BYTES = 512 << 20  # a reader asked for every frame decodes ahead without limit: 3 MB a frame at 1080p


class Distrust(Exception):
    """The way of decoding just tried cannot be relied on for this file; its message says why."""


class Picture(NamedTuple):
    """One decoded frame: seconds from the start of the file, and (H, W, 3) uint8 RGB."""

    time: float
    pixels: NDArray[np.uint8]


# ---------------------------------------------------------------------------------------------------------- decord


def decord_pictures(index: VideoIndex, wanted: NDArray[np.int64], *, beat: Beat) -> Iterator[Picture]:
    """Frames `wanted` (k,) of the presented frames, through decord with one thread.

    Raises:
        Distrust: decord is not there, refuses, counts or times the frames differently, or reports damage. Pictures
            given before that are right.
    """
    try:
        import decord
    except ImportError as error:
        raise Distrust(f"decord is not installed ({error})") from error
    complaints = _decord_complaints()
    before = complaints.count
    times = index.times
    try:
        beat()
        reader = decord.VideoReader(_readable(index.path), num_threads=1)
        _compare_times(times, reader)
        size, read = max(1, index.width * index.height * 3), 0
        for batch in _batches(wanted, span=CALL_SPAN, length=max(1, CALL_BYTES // size)):
            beat()
            if read * size > DECORD_REOPEN_BYTES:
                reader, read = None, 0
                reader = decord.VideoReader(_readable(index.path), num_threads=1)
            read += len(batch)
            frames = reader.get_batch(batch).asnumpy()
            if complaints.count > before:
                raise Distrust(f"decord reports: {complaints.last}")
            for i, frame in zip(batch, frames):
                yield Picture(float(times[i]), frame)
    except (decord.DECORDError, RuntimeError, MemoryError) as error:  # opening raises RuntimeError, decoding the other
        raise Distrust(f"decord refuses: {_without_source_lines(error, index.path)}") from error


def _readable(path: str) -> str | io.BytesIO:
    """A path, or what lies in an archive, for decoders that read no part of a file."""
    member = TarMember.at(path)
    return path if member is None else io.BytesIO(member.read())


def _compare_times(times: NDArray[np.float64], reader: object) -> None:
    count = len(reader)  # type: ignore[arg-type]
    if count != len(times):
        raise Distrust(f"decord counts {count} frames, the packets {len(times)}")
    theirs = np.asarray(reader.get_frame_timestamp(range(count)), np.float64)[:, 0]  # type: ignore[attr-defined]
    if theirs[0] < 0:
        raise Distrust("decord shows frames before the start (edit list)")
    apart = np.abs(theirs - theirs[0] - (times - times[0]))
    if (apart > 1e-3 + np.abs(theirs) * 1e-6).any():  # decord keeps float32
        raise Distrust(f"decord times frames {apart.max():.3f} s apart from the packets")


def _batches(wanted: NDArray[np.int64], *, span: int, length: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for i in wanted.tolist():
        if batch and (i - batch[0] >= span or len(batch) >= length):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _without_source_lines(error: BaseException, path: str) -> str:
    """decord puts the time and the C++ line before its message, and the file's path into it."""
    text = re.sub(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", str(error)).replace(path, "the file").strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


class _Complaints:
    """Errors that decord's own FFmpeg has reported in this process: how many, and the last one's text."""

    count = 0
    last = ""


@functools.cache
def _decord_complaints() -> _Complaints:
    """Begins to count the errors that the FFmpeg inside decord reports.

    decord returns wrong frames of damaged streams without an error; its FFmpeg does complain, but only on standard
    error. So its log callback is replaced. Counting never goes back: any error from anywhere in the process makes
    whoever is decoding through decord at that moment turn to PyAV, which is always right.

    Raises:
        Distrust: that FFmpeg cannot be found, so that damage would go unnoticed.
    """
    import decord

    home = Path(decord.__file__).parent
    folders = (home.parent / "decord.libs", home / ".dylibs", home)
    found = [file for folder in folders for file in sorted(folder.glob("*avutil*"))]
    if not found:
        raise Distrust("decord's FFmpeg library is not where its wheels keep it, so damage would go unnoticed")
    complaints = _Complaints()
    av_log_error = 16

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
    def gather(_context: int, level: int, text: bytes, _arguments: int) -> None:
        if level <= av_log_error:
            complaints.count += 1
            complaints.last = text.decode("utf-8", "replace").split("%")[0].strip(" :=\n")

    library = ctypes.CDLL(str(found[0]))
    library.av_log_set_callback(gather)
    _KEPT_ALIVE.append(gather)
    return complaints


_KEPT_ALIVE: list[object] = []  # callbacks that native code holds


# ------------------------------------------------------------------------------------------------------ torchcodec


def torchcodec_pictures(index: VideoIndex, wanted: NDArray[np.int64], *, beat: Beat) -> Iterator[Picture]:
    """Frames `wanted` (k,) of the presented frames, through torchcodec with one thread.

    Raises:
        Distrust: torchcodec is not there, refuses, or counts or stamps the frames differently. Pictures given before that
            are right.
    """
    try:
        decoders: Any = importlib.import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError) as error:  # the last two where FFmpeg's libraries are not found
        raise Distrust(f"torchcodec is not installed ({describe_error(error)})") from error
    times, stamps = index.times, index.pts * float(index.time_base)
    try:
        beat()
        reader = decoders.VideoDecoder(_readable(index.path), dimension_order="NHWC", num_ffmpeg_threads=1)
        if len(reader) != len(times):
            raise Distrust(f"torchcodec counts {len(reader)} frames, the packets {len(times)}")
        length = max(1, CALL_BYTES // max(1, index.width * index.height * 3))
        for batch in _batches(wanted, span=CALL_SPAN, length=length):
            beat()
            found = reader.get_frames_at(batch)
            apart = np.abs(found.pts_seconds.numpy() - stamps[batch])
            if (apart > 1e-3).any():
                raise Distrust(f"torchcodec stamps frames {apart.max():.3f} s apart from the packets")
            for i, frame in zip(batch, found.data.numpy()):
                yield Picture(float(times[i]), frame)
    except (RuntimeError, ValueError, IndexError) as error:
        raise Distrust(f"torchcodec refuses: {describe_error(error)}") from error


# ------------------------------------------------------------------------------------------------------------ PyAV


class Damage:
    """What went wrong while a stream was decoded."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.concealed = 0

    def __bool__(self) -> bool:
        return bool(self.errors or self.concealed)

    def __str__(self) -> str:
        parts = []
        if self.errors:
            more = f" ({len(self.errors) - 1} more)" if len(self.errors) > 1 else ""
            parts.append(f"{self.errors[0]}{more}")
        if self.concealed:
            parts.append(f"{self.concealed} damaged frames")
        return "; ".join(parts)


def stream_frames(
    path: str, damage: Damage, *, beat: Beat, plan: DecodePlan | None = None, held: Held | None = None
) -> Iterator[VideoFrame]:
    """Frames of the video stream in presentation order, decoded from the beginning without seeking, or as a plan says.

    After a packet that cannot be decoded nothing is shown until the next key frame: what lies between refers to
    frames that were lost.

    Args:
        damage: receives every error; none is raised for a stream that could be opened.
        plan: what is decoded, of a stream that is taken to be sound.
        held: the packets, where they are in memory; the decoder of their stream is new or has been emptied.
    """
    container, stream, packets = _packets_of(path, damage, plan, held, beat)
    with container:
        codec = stream.codec_context
        if plan is not None and plan.strict:
            codec.options = {"err_detect": "explode"}
        seek_key = lost = False  # after an error: until the next key packet, until the first whole key frame
        for packet in packets:
            if seek_key and packet is not None and packet.size and not packet.is_keyframe:
                continue
            seek_key = False
            try:
                frames = codec.decode(packet)
            except (OSError, ValueError, ArithmeticError) as error:  # FFmpegError members are OSError or ValueError
                damage.errors.append(describe_error(error) if packet is None else _at(packet, describe_error(error)))
                codec.flush_buffers()
                seek_key = lost = True
                continue
            for frame in frames:
                if lost and (frame.is_corrupt or not frame.key_frame):
                    continue
                lost = False
                damage.concealed += frame.is_corrupt
                yield frame
            if packet is None:
                codec.flush_buffers()


def _packets_of(
    path: str, damage: Damage, plan: DecodePlan | None, held: Held | None, beat: Beat
) -> tuple[AbstractContextManager[Any], VideoStream, Iterator[Packet | None]]:
    """What is to be closed, and the packets that are fed; None empties the decoder, which then starts anew."""
    if held is not None:
        packets = _packets(iter(held.packets), damage, beat)
        fed = itertools.chain(packets, [None]) if plan is None else _of_runs(packets, plan, 0)
        return contextlib.nullcontext(), held.stream, fed
    container, stream = open_video(path)
    packets = _packets(container.demux(stream), damage, beat)
    if plan is None:
        return container, stream, packets
    first = plan.runs[0][0]
    if first < WORTH_SEEKING:
        return container, stream, _of_runs(packets, plan, 0)
    with contextlib.suppress(OSError, ValueError):
        container.seek(int(plan.stamps[first]), stream=stream)
        landed = next(container.demux(stream))
        place = np.flatnonzero(plan.stamps == landed.pts) if landed.size else []
        if len(place) == 1 and place[0] <= first:
            return container, stream, _of_runs(itertools.chain([landed], packets), plan, int(place[0]))
    container.close()
    container, stream = open_video(path)
    return container, stream, _of_runs(_packets(container.demux(stream), damage, beat), plan, 0)


def _of_runs(packets: Iterator[Packet], plan: DecodePlan, number: int) -> Iterator[Packet | None]:
    """The packets that are fed, of those from `number` on, and None behind each run."""
    numbered = enumerate((packet for packet in packets if packet.size), number)
    for first, last in plan.runs:
        for number, packet in numbered:
            if number >= first and plan.feeds[number]:
                yield packet
            if number == last:
                break
        yield None


def _packets(packets: Iterator[Packet], damage: Damage, beat: Beat) -> Iterator[Packet]:
    """The packets up to an error of the container, which is noted; the last, empty one empties the decoder."""
    while True:
        beat()
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (OSError, ValueError) as error:
            damage.errors.append(describe_error(error))
            return
        yield packet


def _at(packet: Packet, text: str) -> str:
    stamp = packet.pts if packet.pts is not None else packet.dts
    return text if stamp is None or packet.time_base is None else f"{text} at {float(stamp * packet.time_base):.2f} s"


def planned_pictures(
    index: VideoIndex, wanted: NDArray[np.int64], plan: DecodePlan | None, *, beat: Beat
) -> Iterator[Picture]:
    """Frames `wanted` (k,) of the presented frames, by the stamps of the packets, in one pass with PyAV.

    Args:
        plan: `DecodePlan.of` them; None decodes everything.

    Raises:
        Distrust: the frames do not come as the packets promised, or the stream is damaged. Pictures given before
            that are right.
    """
    targets = index.pts[wanted].tolist()
    if not targets:
        return
    times, damage, previous, rgb = index.times, Damage(), None, UprightRgb()
    queue = iter(zip(targets, wanted.tolist()))
    target, i = next(queue)
    for frame in stream_frames(index.path, damage, beat=beat, plan=plan, held=index.held):
        if damage:
            raise Distrust(str(damage))
        if frame.pts is None or (previous is not None and frame.pts <= previous):
            raise Distrust("frames come out of order")
        if frame.pts > target:
            raise Distrust(f"no frame comes for the packet at {times[i]:.2f} s")
        previous = frame.pts
        if frame.pts == target:
            yield Picture(float(times[i]), rgb(frame))
            following = next(queue, None)
            if following is None:
                return
            target, i = following
    raise Distrust(str(damage) or "the stream ends before its last packets")


def with_true_head(index: VideoIndex, *, beat: Beat) -> VideoIndex:
    """The index of a file that does not begin with a whole group, with the frames alone that come of the first one.

    Raises:
        Distrust: the first group is damaged.
    """
    if index.headless is None or not len(index.groups):
        return index
    end = int(index.groups[1]) if len(index.groups) > 1 else len(index.fed)
    fed = np.arange(len(index.fed)) < end
    damage = Damage()
    plan = DecodePlan([(0, end - 1)], fed, index.fed, False)
    frames = stream_frames(index.path, damage, beat=beat, plan=plan, held=index.held)
    came = [frame.pts for frame in frames if frame.pts is not None]
    if damage:
        raise Distrust(str(damage))
    lost = np.isin(index.pts, index.fed[:end]) & ~np.isin(index.pts, came)
    return dataclasses.replace(index, pts=index.pts[~lost])


def decoded_stamps(path: str, damage: Damage, time_base: Fraction, *, beat: Beat) -> list[float | None]:
    """What the decoder stamps on every frame, in the order it gives them, in seconds; no pixel is converted."""
    return [
        None if frame.pts is None else float(frame.pts * time_base) for frame in stream_frames(path, damage, beat=beat)
    ]


def counted_pictures(path: str, wanted: Sequence[int], times: NDArray[np.float64], *, beat: Beat) -> Iterator[Picture]:
    """Frames number `wanted` (k,) ascending, counted as the decoder gives them, with their repaired `times` (n,)."""
    if not len(wanted):
        return
    numbers, rgb = frozenset(wanted), UprightRgb()
    frames = stream_frames(path, Damage(), beat=beat)
    for i, frame in enumerate(itertools.islice(frames, max(numbers) + 1)):
        if i in numbers:
            yield Picture(float(times[i]), rgb(frame))


class UprightRgb:
    """Frames of any pixel format → (H, W, 3) uint8 RGB, turned by the rotation the file asks for (to the nearest quarter).

    One for a stream: what converts its pixels is made once, and works in this thread alone (left to itself it makes and
    ends a thread a core for every frame).
    """

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Raises DecodeError: the frame is beyond MAX_PIXELS."""
        if frame.width * frame.height > MAX_PIXELS:
            raise DecodeError(f"a frame of {frame.width} x {frame.height} pixels is beyond {MAX_PIXELS:,} pixels")
        pixels = np.asarray(self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), np.uint8)
        quarter_turns = round(frame.rotation / 90) % 4 if abs(frame.rotation) <= 360 else 0  # counter-clockwise
        return np.ascontiguousarray(np.rot90(pixels, quarter_turns)) if quarter_turns else pixels
