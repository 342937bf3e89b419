"""The benchmark of ranks compares them with the matrix, measures memory, and prints a dated note."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/ranks.py, imported as a script beside common.py is."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import ranks

        yield ranks
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))
        for name in ("ranks", "common"):
            sys.modules.pop(name, None)


def test_a_gallery_is_ranked_and_compared_with_its_matrix(benchmark):
    measured = benchmark.measure(300, 40, dim=8, device=torch.device("cpu"), full_bytes=10**6)
    assert measured.equal is True and measured.pairs == 12_000 and measured.seconds > 0
    assert benchmark.measure(30, 40, dim=8, device=torch.device("cpu"), full_bytes=0).equal is None


def test_made_up_captions_have_ties(benchmark):
    table = benchmark.made_up(200, 30, dim=8)
    assert len(table.text_features.unique(dim=0)) < 200 and table.num_videos == 30


def test_the_target_is_projected_from_the_largest_gallery(benchmark):
    def of(texts, videos, seconds):
        return benchmark.Measured(texts=texts, videos=videos, seconds=seconds, peak_bytes=10**8, equal=None)

    said = benchmark.projection([of(1000, 1000, 1.0), of(100_000, 10_000, 6.0)], 64)
    assert "100 times the pairs of 100,000 x 10,000" in said and "10 minutes (not run)" in said and "400 GB" in said
    assert "full length" not in said
    sides = benchmark.projection([of(1_000_000, 10, 1.0), of(10, 100_000, 1.0)], 64)
    assert "full length, one at a time, and took at most 100 MB" in sides and "26 MB at D=64" in sides


def test_a_run_prints_a_note(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ranks.py", "--sizes", "60x40,200x50", "--dim", "8"])
    benchmark.main()
    out = capsys.readouterr().out
    assert out.startswith("# Ranks without the matrix, 20") and "python benchmarks/ranks.py --sizes 60x40,200x50" in out
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ") and " x " in line]
    assert len(rows) == 2 and all(row[-1] == "yes |" for row in rows)
