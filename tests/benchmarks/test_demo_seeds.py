"""The study over seeds plans each training once, goes on after being killed, and prints one note."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from glscl.train_head.heads import HEAD_NAMES


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


def test_settings_of_training_stand_among_the_options(study, small_cache):
    assert study.asked_options("tight_transf", "layers=2,batch_size=32,epochs=3") == {"layers": 2, "batch_size": 32}
    store = small_cache(videos=20).fill()
    found = study.measure(
        store, "mean_pool", {"epochs": 2, "batch_size": 5}, 0, epochs=None, device=torch.device("cpu")
    )
    assert found["epochs"] == 2 and study.label(found) == "mean_pool epochs=2 batch_size=5"


PAGE = """# Heads
<!-- demo-seeds: heads -->
old
<!-- /demo-seeds: heads -->
words
<!-- demo-seeds: against -->
<!-- /demo-seeds: against -->
<!-- demo-seeds: adapters -->
<!-- /demo-seeds: adapters -->
""" + "".join(f"<!-- demo-seeds: {head} -->\n<!-- /demo-seeds: {head} -->\n" for head in HEAD_NAMES)


def test_the_tables_of_a_page_are_rewritten_and_nothing_else(study, tmp_path, monkeypatch):
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    page.write_text(PAGE)
    for made in (line("glscl", 0, 30.0), line("glscl", 1, 32.0), line("tight_transf", 0, 9.0, layers=1, batch_size=32)):
        study.append(results, made)
    for seed in (0, 1):
        study.append(results, line("xclip", seed, 33.0 + seed))
    study.append(results, line("glscl", 0, 29.0, adapter="mlp"))
    monkeypatch.setattr(sys, "argv", ["demo_seeds.py", "--print", str(results), "--docs", str(page)])
    study.main()
    text = page.read_text()
    assert "| `glscl` | 2 | 7 | 2 | 31.0 ± 1.4 | 60.0 ± 0.0 | 31.0 ± 1.4 | 31.0 ± 1.4 | – | – |" in text
    assert "| `tight_transf` with `layers=1 batch_size=32` | 1 |" in text and "| `xpool` | not measured |" in text
    assert "| `xclip` | 2 and 2 | +2.5 | 0.333 |" in text, "2 of 6 deals of four seeds give as large a difference"
    assert "| `glscl` | 1 | 30.0 | not measured |  | 29.0 | -1.0 |" in text
    assert (
        "* On the built-in corpus, backbone frozen: R@1 31.0 ± 1.4 | 31.0 ± 1.4 (2 seeds).\n<!-- /demo-seeds: glscl"
        in text
    )
    assert "R@1 9.0 | 9.0 with `layers=1 batch_size=32` (1 seed)." in text
    assert "old" not in text and text.startswith("# Heads\n<!--") and "-->\nwords\n<!--" in text
    study.main()
    assert page.read_text() == text, "a second time must change nothing"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="0 places between <!-- demo-seeds: heads -->"):
        study.main()


def test_the_page_of_heads_has_a_place_for_all_of_them():
    text = (Path(__file__).parents[2] / "docs" / "heads.md").read_text(encoding="utf-8")
    for name in ("heads", "against", "adapters"):
        assert re.search(
            f"<!-- demo-seeds: {name} -->\n\\| head .*\n<!-- /demo-seeds: {name} -->", text, flags=re.DOTALL
        )


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
