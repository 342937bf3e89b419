"""Decoding one video: the right frames, told by numbers painted into them, and an account of whatever is wrong."""

from __future__ import annotations

import os
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from painted_clips import (
    cut_without_encoding,
    decoded,
    make_clip,
    make_sound,
    mux_silence,
    paint,
    read_number,
    sequential,
    turn,
)

from glscl.cache.schema import Status
from glscl.common.errors import DecodeError, NotFoundError
from glscl.extract.decode import decoders, video
from glscl.extract.decode import packets as container
from glscl.extract.decode.packets import file_stamp, read_index
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import FrameChunk, VideoDone
from glscl.extract.decode.video import decode as decode_file

NATIVE = Sampling(fps=None)
EACH_SECOND = Sampling(fps=1.0)
X264 = "x264-params"
SHORT_GROUPS = {X264: "keyint=12:min-keyint=12:bframes=3:scenecut=0"}


def decode(path, sampling=NATIVE, **options):
    """(frames, times, done) of one video."""
    *chunks, done = decoded(path, sampling, **options)
    assert isinstance(done, VideoDone)
    assert all(isinstance(chunk, FrameChunk) for chunk in chunks)
    frames = [frame for chunk in chunks for frame in chunk.frames]
    times = [float(t) for chunk in chunks for t in chunk.times]
    assert done.frames == len(frames)
    assert times == sorted(set(times))
    assert str(path) not in f"{done.reason} {done.decoder_note}", "it goes into a cache, which names no file"
    return frames, times, done


def numbers(frames):
    return [read_number(frame) for frame in frames]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """250 frames, 10 s, B-frames, a key frame every 12."""
    return make_clip(tmp_path_factory.mktemp("clips") / "plain.mp4", frames=range(250), options=SHORT_GROUPS)


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
def test_native_gives_every_frame_once_and_in_order(plain, decoder):
    frames, times, done = decode(plain, decoder=decoder)
    assert numbers(frames) == list(range(250))
    assert times == pytest.approx(np.arange(250) / 25, abs=1e-5)
    assert (done.status, done.reason, done.frames_total, done.codec) == (Status.OK, None, 250, "h264")
    assert (done.duration, done.fps) == pytest.approx((10.0, 25.0))


@pytest.mark.parametrize("decoder", ["auto", "decord", "pyav"])
def test_one_frame_a_second_is_the_one_at_the_second(plain, decoder):
    frames, times, done = decode(plain, EACH_SECOND, decoder=decoder)
    assert numbers(frames) == list(range(0, 250, 25))
    assert times == pytest.approx(range(10))
    assert (done.decoder, done.decoder_note) == ("decord" if decoder == "decord" else "pyav", None)


@pytest.mark.parametrize("fps", [0.3, 1.0, 2.0, 7.0])
def test_decord_and_pyav_agree_to_the_last_bit(plain, fps):
    ours, times, _ = decode(plain, Sampling(fps=fps), decoder="decord")
    theirs, same_times, _ = decode(plain, Sampling(fps=fps), decoder="pyav")
    assert times == same_times
    assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))


def test_a_cap_is_spread_over_the_video(plain):
    frames, _, _ = decode(plain, Sampling(fps=1.0, max_frames=4))
    assert numbers(frames) == [0, 75, 150, 225]


def test_public_rule_counts_frames(plain):
    frames, _, _ = decode(plain, Sampling(fps=1.0, rule="public", max_frames=3))
    assert numbers(frames) == [0, 100, 225]


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_a_clip_keeps_the_times_of_the_video(plain, decoder):
    frames, times, done = decode(plain, EACH_SECOND, start=2.5, end=6.0, decoder=decoder)
    assert numbers(frames) == [63, 87, 112, 137]  # 2.5 lies between 2.48 and 2.52; the clip begins with 2.52
    frames, times, done = decode(plain, EACH_SECOND, start=3.0, end=6.0, decoder=decoder)
    assert numbers(frames) == [75, 100, 125]
    assert times == pytest.approx([3.0, 4.0, 5.0])
    assert (done.frames_total, done.duration) == (75, pytest.approx(3.0))


