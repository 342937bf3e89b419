"""Wrong usage is said before anything is looked for: in an empty folder it is still exit status 2, not a missing file."""

from __future__ import annotations

import sys

import pytest

from glscl import cli
from glscl.commands.options import main

CASES = [  # the command line, and what its message names
    ("extract --dataset msrvtt --device abacus", "abacus"),
    ("extract --dataset csv --splits trian", "trian"),
    ("extract --dataset folder --splits ,", "train, val, test"),
    ("extract --dataset msrvtt --protocol 8k", "9k, 7k, full"),
    ("import-features --dataset msrvtt --features f --splits tset", "tset"),
    ("import-features --dataset msrvtt --features f --token-features t", "--text-features"),
    ("import-features --dataset msrvtt --features f --text-features t --backbone demo", "exclude each other"),
    ("train-head --option qeries=4", "queries"),
    ("train-head --option queries=four", "four"),
    ("train-head --lr 0", "--lr"),
    ("train-head --select validation --validation 0", "--validation"),
    ("train-head --resume", "--out"),
    ("train-head --sweep qeries=4,8", "queries"),
    ("train-head --sweep queries=4,8 --resume", "--out"),
    ("train-head --sweep queries", "KEY=VALUE"),
    ("finetune --option qeries=4", "queries"),
    ("finetune --freeze vision --patch-embedding 3d", "--freeze vision"),
    ("finetune --resume", "--out"),
    ("import-checkpoint x.pt --source frozen", "clip4clip"),
    ("import-checkpoint x.pt --source glscl --frame-position middle", "uniform"),
    ("import-checkpoint x.pt --source glscl --option qeries=4", "queries"),
    ("import-checkpoint x.pt --source clip4clip --option queries", "KEY=VALUE"),
    ("eval --weights third", "best"),
    ("eval --run a --run b --combine sum", "scaled"),
    ("eval --normalise qb-form", "qb-norm"),
    ("eval --head seq_transf", "--zero-shot"),
    ("eval --zero-shot --head seq_transf", "train-head"),
    ("eval --zero-shot --weights last", "--zero-shot"),
    ("eval --save-similarity ids.json", ".npy"),
    ("eval --device cuda:999", "cuda:999"),
    ("compare a b --format html", "markdown"),
    ("search dog --normalise dsl", "nnn"),
    ("search dog --device cuda:999", "cuda:999"),
    ("export --out x --to csv", "safetensors"),
    ("export --out x --device cuda:999", "cuda:999"),
    ("convert a b --format parquet", "hdf5"),
    ("convert a b.h5 --format zarr", "b.h5"),
]


@pytest.mark.parametrize(("line", "word"), CASES, ids=[line for line, _ in CASES])
def test_wrong_usage_is_said_before_any_file_is_looked_for(line, word, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "nothing"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["glscl", *line.split()])
    assert main(cli.app, line.split()) == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert word in told and "Traceback" not in told, told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("extract",),
        ("extract", "--dataset", "csv", "--format", "parquet"),
        ("extract", "--dataset", "nonsense"),
        ("extract", "--dataset", "csv", "--fps", "fast"),
        ("extract", "--dataset", "csv", "--part", "3/2"),
        ("inspect", "--no-such-option"),
        ("no-such-command",),
        ("extract", "--dataset", "csv", "--max-frames", "0"),
        ("eval", "--run", "x", "--zero-shot"),
        ("search",),
        ("inspect", "x", "--device", "abacus"),
    ],
)
def test_wrong_usage_exits_with_2(glscl, arguments, monkeypatch, tmp_path):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path))
    assert glscl(*arguments)[0] == 2
