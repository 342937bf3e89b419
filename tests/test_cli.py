"""The command line as a whole: help, JSON for errors too, a traceback on demand, and an installed script."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import glscl.cli  # noqa: F401 (registers the commands)
from glscl.commands.options import COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_and_the_common_options(glscl, command):
    status, out, _ = glscl(command, "--help")
    assert status == 0
    text = " ".join(out.split())
    for option in ("--seed", "--device", "--json", "--debug", "--verbose"):
        assert option in text


def test_json_is_one_object_on_standard_output_also_for_errors(glscl, tmp_path):
    status, out, err = glscl("inspect", tmp_path / "nothing", "--json")
    assert status == 1
    assert json.loads(out) == {"error": err.strip().removeprefix("glscl: "), "exit_status": 1}
    for words in (
        ("extract",),
        ("inspect",),
        ("no-such-command",),
        ("eval", "--no-such-option"),
        ("eval", "--seed", "x"),
    ):
        status, out, err = glscl(*words, "--json")
        told = json.loads(out)
        assert status == told["exit_status"] == 2
        assert told["error"] and told["error"].split()[0] in err


def test_help_and_completion_load_nothing_heavy():
    options = "('dataset', 'head', 'backbone', 'cache', 'run_folder')"
    code = (
        "import sys, glscl.cli; from glscl.commands.completion import _THERE\n"
        f"for name in {options}: list(_THERE[name]())\n"
        "print([m for m in sys.modules if '.' not in m])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "numpy", "open_clip", "av", "decord", "zarr", "h5py", "matplotlib", "accelerate"):
        assert f"'{heavy}'" not in loaded


def test_the_installed_command_runs():
    script = Path(sys.executable).with_name("glscl")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("glscl ")
    module = subprocess.run([sys.executable, "-m", "glscl", "--version"], capture_output=True, text=True, check=True)
    assert module.stdout == done.stdout


def test_debug_shows_the_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "glscl", "inspect", tmp_path / "nothing", "--debug"],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 1 and "Traceback" in done.stderr and "NotFoundError" in done.stderr