def test_a_clip_beyond_the_end_says_how_long_the_video_is(plain):
    _, _, done = decode(plain, EACH_SECOND, start=70.0, end=80.0)
    assert done.status is Status.DECODE_ERROR
    assert "70.00 s" in done.reason and "10.00 s" in done.reason


def test_going_on_after_a_time_leaves_out_what_came_before(plain):
    frames, _, _ = decode(plain, EACH_SECOND, resume_after=4.0)
    assert numbers(frames) == [125, 150, 175, 200, 225]
    _, _, done = decode(plain, EACH_SECOND, resume_after=9.0)
    assert (done.frames, done.status) == (0, Status.OK)


def test_chunks_end_at_their_limits(plain):
    by_count = [len(c.frames) for c in decoded(plain, NATIVE, chunk_frames=100) if isinstance(c, FrameChunk)]
    assert by_count == [100, 100, 50]
    a_frame = 160 * 96 * 3
    *chunks, _ = decoded(plain, NATIVE, chunk_bytes=30 * a_frame + 1, item=7)
    assert {len(c.frames) for c in chunks} == {30, 10}
    assert {c.item for c in chunks} == {7}
    assert all(c.frames.dtype == np.uint8 and c.times.dtype == np.float32 for c in chunks)


def test_upright_pictures_are_prepared_and_become_the_frames(plain):
    frames, _, _ = decode(plain, EACH_SECOND, prepare=lambda image: image.resize((32, 32)))
    assert {frame.shape for frame in frames} == {(32, 32, 3)}


def test_a_preparation_that_gives_something_else_is_named(plain):
    _, _, done = decode(plain, EACH_SECOND, prepare=lambda image: image.convert("L"))
    assert done.status is Status.DECODE_ERROR
    assert "preprocessing gave uint8" in done.reason


def test_variable_rate_is_sampled_by_time(tmp_path):
    stamps = np.cumsum([0] + [20, 90, 40, 250] * 30).tolist()
    clip = make_clip(tmp_path / "v.mp4", frames=range(120), stamp=stamps.__getitem__, time_base=Fraction(1, 1000))
    for decoder in ("decord", "pyav"):
        frames, times, _ = decode(clip, EACH_SECOND, decoder=decoder)
        expected = [min(range(120), key=lambda i: (abs(stamps[i] - 1000 * k), i)) for k in range(12)]
        assert numbers(frames) == expected
        assert times == pytest.approx([stamps[i] / 1000 for i in expected], abs=1e-3)


def test_times_count_from_the_first_frame_shown(tmp_path):
    clip = make_clip(tmp_path / "late.mkv", stamp=lambda i: i + 50, frames=range(75))
    frames, times, done = decode(clip, EACH_SECOND)
    assert numbers(frames) == [0, 25, 50]
    assert times == pytest.approx([0, 1, 2])
    assert done.duration == pytest.approx(3.0)


HARD_FOR_DECORD = {
    "open groups": ("o.mp4", {"options": {X264: "open-gop=1:keyint=24:min-keyint=24:bframes=3:scenecut=0"}}),
    "gradual refresh": ("r.mp4", {"options": {X264: "intra-refresh=1:keyint=24:bframes=0"}}),
    "interlaced": ("i.mp4", {"options": {X264: "tff=1:keyint=24"}}),
    "container mpegts": ("t.ts", {"options": SHORT_GROUPS}),
    "container avi": ("b.avi", {"options": SHORT_GROUPS}),
    "codec mpeg4": ("m.mp4", {"codec": "mpeg4", "options": {"g": "24", "bf": "2"}}),
    "codec mpeg2video": ("m.mkv", {"codec": "mpeg2video", "options": {"g": "12", "bf": "2"}}),
    "pixel format yuv420p10le": ("d.mp4", {"pixel_format": "yuv420p10le"}),
}
UNPLANNED = {
    "container mpegts": "container mpegts",
    "container avi": "AVI keeps the order of decoding, not of showing",
    "codec mpeg2video": "codec mpeg2video",
}


