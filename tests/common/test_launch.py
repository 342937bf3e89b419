"""The launch environment is read once; what makes no sense is one line, and half a launch is no launch."""

from __future__ import annotations

import os

import pytest

from glscl.common.errors import UsageError
from glscl.common.launch import Launch, launch

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def put(**values: str) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    "values, expected",
    [
        ({}, Launch(0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launch(3, 4, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Launch(1, 2, 1, 2)),
        ({"RANK": "1"}, Launch(0, 1, 0, 1)),
        ({"RANK": "abc", "LOCAL_RANK": "1"}, Launch(0, 1, 0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Launch(0, 1, 0, 1)),
    ],
)
def test_the_launcher_says_which_process_this_is(values, expected, environment):
    environment(**values)
    assert launch() == expected and launch().speaks == (expected.rank == 0)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"RANK": "5", "WORLD_SIZE": "2"}, "RANK is 5 of WORLD_SIZE 2 processes"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK is 'x' in the environment; expected a number"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many'"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "-1"}, "LOCAL_RANK is '-1'"),
    ],
)
def test_what_makes_no_sense_is_said(values, message, environment):
    environment(**values)
    with pytest.raises(UsageError, match=message):
        launch()


def test_half_a_launch_is_hidden_from_the_libraries_that_read_it_too(environment):
    environment(RANK="1", LOCAL_RANK="1")
    launch()
    assert not os.environ.keys() & set(NAMES)
