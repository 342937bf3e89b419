"""Paired tests against enumeration, the queries that moved, and the published rows."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.common.errors import InputError, UsageError
from glscl.evaluate.confidence import resampled_metrics
from glscl.evaluate.metrics import stored_metrics, summarise
from glscl.evaluate.paired import (
    Change,
    common_queries,
    most_changed,
    paired_test,
)
from glscl.evaluate.published import FINE_TUNED, FROZEN, HEAD_GFLOPS, PUBLISHED
from glscl.extract.datasets import DATASETS

# ---- paired tests ----------------------------------------------------------------------------------------------------


def some_ranks(seed, n):
    r = np.random.RandomState(seed)
    return np.floor(r.exponential(5, n)) + 1 + r.randint(0, 2, n) / 2


def enumerated_p(before, after, cluster):
    """Every way to exchange the two runs, cluster by cluster."""

    def difference(a, b):
        first, second = summarise(a), summarise(b)
        return np.array([second[name] - first[name] for name in stored_metrics()])

    observed = np.abs(difference(before, after))
    names = np.unique(cluster)
    large = []
    for exchange in itertools.product([False, True], repeat=len(names)):
        swap = np.isin(cluster, names[np.array(exchange)])
        found = difference(np.where(swap, after, before), np.where(swap, before, after))
        large.append(np.abs(found) >= observed - 1e-9)
    return np.mean(large, axis=0)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.exhaustive) for seed in (2, 3))])
@pytest.mark.parametrize("clustered", [False, True])
def test_p_values_approach_those_of_all_exchanges(seed, clustered):
    before, after = some_ranks(seed, 10), some_ranks(seed + 50, 10) + seed % 2
    cluster = np.arange(10) // 2 if clustered else np.arange(10)
    tests = paired_test(before, after, cluster if clustered else None, resamples=4000, seed=seed)
    np.testing.assert_allclose(
        [tests[name].p for name in stored_metrics()], enumerated_p(before, after, cluster), atol=0.035
    )


@given(st.integers(0, 1000), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_a_comparison_gives_both_metrics_and_turned_round_the_opposite(seed, n):
    before, after = some_ranks(seed, n), some_ranks(seed + 1, n)
    there, back = paired_test(before, after, resamples=30), paired_test(after, before, resamples=30)
    for name in stored_metrics():
        assert there[name].before == summarise(before)[name] and there[name].after == summarise(after)[name]
        assert there[name].difference == -back[name].difference
        assert there[name].interval_95 == pytest.approx([-edge for edge in reversed(back[name].interval_95)])
        assert there[name].p == back[name].p and 1 / 31 <= there[name].p <= 1
        assert there[name].interval_95[0] <= there[name].interval_95[1]


def test_a_run_against_itself_is_never_different():
    tests = paired_test(some_ranks(0, 50), some_ranks(0, 50))
    assert all(of.p == 1 and of.difference == 0 and of.interval_95 == [0, 0] for of in tests.values())


def test_a_clear_gain_is_found_and_chance_is_not():
    r = np.random.RandomState(1)
    before = np.floor(r.exponential(20, 500)) + 1
    assert paired_test(before, np.maximum(1, before // 2))["MnR"].p < 0.01
    shuffled_p = [paired_test(some_ranks(s, 60), some_ranks(s + 500, 60), resamples=100)["MnR"].p for s in range(100)]
    assert np.mean(np.array(shuffled_p) < 0.05) < 0.13


def test_captions_that_share_a_video_count_as_one_trial():
    video = np.repeat(np.arange(6), 30)
    before, after = np.full(180, 3.0), np.full(180, 1.0)
    assert paired_test(before, after)["R@1"].p < 0.001
    assert paired_test(before, after, video)["R@1"].p == pytest.approx(2 / 2**6, abs=0.015)


def test_the_interval_draws_the_same_queries_for_both_runs():
    before = some_ranks(3, 300)
    after = before + 1
    assert paired_test(before, after)["MnR"].interval_95 == [1, 1]
    assert np.ptp(resampled_metrics(before, resamples=100, seed=0)[:, -1]) > 0.5


@pytest.mark.parametrize(
    "before,after,message",
    [([1, 2], [1, 2, 3], "ranked 2 and 3 queries"), ([], [], "at least one query"), ([1], [np.inf], "rank of query 0")],
)
def test_runs_that_cannot_be_paired_are_refused(before, after, message):
    for function in (paired_test, most_changed):
        with pytest.raises(InputError, match=message):
            function(before, after)
    with pytest.raises(UsageError, match="resamples"):
        paired_test([1], [1], resamples=0)


# ---- queries ---------------------------------------------------------------------------------------------------------


def test_the_queries_that_moved_furthest_come_first_and_all_are_counted():
    changes = most_changed([1, 10, 50, 4, 7, 2], [1, 1, 5, 40, 8, 2], top=1)
    assert changes[:3] == (2, 2, 2)
    assert changes.most_improved == [Change(2, 50, 5)]
    assert changes.most_worsened == [Change(3, 4, 40)]
    changes = most_changed([5, 5, 5], [4, 4, 6])
    assert changes.most_improved == [Change(0, 5, 4), Change(1, 5, 4)]
    assert changes.most_worsened == [Change(2, 5, 6)]


def test_only_common_queries_are_compared():
    first, second = common_queries(["a", "b", "c", "d"], ["d", "x", "b"])
    assert first.tolist() == [1, 3] and second.tolist() == [2, 0]
    with pytest.raises(InputError, match="share no query"):
        common_queries(["a"], ["b"])
    with pytest.raises(InputError, match="'a' stands twice in the second run"):
        common_queries(["a"], ["a", "b", "a"])


# ---- published -------------------------------------------------------------------------------------------------------


def test_published_rows_keep_frozen_and_fine_tuned_apart():
    assert set(PUBLISHED) == {FROZEN, FINE_TUNED}
    assert all("GLSCL" not in row.method for row in PUBLISHED[FROZEN])
    partial = {name for name, entry in DATASETS.items() if entry.partially_relevant}
    assert {row.dataset for row in PUBLISHED[FROZEN]} - partial == {row.dataset for row in PUBLISHED[FINE_TUNED]}
    known = {row.dataset: sum(row.text_to_video.values()) for row in PUBLISHED[FROZEN] if row.method == "GMMFormer"}
    assert known == pytest.approx({"tvr": 176.6, "activitynet_captions": 146.0, "charades_sta": 73.0}), (
        "SumR as published"
    )


def test_published_numbers_are_plausible_and_complete():
    for rows in PUBLISHED.values():
        assert len({(row.method, row.dataset, row.backbone) for row in rows}) == len(rows)
        for row in rows:
            for metrics in filter(None, (row.text_to_video, row.video_to_text)):
                assert 0 < metrics["R@1"] < metrics["R@5"] < metrics["R@10"] < 100
                assert all(metrics[name] >= 1 for name in metrics)
            assert row.source or row.method.startswith("CLIP zero-shot")
    (row,) = (r for r in PUBLISHED[FINE_TUNED] if (r.method, r.backbone) == ("GLSCL + QB-Norm", "ViT-B-32"))
    assert row.text_to_video == {"R@1": 50.0, "R@5": 73.7, "R@10": 82.8, "MdR": 1.5, "MnR": 14.2}
    (row,) = (r for r in PUBLISHED[FINE_TUNED] if r.method == "Prompt Switch")
    assert "MdR" not in row.text_to_video and row.text_to_video["MnR"] == 14.1
    assert min(HEAD_GFLOPS.values()) == HEAD_GFLOPS["CLIP4Clip"]


def test_comparisons_go_into_json():
    tests = paired_test([1, 2, 3], [1, 1, 5], resamples=10)
    assert json.loads(json.dumps({name: of._asdict() for name, of in tests.items()}))["MdR"]["before"] == 2
    assert json.loads(json.dumps(most_changed([1, 2], [2, 1])._asdict()))["improved"] == 1
