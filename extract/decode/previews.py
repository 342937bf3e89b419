"""A part of a video in a form that browsers play: its packets in another container, or encoded anew and small.

A function for the processes of a `JobPool`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from glscl.common.errors import DecodeError, NotFoundError
from glscl.extract.decode.decoders import UprightRgb
from glscl.extract.decode.packets import MAX_PIXELS, describe_error, open_video, stamp_of_start

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

PLAYED = ("h264", "vp8", "vp9", "av1")  # that browsers decode, with 8 bits and half the colours
PLAYED_PIXELS = ("yuv420p", "yuvj420p")
ENCODERS = (("libx264", ".mp4"), ("libopenh264", ".mp4"), ("libvpx", ".webm"))  # the first there is
RATE, LOWEST_RATE = 30, 2  # frames a second at most; of a video whose seeking is not doubted
CLOSE = 1e-3  # seconds
SIZE = 640  # pixels, the longer side


class Preview(NamedTuple):
    """A part of a video that was made playable.

    Attributes:
        file: name of the file with it, in the folder that was given.
        start, end: seconds from the start of the file, as a player shows it; its own clock begins at 0.
        how: what was done, in words.
    """

    file: str
    start: float
    end: float
    how: str


def make_preview(path: str, folder: str, name: str, start: float, seconds: float, copy: bool = True) -> Preview:
    """Write the part of a video from `start` on, so many seconds of it at most, without sound.

    Args:
        copy: whether its packets may be taken as they are, where browsers know their codec.

    Raises:
        DecodeError: it gives no frame there, or nothing here can encode it.
    """
    try:
        container, stream = open_video(path)
        with container:
            codec = stream.codec_context
            if codec.width * codec.height > MAX_PIXELS:
                raise DecodeError(f"frames of {codec.width} x {codec.height} pixels are too large")
            kind = codec.codec.canonical_name if hasattr(codec.codec, "canonical_name") else codec.name
            if copy and kind in PLAYED and codec.pix_fmt in PLAYED_PIXELS:
                try:
                    return _copied(container, stream, Path(folder), name, start, seconds)
                except (OSError, ValueError):  # packets that no other container takes, or seeking went past the time
                    pass
        for seek in (True, False):
            container, stream = open_video(path)
            with container, contextlib.suppress(_WentPastError):
                return _encoded(container, stream, Path(folder), name, start, seconds, kind, seek=seek)
        raise DecodeError("the video gives no frame there")
    except (DecodeError, NotFoundError):
        raise
    except Exception as error:  # whatever one file provokes
        raise DecodeError(describe_error(error)) from error


def late_start(path: str) -> float:
    """Seconds on a file's own clock, which browsers show, at what other players and a cache call 0. Raises DecodeError."""
    try:
        container, stream = open_video(path)
        with container:
            begin = stamp_of_start(container, stream, stream.start_time or 0)
            return max(0.0, float(begin * (stream.time_base or 0)))  # they too begin at 0 where it lies before
    except (DecodeError, NotFoundError):
        raise
    except Exception as error:  # whatever one file provokes
        raise DecodeError(describe_error(error)) from error


class _WentPastError(ValueError):
    """Seeking went past the time, as it may where a container keeps no index."""


def _seek(container: InputContainer, stream: VideoStream, start: float) -> tuple[int, Fraction]:
    """Go to the key frame before a time; the stamp of the start of the file, and the clock."""
    if stream.time_base is None:
        raise DecodeError("the stream has no clock")
    begin = stamp_of_start(container, stream, stream.start_time or 0)
    if start > 0:
        container.seek(int(start / stream.time_base) + begin, stream=stream)
    return begin, stream.time_base


def _copied(
    container: InputContainer, stream: VideoStream, folder: Path, name: str, start: float, seconds: float
) -> Preview:
    import av

    begin, clock = _seek(container, stream, start)
    file, base, end = folder / f"{name}.mp4", None, start
    with av.open(str(file), "w", options={"movflags": "faststart"}) as out:
        copy = out.add_stream_from_template(stream)
        for packet in container.demux(stream):
            if packet.pts is None or packet.dts is None:
                if packet.size:
                    raise ValueError("packets without times")
                continue
            if base is None:
                if not packet.is_keyframe:
                    continue
                base = packet.pts
            at = float((packet.pts - begin) * clock)
            if packet.is_keyframe and at >= start + seconds:
                break
            end = max(end, at + float((packet.duration or 0) * clock))
            packet.pts, packet.dts, packet.stream = packet.pts - base, packet.dts - base, copy
            out.mux(packet)
    if base is None or (start > 0 and (base - begin) * clock > start + CLOSE):
        raise _WentPastError
    return Preview(file.name, float((base - begin) * clock), end, "its frames in another container, without sound")


def _encoded(
    container: InputContainer,
    stream: VideoStream,
    folder: Path,
    name: str,
    start: float,
    seconds: float,
    kind: str,
    *,
    seek: bool,
) -> Preview:
    import av

    encoder, suffix = _encoder()
    begin, clock = _seek(container, stream, start if seek else 0.0)
    file, began, last, out, made = folder / f"{name}{suffix}", None, start, None, None
    try:
        for frame in _shown_frames(container, stream):
            if frame.pts is None:
                continue
            at = float((frame.pts - begin) * clock)
            if at < start - CLOSE:
                continue
            if at >= start + seconds:
                break
            if began is not None and at - last < 0.9 / RATE:
                continue
            scale = min(1.0, SIZE / max(frame.width, frame.height))
            width, height = (max(16, round(side * scale / 2) * 2) for side in (frame.width, frame.height))
            pixels = UprightRgb()(frame.reformat(width=width, height=height))
            if out is None or made is None:
                if seek and at > start + 1 / LOWEST_RATE:
                    raise _WentPastError
                began = at
                out = av.open(str(file), "w", options={"movflags": "faststart"} if suffix == ".mp4" else {})
                made = _video_stream(out, encoder, pixels.shape[1], pixels.shape[0])
            if pixels.shape[:2] != (made.height, made.width):
                continue
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            picture.pts, picture.time_base = round((at - (began or 0)) * 1000), Fraction(1, 1000)
            last = at
            out.mux(made.encode(picture))
        if out is None or made is None or began is None:
            raise _WentPastError
        out.mux(made.encode(None))
    finally:
        if out is not None:
            out.close()
    return Preview(file.name, began, last + 1 / RATE, f"{kind} encoded anew, small and without sound")


def _shown_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """What can be decoded, as players show it: a damaged packet is passed over. Raises its error where no packet gives a frame."""
    import av.error

    packets, problem, any_shown = container.demux(stream), None, False
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                break
            frames = packet.decode()
        except av.error.InvalidDataError as error:
            problem = problem or error
            continue
        any_shown = any_shown or bool(frames)
        yield from frames
    if problem is not None and not any_shown:
        raise problem


def _video_stream(out: Any, encoder: str, width: int, height: int) -> Any:
    options = {"libx264": {"preset": "ultrafast", "crf": "26"}, "libvpx": {"deadline": "realtime", "cpu-used": "8"}}
    made = out.add_stream(encoder, rate=RATE, options=options.get(encoder, {}))
    made.width, made.height, made.pix_fmt = width, height, "yuv420p"
    made.time_base = made.codec_context.time_base = Fraction(1, 1000)
    return made


def _encoder() -> tuple[str, str]:
    import av

    for name, suffix in ENCODERS:
        if name in av.codecs_available:
            return name, suffix
    raise DecodeError("nothing here encodes videos for browsers")
