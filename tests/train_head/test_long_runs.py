"""Long runs look after themselves: stopped at any moment they are saved, watched by a file, and doubted where they should be."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time

import pytest
import torch

from glscl.common.errors import OutOfMemoryError
from glscl.common.signals import interrupts_deferred
from glscl.evaluate.evaluation import evaluate_head, validation_metrics
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head.checkpoint import load_resume, load_run, read_run
from glscl.train_head.doubts import ScoreSummary, loss_doubt, score_doubts
from glscl.train_head.heads import build_head
from glscl.train_head.heartbeat import Heartbeat
from glscl.train_head.learner import Learner
from glscl.train_head.settings import TrainSettings
from glscl.train_head.train import Reporter, fit, train

SETTINGS = TrainSettings(head="projection", epochs=3, batch_size=8, lr=1e-3, log_every=2)


class Listen(Reporter):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def progress(folder):
    return json.loads((folder / "progress.json").read_text())


def new_head(table):
    torch.manual_seed(0)
    return build_head("projection", embed_dim=table.embed_dim)


def told_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)
    raise AssertionError("nobody heeded the signal")


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminable():
    """SIGTERM stops as Ctrl-C does, as in our commands."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


def test_a_validation_is_given_up_at_once_and_made_anew(planted, tmp_path, terminable):
    table, calls = planted(), []

    def validate(head):
        calls.append(len(calls))
        if len(calls) == 2:
            told_to_stop()
        return validation_metrics(head, table)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fit(new_head(table), table, SETTINGS, validate=validate, out=tmp_path / "run")
    assert time.monotonic() - began < 60
    state = load_resume(tmp_path / "run").state
    assert (state["epoch"], state["step"]) == (1, state["steps"]), "between the last step and the validation"
    assert progress(tmp_path / "run")["state"] == "stopped"

    resumed, straight = new_head(table), new_head(table)
    rest = fit(resumed, table, SETTINGS, validate=validate, out=tmp_path / "run", resume=True)
    whole = fit(
        straight, table, SETTINGS, validate=lambda head: validation_metrics(head, table), out=tmp_path / "whole"
    )
    assert [row["validation"] for row in rest.history] == [row["validation"] for row in whole.history]
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.filterwarnings("error")
def test_a_signal_waits_but_where_work_may_be_given_up(terminable):
    with interrupts_deferred() as asked:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.is_set()
        with pytest.raises(KeyboardInterrupt), asked.at_once():
            raise AssertionError("the block was entered")
    with interrupts_deferred() as asked, pytest.raises(KeyboardInterrupt), asked.at_once():
        told_to_stop()
    with interrupts_deferred() as asked:
        with asked.at_once():
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.is_set(), "outside of the block it waits again"
    with interrupts_deferred() as asked:  # schedulers ask more than once; who sits there may press Ctrl-C again
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    ran = threading.Thread(target=lambda: interrupts_deferred().__enter__().at_once().__enter__())
    ran.start()
    ran.join()


# --- validations that fail --------------------------------------------------------------------------------------------


def test_a_validation_that_fails_is_said_and_the_training_goes_on(planted, tmp_path):
    table, heard, calls = planted(), Listen(), []

    def validate(head):
        calls.append(0)
        if len(calls) == 2:
            raise RuntimeError("the disk of the videos is gone\nand more")
        return validation_metrics(head, table)

    fitted = fit(new_head(table), table, SETTINGS, validate=validate, out=tmp_path, reporter=heard)
    assert [("validation" in row, row.get("validation_failed")) for row in fitted.history] == [
        (True, None),
        (False, "RuntimeError: the disk of the videos is gone"),
        (True, None),
    ]
    assert sum("validation of epoch 2 failed" in note for note in heard.notes) == 1
    assert fitted.best["epoch"] in (1, 3)


