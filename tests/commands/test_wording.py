"""The library names settings and commands as data; people read options and command lines."""

from __future__ import annotations

import shlex

import pytest

from glscl import cli
from glscl.commands.options import COMMANDS
from glscl.commands.printing import rough_size
from glscl.commands.wording import command_text, error_text, hint_text, worded
from glscl.common.errors import GlsclError, Hint, StorageError, UsageError

assert cli.app  # registers the commands


@pytest.mark.parametrize(
    "text, expected",
    [
        ("`epochs` is 0; expected at least 1", "--epochs is 0; expected at least 1"),
        ("Use `precision=fp32` or bf16", "Use --precision fp32 or bf16"),
        ("go on with `resume`", "go on with --resume"),
        ("`tokens=False`", "--no-tokens"),
        ("`batch_size` and `run`", "--batch-size and --run"),
        ("`no_such_setting` stays, and so does `VALUE`", "`no_such_setting` stays, and so does `VALUE`"),
    ],
)
def test_settings_become_options(text, expected):
    assert worded(text, COMMANDS) == expected


@pytest.mark.parametrize(
    "hint, expected",
    [
        (Hint("Choose another folder with `out`"), "Choose another folder with --out"),
        (Hint("Make one", "extract", {"dataset": "NAME"}), "Make one: glscl extract --dataset NAME"),
        (Hint("", "inspect", {"": "my cache", "verify": True}), "glscl inspect 'my cache' --verify"),
        (Hint("Again", "extract", {"tokens": False}), "Again: glscl extract --no-tokens"),
        (Hint("Judge them", "eval", {"run": ["a", "b"]}), "Judge them: glscl eval --run a --run b"),
    ],
)
def test_hints_become_commands(hint, expected):
    assert hint_text(hint, COMMANDS) == expected


def test_a_value_never_leaves_its_word():
    line = command_text("inspect", {"": "a; rm -rf `b` $(c) 'd'"}, COMMANDS)
    assert shlex.split(line) == ["glscl", "inspect", "a; rm -rf `b` $(c) 'd'"]


def test_an_error_is_said_with_what_to_do():
    error = UsageError("`lr` is 0.", hint=Hint("Try", "train-head", {"lr": 0.1}))
    assert error_text(error, COMMANDS) == "--lr is 0. Try: glscl train-head --lr 0.1"
    assert str(error) == "`lr` is 0. Try: train-head (lr=0.1)" and error.message == "`lr` is 0."
    assert error_text(GlsclError("It broke."), COMMANDS) == "It broke."


def test_a_full_disk_says_what_comes_first_and_how_it_goes_on():
    full = StorageError("The disk is full", first="Free some space")
    assert str(full) == "The disk is full. Free some space, then run the same command again"
    assert str(full.continued("glscl x --resume")) == "The disk is full. Free some space, then go on: glscl x --resume"
    elsewhere = StorageError("No permission", hint="Choose another folder with `out`")
    assert elsewhere.continued("glscl x") is elsewhere


@pytest.mark.parametrize(
    ("count", "said"),
    [(470_123_456, "470 MB"), (1_834, "0.0018 MB"), (2_149_000_000, "2.1 GB"), (1_534_000_000_000, "1,500 GB")],
)
def test_a_size_that_is_foreseen_has_two_digits_and_no_power_of_ten(count, said):
    assert rough_size(count) == said
