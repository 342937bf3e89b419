"""The study over seeds plans each training once, goes on after being killed, and prints one note."""

from __future__ import annotations

import json
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def study(benchmark_script):
    return benchmark_script("demo_seeds")


def line(head, seed, recall, **options):
    numbers = {"R@1": recall, "R@5": 50.0, "R@10": 60.0, "MnR": 9.0}
    return {
        "head": head,
        "options": options,
        "seed": seed,
        "epochs": 3,
        "cpu_seconds": 2.0,
        "parameters": 7,
        "text_to_video": numbers,
        "video_to_text": numbers,
        "tags": {"scene": recall},
        "cache_fingerprint": "abc",
        "device": "cpu",
        "threads": 1,
        "torch": "2",
        "date": "2026-01-01",
    }


def test_options_that_change_nothing_are_no_variant(study):
    planned = list(study.plan(["glscl", "mean_pool"], ["", "adapter=none", "adapter=mlp"], 2))
    assert planned == [(h, o, s) for s in range(2) for h in ("glscl", "mean_pool") for o in ({}, {"adapter": "mlp"})]
    assert study.asked_options("glscl", "aggregator_layers=1,queries=4") == {"queries": 4}  # the recipe's is 1 already
    assert study.asked_options("glscl", "aggregator_layers=4") == {"aggregator_layers": 4}  # the head's own default


def test_a_line_that_was_cut_off_is_written_again(study, tmp_path):
    path = tmp_path / "results.jsonl"
    study.append(path, line("glscl", 0, 30.0))
    with path.open("a") as file:
        file.write('{"head": "gls')
    assert [found["seed"] for found in study.read(path)] == [0]
    study.append(path, line("glscl", 1, 32.0))
    assert [json.loads(text)["seed"] for text in path.read_text().splitlines()] == [0, 1]


def test_the_note_tells_spread_and_differences_of_equal_seeds(study):
    lines = [line("glscl", 0, 30.0), line("glscl", 1, 32.0), line("xpool", 0, 9.0)]
    lines += [line("glscl", s, r, adapter="mlp") for s, r in ((0, 31.0), (1, 35.0), (2, 90.0))]
    note = study.note(lines)
    assert "| `glscl` | 2 | 7 | 2 | 31.0 ± 1.4 |" in note
    assert "| `xpool` | 1 | 7 | 2 | 9.0 |" in note
    assert "| `glscl adapter=mlp` − `glscl` | 2 | +2.0 ± 1.4 | +1.0, +3.0 | +2.0 ± 1.4 |" in note
    assert note.count(" − ") == 1


def test_one_training_is_one_line_with_all_that_the_note_needs(study, small_cache):
    store = small_cache(videos=20).fill()
    found = study.measure(store, "mean_pool", {"adapter": "linear"}, 1, epochs=1, device=torch.device("cpu"))
    assert found.keys() >= line("mean_pool", 1, 0.0).keys()
    assert found["parameters"] == 2 * (store.embed_dim**2 + store.embed_dim) and found["seed"] == 1


def test_the_command_prints_the_note_of_a_results_file(tmp_path, study, capsys, monkeypatch):
    path = tmp_path / "results.jsonl"
    study.append(path, line("glscl", 0, 30.0))
    monkeypatch.setattr(sys, "argv", ["demo_seeds.py", "--print", str(path)])
    study.main()
    printed = capsys.readouterr().out
    assert printed.startswith("# Heads on the built-in corpus") and "| `glscl` | 1 |" in printed
    monkeypatch.setattr(sys, "argv", ["demo_seeds.py"])
    with pytest.raises(SystemExit):
        study.main()
