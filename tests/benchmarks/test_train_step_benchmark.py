"""The benchmark of the training step: features of the right shapes, shares that are shares, and a note in both manners."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def train_step(benchmark_script):
    return benchmark_script("train_step")


def test_features_have_the_shapes_of_msrvtt(train_step):
    table = train_step.made_up_table(600, 30, dim=8, device=CPU)
    lengths = table.token_count
    assert lengths.float().mean() == pytest.approx(13, abs=1) and lengths.min() >= 4 and lengths.max() <= 32
    assert table.token_values.shape == (int(lengths.sum()), 8) and table.token_values.dtype == torch.float16
    assert table.frame_features.shape == (30, 12, 8) and int(table.frame_mask.sum(1).min()) >= 10
    assert (table.video_of_text.bincount() == 20).all()


def test_the_share_in_products_tells_products_from_the_rest(train_step):
    found = {}
    left, vector = torch.randn(400, 400), torch.randn(2_000_000)
    for name, work in {"products": lambda: left @ left, "the rest": lambda: vector.sin()}.items():
        with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
            for _ in range(20):
                work()
        found[name] = train_step.shares(profiler, 1000.0, CPU)
    assert found["products"][0] > 0.8 and found["the rest"][0] == 0.0
    assert 0 < found["products"][1] < found["products"][0]


def test_the_note_has_a_row_a_head_and_the_recipe(train_step, capsys):
    train_step.main(["--quick", "--dim", "16", "--heads", "projection, xpool", "--batch", "4"])
    note = capsys.readouterr().out
    rows = [line.split("|")[1:-1] for line in note.splitlines() if line.startswith("| `")]
    assert [cells[0].strip() for cells in rows] == ["`projection`", "`xpool`"]
    assert all(float(cells[1].replace(",", "")) > 0 and cells[3].strip().endswith("%") for cells in rows)
    assert note.startswith("# A training step") and "Batch 4, D=16" in note and "On an H200 it is not measured" in note


def test_one_window_measures_memory_without_a_profile_and_the_recipe_runs(train_step, capsys, monkeypatch):
    monkeypatch.setattr(train_step, "RECIPE_EPOCHS", 1)
    monkeypatch.setattr(train_step, "RECIPE_CAPTIONS", 2)
    train_step.main(["--quick", "--dim", "16", "--heads", "glscl", "--batch", "4", "--once", "--recipe-time"])
    note = capsys.readouterr().out
    assert "| not profiled | not profiled |" in note and "80 captions × 1 epochs" in note
    with pytest.raises(SystemExit):
        train_step.main(["--heads", "foo"])
    assert "there is no head 'foo'" in capsys.readouterr().err


def test_other_manners_are_set_beside_the_first(train_step, capsys):
    train_step.main(["--quick", "--dim", "16", "--heads", "projection, seq_transf", "--batch", "4", "--also", "bf16"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [[cell.strip() for cell in row[:2]] for row in rows[2:]] == [
        ["`projection`", "bf16"],
        ["`seq_transf`", "bf16"],
    ]
    plain, other, ratio = float(rows[0][1].replace(",", "")), *(float(cell.replace(",", "")) for cell in rows[2][2:4])
    assert other / plain == pytest.approx(ratio, rel=0.02) and all(
        float(row[5].replace(",", "")) >= 0 for row in rows[2:]
    )
    with pytest.raises(SystemExit):
        train_step.main(["--also", "magic"])
    assert "--also takes compile, bf16" in capsys.readouterr().err
