"""Any options on any command: status 0, 1 or 2, one line that says what is wrong, and JSON that parses."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glscl import cli
from glscl.commands.options import COMMANDS, main

FEW, MANY = 2, 12  # command lines of each command, in `make test` and in `make test-all`
LEFT_OUT = {"demo"}  # takes minutes whenever its options are good
SERVING = "glscl.evaluate.serve.server.Server.serve_requests"
NUMBERS = [
    "-1",
    "0",
    "1",
    "2",
    "7",
    "0.5",
    "-0.0",
    "1e9",
    "1e-9",
    "1e400",
    "nan",
    "inf",
    "x",
    "",
    "0x1",
    "１",
    "9" * 30,
    "9" * 5000,
]
SMALL = ["-1", "0", "1", "2", "x", "", "nan", "0.5", "1e400"]  # where a large number is honestly obeyed, and takes long
PATIENT = {
    "epochs",
    "resamples",
    "workers",
    "top",
    "examples",
    "videos",
    "time_limit",
    "memory_limit",
    "captions_per_video",
}
WORDS = [
    "",
    " ",
    "x",
    "test",
    "train",
    "val",
    "all",
    "best",
    "last",
    "glscl",
    "mean_pool",
    "seq_transf",
    "test,train",
    ",",
    "é",
    "-",
]
WORDS += [
    "qb-norm",
    "dsl,csls",
    "x" * 300,
    "\x1b[31m",
    "queries=2",
    "queries=99999999999999999999",
    "queries",
    "=",
    "layers=0",
]
WORDS += [
    "temperature=nan",
    "aggregator=none",
    "aggregator_layers=-1",
    "dropout=2",
    "csv",
    "folder",
    "msrvtt",
    "zarr",
    "h5",
]
WORDS += [
    "cpu",
    "cuda",
    "cuda:99",
    "meta",
    "markdown",
    "terminal",
    "lr=1,2",
    "epochs=1,x",
    "queries=1,1",
    "clip4clip",
    "npy",
]
INPUTS = [
    "cache",
    "run",
    "result.json",
    "captions.csv",
    "frames.npz",
    "missing",
    "file",
    "empty",
    "",
    "/dev/null",
    "x" * 300,
    "é/ü",
]
OUTPUTS = ["out", "out/deeper", "file/below", "empty", "file", "x" * 300, "out.h5", "out.zarr", "out.html", "é ü"]
WRITTEN = {"out", "save_similarity", "plots"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny cache, a judged run, and things that are neither."""
    root = tmp_path_factory.mktemp("options")
    rng = np.random.default_rng(0)
    ids = [f"video{i}" for i in range(9)]
    np.savez(root / "frames.npz", **{v: rng.standard_normal((2, 64)).astype(np.float32) for v in ids})
    np.savez(root / "texts.npz", **{f"{v}#0": rng.standard_normal(64).astype(np.float32) for v in ids})
    splits = ["train"] * 5 + ["val"] * 2 + ["test"] * 2
    rows = [f"{v},thing of {v},{s}" for v, s in zip(ids, splits)]
    (root / "captions.csv").write_text("\n".join(["video,caption,split", *rows]))
    (root / "file").write_text("neither")
    (root / "empty").mkdir()
    options = ("--dataset", "csv", "--annotations", "captions.csv", "--features", "frames.npz")
    run(root, "import-features", *options, "--text-features", "texts.npz", "--out", "cache", "--format", "hdf5")
    run(
        root,
        "train-head",
        "--cache",
        "cache",
        "--out",
        "run",
        "--head",
        "mean_pool",
        "--epochs",
        "1",
        "--device",
        "cpu",
    )
    assert run(root, "eval", "--run", "run")[0] == 0
    (root / "result.json").write_bytes((root / "run" / "result.json").read_bytes())
    return root


def run(root: Path, *words: str) -> tuple[int, str, str]:
    """A command in this process, below `root`."""
    out, err = io.StringIO(), io.StringIO()
    argv, home, here = sys.argv, os.environ.get("GLSCL_HOME"), Path.cwd()
    sys.argv, os.environ["GLSCL_HOME"] = ["glscl", *words], str(root / "home")
    try:
        os.chdir(root)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(cli.app, list(words))
    finally:
        os.chdir(here)
        sys.argv = argv
        if home is None:
            del os.environ["GLSCL_HOME"]
        else:
            os.environ["GLSCL_HOME"] = home
    return status, out.getvalue(), err.getvalue()


