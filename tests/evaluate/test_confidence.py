"""Bootstrap intervals against a slow reference, the theory of proportions, and simulated truth."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.common.errors import InputError, UsageError
from glscl.evaluate.confidence import confidence_95, confidence_of_directions, resampled_metrics
from glscl.evaluate.metrics import stored_metrics, summarise
from glscl.evaluate.ranks import retrieval_ranks


def some_ranks(seed=0, n=200, halves=True):
    r = np.random.RandomState(seed)
    return np.floor(r.exponential(12, n)) + 1 + (r.randint(0, 2, n) / 2 if halves else 0)


@given(st.integers(0, 1000), st.integers(1, 30), st.booleans())
@settings(max_examples=40, deadline=None)
def test_each_resample_is_the_summary_of_the_queries_it_draws(seed, n, clustered):
    ranks = some_ranks(seed, n)
    cluster = np.random.RandomState(seed).randint(5, 9, n) if clustered else None
    names = np.arange(n) if cluster is None else np.unique(cluster)
    found = resampled_metrics(ranks, cluster, resamples=6, seed=seed)
    rng = np.random.default_rng(seed)
    for row in found:
        drawn = names[rng.integers(0, len(names), len(names))]
        queries = np.concatenate([ranks[(np.arange(n) if cluster is None else cluster) == name] for name in drawn])
        expected = summarise(queries)
        np.testing.assert_allclose(row, [expected[name] for name in stored_metrics()], rtol=1e-12)


def test_the_interval_of_a_recall_is_that_of_a_proportion():
    ranks = np.where(np.arange(1000) < 400, 1.0, 70.0)
    low, high = confidence_95(ranks, resamples=4000)["R@1"]
    half = 1.96 * np.sqrt(0.4 * 0.6 / 1000) * 100
    assert low == pytest.approx(40 - half, abs=0.35) and high == pytest.approx(40 + half, abs=0.35)


def test_about_95_of_100_intervals_hold_the_truth():
    r = np.random.RandomState(1)
    held = 0
    for seed in range(100):
        low, high = confidence_95(r.geometric(0.1, 300), resamples=300, seed=seed)["MnR"]
        held += low <= 10 <= high
    assert 0.89 <= held / 100 <= 0.99


def test_captions_of_one_video_widen_the_interval_when_drawn_together():
    r = np.random.RandomState(2)
    video = np.repeat(np.arange(50), 40)
    ranks = np.where(r.uniform(size=50) < 0.5, 1.0, 30.0)[video]  # a video's captions all succeed or all fail
    alone, together = confidence_95(ranks), confidence_95(ranks, video)
    width = {name: high - low for name, (low, high) in alone.items()}
    clustered = {name: high - low for name, (low, high) in together.items()}
    assert 5 < clustered["R@1"] / width["R@1"] < 7.5  # the square root of 40 is 6.3
    assert clustered["MnR"] > 5 * width["MnR"]


@given(st.integers(0, 1000), st.integers(1, 60))
@settings(max_examples=30, deadline=None)
def test_intervals_hold_no_impossible_value_and_are_ordered(seed, n):
    ranks = some_ranks(seed, n)
    for name, (low, high) in confidence_95(ranks, resamples=50).items():
        assert low <= high
        if name.startswith("R@"):
            assert low >= 0 and high <= 100
        else:
            assert ranks.min() <= low and high <= ranks.max()


def test_one_query_and_one_video_leave_nothing_to_draw():
    for ranks, cluster in (([3.5], None), ([1, 2, 60, 7], [4, 4, 4, 4])):
        expected = summarise(ranks)
        found = confidence_95(ranks, cluster, resamples=20)
        assert found == {name: [pytest.approx(expected[name])] * 2 for name in stored_metrics()}
        assert confidence_95(ranks, cluster, resamples=1) == found, "one draw is enough"


def test_the_seed_decides_and_names_of_clusters_do_not_matter():
    ranks, video = some_ranks(), np.random.RandomState(3).randint(0, 20, 200)
    assert confidence_95(ranks, video, seed=1) == confidence_95(ranks, video * 10 + 7, seed=1)
    assert confidence_95(ranks, video, seed=1) != confidence_95(ranks, video, seed=2)


def test_a_wider_level_holds_the_narrower():
    wide, narrow = (confidence_95(some_ranks(), level=level) for level in (0.99, 0.5))
    for name in stored_metrics():
        assert wide[name][0] <= narrow[name][0] <= narrow[name][1] <= wide[name][1]


def test_text_to_video_is_drawn_by_video_and_video_to_text_by_query():
    r = np.random.RandomState(4)
    video_of_text = r.randint(0, 6, 40)
    ranks = retrieval_ranks(r.standard_normal((40, 8)), video_of_text)
    found = confidence_of_directions(ranks, video_of_text, resamples=100, seed=5)
    assert found["text_to_video"] == confidence_95(ranks["text_to_video"], video_of_text, resamples=100, seed=5)
    for direction in ("video_to_text", "video_to_text_caption"):
        assert found[direction] == confidence_95(ranks[direction], resamples=100, seed=5)


@pytest.mark.parametrize(
    "ranks,cluster,message",
    [
        ([], None, "at least one query"),
        ([[1, 2]], None, "at least one query"),
        ([1, 0.5], None, "the rank of query 1 is 0.5"),
        ([np.nan, 1], None, "the rank of query 0 is nan"),
        ([1, 2, 3], [0, 1], "one entry for each of 3 queries"),
    ],
)
def test_ranks_that_cannot_be_are_refused(ranks, cluster, message):
    with pytest.raises(InputError, match=message):
        confidence_95(ranks, cluster)


@pytest.mark.parametrize("options", [{"resamples": 0}, {"level": 1.0}, {"level": 0.0}])
def test_senseless_options_are_refused(options):
    with pytest.raises(UsageError, match="resamples must be at least 1"):
        confidence_95([1, 2], **options)
