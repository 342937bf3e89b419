"""Strings come out of their bytes as they went in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glscl.cache.shard_arrays import pack_strings, unpack_strings
from glscl.common.errors import CacheCorruptError

ANY = st.characters() | st.characters(categories=["Cs"])  # halves of surrogate pairs, as from odd file names, too


@given(st.lists(st.text(ANY, max_size=4), max_size=6))
def test_strings_of_any_characters_come_back(strings):
    assert unpack_strings(*pack_strings(strings)) == strings


@pytest.mark.parametrize("offsets", [[0, 1, 3], [0, 2, 3], [1, 3]])
def test_boundaries_within_a_character_are_refused(offsets):
    data = np.frombuffer("€".encode(), np.uint8)
    with pytest.raises(CacheCorruptError, match="within a character"):
        unpack_strings(data, np.array(offsets))


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(CacheCorruptError, match="not UTF-8"):
        unpack_strings(np.array([65, 255], np.uint8), np.array([0, 1, 2]))
