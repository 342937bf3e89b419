"""Lines of a plan are parsed many at a time, and never otherwise than one by one."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glscl.cache.records import parse_item, parse_lines
from glscl.cache.schema import TextItem, VideoItem

VALUE = st.sampled_from(["a", "é\ud800", "", None, 0, 1.5, -1, True, [], {}, float("nan"), 1e13])
ROW = st.dictionaries(
    st.sampled_from(["id", "video", "split", "text", "original", "path", "start", "end", "more"]), VALUE
)
LINE = st.one_of(
    ROW.map(json.dumps),
    st.sampled_from(["", "[", "]", "{}", "[]", "0", "null", '{"id":"a"', '"split":"b"}', '{"id":"a"},0,{"id":"b"}', "[{}", "{}]", ",", "0,"]),
)  # fmt: skip
GOOD = {
    VideoItem: [{"id": "a", "split": "b", "path": None}, {"id": "ü", "split": "b", "path": "c", "start": 0, "end": 2.5}],
    TextItem: [{"id": "a", "video": "b", "split": "c", "text": "d"}, {"id": "", "video": "", "split": "", "text": "", "original": "\ud800"}],
}  # fmt: skip


def one_by_one(lines, kind):
    try:
        return [parse_item(json.loads(line), kind) for line in lines]
    except (ValueError, RecursionError):
        return None


@pytest.mark.parametrize("kind", GOOD)
def test_good_lines_are_parsed_at_once_into_the_same_items(kind):
    lines = [json.dumps(row, ensure_ascii=ascii) + "\n" for row in GOOD[kind] for ascii in (True, False)]
    found = parse_lines(lines, kind)
    assert found is not None and found == one_by_one(lines, kind) and {type(item) for item in found} == {kind}


@given(
    lines=st.lists(
        LINE | st.sampled_from([json.dumps(row) for rows in GOOD.values() for row in rows]), min_size=1, max_size=6
    )
)
def test_lines_that_one_by_one_would_be_refused_are_not_taken_at_once(lines):
    for kind in GOOD:
        found = parse_lines(lines, kind)
        assert found is None or found == one_by_one(lines, kind)
