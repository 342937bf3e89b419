"""Eval, compare and report, as a user meets them: one run, several as one, normalised, and what is warned about."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import torch

from glscl.cache.store import open_store

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[2] / "docs" / "result.schema.json").read_text())
)
QUICK = ("--epochs", 1, "--batch-size", 8, "--validation", 4)


def test_a_checkpoint_that_does_not_fit_is_one_clear_line(glscl, trained, one_line):
    run = trained / "run"
    weights = (run / "best.safetensors").read_bytes()
    for broken in (b"", weights[:50], b"\x00" * 100):
        (run / "best.safetensors").write_bytes(broken)
        one_line(glscl("eval", "--run", run), "best.safetensors")
    (run / "best.safetensors").write_bytes(weights)
    record = json.loads((run / "run.json").read_text())
    record["head"] = "seq_transf"
    (run / "run.json").write_text(json.dumps(record))
    one_line(glscl("eval", "--run", run), "run")
    (run / "run.json").write_text("[]")
    one_line(glscl("eval", "--run", run), "run.json")
    shutil.rmtree(run)
    one_line(glscl("eval", "--run", run), run)


def test_two_runs_are_judged_as_one(glscl, two_runs, tmp_path):
    a, b = two_runs
    status, out, err = glscl("eval", "--run", a, "--run", b)
    assert status == 0 and "projection + attention_pool together, mean of similarities" in out, err
    written = tmp_path / "home" / "runs" / "ensemble-a+b" / "result.json"
    result = json.loads(written.read_text())
    assert result["runs"] == [str(a), str(b)] and result["combine"] == "mean"
    scaled = ("--combine", "scaled", "--out", tmp_path / "r.json")
    status, out, _ = glscl("eval", "--run", a, "--run", b, *scaled, "--json")
    assert status == 0 and json.loads(out)["combine"] == "scaled"
    status, out, _ = glscl("compare", tmp_path / "r.json", written)
    assert status == 0 and "projection + attention_pool" in out


def test_result_files_of_every_path_follow_the_schema(glscl, two_runs, tmp_path):
    a, b = two_runs
    every = "qb-norm,inverted-softmax,dsl,csls,nnn,dual-is,sinkhorn"
    paths = {
        "zero-shot": ("--zero-shot",),
        "run": ("--run", a),
        "last": ("--run", a, "--weights", "last"),
        "validation": ("--run", a, "--split", "train"),
        "ensemble": ("--run", a, "--run", b, "--normalise", "dsl"),
        "normalised": ("--run", b, "--normalise", every),
    }
    for name, arguments in paths.items():
        file = tmp_path / f"{name}.json"
        status, out, err = glscl("eval", *arguments, "--out", file, "--json")
        assert status == 0, err
        result = json.loads(file.read_text())
        SCHEMA.validate(result)
        SCHEMA.validate(json.loads(out))
        assert result["command"].startswith("glscl eval") and torch.__version__.startswith(result["versions"]["torch"])
    assert set(result["normalised"]) == set(every.split(","))
    banks = {name: found["bank"] for name, found in result["normalised"].items()}
    assert banks["dsl"] == banks["csls"] == "none"
    trained_on = sum(video.split == "train" for video in open_store(tmp_path / "home/caches/made").plan.videos)
    assert f"first caption of {trained_on - 1} training videos" in banks["nnn"]  # one of them gave no frames


def test_scoring_tells_how_far_it_is(glscl, two_runs):
    _, _, err = glscl("eval", "--run", two_runs[0])
    pairs = json.loads((two_runs[0] / "result.json").read_text())["counts"]
    assert f"score: {pairs['texts'] * pairs['videos']}/{pairs['texts'] * pairs['videos']} pairs" in err


def test_raw_and_normalised_rows_stand_together_and_transductive_ones_are_marked(glscl, two_runs):
    status, out, _ = glscl("eval", "--run", two_runs[0], "--normalise", "qb-norm,nnn,dsl")
    columns = next(line for line in out.splitlines() if line.startswith(" "))
    assert status == 0 and columns.split() == ["R@1", "R@5", "R@10", "R@50", "MdR", "MnR", "Rsum"]
    lines = out.splitlines()
    first, second = (next(i for i, line in enumerate(lines) if line.startswith(of)) for of in ("text →", "video →"))
    for part in (lines[first:second], lines[second:]):
        found = [line.split()[0] for line in part if line.startswith(("  qb", "  nnn", "  dsl"))]
        assert found == ["qb-norm", "nnn", "dsl"]
    assert out.count("  dsl *") == 2 and "* sees all test queries at once" in out and "nnn *" not in out
    assert "extra data of qb-norm, nnn: first caption of" in out


def test_selection_on_test_is_warned_about_and_marks_every_later_table(glscl, undrawn, cache, tmp_path):
    chosen, clean = tmp_path / "chosen", tmp_path / "clean"
    train = ("train-head", "--head", "projection", "--epochs", 2, "--batch-size", 8)
    status, out, _ = glscl(*train, "--select", "test", "--out", chosen)
    assert status == 0 and "warning: the epoch is selected on the test split" in out
    assert glscl(*train, "--select", "last", "--out", clean)[0] == 0

    for arguments in ((), ("--normalise", "nnn")):
        status, out, _ = glscl("eval", "--run", chosen, *arguments)
        assert status == 0 and "selected on test" in out and out.splitlines()[-2].startswith("warning: ")
    result = json.loads((chosen / "result.json").read_text())
    SCHEMA.validate(result)
    assert result["selection"] == "test"
    status, out, _ = glscl("eval", "--run", chosen, "--run", clean)
    assert status == 0 and "selected on test" in out and "warning: " in out
    status, out, _ = glscl("eval", "--run", clean)
    assert status == 0 and "last epoch" in out and "optimistic" not in out

    status, out, _ = glscl("compare", clean, chosen)
    tables = out.split("\n\n")
    assert status == 0 and len(tables) >= 2 and all("†" in table and "optimistic" in table for table in tables)
    assert (
        json.loads(glscl("compare", clean, chosen, "--json")[1])["runs"]["projection (chosen)"]["selection"] == "test"
    )

    status, _, err = glscl("report", clean, chosen, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert status == 0, err
    assert "projection (chosen) †" in page and "selected on test" in page and "so its numbers are optimistic" in page
    assert "projection (clean) †" not in page

    # The last epoch of the same run was not chosen by any query.
    status, out, _ = glscl("eval", "--run", chosen, "--weights", "last", "--out", tmp_path / "last.json")
    assert status == 0 and "optimistic" not in out


def test_a_folder_of_videos_that_is_not_there_is_named_before_anything_is_scored(glscl, two_runs, tmp_path, one_line):
    one_line(glscl("report", two_runs[0], "--videos", tmp_path / "nowhere"), "--videos", tmp_path / "nowhere", status=1)


def test_what_cannot_be_judged_as_one_is_refused(glscl, two_runs, small_cache, tmp_path, one_line):
    a, b = two_runs
    one_line(glscl("eval", "--run", a, "--combine", "mean"), "--combine", "--run", status=2)
    one_line(glscl("eval", "--run", a, "--run", b, "--zero-shot"), "exclude", status=2)
    small_cache(name="elsewhere", videos=30).fill()
    train = ("train-head", "--head", "projection", *QUICK, "--cache", tmp_path / "elsewhere", "--out", tmp_path / "c")
    assert glscl(*train)[0] == 0
    one_line(glscl("eval", "--run", a, "--run", tmp_path / "c"), "cannot be averaged", "elsewhere", status=1)
