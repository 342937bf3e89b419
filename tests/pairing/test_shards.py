"""Shards of others lose nothing: every member becomes a video or a caption, or is counted with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from glscl.cache.known_files import KnownFiles
from glscl.common.errors import InputError
from glscl.common.tar_members import TarMember
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


# --- where the videos lie ----------------------------------------------------------------------------------------------


def content(found):
    return [TarMember.at(video.path).read() for video in found.videos]


@pytest.mark.parametrize("end", ["tar", "tar.gz"])
def test_shards_of_one_name_never_overwrite_each_other(shard, tmp_path, end):
    first, second = shard(f"one/0.{end}", {"0.mp4": b"first"}), shard(f"two/0.{end}", {"0.mp4": b"other"})
    found, other = read(first, tmp_path / "videos"), read(second, tmp_path / "videos")
    assert (content(found), content(other)) == ([b"first"], [b"other"])


@pytest.mark.parametrize("end", ["tar", "tar.gz"])
def test_a_shard_made_again_with_members_of_one_size_is_noticed(shard, tmp_path, end):
    before = read(shard(f"0.{end}", {"0.mp4": b"first", "1.mp4": b"same"}), tmp_path / "videos")
    known = KnownFiles()
    hashed = known.contents([video.path for video in before.videos])
    after = read(shard(f"0.{end}", {"0.mp4": b"again", "1.mp4": b"same"}), tmp_path / "videos")
    assert content(after) == [b"again", b"same"]
    again = known.contents([video.path for video in after.videos])
    assert again[0] != hashed[0] and again[1] == hashed[1]


def test_a_video_is_the_same_in_a_shard_and_as_a_file(shard, files):
    from glscl.cache.keys import content_of

    long = bytes(range(256)) * 20_000  # of which not all is hashed
    folder = files("plain", {"0.mp4": b"short", "1.mp4": long})
    found = read(shard("0.tar", {"./0.mp4": b"short", "0.txt": "x", "1.mp4": long}), None)
    for name, video in zip(("0.mp4", "1.mp4"), found.videos):
        assert content_of(Path(video.path))[1] == content_of(folder / name)[1]


def test_a_video_in_a_shard_is_decoded_as_a_file_is(shard, make_video, tmp_path):
    from glscl import decode

    data = make_video(tmp_path / "v.mp4").read_bytes()
    found = read(shard("a,b:,,:c.tar", {"0.txt": "before", "0.mp4": data, "1.mp4": data, "1.txt": "behind"}), None)
    frames, times = decode(tmp_path / "v.mp4")
    for video in found.videos:
        there = decode(video.path)
        assert (there[0] == frames).all() and (there[1] == times).all()


def test_a_file_whose_name_looks_like_a_place_in_a_shard_is_that_file(files):
    folder = files("trip@10+5", {"a.mp4": b"mine"})
    assert TarMember.at(folder / "a.mp4") is None
    assert TarMember.at(folder / "gone.tar@0+512/a.mp4") is None
