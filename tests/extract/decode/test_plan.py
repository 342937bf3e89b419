"""Decoding only what the wanted frames depend on gives the frames of decoding everything, bit for bit.

Streams are made at random: lengths of groups, pyramids of B-frames, open groups, leading pictures, layers; then cut, stripped of
their beginning or of packets, damaged.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from painted_clips import cut_without_encoding, decoded, make_clip, sequential

from glscl.cache.schema import Status
from glscl.extract.decode import decoders, packets
from glscl.extract.decode.decoders import Damage, UprightRgb, stream_frames
from glscl.extract.decode.packets import read_index
from glscl.extract.decode.plan import DecodePlan
from glscl.extract.decode.sampling import Sampling, repair_times, select_frames
from glscl.extract.decode.video import FrameChunk

SIZE = (96, 64)
FRAMES = 90
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(1, 12))]


def x264(rng: np.random.Generator, extra: str = "") -> dict:
    groups = f"keyint={rng.integers(8, 50)}:min-keyint=1:scenecut={rng.integers(0, 60)}:rc-lookahead=10"
    pyramid = f"bframes={rng.integers(0, 6)}:b-pyramid={rng.integers(0, 3)}:b-adapt=0:ref={rng.integers(1, 5)}"
    return {
        "codec": "libx264",
        "options": {"preset": "veryfast", "x264-params": f"{groups}:{pyramid}:threads=1{extra}"},
    }


def x265(rng: np.random.Generator, extra: str = "") -> dict:
    groups = f"keyint={rng.integers(8, 40)}:min-keyint=4:rc-lookahead=12:scenecut={rng.integers(0, 40)}"
    pyramid = f"bframes={rng.integers(0, 5)}:b-pyramid={rng.integers(0, 2)}:b-adapt=0:ref={rng.integers(1, 4)}"
    params = f"{groups}:{pyramid}:log-level=none:pools=none:frame-threads=1{extra}"
    return {"codec": "libx265", "options": {"preset": "ultrafast", "x265-params": params}}


def group_of(rng: np.random.Generator, codec: str, **options: str) -> dict:
    return {"codec": codec, "options": {"g": str(rng.integers(8, 40)), **options}}


RECIPES = {
    "H.264": ("mp4", x264),
    "H.264, Matroska": ("mkv", x264),
    "H.264, open groups": ("mp4", lambda rng: x264(rng, ":open-gop=1")),
    "H.264, gradual refresh": ("mp4", lambda rng: x264(rng, ":intra-refresh=1")),
    "H.264, several slices": ("mp4", lambda rng: x264(rng, ":slices=3")),
    "H.264, fields": ("mp4", lambda rng: x264(rng, ":tff=1")),
    "H.264, AVI": ("avi", lambda rng: x264(rng, ":bframes=0")),
    "HEVC": ("mp4", lambda rng: x265(rng, ":open-gop=0")),
    "HEVC, open groups": ("mp4", lambda rng: x265(rng, ":open-gop=1")),
    # without cuts between scenes, where x265 4.1 itself crashes while it encodes such pictures (seeds 3 and 9)
    "HEVC, decodable leading pictures": ("mkv", lambda rng: x265(rng, ":open-gop=0:radl=2:bframes=3:scenecut=0")),
    "HEVC, temporal layers": ("mp4", lambda rng: x265(rng, ":temporal-layers=2:bframes=3:open-gop=0")),
    "MPEG-4": ("mp4", lambda rng: group_of(rng, "mpeg4", bf=str(rng.integers(0, 3)))),
    "MPEG-4, Matroska": ("mkv", lambda rng: group_of(rng, "mpeg4", bf="2", flags="+qpel+mv4")),
    "VP8": ("webm", lambda rng: group_of(rng, "libvpx", deadline="realtime", **{"cpu-used": "8"})),
    "VP9": ("webm", lambda rng: group_of(rng, "libvpx-vp9", deadline="realtime", **{"cpu-used": "8"})),
    "VP9, hidden frames": ("mp4", lambda rng: group_of(rng, "libvpx-vp9", **{"cpu-used": "5", "auto-alt-ref": "1"})),
    "AV1": ("mp4", lambda rng: group_of(rng, "libsvtav1", preset="12", **{"svtav1-params": "lp=1"})),
    "Motion JPEG": ("avi", lambda rng: {"codec": "mjpeg", "pixel_format": "yuvj420p"}),
}
GROUPS_ARE_LEFT_OUT = set(RECIPES) - {"H.264, open groups", "H.264, gradual refresh"}


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """Makes a stream of a recipe, once."""
    folder, made = tmp_path_factory.mktemp("streams"), {}

    def make(name: str, seed: int) -> Path:
        if (name, seed) not in made:
            suffix, recipe = RECIPES[name]
            rng = np.random.default_rng([seed, sorted(RECIPES).index(name)])
            try:
                av.Codec(recipe(rng)["codec"], "w")
            except ValueError:
                pytest.skip(f"this PyAV has no encoder {recipe(rng)['codec']}")
            jumps = np.cumsum(rng.choice([1, 40], FRAMES, p=[0.95, 0.05])) % 900  # cuts between scenes
            path = folder / f"{len(made)}.{suffix}"
            made[name, seed] = make_clip(path, frames=jumps.tolist(), size=SIZE, **recipe(rng))
        return made[name, seed]

    return make


def frames_of(path: Path, sampling: Sampling, **part) -> tuple[list[np.ndarray], np.ndarray, object]:
    *chunks, done = decoded(path, sampling, **part)
    assert all(isinstance(chunk, FrameChunk) for chunk in chunks)
    times = np.array([time for chunk in chunks for time in chunk.times], np.float64)
    return [frame for chunk in chunks for frame in chunk.frames], times, done


def asked_for(rng: np.random.Generator) -> list[tuple[Sampling, dict]]:
    start = float(rng.uniform(0, 2.5))
    return [
        (Sampling(fps=1.0), {}),
        (Sampling(fps=float(rng.uniform(0.3, 9.0))), {}),
        (Sampling(fps=2.0), {"start": start, "end": start + 1.0}),
        (Sampling(fps=None), {}),
        (Sampling(fps=None, max_frames=3), {"start": start}),
        (Sampling(fps=4.0, rule="public"), {}),
    ]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RECIPES)
def test_wanted_frames_equal_full_decoding(stream, name, seed):
    path = stream(name, seed)
    reference, stamps = sequential(path)
    times = np.array(stamps) - stamps[0]
    index = read_index(str(path))
    assert len(reference) == FRAMES and len(index.groups) > 0 and index.headless is None
    for sampling, part in asked_for(np.random.default_rng(seed)):
        wanted = select_frames(times, sampling, average_rate=index.average_rate, **part)
        frames, got, done = frames_of(path, sampling, **part)
        assert (done.status, done.decoder_note, len(frames)) == (Status.OK, None, len(wanted)), (sampling, part)
        assert got == pytest.approx(times[wanted], abs=2e-3)
        assert all((frame == reference[i]).all() for frame, i in zip(frames, wanted)), (sampling, part)
    last = DecodePlan.of(index, index.pts[-1:])
    if name in GROUPS_ARE_LEFT_OUT:
        assert last.feeds.sum() < 60, "only the last group, or it and the one before, is needed for the last frame"


def without(path: Path, out: Path, drop) -> Path:
    """A copy of the packets for which `drop(number, packet)` is false."""
    with av.open(str(path)) as old, av.open(str(out), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(p for p in old.demux(old.streams.video[0]) if p.size):
            if not drop(number, packet):
                packet.stream = copy
                new.mux(packet)
    return out


def flipped(path: Path, out: Path, rng: np.random.Generator) -> Path:
    """A copy in which some packets hold other bits, and one is cut short."""
    broken = set(rng.choice(FRAMES, 3, replace=False).tolist())
    with av.open(str(path)) as old, av.open(str(out), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for number, packet in enumerate(p for p in old.demux(old.streams.video[0]) if p.size):
            if number in broken:
                data = bytearray(bytes(packet))
                at = int(rng.integers(len(data) // 2, len(data)))
                data[at : at + 8] = rng.bytes(len(data[at : at + 8]))
                spoilt = av.Packet(bytes(data))
                spoilt.pts, spoilt.dts, spoilt.time_base = packet.pts, packet.dts, packet.time_base
                spoilt.is_keyframe = packet.is_keyframe
                packet = spoilt
            packet.stream = copy
            new.mux(packet)
    return out


HARMS = {
    "beginning cut off": lambda path, out, rng: without(path, out, lambda number, _: number < 5),
    "packets lost": lambda path, out, rng: without(path, out, lambda number, _: number in (30, 31, 52)),
    "key frame lost": lambda path, out, rng: without(path, out, lambda n, packet: packet.is_keyframe and n > 20),
    "bits flipped": flipped,
}
OFTEN = [("H.264", 0), ("HEVC, open groups", 0), ("AV1", 4)]
MORE = [(name, seed) for name in ("H.264", "HEVC", "HEVC, open groups", "MPEG-4", "VP9", "AV1") for seed in (1, 2, 3)]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name, seed", [*OFTEN, *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in MORE)])
def test_of_a_harmed_stream_every_frame_given_is_the_one_full_decoding_gives(stream, tmp_path, name, seed, harm):
    whole = stream(name, seed)
    rng = np.random.default_rng(seed)
    path = HARMS[harm](whole, tmp_path / f"harmed{whole.suffix}", rng)
    index, rgb = read_index(str(path)), UprightRgb()
    full = [(frame.pts, rgb(frame)) for frame in stream_frames(str(path), Damage(), beat=lambda: None)]
    stamps = [float(stamp * index.time_base) for stamp, _ in full]
    late = index.after_start(min(stamps[:17]))
    stamped, counted = np.array(stamps) - min(stamps[:17]) + late, repair_times(stamps, rate=25.0) + late
    for sampling, part in asked_for(rng):
        frames, times, done = frames_of(path, sampling, **part)
        assert frames or part, sampling
        for frame, time in zip(frames, times):
            # around lost key frames the decoder's own stamps go back and forth; then frames are counted
            places = [int(np.abs(known - time).argmin()) for known in (stamped, counted)]
            assert any((frame == full[place][1]).all() for place in places), (sampling, part, time, done)
            assert min(abs(stamped[places[0]] - time), abs(counted[places[1]] - time)) < 2e-3


@pytest.mark.parametrize("name", ["H.264, open groups", "HEVC", "VP9, hidden frames"])
def test_frames_are_the_same_whether_packets_are_held_or_read_again(stream, monkeypatch, name):
    path = stream(name, 0)
    part = {"start": 1.5, "end": 3.0}
    held, times, _ = frames_of(path, Sampling(fps=3.0), **part)
    monkeypatch.setattr(packets, "HELD_BYTES", 1000)
    again, same_times, _ = frames_of(path, Sampling(fps=3.0), **part)
    assert (times == same_times).all()
    assert all((a == b).all() for a, b in zip(held, again, strict=True))


@pytest.mark.parametrize("first", [30, 41])
def test_frames_hidden_by_an_edit_list_are_decoded_and_not_shown(stream, tmp_path, first):
    path = cut_without_encoding(stream("H.264", 0), tmp_path / "cut.mp4", first_frame=first)
    reference, stamps = sequential(path)
    for sampling, part in asked_for(np.random.default_rng(0)):
        wanted = select_frames(np.array(stamps) - stamps[0], sampling, average_rate=25.0, **part)
        frames, _, done = frames_of(path, sampling, **part)
        assert (len(frames), done.decoder_note) == (len(wanted), None)
        assert all((frame == reference[i]).all() for frame, i in zip(frames, wanted))


def test_a_part_of_a_long_file_is_sought_and_nothing_before_its_group_is_read(stream, monkeypatch):
    path = stream("H.264", 0)
    whole, _, _ = frames_of(path, Sampling(fps=5.0), start=3.0)
    index = read_index(str(path))
    plan = DecodePlan.of(index, index.pts[80:81])
    assert plan.runs[0][0] > 40
    monkeypatch.setattr(packets, "HELD_BYTES", 1000)
    monkeypatch.setattr(decoders, "WORTH_SEEKING", 10)
    fed = []
    real = decoders._of_runs
    monkeypatch.setattr(
        decoders, "_of_runs", lambda packets, plan, number: (fed.append(number), real(packets, plan, number))[1]
    )
    sought, _, done = frames_of(path, Sampling(fps=5.0), start=3.0)
    assert fed[0] > 40 and done.status is Status.OK
    assert all((a == b).all() for a, b in zip(sought, whole, strict=True))


def test_a_file_that_calls_every_packet_a_key_frame_is_not_believed(stream, tmp_path):
    path = stream("VP9, hidden frames", 0)
    liar = tmp_path / "liar.mkv"
    with av.open(str(path)) as old, av.open(str(liar), "w") as new:
        copy = new.add_stream_from_template(old.streams.video[0], opaque=True)
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream, packet.is_keyframe = copy, True
                new.mux(packet)
    assert len(read_index(str(liar)).groups) == len(read_index(str(path)).groups)
    reference, _ = sequential(liar)
    frames, _, _ = frames_of(liar, Sampling(fps=None, max_frames=4))
    wanted = np.linspace(0, FRAMES - 1, 4, dtype=int)
    assert all((frame == reference[i]).all() for frame, i in zip(frames, wanted, strict=True))


def test_what_is_fed_is_told_by_the_packets_alone(tmp_path):
    options = {"x264-params": "keyint=30:min-keyint=30:scenecut=0:bframes=2:b-pyramid=0:b-adapt=0"}
    index = read_index(str(make_clip(tmp_path / "a.mp4", frames=range(90), options=options)))
    assert index.groups.tolist() == [0, 30, 60]
    one = DecodePlan.of(index, index.pts[[36]])
    assert one.runs == [(30, 30 + 4)] or one.runs[0][0] == 30
    assert one.feeds[:30].sum() == one.feeds[60:].sum() == 0
    assert one.feeds.sum() == 3, "a key frame and two P-frames, no B-frame between them"
    everything = DecodePlan.of(index, index.pts)
    assert everything.runs == [(0, 89)] and everything.feeds.all(), "the decoder is never emptied in between"


def test_a_leading_picture_joins_its_group_to_the_one_before(stream):
    index = read_index(str(stream("MPEG-4, Matroska", 0)))
    led = int(np.flatnonzero(index.leading)[0])
    start = int(index.groups[index.groups <= led][-1])
    plan = DecodePlan.of(index, np.sort(index.fed[[0, start, led]]))
    assert plan.runs == [(0, led)] and plan.feeds[[0, start, led]].all()
    assert DecodePlan.of(index, index.fed[[start]]).runs == [(start, start)]
