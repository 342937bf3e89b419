"""Finding the file of an id: every naming rule, and no guess where two files fit."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.common.errors import InputError, NotFoundError
from glscl.extract.datasets.activitynet import _without_prefix
from glscl.extract.datasets.video_files import VIDEO_EXTENSIONS, VideoFiles, split_extension


def locate(root: Path, id: str, **rules) -> str | None:
    found = VideoFiles(root).locate([id], **rules)
    return os.path.relpath(found[id], root) if found else None


@pytest.mark.parametrize(
    ("id", "name"),
    [
        ("video7", "video7.mp4"),
        ("video7", "video7.webm"),
        ("video7", "video7.MP4"),
        ("video7", "deep/er/video7.mkv"),
        ("video7", "video7"),
        ("-4wsuPCjDBc_5_15", "-4wsuPCjDBc_5_15.avi"),
        ("10@N01_25_ab.mov", "10@N01_25_ab.mov"),
        ("10@N01_25_ab.mov", "10@N01_25_ab.mov.mp4"),
        ("10@N01_25_ab.mov", "10@N01_25_ab.mp4"),
        ("10@N01_25_ab.mov", "10@N01_25_ab"),
        ("10@N01_25_ab.", "10@N01_25_ab."),
        ("10@N01_25_ab.", "10@N01_25_ab..mp4"),
        ("10@N01_25_ab.", "10@N01_25_ab.mp4"),
        ("10@N01_25_ab.null", "10@N01_25_ab.null"),
        ("10@N01_25_ab.null", "10@N01_25_ab.null.mp4"),
        ("10@N01_25_ab.null", "10@N01_25_ab.avi"),
        ("1_Film_01.41.07.000-01.41.11.793", "1_Film/1_Film_01.41.07.000-01.41.11.793.avi"),
        ("sub/talk.mp4", "sub/talk.mp4"),
        ("sub/talk", "sub/talk.mp4"),
        ("what? [1] & 'a b'", "what? [1] & 'a b'.mp4"),
    ],
)
def test_a_file_is_found_by_every_rule_in_use(files, id, name):
    assert locate(files("videos", [name, "other.mp4", "video70.mp4", "video7.txt", "video7.mp4.part"]), id) == name


@pytest.mark.parametrize("name", ["v_abcdefghijk.mp4", "abcdefghijk.mkv", "x-abcdefghijk.webm"])
def test_activitynet_ids_are_found_with_without_and_with_another_prefix(files, name):
    root = files("videos", [name])
    assert locate(root, "v_abcdefghijk", also=_without_prefix, any_prefix=True) == name


@pytest.mark.parametrize(
    "name", ["Video7.mp4", "VIDEO7.mp4", "video7.txt", "video7.mp4.part", ".video7.mp4", "video7/a"]
)
def test_other_cases_other_kinds_and_hidden_files_are_not_the_video(files, name):
    assert locate(files("videos", [name]), "video7") is None


def test_an_id_with_dots_is_never_cut_at_one(files):
    root = files("videos", ["1_Film_01.41.07.avi", "1_Film_01.41.07.000-01.41.11.avi"])
    assert locate(root, "1_Film_01.41.07.000-01.41.11.793") is None


@pytest.mark.parametrize(
    ("names", "id"),
    [
        (["a/video7.mp4", "b/video7.mp4"], "video7"),
        (["video7.mp4", "video7.avi"], "video7"),
        (["video7.mp4", "old/video7.mp4"], "video7"),
        (["x.mov", "x.mov.mp4"], "x.mov"),
        (["x.mp4", "x.avi"], "x.mov"),
    ],
)
def test_two_candidates_are_refused_by_name(files, names, id):
    with pytest.raises(InputError, match="2 candidate files") as error:
        locate(files("videos", names), id)
    assert all(name in str(error.value) for name in names)


def test_prefixed_and_plain_name_of_one_id_are_two_candidates(files):
    root = files("videos", ["v_abcdefghijk.mp4", "abcdefghijk.mkv"])
    with pytest.raises(InputError, match="2 candidate files"):
        locate(root, "v_abcdefghijk", also=_without_prefix)


def test_links_to_one_file_are_one_candidate(files):
    root = files("videos", ["a/video7.mp4"])
    (root / "video7.mp4").symlink_to(root / "a/video7.mp4")
    (root / "b").symlink_to(root / "a", target_is_directory=True)
    assert locate(root, "video7") in ("a/video7.mp4", "video7.mp4")


def test_a_file_named_after_one_id_is_not_lent_to_another(files):
    found = VideoFiles(files("videos", ["x.mp4"])).locate(["x.mov", "x.mp4"])
    assert list(found) == ["x.mp4"]


def test_one_file_for_two_ids_is_refused_by_name(files):
    with pytest.raises(InputError, match=r"x\.mkv fits two videos of the annotations: x\.mov and x\.avi"):
        VideoFiles(files("videos", ["x.mkv"])).locate(["x.mov", "x.avi"])


def test_a_relative_path_is_that_file_whatever_else_is_there(files):
    root = files("videos", ["talk.mp4", "sub/talk.mp4"])
    assert locate(root, "talk.mp4", as_paths=True) == "talk.mp4"
    assert locate(root, "sub/talk.mp4") == "sub/talk.mp4"


def test_circles_of_links_end(files):
    root = files("videos", ["a/video7.mp4"])
    (root / "a/again").symlink_to(root, target_is_directory=True)
    (root / "loop").symlink_to(root / "loop")
    assert VideoFiles(root).names == ["a/video7.mp4"]


def test_links_that_lead_outside_are_followed(files, tmp_path):
    files("disk2", ["video7.mp4"])
    root = files("videos", [])
    (root / "more").symlink_to(tmp_path / "disk2", target_is_directory=True)
    assert locate(root, "video7") == "more/video7.mp4"


def test_names_decomposed_by_another_system_are_found(files):
    root = files("videos", [unicodedata.normalize("NFD", "école.mp4")])
    assert locate(root, unicodedata.normalize("NFC", "école")) is not None


def test_names_that_cannot_be_written_down_are_left_out_and_counted(files):
    root = files("videos", ["a\nb.mp4", "fine.mp4"])
    (Path(os.fsdecode(os.fsencode(root) + b"/\xff.mp4"))).write_bytes(b"")
    listed = VideoFiles(root)
    assert listed.names == ["fine.mp4"]
    assert "left out 2" in listed.notes[0]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may list every folder")
def test_a_folder_that_cannot_be_listed_is_named(files):
    root = files("videos", ["fine.mp4", "secret/a.mp4"])
    (root / "secret").chmod(0)
    try:
        assert "secret" in VideoFiles(root).notes[0]
    finally:
        (root / "secret").chmod(0o700)


def test_a_folder_that_is_not_there_or_a_file_is_named(files, tmp_path):
    with pytest.raises(NotFoundError, match="nowhere: no such folder"):
        VideoFiles(tmp_path / "nowhere")
    with pytest.raises(NotFoundError, match="is a file, not a folder"):
        VideoFiles(files("videos", ["a.mp4"]) / "a.mp4")


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/\\"), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None)
@given(
    stems=st.sets(NAMES.filter(lambda n: not n.startswith(".") and "." not in n), min_size=1, max_size=6),
    extension=st.sampled_from(sorted(VIDEO_EXTENSIONS)),
)
def test_any_file_is_found_by_its_stem_and_by_its_name(tmp_path_factory, stems, extension):
    root = tmp_path_factory.mktemp("videos")
    stems = {unicodedata.normalize("NFC", stem) for stem in stems}
    for stem in stems:
        (root / f"{stem}.{extension}").touch()
    listed = VideoFiles(root)
    assert listed.locate(stems) == {stem: str(root / f"{stem}.{extension}") for stem in stems}
    assert len(listed.locate(f"{stem}.{extension}" for stem in stems)) == len(stems)
    assert all(split_extension(f"{stem}.{extension}") == (stem, extension) for stem in stems)


def test_links_that_lead_nowhere_are_counted(files):
    root = files("videos", ["a.mp4"])
    (root / "b.mp4").symlink_to(root / "gone.mp4")
    os.mkfifo(root / "c.mp4")
    found = VideoFiles(root)
    assert found.videos() == ["a.mp4"]
    assert any("left out 2 names below" in note and note.endswith("no files: b.mp4, c.mp4") for note in found.notes)
