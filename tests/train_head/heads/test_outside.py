"""Heads from outside the package: by module and class, by entry point, found again by a run, never run unasked."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import pickle
import sys

import pytest
import torch

from glscl.common import outside
from glscl.common.errors import CheckpointError, UsageError
from glscl.evaluate.evaluation import evaluate_run, validation_metrics
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head.checkpoint import load_run
from glscl.train_head.heads import build_head, full_name, head_class, head_options
from glscl.train_head.settings import resolve
from glscl.train_head.train import train

MODULE = '''
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.base import VectorHead, VectorSide
from glscl.train_head.heads.pooling import mean_of_normalised


class Scaled(VectorHead):
    """The mean of frames against the caption, with a learned weight a dimension."""

    def __init__(self, *, embed_dim: int, start: float = 1.0, layers: int | None = None, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, **common)
        self.weight = nn.Parameter(torch.full((embed_dim,), start))

    def text_side(self, text: TextFeatures) -> VectorSide:
        return VectorSide(F.normalize(text.text_features * self.weight, dim=-1))

    def video_side(self, video: VideoFeatures) -> VectorSide:
        return VectorSide(mean_of_normalised(video.frame_features, video.frame_mask))


class Louder(Scaled):
    def __init__(self, *, embed_dim: int, start: float = 3.0, **common: Any) -> None:
        super().__init__(embed_dim=embed_dim, start=start, **common)


nothing = 3
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of somebody else that Python finds; forgotten when the test ends."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "their_heads.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    yield "their_heads"
    sys.modules.pop("their_heads", None)


@pytest.fixture
def trained(module, small_cache, tmp_path):
    """A cache, and a run with a head of that module on it."""
    store = small_cache(videos=24).fill()
    settings = resolve({"head": f"{module}:Scaled", "options": {"start": "2"}, "epochs": 1}, dataset="made")
    return store, train(store, tmp_path / "run", settings, validate=validation_metrics).run


def test_options_are_what_the_constructor_declares(module):
    assert head_options(f"{module}:Scaled") == {
        "start": 1.0,
        "layers": None,
        "logit_scale": None,
        "logit_bias": None,
        "adapter": "none",
    }
    head = build_head(f"{module}:Louder", embed_dim=8, adapter="linear")
    assert head.options["start"] == 3.0 and head.options["adapter"] == "linear" and head.options["layers"] is None
    assert head.options["logit_scale"] == pytest.approx(4.605, abs=1e-3)
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert other.options == head.options and torch.equal(other.weight, head.weight)
    with pytest.raises(
        UsageError, match="no option 'speed'; its options are start, layers, logit_scale, logit_bias, adapter"
    ):
        build_head(f"{module}:Scaled", embed_dim=8, speed=1)


def test_a_run_names_its_head_in_full_and_is_judged_and_resumed(trained, module):
    store, folder = trained
    run = json.loads((folder / "run.json").read_text())
    assert run["head"] == run["settings"]["head"] == f"{module}:Scaled" and run["options"]["start"] == 2.0
    assert (
        evaluate_run(store, folder, EvaluateSettings(split="train", confidence=False)).result["head"]
        == f"{module}:Scaled"
    )
    settings = resolve({"head": f"{module}:Scaled"}, dataset="made", stored=run["settings"])
    assert train(store, folder, settings, resume=True).already_complete


def test_a_run_does_not_run_code_that_nobody_asked_for(trained, module):
    store, folder = trained
    del sys.modules[module]
    for load in (lambda: load_run(folder), lambda: evaluate_run(store, run=folder)):
        with pytest.raises(UsageError, match=f"`head={module}:Scaled`") as refused:
            load()
        assert module not in sys.modules and "\n" not in str(refused.value)
    stored = json.loads((folder / "run.json").read_text())["settings"]
    with pytest.raises(UsageError, match="the run to resume has the head"):
        resolve({}, dataset="made", stored=stored)
    assert module not in sys.modules
    head_class(f"{module}:Scaled")  # the word of the user
    assert type(load_run(folder)[0]).__name__ == "Scaled"


def test_a_module_that_is_gone_is_one_line(trained, module, tmp_path):
    (tmp_path / "theirs" / "their_heads.py").unlink()
    del sys.modules[module]
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match=f"`head` is '{module}:Scaled', which cannot be imported: .*No module named"):
        head_class(f"{module}:Scaled")
    with pytest.raises(UsageError, match="is not part of glscl"):
        load_run(trained[1])


def test_weights_of_another_class_are_refused(trained):
    folder = trained[1]
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "options": {"speed": 2}}))
    with pytest.raises(CheckpointError, match="describes no head of this version"):
        load_run(folder)


def test_an_installed_head_has_a_name_and_needs_no_word(trained, module, monkeypatch):
    offered = importlib.metadata.EntryPoint("scaled", f"{module}:Scaled", "glscl.heads")
    monkeypatch.setattr(outside, "entry_points", lambda *, group: [offered])
    assert full_name("scaled") == f"{module}:Scaled"
    assert resolve({"head": "scaled"}, dataset="made").head == f"{module}:Scaled"
    del sys.modules[module]
    assert type(load_run(trained[1])[0]).__name__ == "Scaled"
    with pytest.raises(UsageError, match="best_frames, scaled, or name one of your own as package.module:Class"):
        full_name("sacled")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_heads:nothing", "is no head: expected a subclass"),
        ("their_heads:Missing", "cannot be imported: .*has no attribute"),
        ("os:system", "is no head"),
        ("their heads:Scaled", "there is no head"),
        ("their_heads", "there is no head"),
        ("../x:Scaled", "there is no head"),
    ],
)
def test_what_is_no_head_is_refused(module, name, message):
    with pytest.raises(UsageError, match=message):
        head_class(name)


def test_the_command_line_trains_a_head_of_the_current_folder(small_cache, tmp_path, monkeypatch, capsys):
    from glscl.cli import app
    from glscl.commands.options import main

    cache = small_cache(videos=24).fill().path
    (tmp_path / "here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    out = tmp_path / "run"
    options = ["--cache", str(cache), "--epochs", "1", "--option", "start=2"]
    try:
        assert main(app, ["train-head", "--head", "here:Scaled", "--out", str(out), *options]) == 0
        assert json.loads((out / "run.json").read_text())["head"] == "here:Scaled"
        assert main(app, ["train-head", "--head", "here:Nothing", "--out", str(out), *options]) == 2
        assert "--head is 'here:Nothing', which cannot be imported" in capsys.readouterr().err
    finally:
        sys.modules.pop("here", None)
