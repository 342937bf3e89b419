"""All heads on one cache: those that fit, over seeds, in one table; what is done is not done again."""

from __future__ import annotations

import json
from statistics import mean, stdev

import pytest

from glscl.common.errors import UsageError
from glscl.common.tables import render
from glscl.evaluate.leaderboard.leaderboard import fitting_heads, leaderboard
from glscl.train_head.heads import HEAD_NAMES

QUICK = {"epochs": 1, "batch_size": 8, "validation": 4}
HEADS = ["mean_pool", "projection"]


@pytest.fixture(scope="module")
def store(small_cache_class, tmp_path_factory):
    return small_cache_class(
        tmp_path_factory.mktemp("board") / "cache", "zarr", "float16", videos=24, captions=3, dim=8, seed=0
    ).fill()


@pytest.fixture(scope="module")
def board(store, tmp_path_factory):
    out = tmp_path_factory.mktemp("board")
    return out, leaderboard(store, out, QUICK, heads=HEADS, seeds=2)


def test_a_row_is_the_mean_of_its_seeds_with_an_interval_and_costs(board):
    out, found = board
    assert {row.head for row in found.rows} == {*HEADS}
    for row in found.rows:
        results = [json.loads((run / "result.json").read_text()) for run in row.runs]
        assert len(results) == 2 and len({run.name for run in row.runs}) == 2
        for direction, metric in (("text_to_video", "R@1"), ("video_to_text", "R@10")):
            value, low, high = row.metrics[direction][metric]
            assert value == pytest.approx(mean(each[direction][metric] for each in results))
            assert low <= value <= high
        assert row.deviation == pytest.approx(stdev(each["text_to_video"]["R@1"] for each in results))
        assert row.parameters == (2 * 8 * 8 if row.head == "projection" else 0) + 1 and row.seconds > 0
    first, second = found.rows
    assert first.metrics["text_to_video"]["R@1"] >= second.metrics["text_to_video"]["R@1"]
    assert first.p is None and 0 < second.p <= 1
    assert json.loads((out / "leaderboard.json").read_text())["rows"][0]["head"] == first.head
    text = render(found.table(), "markdown")
    assert "mean_pool" in text and "selected on it" in text


def test_what_is_done_is_not_done_again_and_more_seeds_are_added(board, store, monkeypatch):
    out, before = board
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("best.safetensors")}
    judged = []
    monkeypatch.setattr(
        "glscl.evaluate.leaderboard.leaderboard.evaluate_run", lambda *args, **named: judged.append(args)
    )
    again = leaderboard(store, out, QUICK, heads=HEADS, seeds=2)
    assert not judged and again.rows[0].metrics == before.rows[0].metrics
    assert {path: path.stat().st_mtime_ns for path in out.rglob("best.safetensors")} == weights
    monkeypatch.undo()
    more = leaderboard(store, out, QUICK, heads=["mean_pool"], seeds=3)
    assert len(more.rows[0].runs) == 3


def test_heads_that_do_not_fit_are_left_out_with_the_reason(store, monkeypatch):
    fits, left = fitting_heads(store)
    assert {*fits, *left} == {*HEAD_NAMES} and "transformer on every pair" in left["tight_transf"]
    monkeypatch.setattr(type(store), "has_tokens", False)
    fits, left = fitting_heads(store)
    assert "glscl" not in fits and "token features" in left["wti"] and "mean_pool" in fits
    with pytest.raises(UsageError, match="glscl does not fit .*token features"):
        fitting_heads(store, ["glscl"])
    with pytest.raises(UsageError, match="there is no head 'glcsl'"):
        fitting_heads(store, ["glcsl"])
