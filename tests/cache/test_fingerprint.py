"""A fingerprint follows what decides the values, and what differs is named."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from glscl.cache.fingerprint import differences, fingerprint

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5))
def test_order_of_keys_does_not_matter(configuration):
    assert fingerprint(configuration) == fingerprint(dict(reversed(configuration.items())))


@given(st.dictionaries(st.text(), JSON, max_size=4), st.dictionaries(st.text(), JSON, max_size=4))
def test_differences_are_empty_exactly_when_configurations_are_equal(a, b):
    assert (differences(a, b) == []) == (
        {k: v for k, v in a.items() if v is not None} == {k: v for k, v in b.items() if v is not None} or a == b
    )
