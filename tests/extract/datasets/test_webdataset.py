"""Shards of videos and captions: where the videos lie, what is unpacked, and what never leaves the folder."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glscl.common.errors import GlsclError, InputError, NotFoundError, StorageError
from glscl.common.tar_members import TarMember
from glscl.extract.datasets import DATASETS
from glscl.extract.datasets.webdataset import read


def shard(
    path: Path, members: dict[str, bytes | str | dict], *, mode: str = "w", links: dict[str, str] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, value in members.items():
            data = (
                value
                if isinstance(value, bytes)
                else value.encode()
                if isinstance(value, str)
                else json.dumps(value).encode()
            )
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def below(folder: Path) -> list[str]:
    """Names of all files below a folder."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def contents(found) -> list[tuple[str, bytes]]:
    return [(video.id, TarMember.at(video.path).read()) for video in found.videos]


SAMPLES: dict[str, bytes | str | dict] = {
    "000.mp4": b"video 0",
    "000.txt": "a made-up cat\n",
    "000.json": {"caption": "not this", "key": "000"},
    "001.json": {"caption": "a made-up  dog", "status": "success"},
    "001.MP4": b"video 1",
    "002.mkv": b"video 2",
    "003.txt": "its video could not be fetched",
    "003.json": {"status": "failed_to_download"},
}


def test_samples_are_listed_with_the_places_of_their_videos(tmp_path):
    shard(tmp_path / "shards/00000.tar", SAMPLES)
    shard(tmp_path / "shards/00001.tar", {"000.mp4": b"another", "000.txt": "a bird"})
    (tmp_path / "shards/00000_stats.json").write_text("{}")
    found = read(tmp_path / "shards", tmp_path / "videos")
    assert contents(found) == [
        ("00000/000.mp4", b"video 0"),
        ("00000/001.MP4", b"video 1"),
        ("00000/002.mkv", b"video 2"),
        ("00001/000.mp4", b"another"),
    ]
    assert [(t.id, t.text) for t in found.texts] == [
        ("00000/000.mp4#0", "a made-up cat"),
        ("00000/001.MP4#0", "a made-up dog"),
        ("00001/000.mp4#0", "a bird"),
    ]
    assert any("dropped 1 sample without a video: 003 of 00000.tar" in note for note in found.notes)
    assert not (tmp_path / "videos").exists() and read(tmp_path / "shards", None) == found


@pytest.mark.parametrize("mode", ["gz", "xz", "bz2"])
def test_a_compressed_shard_is_unpacked_once(tmp_path, mode):
    packed, videos = shard(tmp_path / "in/a.tar.gz", SAMPLES, mode=f"w:{mode}"), tmp_path / "videos"
    plain = read(shard(tmp_path / "a.tar", SAMPLES), None)
    found = read(packed, videos)
    assert contents(found) == contents(plain) and [v.split for v in found.videos] == [v.split for v in plain.videos]
    (name,) = below(videos)
    kept = (videos / name).stat()
    assert read(packed, videos) == found and (videos / name).stat() == kept
    left, others = (videos / f".{name[-16:-4]}.{digits}.part" for digits in ("0a0a0a0a", "1b1b1b1b"))
    (videos / name).rename(left)  # of one that was killed long ago; and one that is under way
    others.write_bytes(b"half")
    os.utime(left, (0, 0))
    assert contents(read(packed, videos)) == contents(plain)
    assert sorted(below(videos)) == sorted([name, others.name])


def test_a_dry_run_writes_nothing_and_foresees_the_places(tmp_path):
    shards = shard(tmp_path / "a.tar.gz", SAMPLES, mode="w:gz")
    found = DATASETS["webdataset"].read(shards, tmp_path / "videos", dry_run=True)
    assert not (tmp_path / "videos").exists()
    assert found == read(shards, tmp_path / "videos")
    assert DATASETS["webdataset"].read(shards, None).videos[0].path is None


def test_folders_named_after_splits_or_the_json_give_the_splits(tmp_path):
    shard(tmp_path / "s/train/0.tar", {"a.mp4": b"1", "a.txt": "x"})
    shard(tmp_path / "s/test/0.tar", {"a.mp4": b"2", "a.txt": "y"})
    found = read(tmp_path / "s", None)
    assert [(v.id, v.split) for v in found.videos] == [("train/0/a.mp4", "train"), ("test/0/a.mp4", "test")]
    one = shard(tmp_path / "one.tar", {"a.mp4": b"1", "a.json": {"captions": ["x", "y"], "split": "validation"}})
    assert [(t.split, t.text) for t in read(one, None).texts] == [("val", "x"), ("val", "y")]


