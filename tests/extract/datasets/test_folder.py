"""A folder of videos: what is listed, whose captions are whose, which splits there are."""

from __future__ import annotations

import pytest

from glscl.common.errors import InputError, NotFoundError, UsageError
from glscl.extract.datasets.folder import read


def test_every_video_below_is_listed_and_nothing_else(files):
    root = files(
        "videos", ["b.mp4", "a b/c.MOV", "notes.txt", ".hidden.mp4", ".git/d.mp4", "image.jpg", "-x [1]?.webm"]
    )
    found = read(None, root)
    assert [v.id for v in found.videos] == ["-x [1]?.webm", "a b/c.MOV", "b.mp4"]
    assert all(v.split == "test" and v.path == str(root / v.id) for v in found.videos)
    assert found.texts == []
    assert any("no captions" in note for note in found.notes)


def test_captions_stand_beside_one_a_line(files):
    root = files(
        "videos",
        {
            "a.mp4": "",
            "a.txt": " one \n\ntwo  words\r\n",
            "b.v1.mp4": "",
            "b.v1.mp4.txt": "\ufeffthree",
            "c.mp4": "",
            "c.txt": "\n",
        },
    )
    found = read(None, root)
    assert [(t.id, t.text) for t in found.texts] == [
        ("a.mp4#0", "one"),
        ("a.mp4#1", "two words"),
        ("b.v1.mp4#0", "three"),
    ]
    assert any("1 text file without a line" in note for note in found.notes)


def test_text_files_that_are_not_used_are_counted(files):
    root = files(
        "videos", {"a.mp4": "", "a.mp4.txt": "own", "a.txt": "lost", "b.mp4": "", "b.TXT": "two", "sub/c.txt": "x"}
    )
    found = read(None, root)
    assert [(t.video, t.text) for t in found.texts] == [("a.mp4", "own"), ("b.mp4", "two")]
    assert any(
        note.startswith("2 text files of no video") and note.endswith(": a.txt, sub/c.txt") for note in found.notes
    )


def test_captions_may_stand_in_a_folder_of_their_own(files):
    videos = files("videos", ["sub/a.mp4", "b.mp4"])
    found = read(files("texts", {"sub/a.txt": "one", "a.txt": "not this"}), videos)
    assert [(t.video, t.text) for t in found.texts] == [("sub/a.mp4", "one")]


def test_a_folder_of_captions_that_is_not_there_is_pointed_out(files, tmp_path):
    found = read(tmp_path / "gone", files("videos", {"a.mp4": "", "a.txt": "one"}))
    assert [t.text for t in found.texts] == ["one"]
    assert any("gone" in note for note in found.notes)


def test_one_text_file_for_two_videos_is_refused(files):
    with pytest.raises(InputError, match=r"a\.txt belongs to two videos: a\.avi and a\.mp4"):
        read(None, files("videos", {"a.mp4": "", "a.avi": "", "a.txt": "one"}))


def test_folders_named_after_splits_are_the_splits(files):
    root = files("videos", {"test/a.mp4": "", "test/a.txt": "x", "train/b.mp4": "", "Validation/c.mp4": ""})
    found = read(None, root)
    assert [(v.id, v.split) for v in found.videos] == [
        ("train/b.mp4", "train"),
        ("Validation/c.mp4", "val"),
        ("test/a.mp4", "test"),
    ]
    assert [v.id for v in read(None, root, splits=["val"]).videos] == ["Validation/c.mp4"]
    with pytest.raises(InputError, match="no video in split val"):
        read(None, files("few", ["train/a.mp4"]), splits=["val"])


def test_other_folders_beside_them_are_no_splits(files):
    found = read(None, files("videos", ["test/a.mp4", "train/b.mp4", "more/c.mp4"]))
    assert {v.split for v in found.videos} == {"test"}


def test_captioned_videos_are_divided_and_the_others_are_test(files):
    content = {f"v{i}.mp4": "" for i in range(60)} | {f"v{i}.txt": "x" for i in range(40)}
    found = read(None, files("videos", content))
    assert {v.split for v in found.videos} == {"train", "val", "test"}
    assert {v.split for v in found.videos if int(v.id[1:-4]) >= 40} == {"test"}
    assert any("divided by a hash" in note for note in found.notes)


def test_captions_that_are_not_utf8_are_refused_by_line(files):
    with pytest.raises(InputError, match=r"a\.txt, line 2: byte 0xe9 is not UTF-8"):
        read(None, files("videos", {"a.mp4": "", "a.txt": b"one\ncaf\xe9\n"}))


def test_a_folder_without_videos_says_what_it_looked_for(files, tmp_path):
    with pytest.raises(InputError, match=r"no video among 1 file; known extensions: .*mp4"):
        read(None, files("videos", ["a.txt"]))
    with pytest.raises(NotFoundError, match="no such folder"):
        read(None, tmp_path / "gone")
    with pytest.raises(UsageError, match="Give `videos=DIR`"):
        read(None, None)


@pytest.mark.real_data
def test_real_videos_of_all_kinds_are_listed(real_data):
    found = read(None, real_data / "videos")
    assert len(found.videos) == 158
    assert all(v.path for v in found.videos)
