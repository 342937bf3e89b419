"""The benchmark of scoring: its plain algorithm gives our scores, its counts and fits are right, and it prints a note."""

from __future__ import annotations

import pytest
import torch

from glscl.evaluate.similarity import similarity_matrix
from glscl.train_head.heads import build_head

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def scoring(benchmark_script):
    return benchmark_script("scoring")


@torch.no_grad()
def test_the_plain_algorithm_gives_the_scores_of_ours_also_where_tiles_are_cut(scoring):
    torch.manual_seed(0)
    head = build_head("glscl", embed_dim=16).eval().requires_grad_(False)
    table = scoring.made_up_table(20, dim=16, device=CPU)
    torch.testing.assert_close(
        scoring.PlainGlscl(head).matrix(table), similarity_matrix(head, table), atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_flops_of_a_plain_tile_are_those_counted_by_hand(scoring):
    dim = 64
    head = build_head("glscl", embed_dim=dim).eval().requires_grad_(False)
    plain, table = scoring.PlainGlscl(head), scoring.made_up_table(16, dim=dim, device=CPU)
    feedforward = 2 * 2048 * dim * 8
    decoders = 3 * (2 * (6 * 8 * dim**2 + feedforward) + (12 + 32) * 2 * dim**2)  # frames and tokens padded
    products = 16 * (4 * 12 * 12 * dim**2 + decoders)
    found = scoring.flops(lambda: plain.tile(*scoring.tile_features(table, 0, 0))) / 2
    assert products < found < 1.1 * products  # attention and pairs come on top


def test_growth_is_fitted_as_a_power_law(scoring):
    factor, power = scoring.power_law([10, 20, 40], [3 * n**1.5 for n in (10, 20, 40)])
    assert factor == pytest.approx(3) and power == pytest.approx(1.5)
    assert scoring.tiles_in(64) == 16 and scoring.tiles_in(24) == 2 * 1.5


def test_the_note_has_both_algorithms_the_agreement_and_the_growth(scoring, capsys):
    scoring.main(["--quick", "--dim", "16", "--size", "32"])
    note = capsys.readouterr().out
    assert (
        note.startswith("# Scoring a gallery") and "`python benchmarks/scoring.py --quick --dim 16 --size 32`" in note
    )
    assert "Largest difference" in note and "peak memory" in note and "The target is a ratio of 200" in note
    assert "* plain: seconds grow as size^" in note and "* ours: seconds grow as size^" in note
    rows = [line for line in note.splitlines() if line.startswith(("| plain", "| ours"))]
    assert len(rows) == 2 + 4 + 2
