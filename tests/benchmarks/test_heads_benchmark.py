"""The benchmark of heads counts what can be counted by hand, agrees with docs/heads.md, and prints a table."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
D, F, L, Q = 64, 12, 32, 8


@pytest.fixture(scope="module")
def heads(benchmark_script):
    return benchmark_script("heads")


def count(heads, name, dim=D):
    return heads.count_flops(heads.make_head(name, dim=dim, device=torch.device("cpu")), dim=dim)


def test_flops_are_those_counted_by_hand(heads):
    dot = 2 * D
    assert count(heads, "mean_pool") == (F * dot + dot, dot)  # the weighted mean of frames, then one dot product
    lstm = F * 2 * 8 * D * D  # four gates, each from the input and from the state
    assert count(heads, "seq_lstm") == (lstm + F * dot + dot, dot)
    # one product with every frame, one Gram matrix with the weights, one product of all queries
    assert count(heads, "glscl")[1] == F * dot + 2 * F * F + Q * dot


def test_a_layer_of_attention_is_counted_too(heads):
    linear = 2 * (4 + 8) * D * D * F  # four maps of attention and the MLP
    attention = 2 * 2 * F * F * D
    encoding = count(heads, "seq_transf")[0]
    assert encoding == 4 * (linear + attention) + F * 2 * D + 2 * D


def test_the_page_of_heads_says_what_is_counted(heads):
    """Multiply-adds a pair in docs/heads.md are for D=512: half the FLOPs, rounded as shown."""
    page = (ROOT / "docs" / "heads.md").read_text()
    rows = re.findall(r"^\| \[`(\w+)`\].*?\|.*?\|.*?\|.*?\| ([\d.]+)( [kM])?", page, re.M)
    assert {name for name, *_ in rows} == set(heads.HEAD_NAMES)
    for name, number, unit in rows:
        size = {"": 1, " k": 1e3, " M": 1e6}[unit]
        assert abs(count(heads, name, dim=512)[1] / 2 - float(number) * size) <= 0.5 * size, name


def test_a_patient_measure_scores_the_whole_gallery_and_an_impatient_one_a_part(heads):
    options = {"dim": 16, "device": torch.device("cpu"), "repeats": 1}
    whole = heads.measure("xpool", 20, 30, patience=60, **options)
    assert whole.pairs == 600 and whole.seconds_per_million > 0 and whole.peak_bytes >= 0
    assert whole.parameters == sum(p.numel() for p in heads.make_head("xpool", dim=16, device="cpu").parameters()) - 1
    part = heads.measure("xpool", 20, 30, patience=0, **options)
    assert part.pairs == 16 and heads.row(part, 600)[4] == "16" and heads.row(whole, 600)[4] == "all"
    assert heads.measure("xpool", 20, 30, patience=0, whole=True, **options).pairs == 600


def test_peak_memory_sees_what_was_freed_before_the_end(heads):
    with (
        heads.peak_memory() as peak,
        mmap.mmap(-1, 40 << 20) as taken,
    ):  # not through malloc, which may hold as much from before
        for _ in range(40):
            taken.write(b"x" * (1 << 20))
    assert (30 << 20) < peak.bytes < (120 << 20)


def test_the_backward_pass_of_a_batch_is_measured_down_to_the_encodings(heads):
    options = {"dim": 16, "device": torch.device("cpu"), "repeats": 1}
    whole = heads.measure_learning("xpool", 20, patience=60, **options)
    assert whole.pairs == 400 and whole.seconds > 0 and heads.learning_row(whole, 20)[2] == "all"
    assert heads.measure_learning("xpool", 20, patience=0, **options).pairs == 16


def test_what_tries_patience_is_called_once(heads):
    options = {"device": torch.device("cpu"), "repeats": 3}
    for patience, expected in ((0, 1), (60, 4)):
        calls = []
        heads._measured(lambda calls=calls: calls.append(0), patience=patience, **options)
        assert len(calls) == expected


def test_the_note_says_which_numbers_are_of_a_part(heads):
    scored = heads.Cost(head="xpool", parameters=1, pair_flops=1, further_flops=1, encode_seconds=1.0, score_seconds=90.0,
                        pairs=100, peak_bytes=1)  # fmt: skip
    taught = heads.Learning(head="xpool", seconds=1.0, pairs=4, peak_bytes=1)
    told = heads.meaning([scored], [taught], 100, 16)
    assert "The whole gallery took `xpool` 1.5 minutes." in told
    assert "`xpool` was timed on a part of the batch: by its cost a pair all of it takes 1.1 minutes." in told


def test_the_command_prints_a_note(heads, capsys):
    given = ["--quick", "--heads", "mean_pool,glscl", "--pairs", "6x8", "--dim", "16", "--batch", "5"]
    heads.main(given)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("# Heads") and "torch" in lines[2]
    assert lines[4] == f"    python benchmarks/heads.py {' '.join(given)}"
    first = lines.index("## A gallery of 6 captions × 8 videos") + 2
    table = lines[first : first + 4]
    assert table[2].startswith("| `mean_pool` | 0 |") and "1.0 (GLSCL)" in table[3]
    assert len({line.count("|") for line in table}) == 1
    assert "## The pairs of a training batch of 5, backward included" in lines
    assert any(line.startswith("A pair costs `") for line in lines) and lines[-2].startswith("Not measured here")
    assert not any("timed on a part" in line for line in lines)
    with pytest.raises(SystemExit):
        heads.main(["--heads", "foo"])
    assert "no head 'foo'" in capsys.readouterr().err
