"""Trackers: every one that Accelerate knows gets the same of a training, and none can end it."""

from __future__ import annotations

import json
import sys
from unittest.mock import MagicMock

import pytest

import glscl
from glscl.common.errors import InputError, UsageError
from glscl.evaluate.validating.validation import TrackedValidation
from glscl.train_head.reports import Reporter, StepReport
from glscl.train_head.settings import TrainSettings, tracker_names
from glscl.train_head.tracking import tracked
from glscl.train_head.train import train

SMALL = {"queries": 2, "decoder_layers": 1, "aggregator_layers": 1}
LOSSES = {f"train/{name}" for name in ("loss", "loss_contrastive", "loss_inter_consistency", "loss_intra_diversity")}
SERVICES = ["wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio"]


@pytest.fixture
def store(small_cache):
    return small_cache(videos=12).fill()


def settings_for(tracker: str, **more) -> TrainSettings:
    asked = {"head": "glscl", "options": SMALL, "epochs": 2, "batch_size": 4, "log_every": 2, "validation": 3, **more}
    return TrainSettings(**asked, tracker=tracker)


class Notes(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def stand_in(monkeypatch):
    """`stand_in(name)` → a module of that name that takes every call, as if it were installed."""

    def install(name: str) -> MagicMock:
        module = MagicMock(name=name, __version__="99.0")
        module.utils.validation.MAX_PARAM_VAL_LENGTH, module.utils.validation.MAX_PARAMS_TAGS_PER_BATCH = 500, 100
        module.search_experiments.return_value = []
        module.Task.current_task.return_value = None
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setitem(sys.modules, f"{name}.plots", module.plots)
        monkeypatch.setattr("accelerate.tracking._available_trackers", [name])
        return module

    return install


def running(name: str, module: MagicMock) -> MagicMock:
    """What the tracker's own package calls a run."""
    begun = {"comet_ml": module.start, "mlflow": module.start_run, "aim": module.Run, "clearml": module.Task.init}
    begun |= {"dvclive": module.Live}
    return begun.get(name, module.init)


def test_tensorboard_gets_settings_losses_and_intervals(store, undrawn, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, notes = tmp_path / "run", Notes()
    settings = settings_for("tensorboard")
    done = train(store, out, settings, validate=TrackedValidation(store, settings, out), reporter=notes)
    found = EventAccumulator(str(next((out / "logs").glob("events.*")))).Reload()
    tags = set(found.Tags()["scalars"])
    assert tags >= LOSSES | {"train/learning_rate", "train/captions_per_second", "epoch/loss", "epoch/logit_scale"}
    last = [event.value for event in map(lambda tag: found.Scalars(tag)[-1], sorted(LOSSES - {"train/loss"}))]
    assert found.Scalars("train/loss")[-1].value == pytest.approx(sum(last), rel=1e-5)
    steps = done.history[-1]["step"]
    assert found.Scalars("train/loss")[-1].step == steps and len(found.Scalars("train/loss")) < steps
    for direction in ("text_to_video", "video_to_text"):
        for row, *event in zip(
            done.history, *(found.Scalars(f"validation/{direction}/R5{end}") for end in ("_low", "", "_high"))
        ):
            low, value, high = (each.value for each in event)
            assert low <= value <= high and value == pytest.approx(row["validation"][direction]["R@5"])
            assert {each.step for each in event} == {row["step"]}
    told = next(out.glob("logs/*/hparams.yml")).read_text()
    for line in (
        f"cache_fingerprint: {store.fingerprint}",
        "list: made",
        f"list_hash: {store.list_hash}",
        "settings/lr: 0.0001",
    ):
        assert line in told
    assert notes.lines[-1] == f"a page about the validated epoch is {out / 'validation.html'}"
    best = json.loads((out / "validation.json").read_text())
    assert best["text_to_video"]["R@1"] == done.best["validation"]["text_to_video"]["R@1"]
    assert "validation" in (out / "validation.html").read_text()


class Documented:
    """Stands in for what judges: intervals of one metric, and a page."""

    def __init__(self, page) -> None:
        self.intervals, self.kept, self._page = {"text_to_video": {"R@1": [40.0, 60.0]}}, 0, page

    def keep(self) -> None:
        self.kept += 1

    def page(self):
        return self._page


def told(name: str, out, *, finished: bool = True, document: Documented | None = None) -> None:
    """A tracker is told of one step and one epoch of a training."""
    out.mkdir(exist_ok=True)
    record = {
        "cache_fingerprint": "f1",
        "list": "made",
        "settings": {"lr": 1e-4, "patience": None, "betas": [0.9, 0.98]},
    }
    tracking = tracked(Reporter(), settings_for(name), out, record, document)
    tracking.begin()
    about = {"epoch": 1, "epochs": 1, "step": 3, "steps": 3, "learning_rate": 1e-4, "captions_per_second": 9.0}
    tracking.step(StepReport(**about, loss=3.0, losses={"contrastive": 2.0, "consistency": 1.0}))
    validation = {"text_to_video": {"R@1": 50.0, "MnR": 2.0}}
    tracking.epoch({"epoch": 1, "step": 3, "loss": 3.0, "logit_scale": 4.6, "validation": validation}, best=True)
    tracking.end(finished=finished)


@pytest.mark.parametrize("name", SERVICES)
def test_every_tracker_gets_the_run_and_its_page(stand_in, tmp_path, name):
    module, document = stand_in(name), Documented(tmp_path / "validation.html")
    told(name, tmp_path / "run", document=document)
    begun = running(name, module)
    begun.assert_called_once()
    assert "glscl" in str(begun.call_args) or name in (
        "mlflow",
        "aim",
        "dvclive",
    )  # these call a project something else
    assert str(tmp_path / "run") in str(begun.call_args) or "'run'" in str(begun.call_args) or name == "comet_ml"
    calls = [str(call) for call in module.mock_calls]
    for each in ("'settings/lr': 0.0001", "'settings/patience': 'none'", "'settings/betas': '[0.9, 0.98]'"):
        assert any(each in call for call in calls), each
    for each in ("train/loss_consistency", "validation/text_to_video/R1_low", "validation/text_to_video/R1_high"):
        assert any(each in call for call in calls), each
    assert document.kept == 1 and any("end" in call or "finish" in call or "close" in call for call in calls)
    attached = [call for call in calls if "validation.html" in call]
    assert bool(attached) is (name in ("wandb", "mlflow", "comet_ml", "clearml"))


def test_a_training_that_goes_on_goes_on_with_the_run_of_its_tracker(stand_in, tmp_path):
    wandb, out = stand_in("wandb"), tmp_path / "run"
    wandb.init.return_value.id = "4711"
    told("wandb", out, finished=False, document=Documented(tmp_path / "validation.html"))
    assert wandb.init.call_args.kwargs == {"project": "glscl", "name": "run", "dir": str(out)}
    wandb.init.return_value.finish.assert_called_once()
    wandb.init.return_value.save.assert_not_called()
    told("wandb", out)
    assert wandb.init.call_args.kwargs["id"] == "4711" and wandb.init.call_args.kwargs["resume"] == "allow"
    (out / "tracked.json").write_text('{"wandb": ["4711"]}')
    told("wandb", out)
    assert "id" not in wandb.init.call_args.kwargs


def test_a_tracker_that_fails_on_the_way_is_said_once_and_ends_nothing(store, stand_in, capsys, tmp_path):
    wandb, notes = stand_in("wandb"), Notes()
    wandb.init.return_value.id = "4711"
    wandb.init.return_value.log.side_effect = ConnectionError("no route to host")
    wandb.init.side_effect = lambda **_: print("wandb says hello") or wandb.init.return_value
    settings = settings_for("wandb", head="projection", options={}, epochs=1)
    done = train(store, tmp_path / "run", settings, reporter=notes)
    assert len(done.history) == 1
    assert [line for line in notes.lines if "tracker" in line] == [
        "the tracker wandb fails and is left out from here: ConnectionError: no route to host"
    ]
    printed = capsys.readouterr()
    assert printed.out == "" and "wandb says hello" in printed.err


def test_a_tracker_that_does_not_start_is_one_line_before_the_first_step(store, stand_in, tmp_path):
    stand_in("wandb").init.side_effect = RuntimeError("api_key not configured (no-tty)\nsee the manual")
    with pytest.raises(InputError, match=r"^The tracker wandb does not start: api_key not configured \(no-tty\)\. "):
        train(store, tmp_path / "run", settings_for("wandb"))
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_trackers_that_are_not_known_or_not_installed_are_named(monkeypatch, stand_in):
    assert tracker_names("none") == []
    stand_in("comet_ml")
    assert tracker_names("comet, comet_ml") == ["comet_ml"]
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    with pytest.raises(UsageError, match=r"`tracker` is 'x'; Accelerate knows aim, clearml, comet_ml, dvclive, mlflow"):
        tracker_names("x")
    for name in SERVICES:
        extra = name.removesuffix("_ml")
        with pytest.raises(
            UsageError, match=rf"`tracker={name}`: {name} is not installed. pip install 'glscl\[{extra}\]'"
        ):
            tracker_names(name)


@pytest.mark.exhaustive
def test_mlflow_keeps_a_run_in_a_folder(store, undrawn, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="`make test-all` installs mlflow-skinny")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    glscl.train(store, settings_for("mlflow"), tmp_path / "run")
    (run,) = mlflow.MlflowClient().search_runs([e.experiment_id for e in mlflow.search_experiments()])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["cache_fingerprint"] == store.fingerprint and run.data.params["settings/head"] == "glscl"
    assert {*LOSSES, "validation/video_to_text/R1_high"} <= run.data.metrics.keys()
    assert [each.path for each in mlflow.MlflowClient().list_artifacts(run.info.run_id)] == ["validation.html"]
