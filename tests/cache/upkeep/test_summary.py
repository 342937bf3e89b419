"""Inspect counts items, lists and losses, of whatever state a cache is in; verification reads back keys and lists too."""

from __future__ import annotations

import json

import numpy as np
import pytest
from made_library import FILES, PLAIN, Encoder, annotations

from glscl.cache.encoded_items import text_arrays, video_arrays
from glscl.cache.library import open_library
from glscl.cache.lists import make_current
from glscl.cache.store import open_store
from glscl.cache.upkeep.summary import summarise
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import NotFoundError

MORE = annotations(("c", "test", ["rain", "a bird"]), ("d", "train", ["snow"]), ("e", "train", ["hail"]))
MORE_FILES = {"c": b"three", "d": b"broken"}


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_one_list_is_told_as_ever(small_cache, format):
    made = small_cache(format)
    store = made.fill()
    found = summarise(store.library)
    assert (found["videos"], found["texts"], found["complete"], found["list"]) == (
        10,
        33,
        True,
        f"made@{made.list.hash}",
    )
    assert found["frames"] == sum(len(video.frame_features) for video in made.videos)
    assert found["splits"]["test"] | {} == {
        "videos": 4, "texts": 12, "videos_listed": 4, "texts_listed": 12, "expected_videos": 50, "expected_captions": 100,
        "videos_failed": 0, "texts_without_video": 0,
    }  # fmt: skip
    assert (found["splits"]["train"]["videos_failed"], found["splits"]["train"]["texts_without_video"]) == (1, 3)
    assert found["failed_by_status"] == {"decode_error": 1, "partial": 1}
    assert found["failed"][0] == {"id": "vidéo2", "reason": "moov atom not found", "status": "decode_error"}
    assert found["shards"] == {"video": {"committed": 3, "planned": 3}, "text": {"committed": 5, "planned": 5}}
    assert found["notes"] == made.annotations.notes and found["provenance"]["command"] == made.command
    assert found["bytes"] > 1000 and found["stored_frames"] is None and json.dumps(found)


def test_several_lists_are_a_table(tmp_path):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES)
    encoder.extract(root, MORE, MORE_FILES, name="more")
    encoder.extract(root, PLAIN, FILES | {"a": b"another"})
    found = summarise(open_library(root))
    assert found["list"] is None and (found["splits"], found["failed"]) == ({}, [])
    assert (found["videos"], found["texts"], found["complete"]) == (4, 5, True)
    assert found["items"] == {
        "video": {"there": 5, "usable": 4, "pending": 0},
        "text": {"there": 5, "usable": 5, "pending": 0},
    }
    assert found["unlisted"] == {"video": 1, "text": 0}, "the content that was replaced"
    rows = {row["name"]: row for row in found["lists"]}
    assert list(rows) == ["made", "more"] and all(row["current"] and row["complete"] for row in found["lists"])
    assert [rows["more"][key] for key in ("videos", "captions", "without_file", "failed")] == [3, 4, 1, 1]
    one = summarise(open_library(root), "more")
    assert one["list"].startswith("more@") and one["failed_by_status"] == {"decode_error": 1, "missing": 1}
    assert one["splits"]["train"]["videos_failed"] == 2 and one["splits"]["train"]["texts_without_video"] == 2
    with pytest.raises(NotFoundError, match="no list third"):
        summarise(open_library(root), "third")


def test_what_is_unfinished_is_told_with_its_command(small_cache, tmp_path, glscl):
    made = small_cache("hdf5")
    library = made.create()
    made.commit(library, "video", 1)
    found = summarise(library)
    assert (found["complete"], found["videos"], found["texts"]) == (False, 4, 0)
    assert [(row["current"], row["pending"]) for row in found["lists"]] == [(False, {"video": 7, "text": 33})]
    assert found["splits"]["train"]["texts_without_video"] is None and found["splits"]["train"]["videos_failed"] == 0
    status, out, _ = glscl("inspect", made.path)
    assert status == 0 and "NOT complete: 1 of 3 video shards, 0 of 5 text shards" in out
    assert f"finish made: glscl extract --dataset made --out {made.path} --format hdf5" in out
    assert "unfinished, 7 videos, 33 captions pending" in out


def test_a_version_that_was_begun_after_the_one_that_counts_is_told(tmp_path):
    encoder, root = Encoder(), tmp_path / "cache"
    first = encoder.extract(root, PLAIN, FILES)
    encoder.extract(root, PLAIN, FILES | {"a": b"another"}, commits=0)
    found = summarise(open_library(root))
    assert [(row["hash"] == first.list_hash, row["current"]) for row in found["lists"]] == [
        (True, True),
        (False, False),
    ]
    assert found["complete"] and found["list"] == f"made@{first.list_hash}"


