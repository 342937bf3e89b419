"""Eval, compare and report, as a user meets them: one run, several as one, normalised, and what is warned about."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
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
    elsewhere = small_cache(name="elsewhere", videos=30)
    elsewhere.spec = replace(elsewhere.spec, configuration={"backbone": {"name": "another", "pretrained": "seed"}})
    elsewhere.fill()
    train = ("train-head", "--head", "projection", *QUICK, "--cache", tmp_path / "elsewhere", "--out", tmp_path / "c")
    assert glscl(*train)[0] == 0
    one_line(glscl("eval", "--run", a, "--run", tmp_path / "c"), "cannot be averaged", "elsewhere", status=1)


# --- lists ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_full(cache, two_runs):
    """The list "full" in the cache of two runs, whose test split has five of the fifteen training videos."""
    ids = cache.list.video_ids
    made = cache.add_list("full", dict.fromkeys(ids[:10], "train") | dict.fromkeys(ids[10:], "test"))
    return two_runs, made


def test_another_list_is_judged_beside_the_own_one_and_what_was_seen_is_warned_about(glscl, with_full, tmp_path):
    (a, b), full = with_full
    assert glscl("eval", "--run", a)[0] == glscl("eval", "--run", b)[0] == 0
    own = (a / "result.json").read_text()
    status, out, err = glscl("eval", "--run", a, "--list", "full")
    assert status == 0 and f"not what {a} was trained on: list: found full@{full.hash}" in out, err
    assert out.startswith("note: ") and "projection" in out and "on made/test of full: " in out
    assert out.splitlines()[-2] == (
        "warning: 5 of the 14 videos were seen in training: the numbers do not tell how it does on others"
    )
    assert out.splitlines()[-1] == f"written to {a / 'result@full.json'}" and (a / "result.json").read_text() == own
    result = json.loads((a / "result@full.json").read_text())
    SCHEMA.validate(result)
    assert (result["list"], result["list_hash"], result["annotations"]) == ("full", full.hash, full.annotations)

    assert glscl("eval", "--run", a, "--list", "made")[0] == 0  # its own by name
    assert not (a / "result@made.json").exists()
    status, out, _ = glscl("compare", "--list", "full", a, "--json")
    assert status == 0 and json.loads(out)["runs"]["projection"]["list"] == "full"
    status, out, _ = glscl("compare", a / "result@full.json", b, "--resamples", 10)
    assert status == 0 and "projection ‡" in out and "judged on other videos or captions" in out
    status, out, err = glscl("compare", "--list", "full", a, b)
    assert status == 1 and f"glscl eval --run {b} --list full" in err


def test_a_list_must_be_named_where_there_are_several_and_no_run_says_one(glscl, with_full, one_line, tmp_path):
    (a, b), _ = with_full
    one_line(glscl("eval", "--zero-shot"), "several lists: full, made", "--list", status=2)
    one_line(glscl("search", "a dog"), "several lists: full, made", "--list", status=2)
    one_line(glscl("export", "--zero-shot", "--out", tmp_path / "v"), "several lists: full, made", "--list", status=2)
    one_line(glscl("eval", "--run", a, "--list", "nothing"), "no list nothing", status=1)
    status, out, _ = glscl("eval", "--zero-shot", "--list", "full", "--json")
    assert status == 0 and json.loads(out)["counts"]["videos_seen_in_training"] == 0
    assert (tmp_path / "home/runs/zero-shot-mean_pool-made/result@full.json").exists()

    status, out, _ = glscl("export", "--run", b, "--list", "full", "--out", tmp_path / "v", "--json")
    ids = json.loads((tmp_path / "v/ids.json").read_text())
    assert status == 0 and json.loads(out)["videos"] == 14 and ids["list"] == "full"


def test_runs_of_two_lists_are_judged_as_one_on_the_list_that_is_named(glscl, with_full, one_line, tmp_path):
    (a, _), _ = with_full
    train = ("train-head", "--list", "full", "--head", "projection", *QUICK, "--out", tmp_path / "c")
    assert glscl(*train)[0] == 0
    one_line(glscl("eval", "--run", a, "--run", tmp_path / "c"), "made@", "full@", "--list", status=2)
    status, out, err = glscl("eval", "--run", a, "--run", tmp_path / "c", "--list", "full")
    assert status == 0 and "warning: 5 of the 14 videos were seen in training" in out, err
    assert (tmp_path / "home/runs/ensemble-a+c/result@full.json").exists()


# --- heads from outside -----------------------------------------------------------------------------------------------


def test_a_report_of_a_head_from_outside_shows_examples_where_it_is_named(glscl, undrawn, cache, tmp_path, monkeypatch):
    (tmp_path / "outside_head.py").write_text(
        "from glscl.train_head.heads.projection import Projection\n\n\nclass Own(Projection): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    run, head = tmp_path / "run", ("--head", "outside_head:Own")
    assert glscl("train-head", *head, *QUICK, "--out", run)[0] == 0
    assert glscl("eval", "--run", run, *head)[0] == 0
    page = tmp_path / "report.html"
    del sys.modules["outside_head"]  # as in another process
    status, out, _ = glscl("compare", run)  # which needs no weights
    assert status == 0 and "outside_head:Own" in out
    status, out, _ = glscl("report", run, "--out", page)
    assert status == 0 and "If you trust it, name it: --head outside_head:Own" in out
    assert 'id="examples"' not in page.read_text() and "outside_head" not in sys.modules
    status, out, _ = glscl("report", run, *head, "--out", page)
    assert status == 0 and "note: " not in out and 'id="examples"' in page.read_text()
    del sys.modules["outside_head"]


def test_runs_that_were_not_judged_are_all_named_and_judged_where_that_is_wanted(
    glscl, undrawn, two_runs, one_line, tmp_path
):
    a, b = two_runs
    for command in (("compare",), ("report", "--out", tmp_path / "r.html")):
        one_line(glscl(*command, a, b), "2 of 2 were not judged on the split test", f"{a}, {b}", "--judge")
    status, out, err = glscl("compare", a, b, "--judge", "--top", 0)
    assert status == 0 and "attention_pool" in out, err
    written = (a / "result.json").stat().st_mtime_ns
    (b / "result.json").unlink()
    one_line(glscl("compare", a, b), b, "was not judged", f"glscl eval --run {b}")
    assert glscl("report", a, b, "--judge", "--out", tmp_path / "r.html")[0] == 0
    assert (b / "result.json").is_file() and (a / "result.json").stat().st_mtime_ns == written


def test_an_evaluation_is_told_by_a_settings_file(glscl, two_runs, tmp_path):
    (tmp_path / "eval.toml").write_text(f'run = "{two_runs[0]}"\nnormalise = ["dsl", "csls"]\nseed = 3\n')
    for more, names in (((), ["dsl", "csls"]), (("--normalise", "nnn"), ["nnn"])):
        status, _, said = glscl("eval", "--config", tmp_path / "eval.toml", "-v", *more)
        settings = json.loads((two_runs[0] / "result.json").read_text())["settings"]
        assert status == 0 and settings["normalise"] == names and settings["seed"] == 3
        assert f"normalise = {names}" in said