@pytest.mark.parametrize("why", HARD_FOR_DECORD)
def test_files_that_decord_gets_wrong_are_right_and_decord_refuses_them(tmp_path, why):
    name, options = HARD_FOR_DECORD[why]
    clip = make_clip(tmp_path / name, frames=range(100), **options)
    for sampling, expected in ((EACH_SECOND, [0, 25, 50, 75]), (NATIVE, list(range(100)))):
        frames, times, done = decode(clip, sampling)
        assert numbers(frames) == expected
        assert times == pytest.approx(np.array(expected) / 25, abs=2e-3)
        assert (done.status, done.decoder) == (Status.OK, "pyav")
        assert done.decoder_note == UNPLANNED.get(why)
    _, _, done = decode(clip, EACH_SECOND, decoder="decord")
    assert done.status is Status.DECODE_ERROR
    assert "cannot be trusted" in done.reason and why in done.reason


@pytest.mark.parametrize("first", [30, 41, 100])
def test_a_trim_without_encoding_shows_only_frames_after_the_cut(tmp_path, first):
    long_groups = {X264: "keyint=60:min-keyint=60:bframes=3:scenecut=0"}
    whole = make_clip(tmp_path / "whole.mp4", frames=range(160), options=long_groups)
    clip = cut_without_encoding(whole, tmp_path / "cut.mp4", first_frame=first)
    reference, _ = sequential(clip)
    frames, times, done = decode(clip)
    assert numbers(frames) == numbers(reference)
    assert numbers(frames)[0] == first and numbers(frames)[-1] == 159
    assert times[0] == 0.0
    frames, _, done = decode(clip, EACH_SECOND)
    assert numbers(frames) == list(range(first, 160, 25))
    assert (done.decoder, done.decoder_note) == ("pyav", None)
    _, _, done = decode(clip, EACH_SECOND, decoder="decord")
    assert done.status is Status.DECODE_ERROR and "hidden packets" in done.reason


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "f.mp4"])
def test_ordinary_files_may_be_left_to_decord(tmp_path, name):
    fragments = {"movflags": "frag_keyframe+empty_moov"} if name.startswith("f") else {}
    clip = make_clip(tmp_path / name, frames=range(100), options=SHORT_GROUPS, container_options=fragments)
    for decoder, used in (("decord", "decord"), ("auto", "pyav")):
        frames, _, done = decode(clip, EACH_SECOND, decoder=decoder)
        assert numbers(frames) == [0, 25, 50, 75]
        assert (done.decoder, done.decoder_note) == (used, None)