def test_a_cache_without_a_list_or_an_item(small_cache, glscl):
    made = small_cache()
    from glscl.cache.creation import create_library

    create_library(made.path, made.spec)
    found = summarise(open_library(made.path))
    assert (found["complete"], found["videos"], found["lists"]) == (False, 0, [])
    assert glscl("inspect", made.path, "--verify")[0] == 0


def test_the_command_prints_lists_and_what_no_list_names(tmp_path, glscl):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES)
    encoder.extract(root, MORE, MORE_FILES, name="more")
    encoder.extract(root, PLAIN, FILES | {"a": b"another"})
    status, out, _ = glscl("inspect", root)
    assert status == 0 and "1 video is in no current list" in out and "more " in out and "published" not in out
    status, out, _ = glscl("inspect", root, "--list", "more", "--verify")
    assert status == 0 and "published" in out and "decode_error: d: it is broken" in out and "no problems" in out
    assert json.loads(glscl("inspect", root, "--json", "--list", "made")[1])["splits"].keys() == {"train", "test"}


def test_with_verify_all_problems_of_an_unreadable_cache_are_told(small_cache, glscl):
    made = small_cache("hdf5")
    made.fill()
    for path in (*made.path.glob("additions/*/*.txt"), *made.path.glob("lists/made/*.json")):
        path.write_bytes(path.read_bytes()[:-40])
    status, out, err = glscl("inspect", made.path, "--verify")
    assert status == 1 and "lists/made/" in out and out.count("additions/") >= 2 and "glscl repair" in err
    assert glscl("inspect", made.path)[0] == 1


@pytest.mark.parametrize("wrong", ["text", "item", "failure"])
def test_shards_that_hold_something_else_than_their_keys_are_found(small_cache, wrong):
    """Checksums agree, for it was written so."""
    made = small_cache("hdf5")
    library = made.create()
    for stream in ("text", "video"):
        for shard in range(made.addition(stream).num_shards):
            if (stream, shard) not in (("text", 0), ("video", 0)):
                made.commit(library, stream, shard)
    arrays = {stream: made.arrays(stream, 0) for stream in ("text", "video")}
    text, video = made.addition("text"), made.addition("video")
    options = {"embed_dim": 8, "dtype": made.dtype}
    if wrong == "text":
        arrays["text"] = text_arrays(text.keys[:7], ["another"] * 7, made.texts[:7], **options)
    if wrong == "item":
        arrays["video"] = video_arrays(video.keys[1:5], made.videos[:4], **options)
    failures = [{"key": video.keys[2].tobytes().hex(), "reason": None, "status": "decode_error"}]
    library.commit(text, 0, arrays["text"])
    library.commit(video, 0, arrays["video"], failures=[] if wrong == "failure" else failures)
    problems = verify(open_library(made.path))
    assert len(problems) == 1 and problems[0].startswith("shards/text" if wrong == "text" else "shards/video")
    said = {
        "text": "7 keys are not those of their captions",
        "item": "not those of its addition",
        "failure": "other failures",
    }
    assert said[wrong] in problems[0]


def test_lists_whose_keys_are_not_those_of_their_captions_are_found(tmp_path):
    import dataclasses

    from glscl.cache import lists

    root = tmp_path / "cache"
    store = Encoder().extract(root, PLAIN, FILES)
    wrong = lists._hashed(dataclasses.replace(store.list, captions=[*store.list.captions[::-1]]))
    lists.write_list(root, wrong, "zarr")
    make_current(root, wrong)
    assert open_store(root).list_hash == wrong.hash, "it reads as it was written"
    assert any("keys are not those of their captions" in line for line in verify(open_library(root)))


def test_text_keys_of_imported_features_are_not_those_of_texts(small_cache):
    import dataclasses

    made = small_cache()
    sampling = {"fps": None, "source": "imported"}
    made.spec = dataclasses.replace(made.spec, configuration={**made.spec.configuration, "sampling": sampling})
    library = made.create()
    arrays = text_arrays(made.addition("text").keys[:7], ["another"] * 7, made.texts[:7], embed_dim=8, dtype=made.dtype)
    library.commit(made.addition("text"), 0, arrays)
    assert verify(open_library(made.path)) == []
    assert np.all(library.stream("text").is_committed[:7])
