"""`--sampling opencv` gives, bit for bit, what the public loader of DiDeMo and ActivityNet reads with OpenCV."""

from __future__ import annotations

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from painted_clips import decoded, make_clip

from glscl.extract.decode.sampling import Sampling

cv2 = pytest.importorskip("cv2", reason="pip install opencv-python-headless")


def public_frames(path, start=None, end=None):
    """One frame of each int(rate), by seeking to its number, until one is not there."""
    video = cv2.VideoCapture(str(path))
    rate, count = int(video.get(cv2.CAP_PROP_FPS)), int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    longest = (count + rate - 1) // rate
    first, last = (0, longest) if start is None else (start, min(end, longest))
    frames = []
    for second in np.arange(first, last + 1):
        video.set(cv2.CAP_PROP_POS_FRAMES, int(second * rate))
        there, frame = video.read()
        if not there:
            break
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return frames


def check(path, start=None, end=None):
    *chunks, done = decoded(path, Sampling(fps=1.0, rule="opencv"), start=start, end=end)
    ours, theirs = [frame for chunk in chunks for frame in chunk.frames], public_frames(path, start, end)
    assert len(ours) == len(theirs) == done.frames
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs))
    return len(ours)


@pytest.mark.parametrize(("rate", "expected"), [(25, 9), (Fraction(30000, 1001), 8)])
def test_every_second_of_a_clip(tmp_path, rate, expected):
    path = make_clip(tmp_path / "clip.mp4", frames=range(225), fps=rate)
    assert check(path) == expected and check(path, 0.0, 5.0) == 6


@pytest.mark.real_data
@pytest.mark.parametrize(
    "name", ["activitynet/v_GGSY1Qvo990.mp4", "activitynet/v_ZNVhz7ctTq0.mp4", "msrvtt/video7013.mp4"]
)
def test_real_clips(real_data, name):
    assert check(real_data / "videos" / name) > 10
    assert check(real_data / "videos" / name, 0.0, 31.0) > 10