def test_where_no_validation_succeeds_the_last_epoch_is_kept(small_cache, tmp_path):
    store, heard = small_cache(videos=40).fill(), Listen()

    def validate(head, table):
        raise MemoryError

    done = train(store, tmp_path / "run", SETTINGS, validate=validate, reporter=heard)
    head, record = load_run(tmp_path / "run")
    last, _ = load_run(tmp_path / "run", "last")
    assert all(torch.equal(value, last.state_dict()[name]) for name, value in head.state_dict().items())
    assert (done.selection, record["selection"], record["best"], record["complete"]) == ("last", "last", None, True)
    assert any("no validation succeeded" in note for note in heard.notes)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 139 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("std::bad_alloc"),
    ],
)
def test_a_step_that_does_not_fit_names_its_batch_and_what_to_lower(planted, tmp_path, monkeypatch, error):
    table, backward, steps = planted(), Learner.backward, []

    def full(self, *given):
        steps.append(0)
        if len(steps) == 3:
            raise error
        return backward(self, *given)

    monkeypatch.setattr(Learner, "backward", full)
    with pytest.raises(OutOfMemoryError, match=r"step 3 of \d+ in epoch 1: 8 captions with 4 frames a video") as caught:
        fit(new_head(table), table, SETTINGS, out=tmp_path)
    assert "Lower `batch_size` or `max_frames`" in str(caught.value) and "\n" not in str(caught.value)
    assert progress(tmp_path)["state"] == "failed" and "step 3" in progress(tmp_path)["reason"]


def test_another_error_of_a_step_stays_what_it_is(planted, monkeypatch):
    def broken(self, *given):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(Learner, "backward", broken)
    table = planted()
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        fit(new_head(table), table, SETTINGS)


# --- the heartbeat ----------------------------------------------------------------------------------------------------


def test_a_script_can_watch_how_far_a_training_is(planted, tmp_path, monkeypatch):
    monkeypatch.setattr("glscl.train_head.heartbeat.SECONDS", 0.0)
    table, seen = planted(), []

    class Watch(Reporter):
        def epoch(self, row, *, best):
            seen.append(progress(tmp_path))

    fit(
        new_head(table),
        table,
        SETTINGS,
        validate=lambda h: validation_metrics(h, table),
        out=tmp_path,
        reporter=Watch(),
    )
    steps = seen[0]["steps"]
    assert [(each["state"], each["epoch"], each["step"], each["done"]) for each in seen] == [
        ("validating", epoch, steps, epoch * steps) for epoch in (1, 2, 3)
    ]
    assert all(each["total"] == 3 * steps and each["process"] == os.getpid() for each in seen)
    assert seen[1]["seconds_left"] > 0 and seen[1]["captions_per_second"] > 0
    assert 0 < len(seen[1]["losses"]) <= 10 and all(math.isfinite(loss) for loss in seen[1]["losses"])
    last = progress(tmp_path)
    assert (last["state"], last["done"], last["seconds_left"], last["reason"]) == ("finished", 3 * steps, 0.0, None)


