"""Shares of an extraction: every shard falls to exactly one part, whatever the numbers."""

from __future__ import annotations

import pytest

from glscl.common.errors import UsageError
from glscl.extract.part import Part


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_shard_falls_to_one_process_of_one_part(count, world):
    shares = [Part(i, count).among(rank, world) for i in range(1, count + 1) for rank in range(world)]
    assert len(set(shares)) == count * world and {share.count for share in shares} == {count * world}
    assert all(sum(share.takes(shard) for share in shares) == 1 for shard in range(20))
    assert len({sum(share.takes(shard) for shard in range(count * world)) for share in shares}) == 1, "equal shares"


def test_parts_are_written_as_they_are_read():
    assert str(Part.parse("2/8")) == "2/8" and Part.parse(None) == Part.parse("1/1") == Part()
    assert Part().whole and not Part(1, 2).whole


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3", "", "1.0/2", "¹/2"])
def test_anything_else_is_refused(text):
    with pytest.raises(UsageError, match=r"expected I/N with I from 1 to N, such as 2/8"):
        Part.parse(text)