def test_without_decord_everything_is_decoded_unless_it_is_asked_for(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    frames, _, done = decode(plain, EACH_SECOND)
    assert numbers(frames) == list(range(0, 250, 25))
    assert (done.decoder, done.decoder_note) == ("pyav", None)
    _, _, done = decode(plain, EACH_SECOND, decoder="decord")
    assert done.status is Status.DECODE_ERROR and "not installed" in done.reason


def test_torchcodec_is_refused_where_it_is_not_there(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    _, _, done = decode(plain, EACH_SECOND, decoder="torchcodec")
    assert done.status is Status.DECODE_ERROR and "torchcodec is not installed" in done.reason


@pytest.mark.parametrize("degrees", [0, 90, 270])
def test_torchcodec_gives_the_same_frames_or_refuses(tmp_path, plain, degrees):
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"torchcodec does not work here: {str(error).splitlines()[0]}")
    clip = make_clip(tmp_path / "r.mp4", frames=range(100), options=SHORT_GROUPS)
    if degrees:
        turn(clip, degrees)
    for sampling in (EACH_SECOND, NATIVE):
        ours, times, _ = decode(clip, sampling)
        theirs, same, done = decode(clip, sampling, decoder="torchcodec")
        assert (done.status, done.decoder, same) == (Status.OK, "torchcodec", times)
        assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    cut = cut_without_encoding(plain, tmp_path / "cut.mp4", first_frame=41)
    _, _, done = decode(cut, EACH_SECOND, decoder="torchcodec")
    assert done.status is Status.DECODE_ERROR and "hidden packets" in done.reason


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_is_applied_alike_by_both_decoders(tmp_path, degrees):
    clip = turn(make_clip(tmp_path / "r.mp4", frames=range(30)), degrees)
    ours, _, done = decode(clip, EACH_SECOND, decoder="decord")
    theirs, _, _ = decode(clip, EACH_SECOND, decoder="pyav")
    assert all((a == b).all() for a, b in zip(ours, theirs, strict=True))
    assert done.status is Status.OK
    stored = np.rot90(theirs[0], degrees // 90)  # turned back counter-clockwise
    assert stored.shape == (96, 160, 3)
    assert read_number(stored) == 0


def test_a_stream_that_changes_size_keeps_going(tmp_path):
    small = make_clip(tmp_path / "a.h264", frames=range(30))
    large = make_clip(tmp_path / "b.h264", frames=range(30, 60), size=(320, 192))
    both = tmp_path / "both.h264"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    *chunks, done = decoded(both, NATIVE)
    assert [chunk.frames.shape for chunk in chunks] == [(30, 96, 160, 3), (30, 192, 320, 3)]
    assert [n for chunk in chunks for n in numbers(chunk.frames)] == list(range(60))
    assert done.status is Status.OK
    frames, _, _ = decode(both, prepare=lambda image: image.resize((24, 24)))
    assert np.stack(frames).shape == (60, 24, 24, 3)


def test_missing_timestamps_are_counted_at_the_declared_rate(tmp_path):
    raw = make_clip(tmp_path / "raw.h264", frames=range(75), options=SHORT_GROUPS)
    frames, times, done = decode(raw, EACH_SECOND)
    assert numbers(frames) == [0, 25, 50]
    assert times == pytest.approx([0, 1, 2], abs=1e-3)
    assert done.frames_total == 75


@pytest.mark.parametrize("codec, pixel_format, name", [("gif", "rgb8", "a.gif"), ("ffv1", "gray", "g.mkv")])
def test_other_pixel_formats_become_rgb(tmp_path, codec, pixel_format, name):
    clip = make_clip(tmp_path / name, frames=range(20), codec=codec, pixel_format=pixel_format)
    frames, _, done = decode(clip)
    assert np.stack(frames).shape == (20, 96, 160, 3)
    assert numbers(frames) == list(range(20))
    assert done.status is Status.OK


def test_sound_beside_the_picture_does_not_matter(tmp_path):
    clip = make_clip(tmp_path / "s.mp4", frames=range(50), audio=True)
    frames, _, done = decode(clip, EACH_SECOND)
    assert numbers(frames) == [0, 25]
    assert (done.status, done.decoder_note) == (Status.OK, None)


def test_a_cover_picture_is_no_video(tmp_path):
    song = tmp_path / "song.mp4"
    with av.open(str(song), "w") as new:
        sound = new.add_stream("aac", rate=16000, layout="mono")
        cover = new.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 160, 96, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        new.mux(cover.encode(av.VideoFrame.from_ndarray(paint(1), format="rgb24").reformat(format="yuvj420p")))
        mux_silence(new, sound, seconds=1)
    _, _, done = decode(song)
    assert (done.status, done.reason) == (Status.DECODE_ERROR, "no video stream")


# ----------------------------------------------------------------------------------------------- files that are broken


def test_a_missing_file_is_missing(tmp_path):
    _, _, done = decode(tmp_path / "nowhere.mp4")
    assert done.status is Status.MISSING
    assert "no such file" in done.reason


@pytest.mark.parametrize("content", [b"", b"just text, no video\n" * 40, bytes(range(256)) * 8])
def test_what_is_no_video_is_refused_with_a_reason(tmp_path, content):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    _, _, done = decode(path)
    assert done.status is Status.DECODE_ERROR
    assert done.reason and "\n" not in done.reason


def test_sound_alone_has_no_video_stream(tmp_path):
    _, _, done = decode(make_sound(tmp_path / "a.mp4"))
    assert (done.status, done.reason) == (Status.DECODE_ERROR, "no video stream")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_folders_and_pipes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path, tmp_path / "pipe.mp4"):
        _, _, done = decode(path)
        assert done.status is Status.DECODE_ERROR
        assert "not a regular file" in done.reason


@pytest.mark.parametrize("name", ["-dash.mp4", "a b'[?&]%d:x.mp4", "файл.mp4", "no_extension", "dot."])
def test_odd_names_are_only_names(tmp_path, monkeypatch, plain, name):
    (tmp_path / name).write_bytes(plain.read_bytes())
    monkeypatch.chdir(tmp_path)
    frames, _, done = decode(name, EACH_SECOND)
    assert done.status is Status.OK, done
    assert numbers(frames) == list(range(0, 250, 25))


def test_a_file_that_ends_early_is_partial(tmp_path):
    front = {"movflags": "faststart"}
    clip = make_clip(tmp_path / "t.mp4", frames=range(200), options=SHORT_GROUPS, container_options=front)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 7 // 10])
    reference, _ = sequential(clip)
    frames, _, done = decode(clip)
    assert 50 < len(frames) < 200
    assert numbers(frames)[: len(reference) - 1] == list(range(len(frames)))[: len(reference) - 1]
    assert done.status is Status.PARTIAL
    assert "of 200 frames" in done.reason


def test_a_file_without_its_index_is_refused(tmp_path):
    clip = make_clip(tmp_path / "t.mp4", frames=range(50))
    clip.write_bytes(clip.read_bytes()[:-200])
    _, _, done = decode(clip)
    assert done.status is Status.DECODE_ERROR


def damage(path: Path, *, near: float, count: int = 40) -> Path:
    data = bytearray(path.read_bytes())
    at = int(len(data) * near)
    data[at : at + count] = bytes(255 - b for b in data[at : at + count])
    path.write_bytes(data)
    return path


def test_damage_inside_frames_is_noticed(tmp_path):
    clip = make_clip(tmp_path / "d.mp4", frames=range(150), options={X264: "keyint=50:min-keyint=50:scenecut=0"})
    damage(clip, near=0.5, count=2500)
    frames, times, done = decode(clip, Sampling(fps=2.0))
    reference, stamps = sequential(clip)
    assert done.decoder_note and done.reason
    assert done.status is Status.PARTIAL
    by_time = {round(t, 3): frame for frame, t in zip(reference, stamps)}
    for frame, t in zip(frames, times):
        if round(t, 3) in by_time:  # the reference ends at the first error; we go on at the next key frame
            assert (frame == by_time[round(t, 3)]).all()
    assert numbers(frames)[0] == 0


def test_frames_lost_from_the_stream_change_no_other(tmp_path):
    whole = make_clip(tmp_path / "w.mp4", frames=range(150), options={X264: "keyint=300:bframes=2:ref=4:scenecut=0"})
    clip = tmp_path / "holes.mp4"
    with av.open(str(whole)) as old, av.open(str(clip), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(p for p in old.demux(old.streams.video[0]) if p.size):
            if i not in (60, 61, 62, 90):
                packet.stream = copy
                new.mux(packet)
    reference, stamps = sequential(clip)
    wanted = video.select_frames(np.array(stamps) - stamps[0], EACH_SECOND)
    for decoder in ("auto", "pyav"):
        frames, _, done = decode(clip, EACH_SECOND, decoder=decoder)
        assert done.decoder == "pyav"
        assert all((a == reference[i]).all() for a, i in zip(frames, wanted, strict=True))


def test_frames_given_before_an_error_are_kept(tmp_path, plain, monkeypatch):
    real = decoders.stream_frames

    def breaks(path, damage, **options):
        for i, frame in enumerate(real(path, damage, **options)):
            if i == 120:
                raise OSError("the disk went away")
            yield frame

    monkeypatch.setattr(decoders, "stream_frames", breaks)
    frames, _, done = decode(plain, decoder="pyav")
    assert numbers(frames) == list(range(120))
    assert done.status is Status.PARTIAL
    assert "the disk went away" in done.reason


def test_when_the_plan_fails_part_way_no_frame_is_lost_or_doubled(plain, monkeypatch):
    real = decoders.planned_pictures

    def gives_up(*arguments, **options):
        for i, picture in enumerate(real(*arguments, **options)):
            if i == 5:
                raise decoders.Distrust("frames come out of order")
            yield picture

    monkeypatch.setattr(video, "planned_pictures", gives_up)
    for chunk_frames in (2, 256):
        frames, _, done = decode(plain, EACH_SECOND, chunk_frames=chunk_frames)
        assert numbers(frames) == list(range(0, 250, 25))
        assert (done.status, done.decoder, done.decoder_note) == (Status.OK, "pyav", "frames come out of order")


def test_a_cap_counts_the_frames_that_can_be_decoded(tmp_path):
    clip = make_clip(tmp_path / "d.mkv", frames=range(100), options={X264: "keyint=300:scenecut=0"})
    damage(clip, near=0.6, count=4000)
    native, _, _ = decode(clip)
    capped, _, done = decode(clip, Sampling(fps=None, max_frames=5))
    # whether the cut packet gives an error or just nothing depends on the memory behind it
    assert done.status in (Status.OK, Status.PARTIAL) and 50 < len(native) < 100
    spread = np.linspace(0, len(native) - 1, 5, dtype=int)
    assert all((a == native[i]).all() for a, i in zip(capped, spread, strict=True))


def test_a_file_that_changed_since_it_was_listed_is_reported(tmp_path, plain):
    path = tmp_path / "x.mp4"
    path.write_bytes(plain.read_bytes())
    stamp = file_stamp(str(path))
    path.write_bytes(plain.read_bytes() + b"more")
    _, _, done = decode(path, EACH_SECOND, stamp=stamp)
    assert done.status is Status.DECODE_ERROR
    assert "changed since it was listed" in done.reason


def test_a_file_that_changes_or_vanishes_while_it_is_read_is_reported(tmp_path, plain):
    for act, word in ((lambda p: os.truncate(p, 100), "changed"), (os.unlink, "vanished")):
        path = tmp_path / "x.mp4"
        path.write_bytes(plain.read_bytes())
        events = decoded(path, NATIVE, chunk_frames=10)
        next(events)
        act(path)
        *_, done = events
        assert done.status is Status.PARTIAL
        assert word in done.reason and str(path) not in done.reason


def test_frames_beyond_reason_are_refused_from_the_header(tmp_path):
    clip = make_clip(tmp_path / "a.gif", frames=range(3), codec="gif", pixel_format="rgb8")
    data = bytearray(clip.read_bytes())
    data[6:10] = (30000).to_bytes(2, "little") * 2
    clip.write_bytes(data)
    _, _, done = decode(clip)
    assert done.status is Status.DECODE_ERROR
    assert done.reason


def test_frames_that_grow_beyond_reason_are_refused_one_by_one(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(decoders, "MAX_PIXELS", 100)
    _, _, done = decode(plain, decoder="pyav")
    assert done.status is Status.DECODE_ERROR
    assert "160 x 96" in done.reason


def test_work_is_shown_at_every_step(plain):
    beats = []
    decode(plain, EACH_SECOND, decoder="pyav", beat=lambda: beats.append(1))
    assert (
        len(beats) > 450
    )  # each packet once when looked at and once when decoded or passed over, to the last one wanted


def test_reading_the_index_decodes_nothing(plain, monkeypatch):
    monkeypatch.setattr(container, "MAX_PIXELS", 1)
    with pytest.raises(DecodeError, match="beyond"):
        read_index(str(plain))


def test_one_call_gives_the_frames_of_a_file_and_their_times(plain, tmp_path):
    frames, times = decode_file(plain, start=2.5, end=6.0)
    assert frames.shape == (4, 96, 160, 3) and frames.dtype == np.uint8
    assert times.tolist() == pytest.approx([2.52, 3.48, 4.48, 5.48])
    expected, _, _ = decode(plain, EACH_SECOND, start=2.5, end=6.0)
    np.testing.assert_array_equal(frames, expected)
    assert len(decode_file(plain, fps=None)[0]) == 250
    assert decode_file(plain, fps=0.2, prepare=lambda image: image.resize((8, 8)))[0].shape == (2, 8, 8, 3)
    with pytest.raises(NotFoundError, match=r"No video file at .*gone.mp4"):
        decode_file(tmp_path / "gone.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DecodeError, match=r"text.mp4 gives no frames: "):
        decode_file(tmp_path / "text.mp4")
