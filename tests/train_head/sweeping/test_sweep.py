"""A sweep: the grid is checked before anything trains, the cache is read once, finished points are left alone."""

from __future__ import annotations

import json

import pytest

from glscl.cache.table import FeatureTable
from glscl.common.errors import NonFiniteError, UsageError
from glscl.evaluate.evaluation import validation_metrics
from glscl.train_head.checkpoint import load_run, read_run
from glscl.train_head.settings import TrainSettings, resolve
from glscl.train_head.sweeping.sweep import Outcome, parse_sweep, sort_key, sweep_points, sweep_table, train_sweep
from glscl.train_head.train import LoadedSplits, train

QUICK = dict(head="projection", epochs=1, batch_size=8, validation=4)


def points(*pairs, config=QUICK, dim=8):
    return sweep_points(config, parse_sweep(pairs), dataset="made", embed_dim=dim)


@pytest.fixture
def store(small_cache):
    return small_cache(videos=24).fill()


@pytest.fixture
def loads(monkeypatch):
    """The splits that are read from now on."""
    read, original = [], FeatureTable.load.__func__

    def load(cls, store, split, **options):
        read.append(split)
        return original(cls, store, split, **options)

    monkeypatch.setattr(FeatureTable, "load", classmethod(load))
    return read


def test_a_grid_is_every_combination_with_its_settings():
    grid = points("lr=1e-3,1e-4", "adapter=none,mlp", "seed=1,2")
    assert len(grid) == 8 and len({point.name for point in grid}) == 8
    assert grid[0].name == "lr=0.001,adapter=none,seed=1"
    last = grid[-1].settings
    assert (last.lr, last.options["adapter"], last.seed) == (1e-4, "mlp", 2)
    assert {point.settings.epochs for point in grid} == {1}


def test_options_of_the_head_override_the_recipe_and_keep_the_rest_of_it():
    config = dict(head="glscl", options={"local_weight": "0.25"})
    for point, queries in zip(points("queries=4,12", config=config), (4, 12)):
        assert point.settings.options["queries"] == queries and point.changes == {"queries": queries}
        assert point.settings.options["local_weight"] == 0.25 and point.settings.options["temperature"] == 3.0


def test_heads_themselves_can_be_swept():
    config = dict(epochs=1)
    assert [p.settings.head for p in points("head=mean_pool,xpool", config=config)] == ["mean_pool", "xpool"]
    grid = points("head=ti,wti", "aggregator=none", config=config)
    assert [p.settings.options["aggregator"] for p in grid] == ["none", "none"]