def words_of(parameter: inspect.Parameter) -> st.SearchStrategy[list[str]]:
    """What a user may type for one option, good or not."""
    kind, option = typing.get_args(parameter.annotation)[:2]
    name, kinds = parameter.name, {kind, *typing.get_args(kind)}
    flags = [flag for flag in option.param_decls or () if flag.startswith("-")] or [f"--{name.replace('_', '-')}"]
    argument = type(option).__name__ == "ArgumentInfo"
    if bool in kinds:
        return st.sampled_from([[flags[0].split("/")[0]]])
    if {int, float} & kinds:
        values = SMALL if name in PATIENT else NUMBERS
    elif Path in kinds or list[Path] in kinds or name in WRITTEN:
        values = OUTPUTS if name in WRITTEN else INPUTS
    else:
        values = WORDS
    return st.sampled_from(values).map(lambda value: [value] if argument else [flags[0], value])


def command_lines(title: str) -> st.SearchStrategy[list[str]]:
    required, optional = [], []
    for parameter in COMMANDS[title].parameters.values():
        if parameter.name in ("debug", "seed", "device"):
            continue
        words = words_of(parameter)
        (required if parameter.default is inspect.Parameter.empty else optional).append(words)
    chosen = st.lists(st.integers(0, len(optional) - 1), max_size=4, unique=True)
    some = chosen.flatmap(lambda which: st.tuples(*(optional[i] for i in which)))
    return st.tuples(st.tuples(*required), some).map(lambda both: [w for part in both for words in part for w in words])


# good values where nothing is given, and short work; a later value wins
GOOD = {
    "extract": ["--dry-run"],
    "train-head": ["--cache", "cache", "--epochs", "1", "--head", "mean_pool"],
    "eval": ["--cache", "cache"],
    "search": ["--cache", "cache"],
    "compare": ["--resamples", "3"],
    "report": ["--examples", "1"],
    "finetune": ["--epochs", "1"],
}
# good values in place of what is asked for
BETTER = {
    "import-features": ["--dataset", "csv", "--annotations", "captions.csv", "--features", "frames.npz"],
    "extract": ["--dataset", "csv", "--annotations", "captions.csv"],
}


@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("title", sorted(set(COMMANDS) - LEFT_OUT))
def test_any_options_end_well_or_in_one_line(title, cases, place, request, monkeypatch):
    monkeypatch.setattr(SERVING, lambda server: server._ready())  # it would serve good options for ever
    cases = request.config.getoption("--fuzz-cases") or cases

    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=not request.config.getoption("--fuzz-start"),
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines(title), st.booleans(), st.booleans())
    def check(words, as_json, plainly):
        good = [] if plainly else GOOD.get(title, [])
        if title in ("train-head", "finetune", "compare", "extract"):
            good = GOOD[title]
        if "out" in COMMANDS[title].parameters and "--out" not in words:
            good = [*good, "--out", "out"]
        status, out, err = run(
            place,
            title,
            *good,
            *words,
            *([] if plainly else BETTER.get(title, [])),
            "--device",
            "cpu",
            *(["--json"] if as_json else []),
        )
        assert status in (0, 1, 2), (status, err)
        assert "Traceback" not in err and "Unexpected" not in err, err[-2000:]
        said = [line for line in err.splitlines() if line.startswith("glscl: ")]
        usage = status == 2 and "Usage:" in err
        assert len(said) == (1 if status and not usage else 0), err
        if as_json:
            json.loads(out)

    check()


def test_a_folder_that_no_system_allows_is_one_line(place):
    for words in (
        ["inspect", "x" * 5000],
        ["report", "run", "--out", "x" * 300 + ".html"],
        ["eval", "--run", "x" * 300],
    ):
        status, _, err = run(place, *words)
        assert status == 1 and err.splitlines()[-1].startswith("glscl: ") and "Unexpected" not in err, err
