"""Times count from the start of the file, as a player shows them, also where the picture begins after the sound."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from glscl.extract.decode.previews import make_preview
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.stills import still
from glscl.extract.decode.video import decode, decode_video

sys.path.insert(0, str(Path(__file__).parents[1] / "extract" / "decode"))

from painted_clips import decoded, make_clip, read_number, sequential

LATE = 50  # frames of 25 a second: the picture begins at 2 s


@pytest.fixture(scope="module", params=["mp4", "mkv", "mov", "ts"])
def late(request, tmp_path_factory):
    """100 painted frames, from 2 s to 6 s of the file; the sound begins at 0 s."""
    return make_clip(
        tmp_path_factory.mktemp("late") / f"late.{request.param}",
        frames=range(100),
        stamp=lambda i: i + LATE,
        audio=True,
    )


def shown(path):
    """Painted number → seconds on the clock of a player."""
    with av.open(str(path)) as container:
        start = container.start_time / 1e6
    frames, stamps = sequential(path)
    return {read_number(frame): stamp - start for frame, stamp in zip(frames, stamps)}


@pytest.mark.parametrize("decoder", ["auto", "pyav"])
def test_a_part_holds_what_a_player_shows_then(late, decoder):
    frames, times = decode(late, fps=None, start=2.5, end=3.0, decoder=decoder)
    clock = {number: time for number, time in shown(late).items() if 2.5 <= time < 3.0 - 1e-6}
    assert [read_number(frame) for frame in frames] == list(clock)
    assert times == pytest.approx(list(clock.values()), abs=1e-3)


def test_times_of_all_frames_begin_where_the_picture_does(late):
    frames, times = decode(late, fps=1.0)
    clock = shown(late)
    assert times[0] == pytest.approx(2.0, abs=0.1)
    assert times == pytest.approx([clock[read_number(frame)] for frame in frames], abs=1e-3)
    assert times[1:4] == pytest.approx([3.0, 4.0, 5.0], abs=0.03)


def test_a_part_before_the_picture_says_when_that_is_there(late):
    *_, done = decoded(late, Sampling(fps=1.0), start=0.0, end=1.0)
    assert "no frame between 0.00 s and 1.00 s; the picture is there from 2.0" in done.reason


def test_a_picture_without_sound_begins_the_file(tmp_path):
    clip = make_clip(tmp_path / "late.mkv", frames=range(50), stamp=lambda i: i + LATE)
    frames, times = decode(clip, fps=1.0)
    assert times.tolist() == [0.0, 1.0]


def test_frames_whose_packets_tell_no_times_have_the_same_origin(late, monkeypatch):
    import contextlib
    import dataclasses

    from glscl.extract.decode import video

    @contextlib.contextmanager
    def irregular(path, **options):
        with opened_index(path, **options) as index:
            yield dataclasses.replace(index, irregular="made so", decord_doubt="made so", pts=np.zeros(0, np.int64))

    by_packets = decode(late, fps=2.0)
    opened_index = video.opened_index
    monkeypatch.setattr(video, "opened_index", irregular)
    by_frames = decode(late, fps=2.0)
    np.testing.assert_array_equal(by_frames[0], by_packets[0])
    assert by_frames[1] == pytest.approx(by_packets[1], abs=1e-4)
    assert video.decode_video is decode_video


def test_the_pictures_and_parts_of_a_page_have_the_same_origin(late, tmp_path):
    frames, times = decode(late, fps=None)

    def nearest(picture):
        return np.abs(np.asarray(picture, float) - frames).mean((1, 2, 3)).argmin()

    for at in (0, 26, 85):
        time = float(times[at])
        assert nearest(Image.open(io.BytesIO(still(str(late), time, 640))).convert("RGB")) == at
        made = make_preview(str(late), str(tmp_path), "part", time, 1.0)
        part, clock = decode(tmp_path / made.file, fps=None)
        assert made.start + clock[0] == pytest.approx(times[nearest(part[0])], abs=0.02)
        assert made.start <= time + 1e-3 < made.end
