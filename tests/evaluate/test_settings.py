"""Settings of an evaluation travel whole: from options, a file, or a run's own record; what was in force is said."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from glscl.common.errors import UsageError
from glscl.common.settings import as_dict, build
from glscl.evaluate.settings import EvaluateSettings


@pytest.fixture
def eval_json(glscl, judged, tmp_path):
    """`eval_json(*options)` → what `glscl eval --json` prints of the run, and what it says."""

    def run(*options):
        words = ("--run", judged.run, "--cache", judged.store.path, "--out", tmp_path / "result.json", "--json")
        status, out, err = glscl("eval", *words, *options)
        return status, json.loads(out), err

    return run


def test_settings_come_from_a_file_and_options_override_it(eval_json, tmp_path):
    file = tmp_path / "eval.toml"
    file.write_text('split = "train"\nweights = "last"\nnormalise = "dsl"\n')
    status, result, said = eval_json("--config", file, "-v")
    assert status == 0 and result["split"] == "train" and result["selection"] == "last"
    assert list(result["normalised"]) == ["dsl"]
    assert "  split = train" in said and "  weights = last" in said and "  seed = 0" in said
    status, result, _ = eval_json("--config", file, "--split", "test", "--seed", "3")
    assert status == 0 and result["split"] == "test" and result["selection"] == "last"


def test_the_matrix_is_written_where_it_is_asked_for(eval_json, tmp_path):
    status, result, said = eval_json("--save-similarity", tmp_path / "s.npy")
    assert status == 0 and f"the matrix to {tmp_path / 's.npy'}" in said
    assert np.load(tmp_path / "s.npy").shape == (result["counts"]["texts"], result["counts"]["videos"])


def test_the_record_of_a_run_is_a_file_of_settings(eval_json, judged):
    status, result, _ = eval_json("--config", judged.run / "run.json")
    assert status == 0 and result["text_to_video"] == judged.evaluations["run"].result["text_to_video"]


def test_what_is_no_setting_is_refused(eval_json, tmp_path):
    file = tmp_path / "eval.toml"
    file.write_text('slpit = "train"\n')
    status, told, _ = eval_json("--config", file)
    assert status == 2 and "There is no setting 'slpit'" in told["error"]


def test_settings_survive_json():
    settings = EvaluateSettings(split="val", normalise=("nnn", "dsl"), seed=3, save_similarity=Path("a.npy"))
    assert build(EvaluateSettings, json.loads(json.dumps(as_dict(settings)))) == settings


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"weights": "first"}, "`weights` is 'first'; expected one of best, last"),
        ({"combine": "product"}, "`combine` is 'product'; expected one of mean, scaled"),
        ({"save_similarity": "a.txt"}, "`save_similarity` is 'a.txt'; expected the name of an .npy file"),
        ({"seed": -1}, "`seed` is -1; expected at least 0"),
    ],
)
def test_what_cannot_be_is_said_by_name(asked, message):
    with pytest.raises(UsageError, match=message):
        build(EvaluateSettings, asked)


def test_a_head_is_named_for_a_zero_shot_evaluation_or_to_let_a_run_import_its_own(eval_json):
    status, told, _ = eval_json("--head", "mean_pool")
    assert status == 2 and "--head goes with --zero-shot" in told["error"]
    status, told, _ = eval_json("--head", "no_such_module:Head")
    assert status == 2 and "'no_such_module:Head', which cannot be imported" in told["error"]
