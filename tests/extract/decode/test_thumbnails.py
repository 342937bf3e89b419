"""Pictures of cached frames: the right ones, small, from where the videos are now."""

from types import SimpleNamespace

import numpy as np
import pytest

from glscl.cache.keys import as_array, content_of
from glscl.cache.schema import VideoItem
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.thumbnails import SIZE, frame_pictures, thumbnails_of
from glscl.extract.decode.video import Decoding, FrameChunk, VideoTask, decode_video

SAMPLED = {"sampling": {"fps": 2.0, "rule": "time", "max_frames": None, "decoder": "auto"}}


def store(folder, *, configuration=None, **contents):
    """A cache that has videos by id, each with the content of a file."""
    listed = SimpleNamespace(
        video_ids=list(contents), video_content=as_array(content_of(path)[1] for path in contents.values())
    )
    return SimpleNamespace(path=folder, configuration=SAMPLED if configuration is None else configuration, list=listed)


@pytest.fixture
def clip(tmp_path, make_video):
    path = tmp_path / "videos" / "deep" / "clip.mp4"
    make_video(path, frames=16)
    return path


def decoded(path):
    chunks = [
        part
        for part in decode_video(VideoTask(0, str(path)), Decoding(sampling=Sampling(fps=2.0)))
        if isinstance(part, FrameChunk)
    ]
    return np.concatenate([c.times for c in chunks]).tolist(), np.concatenate([c.frames for c in chunks])


def test_the_frames_are_those_that_were_sampled(clip):
    times, frames = decoded(clip)
    pictures = frame_pictures(
        VideoItem("v", "test", str(clip)), times[::-1], clip, sampling=Sampling(fps=2.0), size=1000
    )
    assert len(pictures) == len(times) > 3
    for picture, frame in zip(pictures, frames[::-1]):
        np.testing.assert_array_equal(np.asarray(picture), frame)


def test_pictures_are_small_and_keep_their_shape(clip):
    times, frames = decoded(clip)
    (picture,) = frame_pictures(VideoItem("v", "test", str(clip)), times[:1], clip, sampling=Sampling(fps=2.0), size=20)
    height, width = frames.shape[1:3]
    assert max(picture.size) == 20 and picture.size[0] / picture.size[1] == pytest.approx(width / height, rel=0.1)
    assert SIZE <= 200


def test_videos_are_found_where_they_are_now(clip, tmp_path):
    times, _ = decoded(clip)
    moved = VideoItem("v", "test", "/nowhere/else/clip.mp4")
    by_id = VideoItem("clip", "test", None)
    here = VideoItem("other", "test", str(clip))
    cache = store(tmp_path, v=clip, clip=clip, other=clip)
    look, look_there = thumbnails_of(cache), thumbnails_of(cache, tmp_path / "videos")
    assert look(moved, times) is None and look(by_id, times) is None
    assert len(look(here, times)) == len(look_there(moved, times)) == len(look_there(by_id, times)) == len(times)


def test_a_part_of_a_video_shows_its_own_frames(clip):
    times, frames = decoded(clip)
    part = VideoItem("v", "test", str(clip), start=times[2], end=times[-1] + 1)
    first, last = thumbnails_of(store(clip.parent, v=clip))(part, [times[2], times[3]])
    for picture, expected, other in ((first, frames[2], frames[0]), (last, frames[3], frames[1])):
        near, far = (np.abs(np.asarray(picture, float) - np.asarray(f, float)).mean() for f in (expected, other))
        assert near < far


def test_what_cannot_be_decoded_gives_none(tmp_path):
    broken = tmp_path / "clip.mp4"
    broken.write_bytes(b"not a video")
    cache = store(tmp_path, v=broken)
    assert thumbnails_of(cache)(VideoItem("v", "test", str(broken)), [0.0]) is None
    assert thumbnails_of(cache, tmp_path)(VideoItem("v", "test", None), [0.0]) is None


def test_a_file_of_the_right_name_with_another_content_is_not_shown(clip, tmp_path, make_video):
    other = make_video(tmp_path / "other" / "clip.mp4", frames=16, seed=7)
    cache, video = store(tmp_path, v=clip), VideoItem("v", "test", "/nowhere/clip.mp4")
    assert thumbnails_of(cache, other.parent)(video, [0.0]) is None
    assert len(thumbnails_of(cache, clip.parent)(video, [0.0])) == 1


def test_a_cache_that_does_not_say_how_it_sampled_still_shows_frames(clip):
    cache = store(clip.parent, configuration={}, v=clip)
    assert len(thumbnails_of(cache)(VideoItem("v", "test", str(clip)), [0.0, 1.0])) == 2
