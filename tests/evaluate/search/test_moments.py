"""Moments: runs of frames that fit, merged over small gaps, with the times at which they begin and end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glscl.evaluate.search.moments import GAP, around_best, moments_of


def spans(cosines, times=None, duration=0.0, count=9):
    times = np.arange(len(cosines)) if times is None else times
    found = moments_of(np.array(cosines, np.float32), np.array(times, np.float32), duration, count=count)
    return [(each.start, each.end, round(each.score, 3), each.time) for each in found]


def test_a_moment_is_the_run_around_the_best_frame_and_ends_where_the_next_frame_begins():
    assert spans([0.1, 0.1, 0.6, 0.59, 0.1, 0.1, 0.1]) == [(2.0, 4.0, 0.6, 2.0)]


def test_small_gaps_are_bridged_and_larger_ones_part_moments_best_first():
    near, far = [0.1] * 9, [0.1] * 12
    near[1] = near[2 + GAP] = 0.6
    assert len(spans(near)) == 1
    far[1], far[8] = 0.58, 0.6
    assert [s[:2] for s in spans(far)] == [(8.0, 9.0), (1.0, 2.0)]
    assert [s[:2] for s in spans(far, count=1)] == [(8.0, 9.0)]


def test_the_last_frame_ends_with_the_file_or_as_long_after_it_as_frames_are_apart():
    assert spans([0.1, 0.1, 0.6], [0.0, 0.5, 1.0]) == [(1.0, 1.5, 0.6, 1.0)]
    assert spans([0.1, 0.1, 0.6], [0.0, 0.5, 1.0], duration=1.2)[0][1] == pytest.approx(1.2)
    assert spans([0.6], [3.0]) == [(3.0, 4.0, 0.6, 3.0)]


def test_where_all_frames_are_alike_the_moment_is_the_whole_video():
    assert spans([0.5] * 4)[0][:2] == (0.0, 4.0)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50), st.integers(1, 20))
def test_moments_lie_in_the_video_do_not_overlap_and_hold_the_best_frame(cosines, width):
    found = moments_of(np.array(cosines, np.float32), np.arange(len(cosines), dtype=np.float32), count=99)
    assert found[0].score == np.float32(max(cosines)) and all(
        0 <= m.start <= m.time < m.end <= len(cosines) for m in found
    )
    ordered = sorted(found)
    assert all(a.end <= b.start for a, b in zip(ordered, ordered[1:]))
    chosen = around_best(np.array(cosines, np.float32), width)
    assert len(chosen) == min(width, len(cosines)) and int(np.argmax(np.array(cosines, np.float32))) in chosen
    assert (np.diff(chosen) == 1).all() and chosen[0] >= 0 and chosen[-1] < len(cosines)
