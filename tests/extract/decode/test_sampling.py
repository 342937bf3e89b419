"""Which frames are taken, against slow searches that follow the definition word by word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.common.errors import UsageError
from glscl.extract.decode.sampling import Sampling, repair_times, select_frames, window


def nearest_by_search(times, fps, start=0.0):
    """For each sample start + k/fps up to the last frame, the frame with the least distance (the earlier of two)."""
    picked, k = [], 0
    while len(times) and start + k / fps <= times[-1] + 1e-6:
        best = 0
        for i in range(len(times)):
            if abs(times[i] - (start + k / fps)) < abs(times[best] - (start + k / fps)) - 2e-6:
                best = i
        if best not in picked:
            picked.append(best)
        k += 1
    return picked or ([0] if len(times) else [])


# stamps on a grid of 1/600 s that no middle between two frames shares with a sample, except by exact ties
grid_times = st.lists(st.integers(1, 90), min_size=0, max_size=60).map(
    lambda steps: np.cumsum([0, *steps]).astype(np.float64) / 600
)


@settings(max_examples=300, deadline=None)
@given(times=grid_times, fps=st.sampled_from([0.5, 1.0, 2.0, 3.0, 10.0, 25.0, 120.0]))
def test_time_rule_takes_the_frames_nearest_to_the_samples(times, fps):
    assert select_frames(times, Sampling(fps=fps)).tolist() == nearest_by_search(times, fps)


@settings(max_examples=200, deadline=None)
@given(
    times=grid_times,
    fps=st.sampled_from([1.0, 3.0, 10.0]),
    cut=st.tuples(st.integers(0, 1500), st.integers(1, 900)),
)
def test_a_clip_is_sampled_from_its_start_among_its_own_frames(times, fps, cut):
    start, end = cut[0] / 600, (cut[0] + cut[1]) / 600
    inside = [i for i, t in enumerate(times) if start - 1e-9 <= t < end - 1e-9]
    expected = [inside[i] for i in nearest_by_search(times[inside], fps, start)] if inside else []
    assert select_frames(times, Sampling(fps=fps), start=start, end=end).tolist() == expected


def test_of_two_frames_equally_near_the_earlier_is_taken():
    times = np.arange(50) / 25  # sample 0.5 s lies between 0.48 and 0.52
    assert select_frames(times, Sampling(fps=2.0)).tolist() == [0, 12, 25, 37]


def test_no_frame_comes_twice_when_there_are_fewer_frames_than_samples():
    times = np.arange(9) / 3
    assert select_frames(times, Sampling(fps=100.0)).tolist() == list(range(9))


def test_native_takes_every_frame():
    assert select_frames(np.arange(7) * 0.1, Sampling(fps=None)).tolist() == list(range(7))


def test_a_gap_of_years_costs_no_time():
    times = np.array([0.0, 1.0, 1e9])
    assert select_frames(times, Sampling(fps=30.0)).tolist() == [0, 1, 2]


def test_cap_spreads_by_linspace_over_the_sampled_frames():
    times = np.arange(300) / 30
    assert select_frames(times, Sampling(fps=1.0, max_frames=4)).tolist() == [0, 90, 180, 270]
    assert select_frames(times, Sampling(fps=1.0, max_frames=40)).tolist() == list(range(0, 300, 30))
    assert select_frames(times, Sampling(fps=None, max_frames=3)).tolist() == [0, 149, 299]


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 400),
    rate=st.sampled_from([3.0, 15.0, 23.976, 25.0, 29.97, 60.0, 0.3]),
    cap=st.one_of(st.none(), st.integers(1, 40)),
)
def test_public_rule_counts_frames_as_the_published_program_does(count, rate, cap):
    positions = list(range(0, count, max(1, round(rate / 1))))
    if cap is not None and len(positions) > cap:
        positions = [positions[j] for j in np.linspace(0, len(positions) - 1, num=cap, dtype=int)]
    uneven = np.cumsum(np.full(count, 0.01) + np.arange(count) % 3)
    chosen = select_frames(uneven, Sampling(fps=1.0, rule="public", max_frames=cap), average_rate=rate)
    assert chosen.tolist() == positions


def of_opencv(count, rate, fps, start, end):
    """Numbers of the frames that the public loader asks OpenCV for, frame by frame, until one is not there."""
    second, found = int(rate), []
    total = (count + second - 1) // second
    first, last = (0, total) if start is None else (start, min(end, total))
    within = list(range(0, second, max(1, second // fps)))[:fps]
    for moment in np.arange(first, last + 1):
        for step in within:
            number = int(moment * second) + step
            if number >= count:
                return found
            found.append(number)
    return found


@settings(max_examples=100, deadline=None)
@given(
    count=st.integers(1, 2000),
    rate=st.sampled_from([3.0, 15.0, 19.62, 23.976, 25.0, 29.97, 60.0]),
    fps=st.sampled_from([1, 2, 3]),
    part=st.sampled_from([(None, None), (0.0, 31.0), (0, 5), (2.5, 9.0)]),
)
def test_opencv_rule_counts_frames_as_the_public_loader_of_didemo_and_activitynet_does(count, rate, fps, part):
    chosen = select_frames(
        np.arange(count) / rate, Sampling(fps=fps, rule="opencv"), start=part[0], end=part[1], average_rate=rate
    )
    assert chosen.tolist() == of_opencv(count, rate, fps, *part)


def test_opencv_rule_takes_32_frames_of_the_31_seconds_of_didemo():
    for rate in (25.0, 29.97, 30.0):
        times = np.arange(2000) / rate
        taken = select_frames(times, Sampling(rule="opencv"), start=0.0, end=31.0, average_rate=rate)
        assert taken.tolist() == [int(rate) * second for second in range(32)]


def test_public_rule_measures_the_rate_where_the_file_declares_none():
    assert select_frames(np.arange(100) / 10, Sampling(rule="public")).tolist() == list(range(0, 100, 10))


def test_window_includes_its_start_and_excludes_its_end():
    assert window(np.arange(10) * 0.1, 0.2, 0.5) == slice(2, 5)
    assert window(np.arange(10) * 0.1, 5.0, 9.0) == slice(10, 10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": 0.0},
        {"fps": -1.0},
        {"fps": float("nan")},
        {"fps": float("inf")},
        {"rule": "x"},
        {"max_frames": 0},
        {"rule": "opencv", "fps": 0.5},
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong):
    with pytest.raises(UsageError, match="expected"):
        Sampling(**wrong)


def test_permuted_stamps_are_sorted():
    raw = [0.04, 0.12, 0.08, 0.16, 0.2]
    assert repair_times(raw, rate=25.0) == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16])


def test_missing_and_repeated_stamps_go_on_by_the_usual_step():
    raw = [1.0, 1.04, None, 1.12, 1.12, 1.2]
    assert repair_times(raw, rate=None) == pytest.approx([0.0, 0.04, 0.08, 0.12, 0.16, 0.2])


def test_no_stamps_at_all_go_by_the_declared_rate():
    assert repair_times([None] * 4, rate=10.0) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert repair_times([], rate=10.0).tolist() == []


def test_a_stream_whose_clock_starts_again_keeps_going_forward():
    clock = [i * 0.04 for i in range(100)]
    repaired = repair_times(clock + clock, rate=None)
    assert repaired == pytest.approx([i * 0.04 for i in range(200)])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-100, 100, allow_nan=False)), max_size=40))
def test_repaired_times_always_ascend_from_zero(raw):
    times = repair_times(raw, rate=30.0)
    assert len(times) == len(raw)
    assert (np.diff(times) > 0).all()
    assert not len(times) or times[0] == 0.0
