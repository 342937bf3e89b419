"""Real files of every container and codec one meets, and files made to break decoders (GLSCL_REAL_DATA)."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import av
import numpy as np
import pytest

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)
from decode_faults import Shrink
from painted_clips import decoded, read_number, sequential

from glscl.cache.schema import Status
from glscl.extract.decode.pool import DecodePool
from glscl.extract.decode.sampling import Sampling, repair_times, select_frames
from glscl.extract.decode.video import Decoding, VideoDone, VideoTask

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

EACH_SECOND, NATIVE = Sampling(fps=1.0), Sampling(fps=None)
PIXELS_TO_COMPARE = 4e7  # of a whole video; longer ones are only decoded, not compared frame by frame


def decode(path, sampling, **options):
    *chunks, done = decoded(path, sampling, **options)
    frames = [frame for chunk in chunks for frame in chunk.frames]
    return frames, np.array([t for chunk in chunks for t in chunk.times], np.float64), done


def table(real_data: Path) -> list[dict[str, str]]:
    with open(real_data / "video_table.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_that_can_be_decoded_gives_frames_and_every_other_its_reason(real_data):
    rows = {row["file"]: row for row in table(real_data)}
    files = sorted(p for p in (real_data / "videos").rglob("*") if p.is_file() and p.name != "SOURCE.txt")
    assert len(files) == 158
    names = [str(path.relative_to(real_data / "videos")) for path in files]
    done: dict[int, VideoDone] = {}
    with DecodePool(Decoding(sampling=EACH_SECOND, prepare=Shrink()), workers=2) as pool:
        for event in pool.decode(VideoTask(i, str(path)) for i, path in enumerate(files)):
            if isinstance(event, VideoDone):
                done[event.item] = event
    assert len(done) == 158
    for i, name in enumerate(names):
        decodable = int(rows[name]["decoded_frames"] or 0) if name in rows else None
        if done[i].frames:
            assert decodable != 0, name
            assert done[i].status in (Status.OK, Status.PARTIAL), name
            assert done[i].decoder == "pyav" and done[i].codec and done[i].frames_total > 0, name
            if not rows[name]["error"] and not name.endswith("nasa_13013.mp4"):  # the table has its other stream
                assert done[i].frames_total == decodable, name
        else:
            assert not decodable, name
            assert done[i].status is Status.DECODE_ERROR and done[i].reason, name
    planned = [video for video in done.values() if video.frames and not video.decoder_note]
    assert len(planned) > 90
    fed, frames = (sum(getattr(video, what) for video in planned) for what in ("packets", "frames_total"))
    assert 0 < fed < 0.75 * frames, "the plan leaves out what the wanted frames do not depend on"


def late_by(path: Path, stamps: list[float | None]) -> float:
    """Seconds from the start of the file, as a player counts, to the first frame."""
    tolerant = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}
    with av.open(str(path), **tolerant) as container:
        start = None if container.format.name == "avi" else container.start_time
    first = None if not stamps or stamps[0] is None else min(stamp for stamp in stamps[:17] if stamp is not None)
    return 0.0 if start is None or first is None or first - start / 1e6 < 2e-6 else first - start / 1e6


def test_sampled_frames_are_those_of_a_sequential_decode(real_data):
    compared = 0
    for row in table(real_data):
        size = int(row["decoded_frames"] or 0) * int(row["width"] or 0) * int(row["height"] or 0)
        if not 0 < size <= PIXELS_TO_COMPARE:
            continue
        path = real_data / "videos" / row["file"]
        reference, stamps = sequential(path)
        times = repair_times(stamps, rate=float(row["avg_fps"] or 25)) + late_by(path, stamps)
        for sampling in (EACH_SECOND, Sampling(fps=2.5, max_frames=5)):
            wanted = select_frames(times, sampling)
            frames, got_times, done = decode(path, sampling)
            if row["error"]:  # we may go on at a key frame behind the error
                assert done.status is Status.PARTIAL, row["file"]
                continue
            assert len(frames) == len(wanted), row["file"]
            assert got_times == pytest.approx(times[wanted], abs=1e-3), row["file"]
            assert all((a == reference[i]).all() for a, i in zip(frames, wanted)), (row["file"], done)
        compared += 1
    assert compared > 80


# first painted number, and frames a second of the painted clock
STEADY = {
    "av1.mp4": 0,
    "cut_editlist.mp4": 83,
    "cut_editlist_g12.mp4": 83,
    "fragmented.mp4": 0,
    "h264.mkv": 0,
    "h264.ts": 0,
    "hang_cut10.mp4": 250,
    "hevc.mp4": 0,
    "mpeg4.avi": 0,
    "oneframe.mp4": 0,
    "rot90.mp4": 0,
    "start_offset2s.mp4": 0,
    "trim_cut4.mp4": 100,
    "trunc95_faststart.mp4": 0,
    "vp9.webm": 0,
}


LATE = {"fragmented.mp4": 0.08, "h264.ts": 0.0232}  # seconds from the start of the file to the first picture


@pytest.mark.parametrize("name", STEADY)
@pytest.mark.parametrize("fps", [None, 1.0, 3.3])
def test_painted_numbers_fit_the_times(real_data, name, fps):
    frames, times, done = decode(real_data / "made" / name, Sampling(fps=fps))
    if name == "rot90.mp4":
        frames = [np.rot90(frame, -1) for frame in frames]
    painted = np.array([read_number(frame, cells=14, share=6) for frame in frames])
    late = LATE.get(name, 0.0)
    assert (painted == STEADY[name] + np.round((times - late) * 25)).all()
    assert done.status is (Status.PARTIAL if name.startswith("trunc") else Status.OK)
    if fps == 1.0:
        expected = select_frames(late + np.arange(done.frames_total) / 25, EACH_SECOND)
        if name != "cut_editlist_g12.mp4":  # lacks frames near its end
            assert (painted == STEADY[name] + expected).all()


@pytest.mark.parametrize("name", ["corrupt60.mp4", "dropped_pkts.mp4", "vfr.mp4"])
@pytest.mark.parametrize("sampling", [NATIVE, EACH_SECOND])
def test_damaged_and_uneven_files_equal_a_sequential_decode(real_data, name, sampling):
    path = real_data / "made" / name
    reference, stamps = sequential(path)
    times = np.array(stamps) - stamps[0]
    frames, got, done = decode(path, sampling)
    wanted = select_frames(times, sampling)
    assert all((a == reference[i]).all() for a, i in zip(frames, wanted))
    assert len(frames) == len(wanted)
    assert got == pytest.approx(times[wanted], abs=1e-3)
    assert done.status is (Status.PARTIAL if name.startswith("corrupt") else Status.OK)


@pytest.mark.parametrize("name", ["audio_only.mp4", "text.mp4"])
def test_made_files_without_pictures_say_so(real_data, name):
    frames, _, done = decode(real_data / "made" / name, EACH_SECOND)
    assert not frames and done.status is Status.DECODE_ERROR and done.reason
