"""The study of the second pass trains each arm once from the same frozen head, and prints what only the backbone brought."""

from __future__ import annotations

import sys

import pytest
import torch

from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.common.errors import UsageError
from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings


@pytest.fixture(scope="module")
def study(benchmark_script):
    return benchmark_script("second_pass")


def line(arm, seed, there, back, **settings):
    numbers = {
        d: {"R@1": r, "R@5": 50.0, "R@10": 60.0, "MnR": 9.0}
        for d, r in (("text_to_video", there), ("video_to_text", back))
    }
    about = {"date": "2026-01-01", "device": "cpu", "threads": 1, "torch": "2", "cache_fingerprint": "abc"}
    of_run = {
        "arm": arm,
        "settings": settings,
        "seed": seed,
        "epochs": 2,
        "best_epoch": 1,
        "cpu_seconds": 2.0,
        "tags": {},
    }
    return {**of_run, **numbers, "validation": numbers, **about}


def test_every_seed_has_its_three_trainings_in_order(study):
    planned = list(study.plan({"lr": 1e-4}, 2))
    assert [(arm, seed) for arm, _, seed in planned] == [(arm, seed) for seed in range(2) for arm in study.ARMS]
    assert planned[0][1] == {} and planned[1][1] == planned[2][1] == {"lr": 1e-4}


def test_settings_that_are_the_demos_own_are_no_variant(study):
    assert study.asked_settings(["freeze=vision", "lr=2e-4"]) == {"lr": 2e-4}
    with pytest.raises(SystemExit, match="--settings freez: choose from"):
        study.asked_settings(["freez=none"])
    with pytest.raises(UsageError, match="expected int"):
        study.asked_settings(["epochs=many"])


def test_the_note_compares_runs_of_the_same_seed_and_the_same_settings(study):
    lines = [line("frozen", s, 30.0 + s, 60.0) for s in (0, 1)] + [
        line("trained on", s, 31.0 + s, 59.0) for s in (0, 1)
    ]
    lines += [line("second pass", s, 33.0 + 2 * s, 62.0) for s in (0, 1)] + [line("second pass", 0, 1.0, 1.0, lr=1.0)]
    note = study.note(lines)
    assert "| `second pass` | 2 | 34.0 ± 1.4 | 50.0 ± 0.0 |" in note
    assert "| `second pass` − `trained on` | test | 2 | +2.5 ± 0.7 | +2.0, +3.0 | +3.0 ± 0.0 | +3.0, +3.0 |" in note
    assert "| `trained on` − `frozen` | validation | 2 | +1.0 ± 0.0 | +1.0, +1.0 | -1.0 ± 0.0 | -1.0, -1.0 |" in note
    assert "`second pass lr=1.0` −" not in note  # one seed says nothing of a spread


def test_the_command_prints_the_note_of_a_results_file(tmp_path, study, capsys, monkeypatch):
    path = tmp_path / "results.jsonl"
    study.append(path, line("frozen", 0, 30.0, 60.0))
    monkeypatch.setattr(sys, "argv", ["second_pass.py", "--print", str(path)])
    study.main()
    printed = capsys.readouterr().out
    assert printed.startswith("# The second pass on the built-in corpus") and "| `frozen` | 1 | 30.0 |" in printed
    monkeypatch.setattr(sys, "argv", ["second_pass.py"])
    with pytest.raises(SystemExit):
        study.main()


def test_each_arm_is_one_line_and_both_ways_start_from_the_same_head(tmp_path, study, make_video, monkeypatch):
    splits = ["train"] * 5 + ["val"] * 2 + ["test"] * 2
    videos = [
        VideoItem(f"v{i}", split, str(make_video(tmp_path / f"{i}.mp4", frames=8, seed=i)))
        for i, split in enumerate(splits)
    ]
    texts = [
        TextItem(f"v{i}#{k}", f"v{i}", split, f"a red circle {k}") for i, split in enumerate(splits) for k in (0, 1)
    ]
    annotations = Annotations(dataset="demo", videos=videos, texts=texts)
    cache = tmp_path / "demo" / "cache"
    extract(annotations, cache, ExtractSettings(dtype="float32", workers=1), backbone=load_backbone("demo"))
    begun = []
    taken = study.load_run
    monkeypatch.setattr(study, "load_run", lambda start: begun.append(start) or taken(start))
    monkeypatch.setattr(study, "finetune", lambda *a, **k: begun.append(a[2].start) or study_finetune(*a, **k))
    study_finetune = sys.modules["glscl.train_head.finetuning.finetune"].finetune
    results = tmp_path / "results.jsonl"
    command = ["second_pass.py", str(tmp_path / "demo"), "--seeds", "1", "--quick", "--results", str(results)]
    for more in (["--at-most", "2"], ["--at-most", "9"], ["--at-most", "9"]):  # the last has nothing left to do
        monkeypatch.setattr(sys, "argv", command + more)
        study.main()
    lines = study.read(results)
    assert [found["arm"] for found in lines] == list(study.ARMS)
    assert all(found.keys() == line("frozen", 0, 0.0, 0.0).keys() for found in lines)
    assert begun == [tmp_path / "results.runs" / "glscl-seed0"] * 2
    assert all(0 <= found["validation"]["text_to_video"]["R@1"] <= 100 for found in lines)
    assert study.note(lines).count("\n") > 9 and torch.get_num_threads() == lines[0]["threads"]
