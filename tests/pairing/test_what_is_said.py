"""What is noticed is said: in plain words, in time, and not as "1 videos"."""

from __future__ import annotations

import pytest

from glscl.common.errors import DecodeError, InputError
from glscl.extract.datasets import DATASETS
from glscl.extract.decode.video import decode


def test_subtitles_beside_videos_are_named_as_not_used(files):
    root = files("videos", {"a.mp4": "1", "a.srt": "1\n00:00:00,000 --> 00:00:01,000\nhello\n", "b/c.VTT": "WEBVTT"})
    notes = DATASETS["folder"].read(None, root).notes
    assert "2 files of subtitles not used: captions stand in .txt files: a.srt, b/c.VTT" in notes


@pytest.mark.parametrize(("count", "words"), [(1, "1 captioned video: all"), (3, "3 captioned videos: all")])
def test_one_is_not_spoken_of_as_several(files, count, words):
    text = "video,caption\n" + "".join(f"v{i}.mp4,x\n" for i in range(count))
    found = DATASETS["csv"].read(files("annotations", {"c.csv": text}) / "c.csv", None)
    assert any(words in note for note in found.notes), found.notes


@pytest.mark.parametrize(
    ("name", "content"), [("a.mp4", b"no video"), ("a.mp4", b"\x00\x00\x00\x20ftypisom" + bytes(99))]
)
def test_a_reason_is_no_name_of_a_class(files, name, content):
    with pytest.raises(DecodeError) as error:
        decode(files("videos", {name: content}) / name)
    assert "Error" not in str(error.value)


def test_json_that_is_nested_without_end_is_said_so(files):
    with pytest.raises(InputError, match="not JSON that can be read: nested too deeply"):
        DATASETS["csv"].read(files("annotations", {"c.json": "[" * 100_000}) / "c.json", None)


def test_a_cache_of_another_format_is_said_before_a_backbone_is_looked_for(glscl, small_cache, files, tmp_path):
    cache = small_cache(format="zarr").fill()
    table = files("annotations", {"c.csv": "video,caption\na.mp4,x\n"}) / "c.csv"
    data = ("--dataset", "csv", "--annotations", table, "--out", cache.path, "--format", "hdf5")
    gone = ("--backbone", f"local-dir:{tmp_path / 'gone'}")
    status, _, err = glscl("extract", *data, *gone, "--videos", files("videos", ["a.mp4"]))
    assert status and "is a zarr cache; asked for hdf5" in err and "gone" not in err
    status, _, err = glscl("import-features", *data, *gone, "--features", files("features", {"a.npy": b""}))
    assert status and "is a zarr cache; asked for hdf5" in err and "gone" not in err
