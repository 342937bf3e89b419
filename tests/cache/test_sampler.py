"""Batches of captions: who meets whom, who is left out, and that nothing but seed and epoch decides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.cache.sampler import CaptionSampler
from glscl.common.errors import InputError, UsageError

corpora = st.lists(st.integers(1, 12), min_size=2, max_size=40)  # captions of each video


def video_of_text(counts, seed=0):
    rng = np.random.default_rng(seed)
    return rng.permutation(np.repeat(np.arange(len(counts)) * 3, counts))  # ids with gaps, captions in any order


@settings(deadline=None)
@given(corpora, st.integers(2, 50), st.integers(0, 3), st.none() | st.integers(1, 5))
def test_no_video_stands_twice_in_a_batch_and_no_caption_twice_in_an_epoch(counts, size, epoch, limit):
    video = video_of_text(counts)
    sampler = CaptionSampler(video, size, seed=1, captions_per_video=limit)
    batches = sampler.epoch(epoch)
    assert batches.shape == (sampler.steps, sampler.batch_size) and sampler.batch_size <= size
    assert batches.dtype == np.int64 and sampler.steps >= 1
    assert len(np.unique(batches)) == batches.size
    for rows in batches:
        assert len(np.unique(video[rows])) == len(rows)
    if limit is not None:
        assert np.bincount(video[batches.ravel()]).max() <= limit


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(1, 10), st.integers(2, 40))
def test_equal_videos_lose_fewer_captions_than_a_tenth_or_a_batch(videos, captions, size):
    video = np.repeat(np.arange(videos), captions)
    sampler = CaptionSampler(video, size)
    left_out = len(video) - sampler.steps * sampler.batch_size
    assert left_out < sampler.batch_size or left_out <= 0.1 * len(video)


@pytest.mark.parametrize("same_video", ["separate", "mask", "negative"])
def test_every_caption_comes_once_an_epoch_where_batches_fill(same_video):
    video = np.repeat(np.arange(48), 5)
    batches = CaptionSampler(video, 16, same_video=same_video).epoch(0)
    assert sorted(batches.ravel()) == list(range(240))


def test_captions_left_out_of_an_epoch_change_from_epoch_to_epoch():
    video = np.arange(103)
    sampler = CaptionSampler(video, 10)
    assert (sampler.steps, sampler.batch_size) == (10, 10)
    seen = [frozenset(sampler.epoch(epoch).ravel()) for epoch in range(8)]
    assert len(set(seen)) > 1 and len(frozenset.union(*seen)) == 103


def test_the_captions_of_a_video_are_spread_over_the_epoch():
    video = np.repeat(np.arange(400), 10)
    batches = CaptionSampler(video, 40, seed=3).epoch(2)
    when = np.empty(len(video))
    when[batches.ravel()] = np.repeat(np.arange(100), 40)
    times = np.sort(when.reshape(400, 10), axis=1)
    # caption i of 10 falls into the i-th tenth of the epoch, but for a batch or two where it had to give way
    expected = np.arange(10) * 10
    assert (times >= expected - 2).all() and (times <= expected + 12).all()


def test_videos_meet_others_in_each_round():
    video = np.repeat(np.arange(60), 6)
    batches = CaptionSampler(video, 10).epoch(0)
    companions = {frozenset(video[rows]) for rows in batches}
    assert len(companions) == len(batches)


def test_the_same_seed_and_epoch_give_the_same_batches_and_others_do_not():
    video = video_of_text([3] * 50)
    one = CaptionSampler(video, 16, seed=7)
    assert np.array_equal(one.epoch(4), CaptionSampler(video, 16, seed=7).epoch(4))
    assert not np.array_equal(one.epoch(4), one.epoch(5))
    assert not np.array_equal(one.epoch(4), CaptionSampler(video, 16, seed=8).epoch(4))


def test_drawing_one_caption_a_video_draws_another_each_epoch():
    video = np.repeat(np.arange(32), 20)
    sampler = CaptionSampler(video, 8, captions_per_video=1)
    assert sampler.steps == 4
    drawn = [tuple(np.sort(sampler.epoch(epoch).ravel())) for epoch in range(3)]
    assert len(set(drawn)) == 3
    assert all(np.array_equal(np.unique(video[list(rows)]), np.arange(32)) for rows in drawn)


@pytest.mark.parametrize(
    ("counts", "asked", "size", "steps"),
    [
        ([20] * 10, 128, 10, 20),  # never more captions a batch than videos
        ([1] * 100, 60, 50, 2),  # rather two halves than three fifths
        ([1] * 100, 128, 100, 1),  # the only batch may be incomplete
        ([20] * 9000, 128, 128, 1406),  # MSR-VTT
    ],
)
def test_batch_sizes_fit_the_corpus(counts, asked, size, steps):
    sampler = CaptionSampler(np.repeat(np.arange(len(counts)), counts), asked)
    assert (sampler.batch_size, sampler.steps) == (size, steps)


def test_one_video_with_very_many_captions_does_not_shrink_the_batches():
    video = np.repeat(np.arange(1001), [1] * 1000 + [5000])
    sampler = CaptionSampler(video, 100)
    assert sampler.batch_size == 100
    assert all(len(np.unique(video[rows])) == 100 for rows in sampler.epoch(0))


def test_where_videos_may_meet_they_do():
    video = np.repeat(np.arange(10), 20)
    batches = CaptionSampler(video, 50, same_video="mask").epoch(0)
    assert batches.shape == (4, 50) and any(len(np.unique(video[rows])) < 50 for rows in batches)


def test_a_batch_can_be_shared_by_processes():
    video = np.arange(103)
    sampler = CaptionSampler(video, 11, multiple_of=4)
    assert sampler.batch_size == 8
    with pytest.raises(UsageError, match="shared by 4 processes"):
        CaptionSampler(np.arange(3), 128, multiple_of=4)


@pytest.mark.parametrize(
    ("counts", "size", "same_video"),
    [
        ([1], 128, "separate"),
        ([20], 8, "separate"),
        ([20], 8, "mask"),
        ([1] * 9, 1, "separate"),
        ([5] * 9, 1, "negative"),
    ],
)
def test_batches_without_a_negative_are_refused(counts, size, same_video):
    with pytest.raises(UsageError, match=r"Nothing can be learnt from batches of .* captions of .* videos"):
        CaptionSampler(np.repeat(np.arange(len(counts)), counts), size, same_video=same_video)


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(InputError, match="no captions"):
        CaptionSampler(np.zeros(0, int), 4)
    with pytest.raises(UsageError, match="separate, mask, negative"):
        CaptionSampler(np.arange(3), 4, same_video="together")
    for wrong in ({"batch_size": 0}, {"batch_size": 2, "captions_per_video": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            CaptionSampler(np.arange(3), **wrong)
