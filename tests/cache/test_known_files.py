"""A file is hashed once, and again as soon as it may be another; the memo may be lost, cut or wrong."""

from __future__ import annotations

import itertools
import os

import pytest

from glscl.cache.keys import content_of
from glscl.cache.known_files import FILE, KnownFiles


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(5):
        (folder / f"vidéo {number}.mp4").write_bytes(bytes([number]) * 100)
    return sorted(folder.iterdir())


def test_files_are_hashed_once(videos, tmp_path):
    known = KnownFiles()
    first = known.contents(videos)
    assert first == [content_of(path)[1] for path in videos] and known.hashed == 5
    known.save(tmp_path)
    again = KnownFiles.read(tmp_path)
    assert again.contents(videos) == first and again.hashed == 0
    assert [again.path_of(content) for content in first] == videos


@pytest.mark.parametrize("change", ["content", "time", "size"])
def test_a_file_that_may_be_another_is_hashed_again(videos, tmp_path, change):
    known = KnownFiles()
    before = known.content(videos[0])
    if change == "time":
        os.utime(videos[0], ns=(1, 1))
    else:
        videos[0].write_bytes(b"x" * (100 if change == "content" else 99))
        os.utime(videos[0], ns=(2, 2))
    assert known.path_of(before) is None
    assert (known.content(videos[0]) == before) == (change == "time") and known.hashed == 2


def test_what_cannot_be_read_stands_in_its_place(videos, tmp_path):
    found = KnownFiles().contents([videos[0], tmp_path / "none.mp4", tmp_path])
    assert isinstance(found[0], bytes) and isinstance(found[1], FileNotFoundError) and isinstance(found[2], OSError)


def test_copies_lead_to_one_that_is_there(videos, tmp_path):
    known = KnownFiles()
    copy = videos[0].with_name("zz copy.mp4")
    copy.write_bytes(videos[0].read_bytes())
    content = known.contents([videos[0], copy])[0]
    assert [known.path_of(content, like=path.name) for path in (copy, videos[0])] == [copy, videos[0]]
    videos[0].unlink()
    assert known.path_of(content) == copy
    assert known.stat_of(copy) is not None and known.stat_of(tmp_path / "never") is None


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\x00", b"[", b'["a", 1, 2, "zz"]\n', b'["a", 1, 2, "00"]\n', b'{"path": 1}\n']
)
def test_a_damaged_memo_is_a_memo_of_what_is_left(videos, tmp_path, damage):
    known = KnownFiles()
    known.contents(videos)
    known.save(tmp_path)
    file = tmp_path / FILE
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + damage + b"\n" + b"".join(lines[1:3]))
    again = KnownFiles.read(tmp_path)
    again.contents(videos)
    assert again.hashed == 2
    assert KnownFiles.read(tmp_path / "nowhere").hashed == 0


def test_names_that_are_no_text_are_hashed_each_time(tmp_path):
    name = os.fsdecode(bytes(tmp_path) + b"/\xff.mp4")
    with open(name, "wb") as file:
        file.write(b"moving")
    known = KnownFiles()
    content = known.content(name)
    known.save(tmp_path)
    again = KnownFiles.read(tmp_path)
    assert again.content(name) == content and again.hashed == 1


def test_a_bit_that_tips_in_the_memo_never_becomes_another_content(videos, tmp_path):
    """Not even within the hash or the time, where the line stays a line."""
    known = KnownFiles()
    contents = known.contents(videos[:1])
    known.save(tmp_path)
    data = (tmp_path / FILE).read_bytes()
    for place, bit in itertools.product(range(len(data)), (0, 1, 4)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << bit
        (tmp_path / FILE).write_bytes(damaged)
        read = KnownFiles.read(tmp_path)
        assert all(read.remembered(path) in (content, None) for path, content in zip(videos, contents))
        assert all(path in map(str, videos) for content in contents for path in read.paths_of(content))
