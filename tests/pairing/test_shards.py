"""Shards of others lose nothing: every member becomes a video or a caption, or is counted with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from glscl.common.errors import InputError
from glscl.extract.datasets.webdataset import read

VIDEO = b"not decoded here"


def captions(found):
    return [(text.video.partition("/")[2], text.text) for text in found.texts]


def test_names_with_dots_are_whole_names(shard):
    members = {"plain.mp4": VIDEO, "plain.txt": "x"}
    for i, name in enumerate(("clip 2.0 (Clean)", "song v1.0", "song v1.1", "movie_00.23.23.000-00.23.28.886")):
        members |= {f"{name}.mp4": VIDEO, f"{name}.txt": f"caption {i}"}
    found = read(shard("a.tar", members), None)
    assert [text for _, text in captions(found)] == ["x", *(f"caption {i}" for i in range(4))]
    assert len(found.videos) == 5


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0.txt", "a cat"),
        ("0.TXT", "a cat"),
        ("0.caption.txt", "a cat"),
        ("0.mp4.txt", "a cat"),
        ("0.caption", "a cat"),
        ("0.json", {"caption": "a cat"}),
        ("0.JSON", {"text": "a cat"}),
        ("0.json", {"caption": None, "captions": ["a cat"]}),
        ("0.json", {"caption": "", "captions": ["a cat"]}),
    ],
)
def test_captions_stand_where_programs_write_them(shard, name, content):
    assert captions(read(shard("a.tar", {name: content, "0.mp4": VIDEO}), None)) == [("0.mp4", "a cat")]


def test_an_empty_text_does_not_hide_the_caption_of_the_object(shard):
    found = read(shard("a.tar", {"0.json": {"caption": "a cat"}, "0.mp4": VIDEO, "0.txt": " "}), None)
    assert captions(found) == [("0.mp4", "a cat")]


def test_of_text_and_object_the_one_that_holds_all_counts_and_a_difference_is_said(shard):
    members = {
        "0.mp4": VIDEO, "0.txt": "a cat", "0.json": {"captions": ["a dog", "a  cat"]},
        "1.mp4": VIDEO, "1.txt": "a cat", "1.json": {"caption": "a bird"},
    }  # fmt: skip
    found = read(shard("a.tar", members), None)
    assert captions(found) == [("0.mp4", "a dog"), ("0.mp4", "a cat"), ("1.mp4", "a cat")]
    assert any(note.startswith("1 sample with other captions in .json than in .txt") for note in found.notes)


def test_a_compound_extension_belongs_to_the_sample_before_its_first_dot(shard):
    found = read(shard("a.tar", {"0.video.mp4": VIDEO, "0.txt": "a cat"}), None)
    assert captions(found) == [("0.video.mp4", "a cat")]
    with pytest.raises(InputError, match="'0.txt': fits the videos 0.low.mp4 and 0.high.mp4"):
        read(shard("b.tar", {"0.low.mp4": VIDEO, "0.high.mp4": VIDEO, "0.txt": "a cat"}), None)


def test_what_is_not_used_is_counted(shard):
    members = {
        "0.mp4": VIDEO, "0.txt": "a cat", "0.jpg": b"", "1.jpg": b"", "0.srt": "x", "0.asr.json": "[1]", "LICENSE": "x",
        "._0.txt": "x", "2.txt": "no video", "3.json": {"status": "failed"},
    }  # fmt: skip
    notes = "\n".join(read(shard("a.tar", members), None).notes)
    assert "not used: 1 .asr.json, 2 .jpg, 1 .srt, 1 hidden files, 1 without extension" in notes
    assert "dropped 2 samples without a video: 2 of a.tar, 3 of a.tar" in notes


def test_a_name_that_stands_twice_is_refused(shard):
    with pytest.raises(InputError, match="'0.txt': stands twice in the shard"):
        read(shard("a.tar", [("0.mp4", VIDEO), ("0.txt", "a cat"), ("0.txt", "a dog")]), None)


# --- unpacked ---------------------------------------------------------------------------------------------------------


def content(found):
    return [Path(video.path).read_bytes() for video in found.videos]


def test_shards_of_one_name_never_overwrite_each_other(shard, tmp_path):
    first, second = shard("one/00000.tar", {"0.mp4": b"first"}), shard("two/00000.tar", {"0.mp4": b"other"})
    found = read(first, tmp_path / "videos")
    with pytest.raises(InputError, match=r"00000/0.mp4 is there already and is not the video of .*two/00000.tar"):
        read(second, tmp_path / "videos")
    assert content(found) == [b"first"]
    moved = shard("three/00000.tar", {"0.mp4": b"first", "1.mp4": b"more"})
    assert content(read(moved, tmp_path / "videos")) == [b"first", b"more"]


def test_a_shard_made_again_with_members_of_one_size_is_noticed(shard, tmp_path):
    path = shard("00000.tar", {"0.mp4": b"first", "1.mp4": b"same"})
    before = read(path, tmp_path / "videos")
    kept = Path(before.videos[1].path).stat().st_mtime_ns
    shard("00000.tar", {"0.mp4": b"again", "1.mp4": b"same"})
    after = read(path, tmp_path / "videos")
    assert content(after) == [b"again", b"same"]
    assert Path(after.videos[1].path).stat().st_mtime_ns == kept


def test_files_of_somebody_else_in_the_folder_stay(shard, files):
    videos = files("videos", {"00000/0.mp4": "mine"})
    with pytest.raises(InputError, match="is there already"):
        read(shard("00000.tar", {"0.mp4": b"theirs"}), videos)
    assert (videos / "00000/0.mp4").read_text() == "mine"
