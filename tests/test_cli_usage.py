"""Wrong usage is said before anything is looked for: in an empty folder it is still exit status 2, not a missing file."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from glscl import cli
from glscl.commands import training
from glscl.commands.options import main
from glscl.common.progress import Progress, counted

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
    ("import-checkpoint x.pt --source xclip", "clip4clip"),
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


@pytest.mark.parametrize("more", [[], ["--sweep", "queries=4,8"]], ids=["one", "sweep"])
def test_training_says_nothing_of_a_cache_with_nothing_to_learn_from_but_the_error(more, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    store = SimpleNamespace(splits={"test": None}, path=Path("searched"), recipe="default", embed_dim=64)
    monkeypatch.setattr(training, "open_cache", lambda *_: store)
    assert main(cli.app, ["train-head", *more]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "searched has no split train" in said.err and "glscl search" in said.err


def test_training_without_the_tokens_a_head_needs_says_so_alone(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    store = SimpleNamespace(
        splits={"train": None}, path=Path("c"), recipe="default", has_tokens=False, configuration={}
    )
    monkeypatch.setattr(training, "open_cache", lambda *_: store)
    assert main(cli.app, ["train-head", "--head", "glscl"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and "c is without token features. Extract with --tokens" in said.err


def test_training_over_a_run_says_so_before_it_says_that_it_trains(small_cache, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cache = small_cache(videos=24).fill().path
    arguments = ["train-head", "--head", "mean_pool", "--epochs", "1", "--cache", str(cache), "--out", "run"]
    monkeypatch.setattr(sys, "argv", ["glscl", *arguments])
    assert main(cli.app, arguments) == 0
    capsys.readouterr()
    assert main(cli.app, arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and "run holds a run already" in said.err and "--resume" in said.err


def test_progress_of_what_is_counted_later_begins_again_with_another_total():
    stream = io.StringIO()
    with counted(Progress(stream=stream, interval=1e9), "score", "pairs") as tell:
        tell(3, 10)
        tell(10, 10)
        tell(4, 4)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("score: 10/10 pairs") and second.startswith("score: 4/4 pairs")