@pytest.mark.parametrize(
    ("pairs", "config", "words"),
    [
        (["querries=4"], QUICK, "querries.*nor an option of projection"),
        (["queries=4"], QUICK, "queries"),
        (["select=last,test"], QUICK, "select"),
        (["lr"], QUICK, "KEY=VALUE"),
        (["lr=1e-3,"], QUICK, "KEY=VALUE"),
        (["lr=fast"], QUICK, "lr` is 'fast'; expected float"),
        (["lr=-1"], QUICK, "`lr` is -1.0"),
        (["seed=-1"], QUICK, "seed"),
        (["adapter=huge"], QUICK, "none, linear, mlp"),
        (["lr=1e-3,0.001"], QUICK, "lr=0.001 twice"),
        (["lr=1e-3", "lr=1e-4"], QUICK, "given twice"),
        (["epochs=1,2"], QUICK, "epochs is given both"),
        (["queries=4,8"], dict(head="glscl", options={"queries": "4"}), "queries is given both"),
        (["queries=4,0"], dict(head="glscl"), "queries=0 is no head: queries must be at least 1"),
        (["aggregator=../up"], dict(head="glscl"), "aggregator must be one of"),
        (["head=glscl,xpool", "queries=4"], {}, "head xpool has no such option"),
        (["head=glscl,nonsense"], {}, "nonsense"),
        (["lr=1e-3"], dict(select="test"), "`select=test`"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is(pairs, config, words):
    with pytest.raises(UsageError, match=words):
        points(*pairs, config=config)


def test_the_cache_is_read_once_for_all_points(store, tmp_path, loads):
    grid = points("head=projection,xpool", "lr=1e-3,1e-2", config=dict(epochs=1, batch_size=8, validation=4))
    rows = train_sweep(store, tmp_path / "s", grid, validate=validation_metrics)
    assert loads == ["train"] and len(rows) == 4


def test_a_table_read_with_tokens_serves_a_head_that_needs_none(store):
    splits = LoadedSplits(store, tokens=True)
    needy, plain = (TrainSettings(head=head, max_frames=3) for head in ("wti", "projection"))
    whole, plain = splits.load("train", needy), splits.load("train", plain)
    assert whole.token_values is not None and plain.token_values is None
    assert plain.frame_features is whole.frame_features
    assert LoadedSplits(store).load("train", TrainSettings(head="projection")).token_values is None


def test_a_point_is_the_run_that_training_alone_would_have_made(store, tmp_path):
    (point, _) = points("lr=1e-2,1e-3", config=QUICK)
    train_sweep(store, tmp_path / "s", points("lr=1e-2,1e-3"), validate=validation_metrics)
    alone = train(store, tmp_path / "alone", point.settings, validate=validation_metrics)
    swept, record = load_run(tmp_path / "s" / point.name)
    for name, value in load_run(alone.run)[0].state_dict().items():
        assert value.equal(swept.state_dict()[name])
    assert record["settings"] == read_run(alone.run)["settings"] and record["complete"]


def test_rows_are_sorted_by_validation_and_written_beside_the_runs(store, tmp_path):
    said = []
    rows = train_sweep(
        store, tmp_path / "s", points("lr=1e-1,1e-6,1e-2"), validate=validation_metrics, announce=said.append
    )
    found = [row.validation["text_to_video"]["R@1"] for row in rows]
    assert found == sorted(found, reverse=True)
    assert said[0] == "point 1 of 3: lr=0.1" and len(said) == 3
    written = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert [row["point"] for row in written["rows"]] == [row.point for row in rows]
    assert written["cache_fingerprint"] == store.fingerprint
    header, *lines = sweep_table(rows)
    assert header[0] == "lr" and "t→v R@1" in header and len(lines) == 3 and all(len(x) == len(header) for x in lines)


def test_order_is_by_text_to_video_then_by_the_other_direction_then_failures_last():
    def row(name, t2v, v2t, mean=2.0):
        metrics = {"text_to_video": {"R@1": t2v, "MnR": mean}, "video_to_text": {"R@1": v2t, "MnR": mean}}
        return Outcome(point=name, changes={}, run=name, validation=metrics)

    rows = [
        Outcome(point="failed", changes={}, run="f", error="NaN"),
        Outcome(point="unjudged", changes={}, run="u"),
        row("c", 40.0, 50.0),
        row("b", 50.0, 10.0),
        row("a", 50.0, 20.0, mean=3.0),
        row("first", 50.0, 20.0),
    ]
    assert [r.point for r in sorted(rows, key=sort_key)] == ["first", "a", "b", "c", "unjudged", "failed"]


def test_a_sweep_goes_on_where_it_stopped(store, tmp_path, loads):
    grid = points("lr=1e-2,1e-3")
    first = train_sweep(store, tmp_path / "s", grid[:1], validate=validation_metrics)
    weights = tmp_path / "s" / grid[0].name / "best.safetensors"
    before = weights.stat().st_mtime_ns
    rows = {row.point: row for row in train_sweep(store, tmp_path / "s", grid, validate=validation_metrics)}
    assert weights.stat().st_mtime_ns == before
    assert [rows[point.name].skipped for point in grid] == [True, False]
    assert rows[grid[0].name].validation == first[0].validation and rows[grid[0].name].seconds == first[0].seconds
    loads.clear()
    again = train_sweep(store, tmp_path / "s", grid, validate=validation_metrics)
    assert loads == [] and all(row.skipped for row in again)


def test_a_folder_of_other_settings_is_refused_before_anything_trains(store, tmp_path):
    train_sweep(store, tmp_path / "s", points("lr=1e-3"), validate=validation_metrics)
    longer = dict(head="projection", epochs=2, batch_size=8, validation=4)
    with pytest.raises(UsageError, match="begun with other settings"):
        train_sweep(store, tmp_path / "s", points("lr=1e-2,1e-3", config=longer), validate=validation_metrics)
    assert not (tmp_path / "s" / "lr=0.01").exists()
    run = train(store, tmp_path / "run", resolve(QUICK, dataset="made")).run
    with pytest.raises(UsageError, match="is a run"):
        train_sweep(store, run, points("lr=1e-3"))


def test_a_training_that_diverges_loses_its_own_point_only(store, tmp_path, monkeypatch):
    def diverging(store, out, settings, **options):
        if settings.lr == 0.1:
            raise NonFiniteError("the loss is nan")
        return train(store, out, settings, **options)

    monkeypatch.setattr("glscl.train_head.sweeping.sweep.train", diverging)
    rows = train_sweep(store, tmp_path / "s", points("lr=1e-1,1e-3"), validate=validation_metrics)
    assert [row.error for row in rows] == [None, "the loss is nan"]
    assert "failed" in sweep_table(rows)[2]


def test_precision_and_frames_can_differ_between_points(store, tmp_path, loads):
    rows = train_sweep(
        store, tmp_path / "s", points("precision=fp32,bf16", "max_frames=2,0"), validate=validation_metrics
    )
    assert len(rows) == 4 and all(row.error is None for row in rows)
    assert loads == ["train", "train"]
