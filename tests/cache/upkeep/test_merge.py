"""Caches of one encoder become one, by links or copies: parts of one extraction, lists of several people, in any order."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
from formats import BOTH, EITHER
from made_library import FILES, PLAIN, Encoder, annotations, require_reads

from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import open_library
from glscl.cache.lists import current_version
from glscl.cache.store import open_store
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import CacheCorruptError, CacheFormatError, CacheIncompleteError, FingerprintError, UsageError


@pytest.fixture(params=EITHER)
def format(request):
    return request.param


def part(small_cache, format, name, index, count, **options):
    """A cache with the shards `index` (from 0), `index + count`, … of each stream."""
    made = small_cache(format, name=name, **options)
    library = made.create()
    for stream in ("text", "video"):
        for shard in range(index, made.addition(stream).num_shards, count):
            made.commit(library, stream, shard)
    return made


def assert_equal_caches(a, b):
    for stream in ("video", "text"):
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name], err_msg=f"{stream} {name}")


@pytest.mark.parametrize("format", BOTH)
@pytest.mark.parametrize("copy", [False, True])
def test_merged_parts_equal_the_cache_made_in_one_go(small_cache, format, tmp_path, copy):
    whole = small_cache(format, name="whole").fill()
    parts = [part(small_cache, format, f"part{i}", i, 3).path for i in range(3)]
    done = merge(parts, tmp_path / "merged", copy=copy)
    merged = open_store(tmp_path / "merged")
    assert merged.complete and merged.fingerprint == whole.fingerprint and merged.list_hash == whole.list_hash
    assert merged.plan == whole.plan and merged.failures() == whole.failures() and verify(merged.library) == []
    assert_equal_caches(whole, merged)
    for stream in ("video", "text"):
        ledgers = [
            [lib.ledger(stream, p) for p in lib.stream(stream).places] for lib in (whole.library, merged.library)
        ]
        assert ledgers[0] == ledgers[1]
        assert len(list((merged.path / "commits" / stream).glob("????????????????.json"))) == 1, "gathered"
    assert done.shards == sum(len(merged.library.stream(stream).places) for stream in ("video", "text"))
    assert (done.linked == 0, done.copied == 0) == (copy, not copy)
    assert (done.pending, done.notes, done.lists) == ([], [], {"made": whole.list_hash})
    for folder in parts:  # the parts can go
        for base, _, files in os.walk(folder, topdown=False):
            for name in files:
                os.unlink(os.path.join(base, name))
    assert verify(open_library(merged.path)) == []


def test_copies_are_made_where_links_cannot_be(small_cache, format, tmp_path, monkeypatch):
    parts = [part(small_cache, format, f"part{i}", i, 2).path for i in range(2)]
    real = os.link

    def other_file_system(source, target, **options):
        if str(source).startswith(str(tmp_path / "part")):
            raise OSError(18, "Invalid cross-device link")
        return real(source, target, **options)

    monkeypatch.setattr(os, "link", other_file_system)
    done = merge(parts, tmp_path / "merged")
    assert done.linked == 0 and done.copied > 0 and verify(open_library(tmp_path / "merged")) == []


def test_a_part_that_is_missing_is_said_and_can_come_later(small_cache, format, tmp_path):
    parts = [part(small_cache, format, f"part{i}", i, 3).path for i in range(3)]
    done = merge(parts[:2], tmp_path / "merged")
    assert [(row["list"], row["video"], row["text"]) for row in done.pending] == [("made", 3, 7)]
    assert done.lists == {} and current_version(tmp_path / "merged", "made") is None
    with pytest.raises(CacheIncompleteError, match="never finished"):
        open_store(tmp_path / "merged")
    assert merge(parts[2:], tmp_path / "merged").shards == 2
    assert open_store(tmp_path / "merged").complete
    assert merge(parts, tmp_path / "merged").shards == 0


def test_parts_may_be_merged_into_one_of_them(small_cache, format, tmp_path):
    first, second = (part(small_cache, format, f"part{i}", i, 2).path for i in range(2))
    merge([first, second], first)
    assert_equal_caches(small_cache(format, name="whole").fill(), open_store(first))


def test_lists_of_several_people_come_together(format, tmp_path):
    encoder = Encoder()
    encoder.extract(tmp_path / "a", PLAIN, FILES, format=format)
    other = annotations(("c", "test", ["rain", "a bird"]), ("d", "train", ["snow"]))
    files = {"c": b"three", "d": b"four"}
    encoder.extract(tmp_path / "b", other, files, name="other", format=format)
    for number, order in enumerate((["a", "b"], ["b", "a"])):
        out = tmp_path / f"out{number}"
        done = merge([tmp_path / name for name in order], out)
        assert (done.videos, done.texts, sorted(done.lists), done.pending) == (4, 5, ["made", "other"], [])
        require_reads(open_store(out, "made"), PLAIN, FILES)
        require_reads(open_store(out, "other"), other, files)
        assert verify(open_library(out)) == []


def test_a_shard_of_which_all_is_there_is_left_out(format, tmp_path):
    encoder, twice = Encoder(), annotations(("x", "train", ["a dog"]), ("y", "train", ["a cat"]))
    encoder.extract(tmp_path / "a", PLAIN, FILES, format=format)
    files = {"x": b"one", "y": b"two"}
    encoder.extract(tmp_path / "b", twice, files, name="twice", format=format)
    done = merge([tmp_path / "b"], tmp_path / "a")
    assert (done.shards, done.pending) == (0, [])
    require_reads(open_store(tmp_path / "a", "twice"), twice, files)
    assert len(open_library(tmp_path / "a").stream("video").additions) == 1


def test_what_failed_in_one_part_comes_from_the_other(format, tmp_path):
    """A shard with a video that failed does not keep out another with the same video in order."""
    encoder, only = Encoder(), annotations(("c", "test", []))
    library = create_library(tmp_path / "a", encoder_spec(), format)
    assert library.stream("video").num_items == 0
    encoder.extract(tmp_path / "a", only, {"c": b"broken"}, format=format)
    encoder.extract(
        tmp_path / "b", annotations(("c", "test", []), ("d", "test", [])), {"c": b"broken", "d": b"one"}, format=format
    )
    assert merge([tmp_path / "b"], tmp_path / "a").shards == 1


def test_what_failed_on_one_machine_comes_from_another_that_made_the_very_same_shards(format, tmp_path):
    """Of one list both make shards of one name; the one that is there must not keep out what is in the other."""
    files = {name: name.encode() * 3 for name in "abcde"}
    same, busy = annotations(*((name, "test", [f"a {name}"]) for name in files)), Encoder()
    busy.failing = frozenset({files["b"], files["d"], files["e"]})
    busy.extract(tmp_path / "busy", same, files, shard=2, format=format)
    Encoder().extract(tmp_path / "idle", same, files, shard=2, format=format)
    assert merge([tmp_path / "idle"], tmp_path / "busy").shards == 3
    require_reads(open_store(tmp_path / "busy"), same, files)
    assert verify(open_library(tmp_path / "busy")) == []
    assert merge([tmp_path / "idle"], tmp_path / "busy").shards == 0
    assert merge([tmp_path / "busy"], tmp_path / "idle").shards == 0
    require_reads(open_store(tmp_path / "idle"), same, files)


def test_a_video_that_was_read_whole_counts_before_one_read_in_part_whichever_cache_is_merged_into(format, tmp_path):
    in_part = Encoder()
    in_part.partial = frozenset({FILES["a"]})
    in_part.extract(tmp_path / "part", PLAIN, FILES, format=format)
    Encoder().extract(tmp_path / "whole", PLAIN, FILES, format=format)
    assert [
        merge([tmp_path / "part"], tmp_path / "whole").shards,
        merge([tmp_path / "whole"], tmp_path / "part").shards,
    ] == [0, 1]
    for name in ("part", "whole"):
        assert not open_store(tmp_path / name).failures() and verify(open_library(tmp_path / name)) == []


def encoder_spec() -> StoreSpec:
    from made_library import SPEC

    return SPEC


def test_of_two_versions_the_one_that_counts_stays(format, tmp_path):
    encoder = Encoder()
    first = encoder.extract(tmp_path / "a", PLAIN, FILES, format=format)
    replaced = FILES | {"a": b"another"}
    second = encoder.extract(tmp_path / "b", PLAIN, replaced, format=format)
    done = merge([tmp_path / "b"], tmp_path / "a")
    assert done.lists == {"made": first.list_hash}
    assert len(done.notes) == 1 and f"made@{second.list_hash}" in done.notes[0]
    require_reads(open_store(tmp_path / "a"), PLAIN, FILES)
    require_reads(open_store(tmp_path / "a", second.list_hash), PLAIN, replaced)
    done = merge([tmp_path / "b", tmp_path / "a"], tmp_path / "out")
    assert done.lists == {"made": second.list_hash} and len(done.notes) == 1
    require_reads(open_store(tmp_path / "out"), PLAIN, replaced)


def test_a_list_that_is_whole_through_the_merge_counts(format, tmp_path):
    """Two machines were stopped at different points of the same list."""
    made = Encoder(), Encoder()
    wanted = annotations(*((f"v{n}", "train", [f"text {n}"]) for n in range(7)))
    files = {f"v{n}": b"%d" % n for n in range(7)}
    made[0].extract(tmp_path / "a", wanted, files, commits=4, format=format)
    library_b = made[1].extract(tmp_path / "b", wanted, files, format=format).library
    for place in library_b.stream("text").places:  # b lost its texts
        os.unlink(tmp_path / "b" / "commits" / "text" / f"{place.addition.name}-{place.shard:05d}.json")
    os.unlink(tmp_path / "b" / "commits" / "text" / f"{place.addition.name}.json")
    os.unlink(tmp_path / "b" / "lists" / "made" / "current")
    done = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    assert done.pending == [] and list(done.lists) == ["made"]
    require_reads(open_store(tmp_path / "out"), wanted, files)


def test_where_files_were_seen_comes_along(small_cache, format, tmp_path):
    a, b = (small_cache(format, name=name) for name in "ab")
    a.fill(), b.fill()
    (tmp_path / "a.mp4").write_bytes(b"first")
    (tmp_path / "b.mp4").write_bytes(b"second")
    contents = {}
    for made, name in ((a, "a.mp4"), (b, "b.mp4")):
        known = KnownFiles.read(made.path)
        contents[name] = known.content(tmp_path / name)
        known.save(made.path)
    merge([a.path, b.path], tmp_path / "merged")
    known = KnownFiles.read(tmp_path / "merged")
    assert {name: known.path_of(content) for name, content in contents.items()} == {
        name: tmp_path / name for name in contents
    }


def test_what_does_not_belong_together_is_refused(small_cache, format, tmp_path):
    first = part(small_cache, format, "a", 0, 2)
    other = small_cache(format, name="b")
    other.spec = dataclasses.replace(other.spec, configuration={"backbone": {"name": "other", "pretrained": "seed"}})
    other.create()
    with pytest.raises(FingerprintError, match=r"b is no part of what .*a is \(backbone.name: found 'other'"):
        merge([first.path, other.path], tmp_path / "merged")
    turned = part(small_cache, {"zarr": "hdf5", "hdf5": "zarr"}[format], "c", 1, 2)
    with pytest.raises(
        UsageError, match=f"c has format .*; .*a has {format}. Extract all parts with the same `format`"
    ):
        merge([first.path, turned.path], tmp_path / "merged")  # lists that were never finished are not converted
    whole = small_cache({"zarr": "hdf5", "hdf5": "zarr"}[format], name="d").fill()
    with pytest.raises(UsageError, match="d has format .*; .*a has .*convert.*d.*FOLDER"):
        merge([first.path, whole.path], tmp_path / "merged")
    flat = convert(small_cache(format, name="e").fill().library, tmp_path / "flat.h5")
    with pytest.raises(UsageError, match="is one flat file"):
        merge([flat], tmp_path / "merged")
    with pytest.raises(UsageError, match="nothing to merge"):
        merge([], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(CacheFormatError, match="found thesis.tex"):
        merge([first.path], tmp_path / "mine")


def test_parts_with_other_sizes_of_shards_are_merged(small_cache, format, tmp_path):
    a, b = small_cache(format, name="a"), small_cache(format, name="b")
    b.shard_items = {"video": 3, "text": 5}
    library = a.create()
    a.commit(library, "video", 0)
    whole = b.fill()
    merge([a.path, b.path], tmp_path / "merged")
    assert_equal_caches(whole, open_store(tmp_path / "merged"))


def test_a_shard_that_vanished_is_named_before_it_is_committed(small_cache, format, tmp_path):
    first = part(small_cache, format, "a", 0, 1)
    library = open_library(first.path)
    commit = library.stream("video").commits[first.addition("video").name, 1]
    os.rename(first.path / commit.path, tmp_path / "elsewhere")
    with pytest.raises(CacheCorruptError, match=r"committed but not there.*inspect"):
        merge([first.path], tmp_path / "merged")
    assert [shard for _, shard in open_library(tmp_path / "merged").stream("video").commits] == [0]


@pytest.mark.parametrize("gathered", [False, True])
def test_a_damaged_commit_is_not_taken_over(small_cache, format, tmp_path, gathered):
    first = part(small_cache, format, "a", 0, 1)
    if gathered:
        first.finish(open_library(first.path))
    commit = first.path / "commits" / "text" / f"{first.addition('text').name}-00002.json"
    row = json.loads(commit.read_text())
    commit.write_text(json.dumps(row | {"path": "../../elsewhere"}))
    with pytest.raises(CacheCorruptError, match=r"00002.json cannot be read: path is"):
        merge([first.path], tmp_path / "merged")


@pytest.mark.parametrize(
    ("what", "find"), [("additions/video", b"a"), ("lists/made", b'"annotations": "'), ("lists/made", b'"crc32": ')]
)
def test_a_damaged_addition_or_list_is_not_taken_over(small_cache, format, tmp_path, what, find):
    first = part(small_cache, format, "a", 0, 1)
    file = next(path for path in sorted((first.path / what).iterdir()) if path.suffix in (".txt", ".json"))
    file.write_bytes(file.read_bytes().replace(find, find + b"1", 1))
    with pytest.raises(CacheCorruptError, match="cannot be read"):
        merge([first.path], tmp_path / "merged")


def test_the_merged_cache_says_how_it_is_finished(small_cache, format, tmp_path):
    made = small_cache(format, name="a")
    made.command = "glscl extract --dataset made --out a --fps 2"
    made.create()
    merged = tmp_path / "merged"
    done = merge([made.path], merged)
    assert [(hint.command, hint.settings) for hint in done.resume] == [
        (made.command, {"out": merged, "format": format})
    ]
    with pytest.raises(CacheIncompleteError, match="never finished") as refused:
        open_store(merged)
    assert refused.value.hint.command == made.command and refused.value.hint.settings == {
        "out": merged,
        "format": format,
    }


def test_the_command_says_what_is_pending(small_cache, tmp_path, glscl):
    parts = [part(small_cache, "hdf5", f"part{i}", i, 3).path for i in range(3)]
    status, out, _ = glscl("merge", tmp_path / "merged", *parts[:2])
    assert status == 0 and "not complete" in out
    assert (
        f"the list made waits for 3 videos and 7 captions. Merge the other parts into it as well, or finish it: glscl extract --dataset made --out {tmp_path / 'merged'}"
        in out
    )
    status, out, _ = glscl("merge", tmp_path / "merged", parts[2], "--json")
    found = json.loads(out)
    assert status == 0 and found["pending"] == [] and (found["shards"], found["videos"], found["texts"]) == (2, 11, 33)
