"""Shares of an extraction: every shard falls to exactly one part, whatever the numbers."""

from __future__ import annotations

import pytest

from glscl.common.errors import UsageError
from glscl.common.launch import Processes, processes
from glscl.extract.part import WHOLE, Part


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_shard_falls_to_one_process_of_one_part(count, world):
    shares = [Part(i, count).among(rank, world) for i in range(1, count + 1) for rank in range(world)]
    assert len(set(shares)) == count * world and {share.count for share in shares} == {count * world}
    assert sorted(shard for share in shares for shard in share.of(range(20))) == list(range(20))


def test_parts_are_written_as_they_are_read():
    assert str(Part.parse("2/8")) == "2/8" and Part.parse(None) == Part.parse("1/1") == WHOLE
    assert WHOLE.whole and not Part(1, 2).whole


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3", "", "1.0/2", "¹/2"])
def test_anything_else_is_refused(text):
    with pytest.raises(UsageError, match=r"expected I/N with I from 1 to N, such as 2/8"):
        Part.parse(text)


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, Processes(0, 1, 0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Processes(3, 4, 1, 2)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, Processes(1, 2, 1, 2)),
        ({"RANK": "5", "WORLD_SIZE": "2"}, Processes(0, 1, 0, 1)),
        ({"RANK": "x", "WORLD_SIZE": "many"}, Processes(0, 1, 0, 1)),
    ],
)
def test_the_launcher_says_which_process_this_is(environment, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes() == expected
