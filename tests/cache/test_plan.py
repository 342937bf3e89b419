"""A plan is read back as it was written, all lines at once where they are good, and an error names its line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glscl.cache.plan import plan_file, read_plan, write_plan
from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.common.errors import CacheCorruptError

VIDEOS = [
    VideoItem("a", "train", None),
    VideoItem("ü", "train", "/videos/ü.mp4", 0, 2.5),
    VideoItem("c", "test", "c", 12, 13.0),
]
TEXTS = [TextItem("t", "a", "train", "a man"), TextItem("", "", "", "", "original")]
NOT_UTF8 = b"/videos/\xff.mp4".decode("utf-8", "surrogateescape")  # a file name as Python has it


@pytest.mark.parametrize("extra", [[], [VideoItem("d", "test", NOT_UTF8)]], ids=["utf-8", "not utf-8"])
def test_items_come_back_as_they_were_written(tmp_path, extra):
    write_plan(tmp_path, Annotations(dataset="made", videos=VIDEOS + extra, texts=TEXTS))
    found = read_plan(tmp_path, "video", len(VIDEOS + extra))
    assert found == VIDEOS + extra and read_plan(tmp_path, "text", 2) == TEXTS
    assert [repr(item.start) for item in found[:3]] == ["None", "0", "12"], "whole seconds stay whole: they are hashed"


VALUE = st.sampled_from(["a", "é\ud800", "", None, 0, 1.5, -1, True, [], {}, float("nan"), 1e13, 10**30])
ROW = st.dictionaries(
    st.sampled_from(["id", "video", "split", "text", "original", "path", "start", "end", "more"]), VALUE
)
GOOD = {
    "video": [{"id": "a", "split": "b", "path": None}],
    "text": [{"id": "a", "video": "b", "split": "c", "text": "d"}],
}
LINE = st.one_of(
    ROW.map(json.dumps),
    st.sampled_from(["[", "]", "{}", "[]", "0", "null", '{"id":"a"', '"split":"b"}', "{}]", ",", "[" * 99_999]),
    st.sampled_from([json.dumps(row) for rows in GOOD.values() for row in rows]),
)


@given(lines=st.lists(LINE, min_size=1, max_size=5), stream=st.sampled_from(["video", "text"]))
def test_all_lines_at_once_are_what_they_are_one_by_one(tmp_path_factory, lines, stream):
    root = tmp_path_factory.mktemp("plan")
    path = plan_file(root, stream)
    path.parent.mkdir()

    def read(lines):
        path.write_text("".join(f"{line}\n" for line in lines))
        try:
            return read_plan(root, stream, len(lines))
        except CacheCorruptError as error:
            return str(error)

    single = [read([line]) for line in lines]
    bad = next((number for number, found in enumerate(single, start=1) if isinstance(found, str)), None)
    found = read(lines)
    if bad is None:
        assert found == [item for items in single for item in items]
    else:
        assert found == single[bad - 1].replace("line 1 cannot", f"line {bad} cannot")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": 1, "split": "b", "path": None}, "id: expected str, got int"),
        ({"id": "a", "path": None}, "missing required field split"),
        ({"id": "a", "split": "b", "path": None, "start": -1}, "start: expected int >= 0"),
        ({"id": "a", "split": "b", "path": None, "end": 1e12}, "end: expected float < "),
        ({"id": "a", "split": "b", "path": None, "\x1b[2J": 1}, r"unknown field \\x1b\[2J"),
        ([], "Expected object, got array"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_a_line_is_said_by_field(tmp_path, row, words):
    write_plan(tmp_path, Annotations(dataset="made", videos=VIDEOS, texts=TEXTS))
    path = plan_file(tmp_path, "video")
    path.write_text(path.read_text() + json.dumps(row) + "\n")
    with pytest.raises(CacheCorruptError, match=f"video.jsonl, line 4 cannot be read: .*{words}"):
        read_plan(tmp_path, "video", 4)
