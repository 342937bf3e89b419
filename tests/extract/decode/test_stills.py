"""Frames for people to look at, and what they send, from files of any kind."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from glscl.common.errors import DecodeError, NotFoundError
from glscl.extract.decode.packets import file_stamp
from glscl.extract.decode.previews import make_preview
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.stills import frames_of_upload, still
from glscl.extract.decode.video import Decoding, decode


def pixels(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"), float)


@pytest.mark.parametrize("rate", [4, 25])
def test_a_still_is_the_frame_of_its_time(make_video, tmp_path, rate):
    path = make_video(tmp_path / "a.mp4", frames=20 * rate, fps=rate)
    frames, times = decode(path, fps=None)
    for row in (0, 1, 7, 10 * rate, 11 * rate + 1, len(times) - 1):
        found = pixels(still(str(path), float(times[row]), 320))
        distances = np.abs(frames.astype(float) - found).mean((1, 2, 3))
        assert distances[row] < distances.min() + 0.5 and distances[row] < 12, (row, distances.argmin())
    assert np.abs(pixels(still(str(path), 1e6, 320)) - frames[-1]).mean() < 12


def test_a_still_is_upright_and_small(tmp_path):
    import av

    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 1280, 320, "yuv420p"
        for _ in range(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((320, 1280, 3), np.uint8), format="rgb24")))
        out.mux(stream.encode(None))
    assert pixels(still(str(path), 0.0, 320)).shape == (80, 320, 3)


def test_a_still_of_what_is_no_video_is_an_error(make_video, tmp_path):
    with pytest.raises(NotFoundError):
        still(str(tmp_path / "nowhere.mp4"), 0.0, 320, (1, 1))
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DecodeError) as told:
        still(str(tmp_path / "text.mp4"), 0.0, 320)
    assert str(tmp_path) not in str(told.value)
    path = make_video(tmp_path / "a.mp4")
    stamp = file_stamp(str(path))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DecodeError, match="changed"):
        still(str(path), 0.0, 320, stamp)


def test_what_is_sent_is_a_picture_or_a_clip(make_video, tmp_path):
    small = Decoding(sampling=Sampling(fps=None, max_frames=5), prepare=lambda picture: picture.resize((8, 8)))
    kind, frames = frames_of_upload(str(make_video(tmp_path / "a.mp4", frames=40)), small)
    assert kind == "clip" and frames.shape == (5, 8, 8, 3)
    for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        path = tmp_path / "no-suffix"
        Image.new("RGB", (30, 20), (200, 10, 10)).save(path, format)
        kind, frames = frames_of_upload(str(path), small)
        assert kind == "picture" and frames.shape == (1, 8, 8, 3) and frames[0, 4, 4, 0] > 190
    turned = Image.new("RGB", (30, 20))
    turned.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter to the right
    turned.save(tmp_path / "turned.png", exif=exif)
    shape = frames_of_upload(str(tmp_path / "turned.png"), Decoding(prepare=np.asarray))[1].shape
    assert shape == (1, 30, 20, 3)


def test_no_other_program_is_started_for_what_is_sent(tmp_path):
    (tmp_path / "x.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(DecodeError, match="no picture"):
        frames_of_upload(str(tmp_path / "x.eps"), Decoding())


def test_a_preview_of_what_browsers_decode_copies_it(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=80, fps=4)
    made = make_preview(str(path), str(tmp_path), "part", 0.0, 60.0)
    frames, _ = decode(path, fps=None)
    again, _ = decode(tmp_path / made.file, fps=None)
    assert np.array_equal(frames, again) and (made.start, made.end) == (0, 20)
    late = make_preview(str(path), str(tmp_path), "late", 500.0, 60.0)
    assert late.start < 20 and np.array_equal(decode(tmp_path / late.file, fps=None)[0][-1], frames[-1])


def test_a_preview_passes_over_what_is_damaged(make_video, tmp_path):
    path = make_video(tmp_path / "a.mp4", frames=80, fps=4)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 200] = bytes(200)
    path.write_bytes(data)
    made = make_preview(str(path), str(tmp_path), "part", 0.0, 60.0, copy=False)
    frames, times = decode(tmp_path / made.file, fps=None)
    assert made.end > 18 and len(frames) > 40 and "encoded anew" in made.how
