"""Keys follow what an item is made from: the same work has the same key, other work another."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glscl.cache import keys
from glscl.cache.keys import (
    as_array,
    clip,
    content_of,
    from_lines,
    has_key,
    microseconds,
    rows_key,
    text_key,
    to_lines,
    video_key,
)

KEYS = st.lists(st.binary(min_size=16, max_size=16), max_size=20)


def test_content_does_not_depend_on_the_name_or_the_time(tmp_path):
    a, b = tmp_path / "a.mp4", tmp_path / "b.avi"
    for path in (a, b):
        path.write_bytes(b"moving pictures")
    os.utime(b, ns=(1, 1))
    (stat, content), (_, other) = content_of(a), content_of(b)
    assert content == other and len(content) == 16 and stat.size == 15


@pytest.mark.parametrize("size", [0, 1, keys.WHOLE_BYTES, keys.WHOLE_BYTES + 1, 5 << 20])
def test_a_byte_at_either_end_and_the_length_count(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(size))
    plain = content_of(path)[1]
    found = {plain}
    for position in {0, size - 1} if size else ():
        with open(path, "r+b") as file:
            file.seek(position)
            file.write(b"x")
        found.add(content_of(path)[1])
    with open(path, "ab") as file:
        file.write(b"\0")
    found.add(content_of(path)[1])
    assert len(found) == 2 + min(size, 2)


def test_a_hole_of_a_sixteenth_is_seen(tmp_path):
    size = 64 << 20
    path, holed = tmp_path / "whole", tmp_path / "holed"
    path.write_bytes(bytes(range(256)) * (size // 256))
    plain = content_of(path)[1]
    for start in range(0, size, size // 16):
        holed.write_bytes(path.read_bytes())
        with open(holed, "r+b") as file:
            file.seek(start)
            file.write(bytes(size // 16))
        assert content_of(holed)[1] != plain, start


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path, calls = tmp_path / "file", []
    path.write_bytes(b"before")

    def replaced_once(file, size, read=keys.stream_content):
        found = read(file, size)
        if not calls:
            path.write_bytes(b"after it")
        calls.append(size)
        return found

    monkeypatch.setattr(keys, "stream_content", replaced_once)
    stat, content = content_of(path)
    assert calls == [6, 8] and stat.size == 8
    monkeypatch.undo()
    assert content == content_of(path)[1]


def test_a_file_that_never_stops_changing_is_an_error(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"")

    def growing(file, size, read=keys.stream_content):
        with open(path, "ab") as more:
            more.write(b"x")
        return read(file, size)

    monkeypatch.setattr(keys, "stream_content", growing)
    with pytest.raises(OSError, match="changes while it is read"):
        content_of(path)
    with pytest.raises(FileNotFoundError):
        content_of(Path(tmp_path, "none"))


@pytest.mark.parametrize("start, end", [(12, 20), (12.0, 20.0), (12.0000004, 19.9999996)])
def test_times_are_compared_in_microseconds(start, end):
    assert video_key(b"c" * 16, *clip(start, end)) == video_key(b"c" * 16, 12_000_000, 20_000_000)


def test_no_start_and_the_start_of_the_file_are_one():
    assert clip(0, None) == clip(None, None) == (None, None) and clip(0.0, 5) == clip(None, 5)
    assert microseconds(0.1 + 0.2) == 300_000


def test_other_work_has_another_key():
    content, other = b"c" * 16, b"d" * 16
    rows = np.ones((2, 3), np.float32)
    made = [
        video_key(content),
        video_key(other),
        video_key(content, 1, None),
        video_key(content, None, 1),
        video_key(content, 1, 1),
        video_key(content, 11, None),
        text_key("a cat"),
        text_key("a cat "),
        text_key("A cat"),
        text_key("caf\u00e9"),
        text_key("cafe\u0301"),
        text_key("\udc80"),
        rows_key(rows, 1.0, None),
        rows_key(rows.reshape(3, 2), 1.0, None),
        rows_key(rows * 2, 1.0, None),
        rows_key(rows, 2.0, None),
        rows_key(rows, None, None),
        rows_key(rows, None, 1),
    ]
    assert len(set(made)) == len(made) and {len(key) for key in made} == {16}


def test_keys_of_features_do_not_depend_on_how_they_lie_in_memory():
    rows = np.arange(12, dtype=np.float64).reshape(3, 4)
    assert rows_key(rows, 1.0, 0) == rows_key(np.asfortranarray(rows.astype(np.float32)), 1.0, 0)


@given(KEYS)
def test_lines_read_back(made):
    array = as_array(made)
    assert array.shape == (len(made), 16)
    data = to_lines(array)
    assert data == b"".join(key.hex().encode() + b"\n" for key in made)
    np.testing.assert_array_equal(from_lines(data), array)
    assert has_key(array).tolist() == [any(key) for key in made]


@pytest.mark.parametrize(
    "data", [b"00", b"g" * 32 + b"\n", b"A" * 32 + b"\n", b"0" * 33, b"0" * 31 + b"\n\n", b"\xff" * 33]
)
def test_what_is_no_key_is_refused(data):
    with pytest.raises(ValueError):
        from_lines(data)
