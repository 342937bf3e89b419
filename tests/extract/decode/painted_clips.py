"""Small clips made on the spot, with the frame number painted into each picture so that a test can read it back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from glscl.extract.decode.video import Decoding, VideoTask, decode_video

WIDTH, HEIGHT = 160, 96
CELLS = 12  # first white, last black, between them 10 bits of the number, least significant first


BITEXACT = {"fflags": "+bitexact"}  # no random identifiers: the same clip has the same bytes every time


def paint(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """(H, W, 3) uint8: a moving pattern below a barcode of `number`."""
    y, x = np.mgrid[0:height, 0:width]
    picture = np.stack([x + 3 * number, 2 * y + 5 * number, x + y + 7 * number], 2).astype(np.uint8)
    edges = np.linspace(0, width, CELLS + 1).astype(int)
    bits = [1, *((number >> i) & 1 for i in range(CELLS - 2)), 0]
    for i, bit in enumerate(bits):
        picture[: height // 4, edges[i] : edges[i + 1]] = 255 * bit
    return picture


def read_number(picture: np.ndarray, cells: int = CELLS, share: int = 4) -> int:
    """The number painted in an upright picture whose top 1/`share` is a barcode of `cells` cells."""
    height, width = picture.shape[:2]
    rows = picture[height // (4 * share) : max(height // (4 * share) + 1, 3 * height // (4 * share))].mean(axis=(0, 2))
    values = [rows[int((i + 0.3) * width / cells) : int((i + 0.7) * width / cells)].mean() > 128 for i in range(cells)]
    assert values[0] and not values[-1], "no barcode where it should be"
    return sum(int(value) << i for i, value in enumerate(values[1:-1]))


def make_clip(
    path: Path,
    *,
    frames: Iterable[int] = range(60),
    codec: str = "libx264",
    fps: int = 25,
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    stamp: Callable[[int], int] | None = None,
    time_base: Fraction | None = None,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    audio: bool = False,
) -> Path:
    """Encodes painted frames; `stamp` gives the presentation stamp of the i-th frame in `time_base`."""
    with av.open(str(path), "w", options={**BITEXACT, **(container_options or {})}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        stream.options = options or {}
        if time_base is not None:
            stream.codec_context.time_base = time_base
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        if sound is not None:
            mux_silence(container, sound, seconds=1)
        for i, number in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(paint(number, *size), format="rgb24")
            frame.pts = i if stamp is None else stamp(i)
            if time_base is not None:
                frame.time_base = time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_sound(path: Path) -> Path:
    with av.open(str(path), "w", options=BITEXACT) as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        mux_silence(container, stream, seconds=1)
        container.mux(stream.encode())
    return path


def mux_silence(container, stream, *, seconds: int) -> None:
    for i in range(seconds * 16):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, i * 1000
        container.mux(stream.encode(frame))


def cut_without_encoding(source: Path, path: Path, *, first_frame: int, fps: int = 25) -> Path:
    """Copies packets from the key frame before `first_frame` on, hiding those before it behind an edit list."""
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        cut = int(Fraction(first_frame, fps) / stream.time_base)
        packets = [packet for packet in old.demux(stream) if packet.size]
        keys = [i for i, packet in enumerate(packets) if packet.is_keyframe and packet.pts <= cut]
        for packet in packets[keys[-1] :]:
            packet.pts -= cut
            packet.dts -= cut
            packet.stream = copy
            new.mux(packet)
    return path


def turn(path: Path, degrees: int) -> Path:
    """Writes a rotation (a multiple of 90, clockwise) into the track header of an MP4 file."""
    matrices = {
        90: (0, 1, 0, -1, 0, 0, 0, 0, 1),
        180: (-1, 0, 0, 0, -1, 0, 0, 0, 1),
        270: (0, -1, 0, 1, 0, 0, 0, 0, 1),
    }
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    for i, value in enumerate(matrices[degrees]):
        unit = 1 << (30 if i % 3 == 2 else 16)
        data[at + 4 * i : at + 4 * i + 4] = (value * unit).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def sequential(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """All frames and their times as a plain PyAV loop gives them, up to the first error: the reference."""
    frames, times = [], []
    tolerant = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
    with av.open(str(path), **tolerant) as container:
        stream = container.streams.best("video")
        stream.thread_count = 1
        try:
            for frame in container.decode(stream):
                turns = round(frame.rotation / 90) % 4 if abs(frame.rotation) <= 360 else 0
                frames.append(np.rot90(frame.to_ndarray(format="rgb24"), turns))
                times.append(None if frame.pts is None else float(frame.pts * frame.time_base))
        except (OSError, ValueError):
            pass
    return frames, times


def decoded(path, sampling, *, item=0, start=None, end=None, stamp=None, resume_after=None, beat=lambda: None, **how):
    """The events of `decode_video`; `how` are further fields of `Decoding`."""
    task = VideoTask(item, str(path), start, end, stamp)
    return decode_video(task, Decoding(sampling=sampling, **how), resume_after=resume_after, beat=beat)