@pytest.mark.parametrize("name", ["../out.mp4", "/out.mp4", "a/../../out.mp4", "..", "a\\..\\out.mp4", "a\nb.mp4"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path, name):
    path = shard(tmp_path / "in/a.tar", {name: b"x"})
    with pytest.raises(InputError, match=r"a.tar, row "):
        read(path, tmp_path / "in/videos")
    assert not list(tmp_path.rglob("*out.mp4"))


def test_links_in_a_shard_are_left_alone(tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    path = shard(tmp_path / "a.tar", {"0.mp4": b"x", "0.txt": "y"}, links={"1.mp4": str(tmp_path / "secret.mp4")})
    assert [v.id for v in read(path, None).videos] == ["a/0.mp4"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.mp4": b"", "a.avi": b""}, "two videos: a/a.mp4 and a/a.avi"),
        ({"a.mp4": b"", "a.txt": b"caf\xe9"}, "byte 0xe9 is not UTF-8"),
        ({"a.mp4": b"", "a.json": b"{"}, "a.json: line 1, column 2: not JSON"),
        ({"a.mp4": b"", "a.json": b"[]"}, "its .json is"),
        ({"a.mp4": b"", "a.json": {"caption": 7}}, "the caption is 7"),
        ({"a.mp4": b"", "a.txt": b"x" * (4 * 2**20 + 1)}, "expected a caption of at most"),
        ({"a.txt": b"x"}, "no video in 1 shard"),
    ],
)
def test_samples_that_are_wrong_are_named(tmp_path, members, message):
    with pytest.raises(InputError, match=message) as error:
        read(shard(tmp_path / "a.tar", members), None)
    assert "a.tar" in str(error.value)


@pytest.mark.parametrize("mode", ["", "gz"])
def test_a_truncated_shard_is_named_and_nothing_of_it_is_left(tmp_path, mode):
    path = shard(tmp_path / "a.tar", {"0.mp4": random.Random(0).randbytes(50_000), "0.txt": "y"}, mode=f"w:{mode}")
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(InputError, match=r"a\.tar: a damaged or truncated shard"):
        read(path, tmp_path / "videos")
    assert below(tmp_path) == ["a.tar"]


def test_a_shard_damaged_between_two_samples_is_not_taken_for_a_shorter_one(tmp_path):
    path = shard(tmp_path / "a.tar", {"0.mp4": b"x", "0.txt": "y", "1.mp4": b"x", "1.txt": "y"})
    whole = path.read_bytes()
    second = whole.index(b"1.mp4")
    for damaged in (whole[:second], whole[: second + 600], whole[: second + 150] + b"?" + whole[second + 151 :]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged or truncated shard"):
            read(path, None)


def test_a_full_disk_is_a_storage_error_and_leaves_nothing(tmp_path, monkeypatch):
    from glscl.extract.datasets import unpacking

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    path = shard(tmp_path / "a.tgz", SAMPLES, mode="w:gz")
    monkeypatch.setattr(unpacking, "open", lambda name, mode: Full(name, mode), raising=False)
    with pytest.raises(StorageError, match=r"\.tar: cannot be written: No space left"):
        read(path, tmp_path / "videos")
    assert below(tmp_path / "videos") == []


def test_a_place_that_cannot_be_written_to_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        read(shard(tmp_path / "b.tgz", SAMPLES, mode="w:gz"), tmp_path / "file")


def test_shards_that_are_not_there_or_collide_are_named(tmp_path):
    with pytest.raises(NotFoundError, match="no shards were given"):
        read(None, None)
    with pytest.raises(NotFoundError, match="gone: no such file or folder"):
        read(tmp_path / "gone", None)
    with pytest.raises(NotFoundError, match="has no shard"):
        read(tmp_path, None)
    shard(tmp_path / "a.tar", SAMPLES)
    shard(tmp_path / "a.tar.gz", SAMPLES, mode="w:gz")
    with pytest.raises(InputError, match=r"the videos of a.tar and of a.tar.gz would have the same names, a/"):
        read(tmp_path, None)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_annotations_or_a_clear_error(tmp_path, data):
    path = shard(tmp_path / "a.tar", SAMPLES)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 4_000))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        read(path, tmp_path / "videos")
    except GlsclError as error:
        assert "\n" not in str(error)
    assert {p.name for p in tmp_path.iterdir()} <= {"a.tar", "videos"}
