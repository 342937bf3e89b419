"""What a page about videos shows of files: one frame as a JPEG, a picture or clip that somebody sends, as a model wants it.

Functions for the processes of a `JobPool`: whatever is wrong with a file is a DecodeError.

n frames, S side of the prepared square picture.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from glscl.common.errors import DecodeError, NotFoundError
from glscl.extract.decode.decoders import UprightRgb
from glscl.extract.decode.packets import MAX_PIXELS, describe_error, file_stamp, open_video, stamp_of_start
from glscl.extract.decode.video import Decoding, FrameChunk, VideoTask, decode_video, prepared

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from PIL.Image import Image

FROM_START = 2.0  # seconds: up to there decoding from the beginning is as quick as seeking
CLOSE = 1e-3  # seconds: a frame so near to the time asked for is the one meant
PICTURES = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")  # no format that starts other programs


def still(path: str, time: float, size: int, stamp: tuple[int, int] | None = None) -> bytes:
    """The frame shown at a time, upright, at most `size` pixels long, as a JPEG.

    Args:
        time: seconds from the start of the file, as a player shows it; beyond the end it is the last frame.
        stamp: `packets.file_stamp` of the file as it is known; of one that changed since nothing is shown.

    Raises:
        NotFoundError: there is no such file.
        DecodeError: it gives no frame there, or is another one by now.
    """
    if stamp is not None and file_stamp(path) != tuple(stamp):
        raise DecodeError("the file changed since it was read for the cache")
    with _decoding(path):
        frame = _frame_at(path, time) or _frame_at(path, time, seek=False)
        if frame is None:
            raise DecodeError("the video gives no frame")
        scale = min(1.0, size / max(frame.width, frame.height))
        width, height = (max(2, round(side * scale)) for side in (frame.width, frame.height))
        # a frame of millions of pixels is made small before it becomes RGB
        small = frame.reformat(width=width, height=height) if scale < 1 else frame
        return jpeg_of(UprightRgb()(small))


def jpeg_of(pixels: NDArray[np.uint8], quality: int = 82) -> bytes:
    """(H, W, 3) uint8 RGB as a JPEG for people to look at."""
    from PIL.Image import fromarray

    out = io.BytesIO()
    fromarray(pixels).save(out, "JPEG", quality=quality)
    return out.getvalue()


def frames_of_upload(
    path: str, decoding: Decoding, start: float | None = None, end: float | None = None
) -> tuple[str, NDArray[np.uint8]]:
    """What somebody sent: "picture" or "clip", and its frames (n, S, S, 3) uint8 as `decoding` prepares them; n is 1 of a picture.

    Args:
        start, end: seconds of a clip.

    Raises:
        DecodeError: it is neither a picture nor a video, or too large.
    """
    with _decoding(path):
        picture = _picture(path)
        if picture is not None:
            return "picture", prepared(np.asarray(picture), decoding.prepare)[None]
        chunks, reason = [], None
        for event in decode_video(VideoTask(0, path, start, end), decoding):
            if isinstance(event, FrameChunk):
                chunks.append(event.frames)
            else:
                reason = event.reason
    if not chunks:
        raise DecodeError(f"it is no picture, and as a video it gives no frames: {reason}".replace(path, "the file"))
    return "clip", np.concatenate(chunks)


def _picture(path: str) -> Image | None:
    """A picture file, upright and RGB; None for what is none."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    Image.init()
    try:
        with Image.open(path, formats=[name for name in PICTURES if name in Image.OPEN]) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DecodeError(f"a picture of {picture.width} x {picture.height} pixels is too large")
            return ImageOps.exif_transpose(picture.convert("RGB"))
    except UnidentifiedImageError:
        return None


def _frame_at(path: str, time: float, *, seek: bool = True) -> VideoFrame | None:
    """The frame nearest to a time; None where seeking went past it, or nothing can be decoded."""
    container, stream = open_video(path)
    with container:
        codec = stream.codec_context
        if codec.width * codec.height > MAX_PIXELS:
            raise DecodeError(f"frames of {codec.width} x {codec.height} pixels are too large")
        if stream.time_base is None:
            raise DecodeError("the stream has no clock")
        sought = seek and time > FROM_START
        start = None if stream.start_time is None else stamp_of_start(container, stream, stream.start_time)
        if sought:
            container.seek(int(time / stream.time_base) + (start or 0), stream=stream)
        best, distance = None, float("inf")
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            if start is None:
                start = stamp_of_start(container, stream, frame.pts)
            seconds = float((frame.pts - start) * stream.time_base)
            if sought and best is None and seconds > time + CLOSE:
                return None
            if abs(seconds - time) >= distance:
                break
            best, distance = frame, abs(seconds - time)
            if seconds >= time - CLOSE:
                break
        return best


@contextlib.contextmanager
def _decoding(path: str) -> Iterator[None]:
    """Whatever a file provokes becomes a DecodeError."""
    from PIL.Image import DecompressionBombError

    try:
        yield
    except (DecodeError, NotFoundError):
        raise
    except DecompressionBombError as error:
        raise DecodeError("the picture is too large") from error
    except Exception as error:  # whatever one file provokes
        raise DecodeError(describe_error(error).replace(path, "the file")) from error