def test_the_heartbeat_costs_little_and_never_ends_a_training(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("glscl.train_head.heartbeat.write_atomically", lambda *given, **_: told.append(given))
    heart = Heartbeat(tmp_path, epochs=1, steps=10_000, done=0, batch_size=8)
    for step in range(10_000):
        heart.beat("training", epoch=0, step=step)
    assert len(told) <= 2
    heart.beat("stopped", epoch=0, step=9)
    assert b"stopped" in told[-1][1]
    monkeypatch.undo()
    Heartbeat(tmp_path / "progress.json" / "x", epochs=1, steps=1, done=0, batch_size=8).beat(
        "finished", epoch=1, step=0
    )
    (tmp_path / "file").write_text("")
    Heartbeat(tmp_path / "file", epochs=1, steps=1, done=0, batch_size=8).beat("finished", epoch=1, step=0)


# --- doubts -----------------------------------------------------------------------------------------------------------


def test_a_loss_that_does_not_fall_is_doubted_with_its_numbers(planted):
    table = planted()
    good = fit(new_head(table), table, TrainSettings(head="projection", epochs=6, batch_size=24, lr=5e-3))
    assert not any("loss" in line for line in good.doubts)
    rows = [{"loss": 4.85}, {"loss": 4.9}]
    assert loss_doubt(rows, [], 128) == (
        "the loss did not fall: 4.8500 in the first epoch, 4.9000 in the last; guessing among 128 gives 4.8520"
    )
    assert loss_doubt(rows[::-1], [], 128) is None
    hardly = loss_doubt([{"loss": 4.8520}, {"loss": 4.8517}], [], 128)
    assert hardly is not None and hardly.startswith(
        "the loss hardly fell: 4.8520 in the first epoch, 4.8517 in the last"
    )
    assert loss_doubt([{"loss": 0.002}, {"loss": 0.007}], [], 32) is None, "there was nothing left to learn"
    one = [{"loss": 4.0}]
    assert "the first quarter of the steps" in loss_doubt(one, [4.0] * 4 + [4.5] * 4, 128)
    assert loss_doubt(one, [4.0] * 4 + [3.5] * 4, 128) is None and loss_doubt(one, [4.0, 4.5], 128) is None


def test_scores_that_are_all_alike_and_hubs_are_doubted_with_their_numbers():
    fine = ScoreSummary(low=0.1, high=0.4, queries=1000, gallery=1000, hub=7, hits=20)
    assert score_doubts(fine, "video7") == []
    assert score_doubts(fine._replace(low=0.3999), "video7") == [
        "the head scores all alike: the scores of 1,000 captions with 1,000 videos lie between 0.3999 and 0.4"
    ]
    assert score_doubts(fine._replace(hits=812), "video7") == [
        "one video is a hub: 812 of 1,000 captions (81 %) find video7 first among 1,000"
    ]
    few = fine._replace(gallery=8, queries=80, hits=40)
    assert score_doubts(few, "v") == [], "among eight videos half of the captions may mean the same"
    assert score_doubts(fine._replace(low=0.4, queries=4), "v") == [], "of four captions nothing is concluded"


class Collapsed(type(build_head("mean_pool", embed_dim=16))):
    """Scores every pair the same, or one video above all."""

    hub = False

    def score(self, encoded_text, encoded_video):
        scores = super().score(encoded_text, encoded_video) * 1e-9 + 0.25
        if self.hub:
            scores[:, 0] += 1
        return scores


@pytest.mark.parametrize("hub", [False, True])
def test_an_evaluation_says_that_its_numbers_are_none(planted, hub, monkeypatch):
    table = planted(videos=50, captions=2)
    head = Collapsed(embed_dim=16)
    monkeypatch.setattr(Collapsed, "hub", hub)
    quick = EvaluateSettings(confidence=False)
    (doubt,) = evaluate_head(head, table, quick).result["doubts"]
    assert (f"100 of 100 captions (100 %) find {table.video_ids[0]} first among 50" in doubt) == hub
    assert ("scores all alike" in doubt) != hub
    (same,) = evaluate_head(head, table, EvaluateSettings(confidence=False, normalise=("dsl",))).result["doubts"]
    assert same == doubt
    assert "doubts" not in evaluate_head(build_head("mean_pool", embed_dim=16), table, quick).result


def test_a_training_ends_with_what_there_is_to_doubt(small_cache, tmp_path, monkeypatch):
    store = small_cache(videos=40).fill()
    monkeypatch.setattr("glscl.train_head.learner.sampled_scores", lambda *_: ScoreSummary(0.5, 0.5, 99, 99, 0, 99))
    done = train(store, tmp_path / "run", SETTINGS)
    assert any("scores all alike" in line and "0.5 and 0.5" in line for line in done.doubts)
    assert read_run(tmp_path / "run")["complete"]
