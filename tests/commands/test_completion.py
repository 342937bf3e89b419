"""Completion: what a shell is offered at each place of a command line, and that its script understands it."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from glscl.commands.completion import PATHS_TOO, SCRIPTS, answer, candidates


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home with two caches and a run, seen from the folder above it."""
    for name in ("caches/msvd-demo/store.json", "caches/my clips/store.json", "runs/glscl-1/run.json"):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def offered(line: str) -> list[str]:
    return [value for value, _ in candidates(line.split(" "))[0]]


@pytest.mark.parametrize(
    "line, expected",
    [
        ("fin", ["finetune"]),
        ("--ver", ["--version"]),
        ("train-head --lora", []),
        ("finetune --lora", ["--lora-rank"]),
        ("extract --tok", ["--tokens"]),
        ("extract --no-tok", ["--no-tokens"]),
        ("train-head --head xc", ["xclip"]),
        ("train-head --head=xc", ["--head=xclip"]),
        ("train-head --head = xc", ["xclip"]),  # as bash splits it
        ("train-head --precision =", ["auto", "fp32", "tf32", "bf16", "fp16"]),
        ("extract --dataset ms", ["msrvtt", "msvd"]),
        ("extract --backbone ViT-B-32-q", ["ViT-B-32-quickgelu"]),
        ("extract --strict --dataset ms", ["msrvtt", "msvd"]),  # a switch takes no value
        ("train-head --cache ms", ["home/caches/msvd-demo"]),
        ("inspect home/caches/my", ["home/caches/my clips"]),
        ("eval --run ", ["home/runs/glscl-1"]),
        ("report a b ", ["home/runs/glscl-1"]),  # takes any number
        ("inspect a b", []),  # takes one
        ("completion z", ["zsh"]),
        ("train-head --epochs ", []),
        ("no-such-command --", []),
        ("train-head --no-such-option=", []),
    ],
)
def test_each_place_is_offered_what_may_stand_there(home, line, expected):
    assert offered(line) == expected


def test_all_options_come_with_what_they_are(home):
    found = dict(candidates(["train-head", ""])[0])
    assert found["--epochs"].startswith("Passes over all captions") and "--help" in found


def test_paths_are_offered_where_a_path_may_stand_and_only_there(home, capsys):
    assert answer(["train-head", "--cache", ""]) == answer(["inspect", "./"]) == PATHS_TOO
    assert answer(["train-head", "--head", ""]) == 0
    assert "home/caches/my clips\n" in capsys.readouterr().out


def test_an_answer_is_never_an_error_nor_steers_the_shell(home, monkeypatch, capsys):
    (home / "runs" / "\x1b[2Jevil").mkdir()
    (home / "runs" / "\x1b[2Jevil" / "run.json").touch()
    assert answer(["eval", "--run", ""]) == PATHS_TOO and answer([]) == 0
    monkeypatch.setenv("GLSCL_HOME", "https://elsewhere")
    assert answer(["eval", "--run", ""]) == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out and not printed.err


_DRIVERS = {
    "bash": 'COMP_WORDS=(glscl inspect my); COMP_CWORD=2; _glscl glscl; printf "%s\\n" "${COMPREPLY[@]}"',
    "fish": 'complete -C "glscl inspect my"',
    "zsh": "compadd() { print -r -- $values }; words=(glscl inspect my); CURRENT=3; _files() { }; _glscl",
}


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_shell_understands_its_script(shell, glscl, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    status, script, _ = glscl("completion", shell)
    assert status == 0
    stand_in = tmp_path / "glscl"  # what it is asked comes back
    stand_in.write_text('#!/bin/sh\necho "$_GLSCL_COMPLETE $*\thelp"; exit 0\n')
    stand_in.chmod(0o755)
    start = "compdef() { }\n" if shell == "zsh" else ""
    code = f"{start}{script}\n{_DRIVERS[shell]}"
    flags = {"bash": "--norc", "zsh": "-f", "fish": "--no-config"}[shell]
    done = subprocess.run(
        [shell, flags, "-c", code],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
    )
    assert done.stdout.decode().replace("\\", "").startswith("1 inspect my"), done
