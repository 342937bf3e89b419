"""Commands around runs, as a user meets them: import-checkpoint, sweeps, several runs judged as one, export."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from glscl.cache.schema import TextFeatures
from glscl.cache.store import open_store
from glscl.commands import searching
from glscl.train_head.heads import build_head

SCHEMA = jsonschema.Draft202012Validator(
    json.loads((Path(__file__).parents[1] / "docs" / "result.schema.json").read_text())
)


@pytest.fixture
def glscl(glscl, monkeypatch, tmp_path):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    return glscl


@pytest.fixture
def cache(small_cache):
    """The only cache there is, so that commands find it by themselves."""
    return small_cache(name="home/caches/made", videos=24).fill()


def one_line(found, status, *words):
    assert found[0] == status, found
    (line,) = [line for line in found[2].splitlines() if line.startswith("glscl: ")]
    assert "Traceback" not in found[2] and "Unexpected" not in line
    for word in words:
        assert str(word) in line, f"{word!r} is not in: {line}"


QUICK = ("--epochs", 1, "--batch-size", 8, "--validation", 4)


def test_a_sweep_prints_one_table_and_its_best_run_is_judged(glscl, cache, tmp_path):
    arguments = ("train-head", "--head", "projection", *QUICK, "--sweep", "lr=1e-2,1e-4", "--sweep", "adapter=none,mlp")
    status, out, err = glscl(*arguments, "--out", tmp_path / "sweep")
    assert status == 0, err
    assert "point 4 of 4" in out and "sorted by validation R@1; judge the best: glscl eval --run" in out
    best = out.strip().splitlines()[-1].split("--run ")[1]
    status, out, err = glscl("eval", "--run", best)
    assert status == 0 and "selected on validation" in out, err

    status, out, _ = glscl(*arguments, "--out", tmp_path / "sweep", "--json")
    found = json.loads(out)
    assert status == 0 and all(row["skipped"] for row in found["rows"]) and found["rows"][0]["run"] == best
    r1 = [row["validation"]["text_to_video"]["R@1"] for row in found["rows"]]
    assert len(r1) == 4 and r1 == sorted(r1, reverse=True)


def test_a_sweep_has_a_folder_of_its_own_by_default(glscl, cache, tmp_path):
    assert glscl("train-head", "--head", "projection", *QUICK, "--sweep", "lr=1e-2")[0] == 0
    (folder,) = (tmp_path / "home" / "runs").glob("sweep-projection-*")
    assert (folder / "sweep.json").is_file() and (folder / "lr=0.01" / "run.json").is_file()


def test_a_bad_key_ends_before_anything_trains(glscl, cache, tmp_path):
    one_line(glscl("train-head", "--sweep", "querries=4"), 2, "querries", "queries")
    one_line(glscl("train-head", "--sweep", "lr=1e-3", "--tracker", "tensorboard"), 2, "--tracker")
    assert not (tmp_path / "home" / "runs").exists()


def test_an_adapter_is_saved_with_the_run_and_found_again(glscl, cache, tmp_path):
    run = tmp_path / "run"
    assert glscl("train-head", "--head", "projection", "--adapter", "linear", *QUICK, "--out", run)[0] == 0
    assert json.loads((run / "run.json").read_text())["options"]["adapter"] == "linear"
    assert glscl("eval", "--run", run)[0] == 0


@pytest.fixture
def two_runs(glscl, cache, tmp_path):
    for name, head in (("a", "projection"), ("b", "attention_pool")):
        assert glscl("train-head", "--head", head, *QUICK, "--out", tmp_path / name)[0] == 0
    return tmp_path / "a", tmp_path / "b"


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


def test_selection_on_test_is_warned_about_and_marks_every_later_table(glscl, cache, tmp_path):
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


def test_a_search_normalises_one_sentence_at_a_time_or_a_list_of_them(glscl, cache, monkeypatch):
    shapes = {"text_features": (1, 8), "token_features": (1, 3, 8)}

    class Backbone:
        def encode_texts(self, texts):
            g = torch.Generator().manual_seed(len(texts[0]))
            made = {name: torch.randn(*shape, generator=g) for name, shape in shapes.items()}
            return TextFeatures(**made, token_mask=torch.ones(1, 3, dtype=torch.bool))

    monkeypatch.setattr(searching, "_backbone_of", lambda *_: Backbone())
    status, out, err = glscl("search", "a dog", "--normalise", "nnn", "--top", 3)
    said = out.splitlines()
    assert status == 0 and said[1].split() == ["rank", "score", "nnn", "video", "at"], err
    assert said[0] == f"23 videos of {cache.path}, by zero-shot mean_pool"  # one of 24 gave no frames
    alone = json.loads(glscl("search", "a dog", "--normalise", "nnn", "--top", 3, "--json")[1])
    about = {"head": "mean_pool", "run": None, "cache": str(cache.path), "split": None}
    assert {key: alone[key] for key in about} == about
    monkeypatch.setattr(sys, "stdin", io.StringIO("a cat runs\n\na dog\n"))
    status, out, _ = glscl("search", "-", "--normalise", "nnn", "--top", 3, "--json")
    found = json.loads(out)
    assert status == 0 and [of["query"] for of in found["searches"]] == ["a cat runs", "a dog"]
    assert found["searches"][1]["hits"] == alone["hits"] and "first caption of" in found["bank"] == alone["bank"]
    one_line(glscl("search", "  "), 2, "empty")
    one_line(glscl("search", "--video", "nowhere.mp4"), 1, "nowhere.mp4")


def test_a_folder_of_videos_that_is_not_there_is_named_before_anything_is_scored(glscl, two_runs, tmp_path):
    one_line(glscl("report", two_runs[0], "--videos", tmp_path / "nowhere"), 1, "--videos", tmp_path / "nowhere")


def test_what_cannot_be_judged_as_one_is_refused(glscl, two_runs, small_cache, tmp_path):
    a, b = two_runs
    one_line(glscl("eval", "--run", a, "--combine", "mean"), 2, "--combine", "--run")
    one_line(glscl("eval", "--run", a, "--run", b, "--zero-shot"), 2, "exclude")
    small_cache(name="elsewhere", videos=30).fill()
    train = ("train-head", "--head", "projection", *QUICK, "--cache", tmp_path / "elsewhere", "--out", tmp_path / "c")
    assert glscl(*train)[0] == 0
    one_line(glscl("eval", "--run", a, "--run", tmp_path / "c"), 1, "cannot be averaged", "elsewhere")


def test_vectors_of_a_run_reproduce_its_similarities(glscl, two_runs, tmp_path):
    out, similarity = tmp_path / "vectors", tmp_path / "s.npy"
    status, said, err = glscl("export", "--run", two_runs[1], "--to", "npy", "--out", out)
    assert status == 0 and "videos" in said, err
    assert glscl("eval", "--run", two_runs[1], "--save-similarity", similarity)[0] == 0
    found = np.load(out / "text_vectors.npy") @ np.load(out / "video_vectors.npy").T
    np.testing.assert_allclose(found, np.load(similarity), atol=1e-5)
    ids = json.loads((out / "ids.json").read_text())
    assert ids["video_ids"] == json.loads(similarity.with_suffix(".json").read_text())["video_ids"]
    assert ids["run"] == str(two_runs[1]) and ids["head"] == "attention_pool"


def test_the_whole_cache_is_exported_without_a_run_too(glscl, cache, tmp_path):
    status, out, _ = glscl(
        "export", "--zero-shot", "--split", "all", "--to", "safetensors", "--out", tmp_path / "v", "--json"
    )
    assert status == 0
    assert json.loads(out)["videos"] == 23  # one of 24 gave no frames


def test_an_export_of_a_head_without_vectors_names_those_that_have_some(glscl, cache, tmp_path):
    run = tmp_path / "run"
    assert glscl("train-head", "--head", "xpool", *QUICK, "--out", run)[0] == 0
    one_line(glscl("export", "--run", run, "--out", tmp_path / "v"), 2, "xpool", "attention_pool", "seq_transf")
    assert not (tmp_path / "v").exists()


def public_state_dict(embed_dim=8):
    """A CLIP4Clip checkpoint of the LSTM type, with a part of its backbone."""
    torch.manual_seed(0)
    head = build_head("seq_lstm", embed_dim=embed_dim)
    lstm = {key.replace("aggregator.lstm", "lstm_visual"): value for key, value in head.state_dict().items()}
    lstm.pop("logit_scale")
    return {**lstm, "clip.logit_scale": torch.tensor(4.0), "clip.visual.proj": torch.ones(3, 3)}


def test_an_imported_checkpoint_is_judged_like_a_run(glscl, cache, tmp_path):
    torch.save(public_state_dict(), tmp_path / "pytorch_model.bin")
    status, out, err = glscl("import-checkpoint", tmp_path / "pytorch_model.bin", "--source", "clip4clip")
    assert status == 0 and "1 of its backbone clip" in out and "trained on other features" in out, err
    status, out, err = glscl("eval", "--json")
    result = json.loads(out)
    assert status == 0 and result["head"] == "seq_lstm" and result["selection"] == "last", err
    assert "trained on other features" in err
    assert glscl("export", "--out", tmp_path / "v")[0] == 0


def test_a_checkpoint_with_more_than_tensors_is_one_clear_line(glscl, cache, tmp_path):
    torch.save({"model": public_state_dict(), "path": tmp_path}, tmp_path / "f.pt")
    one_line(glscl("import-checkpoint", tmp_path / "f.pt", "--source", "clip4clip"), 1, "f.pt", "other Python objects")
    torch.save(public_state_dict(embed_dim=16), tmp_path / "wide.pt")
    one_line(glscl("import-checkpoint", tmp_path / "wide.pt", "--source", "clip4clip"), 1, "lstm", "expects")
    assert not (tmp_path / "home" / "runs").exists()
