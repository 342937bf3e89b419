"""Lists meet items through keys: whatever the order in which either came, every entry reads as what it was made from."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from made_library import FILES, FORMATS, PLAIN, SPEC, STEPS, D, Encoder, annotations, require_reads

from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.library import open_library
from glscl.cache.lists import current_version, list_names, read_list, write_list
from glscl.cache.schema import Expected
from glscl.cache.store import open_store
from glscl.cache.table import FeatureTable
from glscl.common.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    FingerprintError,
    NotFoundError,
    UsageError,
)


@pytest.mark.parametrize("format", FORMATS)
def test_a_list_reads_as_it_was_asked_for(tmp_path, format):
    encoder = Encoder()
    store = encoder.extract(tmp_path / "cache", PLAIN, FILES, format=format)
    require_reads(store, PLAIN, FILES)
    assert len(encoder.texts) == 3 and len(encoder.videos) == 3  # "a dog" stands three times
    assert (
        store.complete and store.failures() == [] and "\n" not in repr(store) + repr(store.library) + repr(store.list)
    )
    assert store.list.splits["test"].expected == Expected(7, 3) and store.list.notes == ["a row was dropped"]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_there_is_never_made_again(tmp_path, format):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES, format=format)
    more = annotations(
        ("c renamed", "test", ["rain"]),
        ("d", "train", ["snow"]),
        ("a", "train", ["a cat", "a bird"]),
        ("copy", "train", []),
    )
    files = {"c renamed": b"three", "a": b"one", "d": b"four", "copy": b"four"}
    before = len(encoder.videos), len(encoder.texts)
    store = encoder.extract(root, more, files, name="more", format=format)
    require_reads(store, more, files)
    assert (len(encoder.videos) - before[0], len(encoder.texts) - before[1]) == (1, 2)
    require_reads(open_store(root, "made"), PLAIN, FILES)
    assert list_names(root) == ["made", "more"]


def test_the_version_before_counts_until_the_next_is_whole(tmp_path):
    encoder, root = Encoder(), tmp_path / "cache"
    first = encoder.extract(root, PLAIN, FILES)
    replaced = FILES | {"a": b"another"}
    assert encoder.extract(root, PLAIN, replaced, commits=0) is None
    assert open_store(root).list_hash == first.list_hash
    require_reads(open_store(root), PLAIN, FILES)
    second = encoder.extract(root, PLAIN, replaced)
    assert second.list_hash != first.list_hash and second.list.annotations == first.list.annotations
    require_reads(second, PLAIN, replaced)
    require_reads(open_store(root, first.list_hash), PLAIN, FILES)
    require_reads(open_store(root, f"made@{first.list_hash}"), PLAIN, FILES)


def test_videos_without_a_file_are_entries_without_an_item(tmp_path):
    files = {"a": b"one", "c": b"broken"}
    store = Encoder().extract(tmp_path / "cache", PLAIN, files)
    require_reads(store, PLAIN, files)
    assert store.failures() == [
        {"id": "b", "reason": "no file found for this id", "status": "missing"},
        {"id": "c", "reason": "it is broken", "status": "decode_error"},
    ]


def test_a_list_that_is_not_whole_says_so(tmp_path):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES, commits=1)
    with pytest.raises(CacheIncompleteError, match="never finished"):
        open_store(root)
    hash = next((root / "lists" / "made").glob("*.json")).stem
    store = open_store(root, hash)
    assert not store.complete
    for read in (lambda: store.arrays("video"), lambda: FeatureTable.load(store, "test"), store.require_complete):
        with pytest.raises(CacheIncompleteError, match="0 of . video items of the list made"):
            read()


def test_several_lists_must_be_told_apart(tmp_path):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES)
    encoder.extract(root, PLAIN, FILES, name="other")
    with pytest.raises(UsageError, match="several lists: made, other"):
        open_store(root)
    with pytest.raises(NotFoundError, match="no list third"):
        open_store(root, "third")
    with pytest.raises(NotFoundError, match="0123"):
        open_store(root, "made@0123456789abcdef")
    for name in ("../x", "..", "/etc", "made@../../x"):
        with pytest.raises(NotFoundError):
            open_store(root, name)


def test_another_encoder_is_refused(tmp_path):
    create_library(tmp_path / "cache", SPEC)
    other = StoreSpec(configuration={"backbone": {"name": "other", "pretrained": "seed"}}, embed_dim=D, dtype="float32")
    with pytest.raises(FingerprintError, match="backbone.name: found 'made', expected 'other'"):
        create_library(tmp_path / "cache", other)
    with pytest.raises(UsageError, match="is a zarr cache; asked for hdf5"):
        create_library(tmp_path / "cache", SPEC, "hdf5")


def test_caches_of_an_earlier_version_are_one_line(tmp_path):
    create_library(tmp_path / "cache", SPEC)
    head = tmp_path / "cache" / "store.json"
    head.write_text(head.read_text().replace("glscl.cache/2", "glscl.cache/1"))
    with pytest.raises(CacheFormatError, match="made by an earlier version. Extract again"):
        open_library(tmp_path / "cache")


@pytest.mark.parametrize("format", FORMATS)
def test_a_damaged_list_is_one_line(tmp_path, format):
    root = tmp_path / "cache"
    store = Encoder().extract(root, PLAIN, FILES, format=format)
    place = root / "lists" / "made" / f"{store.list_hash}{store.library.format.suffix}"
    record = place.with_name(f"{store.list_hash}.json")
    good = record.read_bytes()
    for old, new in (
        (b'"texts"', b'"tests"'),
        (b"crc32", b"crc33"),
        (b"[\n    0,\n    2", b"[\n    0,\n    9"),
        (b"made", b"mode"),
    ):
        assert old in good
        record.write_bytes(good.replace(old, new))
        with pytest.raises((CacheCorruptError, NotFoundError)):
            open_store(root)
    record.write_bytes(good)
    file = place if place.is_file() else place / "video_key" / "c" / "0" / "0"
    data = bytearray(file.read_bytes())
    at = data.find(store.list.video_key[0].tobytes())
    data[at] ^= 1
    file.write_bytes(data)
    with pytest.raises(CacheCorruptError):
        open_store(root)
    (root / "lists" / "made" / "current").write_text("../../x")
    with pytest.raises(CacheCorruptError, match="expected 16 hexadecimal digits"):
        open_store(root)
    assert current_version(root, "none") is None


def test_a_list_is_written_once(tmp_path):
    root = tmp_path / "cache"
    store = Encoder().extract(root, PLAIN, FILES)
    files = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    write_list(root, store.list, "zarr")
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == files
    again = read_list(root, "made", store.list_hash, "zarr")
    assert (again.hash, again.annotations, again.video_ids) == (
        store.list.hash,
        store.list.annotations,
        ["a", "b", "c"],
    )


@pytest.mark.parametrize("examples", [8, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_any_history_reads_as_its_lists_say(tmp_path_factory, examples):
    made = given(STEPS)(lambda steps: read_as_its_lists_say(tmp_path_factory.mktemp("history") / "cache", steps))
    settings(max_examples=examples)(made)()


def read_as_its_lists_say(root, steps):
    encoder = Encoder()
    lists = {}
    for number, (rows, killed, shard) in enumerate(steps):
        wanted, files = annotations(*(row[:3] for row in rows)), {row[0]: row[3] for row in rows}
        name = f"list{number % 2}"
        encoder.extract(root, wanted, files, name=name, shard=shard, commits=killed)  # as if killed, or not
        store = encoder.extract(root, wanted, files, name=name, shard=shard)
        lists[name] = wanted, files
        require_reads(store, wanted, files)
    assert len(encoder.videos) == len(set(encoder.videos)) and len(encoder.texts) == len(set(encoder.texts))
    for name, (wanted, files) in lists.items():
        require_reads(open_store(root, name), wanted, files)
