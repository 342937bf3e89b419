"""A cache written again says the same: in the other format, without what no list names, and as one flat file or group."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import zarr
from made_library import FILES, PLAIN, SPEC, Encoder, annotations, require_reads

from glscl.cache.encoded_items import EncodedVideo, video_arrays
from glscl.cache.frame_format import FrameSpec
from glscl.cache.frames import StoredFrames
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import Library, open_library
from glscl.cache.lists import list_names, make_current, write_list
from glscl.cache.schema import STREAMS
from glscl.cache.shard_arrays import LAYOUT
from glscl.cache.store import open_store
from glscl.cache.table import FeatureTable
from glscl.cache.upkeep import convert as convert_module
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.summary import summarise
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    NotFoundError,
    StorageError,
    UsageError,
)

MORE = annotations(("c", "test", ["rain", "a bird"]), ("d", "train", ["snow"]), ("a", "train", ["a cat"]))
MORE_FILES = {"c": b"three", "d": b"four", "a": b"one"}


def ledger_of(library):
    return [row for place in library.stream("video").places for row in library.ledger("video", place)]


@pytest.mark.parametrize(
    ("format", "name", "dtype"),
    [("zarr", "b", "float16"), ("hdf5", "b", "bfloat16"), ("zarr", "b.h5", "bfloat16"), ("hdf5", "b.zarr", "float16")],
)
def test_a_converted_cache_holds_the_same(small_cache, tmp_path, format, name, dtype):
    made = small_cache(format, dtype)
    library = made.create()
    pieces = {"logit_scale": np.ones(1, np.float32), "positional_embedding": np.eye(3, dtype=np.float32)}
    library.write_backbone_tensors(pieces)
    store = made.fill()
    again = open_store(convert(store.library, tmp_path / name))
    assert again.fingerprint == store.fingerprint and again.complete
    assert again.header["format"] != format
    for stream in LAYOUT:
        for key, array in store.arrays(stream).items():
            np.testing.assert_array_equal(again.arrays(stream)[key], array)
    assert again.failures() == store.failures()
    assert ledger_of(again.library) == ledger_of(store.library)
    assert [row["decoder"] for row in ledger_of(again.library)] == [
        "decord" if i % 2 else "pyav" for i in range(store.num_items["video"])
    ]
    assert again.splits == store.splits and (again.list_name, again.list_hash) == (store.list_name, store.list_hash)
    assert verify(again.library) == []
    for key, piece in pieces.items():
        np.testing.assert_array_equal(again.backbone_tensors()[key], piece)
    assert FeatureTable.load(again, "test").captions == FeatureTable.load(store, "test").captions
    a, b = summarise(store.library), summarise(again.library)
    kept = (
        "videos",
        "texts",
        "frames",
        "splits",
        "failed",
        "failed_by_status",
        "notes",
        "items",
        "unlisted",
        "lists",
        "provenance",
    )
    assert {k: a[k] for k in kept} == {k: b[k] for k in kept}


@pytest.mark.parametrize("name", ["back", "back.h5", "back.zarr"])
def test_a_flat_file_is_converted_as_a_cache_is(small_cache, tmp_path, name):
    store = small_cache().fill()
    flat = open_library(convert(store.library, tmp_path / "flat.h5"))
    again = open_store(convert(flat, tmp_path / name))
    for stream in LAYOUT:
        for key, array in store.arrays(stream).items():
            np.testing.assert_array_equal(again.arrays(stream)[key], array)
    assert again.failures() == store.failures() and ledger_of(again.library) == ledger_of(store.library)
    assert verify(again.library) == []


def test_flat_files_are_ordinary_ones(small_cache, tmp_path):
    store = small_cache().fill()
    convert(store.library, tmp_path / "flat.h5")
    convert(store.library, tmp_path / "flat.zarr")
    with h5py.File(tmp_path / "flat.h5") as file:
        np.testing.assert_array_equal(file["video/values"][...], store.arrays("video")["values"])
        np.testing.assert_array_equal(file["list/video_key"][...], store.list.video_key)
    np.testing.assert_array_equal(zarr.open(tmp_path / "flat.zarr")["text/pooled"][...], store.arrays("text")["pooled"])
    assert summarise(open_library(tmp_path / "flat.h5"))["bytes"] == (tmp_path / "flat.h5").stat().st_size
    assert summarise(open_library(tmp_path / "flat.zarr"))["bytes"] > store.arrays("video")["values"].nbytes


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_what_was_encoded_bit_by_bit_lies_together_and_what_nobody_names_is_left_out(tmp_path, format):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES, format=format)
    replaced = FILES | {"b": b"another"}
    encoder.extract(root, PLAIN, replaced, format=format)
    encoder.extract(root, MORE, MORE_FILES, name="more", format=format)
    library = open_library(root)
    assert len(library.stream("video").additions) == 3 and summarise(library)["unlisted"] == {"video": 1, "text": 0}
    encoded = len(encoder.videos), len(encoder.texts)
    again = open_library(convert(library, tmp_path / "compact", format=format))
    require_reads(open_store(again.path, "made"), PLAIN, replaced)
    require_reads(open_store(again.path, "more"), MORE, MORE_FILES)
    about = again.stream("video")
    assert len(about.additions) == 1 and about.num_items == 4 and verify(again) == []
    first = open_store(again.path, "made").list.video_key
    np.testing.assert_array_equal(about.additions[0].keys[:3], first), "in the order of the first list"
    assert summarise(again)["unlisted"] == {"video": 0, "text": 0}
    encoder.extract(again.path, MORE, MORE_FILES, name="more", format=format)
    assert (len(encoder.videos), len(encoder.texts)) == encoded, "it is as usable as before"


def test_one_list_of_several(tmp_path):
    encoder, root = Encoder(), tmp_path / "cache"
    old = encoder.extract(root, PLAIN, FILES).list_hash
    encoder.extract(root, PLAIN, FILES | {"b": b"another"})
    encoder.extract(root, MORE, MORE_FILES, name="more")
    library = open_library(root)
    with pytest.raises(UsageError, match="several lists: made, more"):
        convert(library, tmp_path / "x.h5")
    with pytest.raises(UsageError, match="holds one list; asked for 2"):
        convert(library, tmp_path / "x.h5", lists=["made", "more"])
    with pytest.raises(UsageError, match="named twice: made, made"):
        convert(library, tmp_path / "x", lists=["made", old])
    with pytest.raises(NotFoundError, match="no list third"):
        convert(library, tmp_path / "x", lists=["third"])
    assert not (tmp_path / "x").exists()
    for name in ("more.h5", "more.zarr", "more"):
        require_reads(open_store(convert(library, tmp_path / name, lists=["more"])), MORE, MORE_FILES)
    assert list_names(tmp_path / "more") == ["more"]
    store = open_store(convert(library, tmp_path / "old.h5", lists=[f"made@{old}"]))
    require_reads(store, PLAIN, FILES)
    with pytest.raises(NotFoundError, match=f"no list more; it has made@{old}"):
        open_store(tmp_path / "old.h5", "more")
    require_reads(open_store(tmp_path / "old.h5", old), PLAIN, FILES)


def test_entries_without_an_item_and_without_any_stay_so(tmp_path):
    files = {"a": b"one", "c": b"broken"}
    store = Encoder().extract(tmp_path / "cache", PLAIN, files)
    nothing = annotations()
    none = Encoder().extract(tmp_path / "none", nothing, {})
    for name in ("out", "out.h5", "out.zarr"):
        again = open_store(convert(store.library, tmp_path / name))
        require_reads(again, PLAIN, files)
        assert again.failures() == store.failures() and verify(again.library) == []
        empty = open_store(convert(none.library, tmp_path / f"none {name}"))
        require_reads(empty, nothing, {})
        assert verify(empty.library) == []


@pytest.mark.parametrize("encoding", ["uint8", "jpeg"])
def test_stored_frames_come_along(tmp_path, encoding):
    spec = SimpleNamespace(frames=FrameSpec(encoding, (4, 6), 90 if encoding == "jpeg" else None))
    rng = np.random.default_rng(0)

    class Storing(Encoder):
        def commit(self, library: Library, addition, number, file_of, text_of):
            if addition.stream == "text":
                return super().commit(library, addition, number, file_of, text_of)
            run = addition.shard_range(number)
            keys = addition.keys[run.start : run.stop]
            counts = [key[0] % 4 for key in keys]
            videos = [EncodedVideo(np.ones((n, 4), np.float32), np.zeros(n, np.float32)) for n in counts]
            arrays = video_arrays(keys, videos, embed_dim=4, dtype="float32")
            total = sum(counts)
            if encoding == "uint8":
                arrays["frames"] = rng.integers(0, 255, (total, 4, 6, 3)).astype(np.uint8)
            else:
                sizes = rng.integers(1, 30, total)
                arrays["frame_bytes"] = rng.integers(0, 255, int(sizes.sum())).astype(np.uint8)
                arrays["frame_offsets"] = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
            library.commit(addition, number, arrays)

    import dataclasses

    import made_library

    kept = made_library.SPEC
    made_library.SPEC = dataclasses.replace(SPEC, frames=spec.frames)
    try:
        root = tmp_path / "cache"
        Storing().extract(
            root,
            annotations(*((f"v{n}", "train", []) for n in range(8))),
            {f"v{n}": b"%d" % n for n in range(8)},
            shard=3,
        )
        turned = annotations(*((f"v{n}", "train", []) for n in (6, 1, 9, 4)))
        Storing().extract(root, turned, {f"v{n}": b"%d" % n for n in (6, 1, 9, 4)}, name="turned", shard=3)
    finally:
        made_library.SPEC = kept
    for name in ("made", "turned"):
        before = StoredFrames(open_store(root, name))
        for out in (f"{name}", f"{name}.h5", f"{name}.zarr"):
            again = open_store(convert(open_library(root), tmp_path / out, lists=[name]))
            assert again.frames == spec.frames and verify(again.library) == []
            frames = StoredFrames(again)
            for item in range(again.num_items["video"]):
                assert frames.stored(item) == before.stored(item)


def test_where_the_files_of_the_lists_were_seen_comes_along(small_cache, tmp_path):
    made = small_cache()
    store = made.fill()
    known = KnownFiles()
    for name in ("of the list", "of nobody"):
        (tmp_path / name).write_bytes(name.encode())
        known.content(tmp_path / name)
    known._seen[str(tmp_path / "of the list")] = (
        known._seen[str(tmp_path / "of the list")][0],
        store.list.video_content[0].tobytes(),
    )
    known.save(made.path)
    convert(store.library, tmp_path / "out")
    assert (tmp_path / "out" / "files.jsonl").read_text().count("\n") == 1
    assert open_store(tmp_path / "out").plan.videos[0].path == str(tmp_path / "of the list")


def test_nothing_is_overwritten_and_nothing_half_is_left(small_cache, tmp_path, monkeypatch):
    library = small_cache().fill().library
    (tmp_path / "there.h5").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        convert(library, tmp_path / "there.h5")
    with pytest.raises(UsageError, match="by its name"):
        convert(library, tmp_path / "x.h5", format="zarr")

    def full(path, groups):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("glscl.cache.formats.hdf5_store.Hdf5Shards.write_groups", staticmethod(full))
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(StorageError, match="the disk is full"):
        convert(library, tmp_path / "x.h5")
    assert sorted(os.listdir(tmp_path)) == before


def test_damage_is_not_carried_over(small_cache, tmp_path):
    store = small_cache("hdf5").fill()
    commit = next(iter(store.library.stream("video").commits.values()))
    file = store.path / commit.path
    data = bytearray(file.read_bytes())
    values = np.concatenate([video.frame_features for video in small_cache().videos[:4]]).astype(np.float16).tobytes()
    data[bytes(data).index(values) + 5] ^= 4
    file.write_bytes(data)
    for name in ("x.zarr", "x"):
        with pytest.raises(CacheCorruptError, match=r"values.*inspect"):
            convert(open_library(store.path), tmp_path / name)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("done", [0, 1, 4, None], ids=["head", "one shard", "four shards", "all shards"])
def test_a_stopped_conversion_is_finished_by_the_same_call(small_cache, tmp_path, monkeypatch, done):
    store, out = small_cache().fill(), tmp_path / "out"
    committing, committed = Library.commit, []

    def commit(self, addition, shard, *args, **options):
        if len(committed) == done:
            raise KeyboardInterrupt
        committed.append((addition.name, shard))
        return committing(self, addition, shard, *args, **options)

    def finish(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Library, "commit", commit)
    with monkeypatch.context() as until, pytest.raises(KeyboardInterrupt):
        until.setattr(convert_module, "make_current", finish)
        convert(store.library, out)
    done = -1
    with pytest.raises(CacheIncompleteError, match="never finished"):
        open_store(out)
    convert(store.library, out)
    assert len(committed) == len(set(committed)), "no shard was written twice"
    assert open_store(out).complete and verify(open_library(out)) == []
    for stream in STREAMS:
        for name, array in store.arrays(stream).items():
            np.testing.assert_array_equal(open_store(out).arrays(stream)[name], array)
    with pytest.raises(UsageError, match="exists already"):
        convert(store.library, out)


@pytest.mark.parametrize("name", ["", "inside", "lists/inside.h5"])
def test_a_conversion_into_the_cache_itself_is_refused(small_cache, name):
    library = small_cache().fill().library
    with pytest.raises(UsageError, match="lies in the cache that is converted"):
        convert(library, library.path / name)
    assert verify(library) == [] and not (library.path / "inside").exists()


def test_a_conversion_goes_on_only_with_what_it_began(small_cache, tmp_path):
    library = small_cache().fill().library
    small_cache("hdf5", name="other", seed=1, videos=12).create()
    small_cache("zarr", name="same format").create()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    (tmp_path / "named like ours" / "partial").mkdir(parents=True)
    (tmp_path / "named like ours" / "partial" / "thesis.tex").write_text("mine")
    for name in ("other", "same format", "mine", "named like ours"):
        with pytest.raises(UsageError, match="exists already"):
            convert(library, tmp_path / name)
    assert (tmp_path / "named like ours" / "partial" / "thesis.tex").exists()


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_conversion_goes_on_wherever_its_creation_was_stopped(small_cache, tmp_path, monkeypatch, stop):
    library, made = small_cache().fill().library, []
    making = Path.mkdir

    def mkdir(self, *args, **options):
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(self)
        return making(self, *args, **options)

    with monkeypatch.context() as until, pytest.raises(KeyboardInterrupt):
        until.setattr(Path, "mkdir", mkdir)
        convert(library, tmp_path / "out")
    assert (tmp_path / "out").is_dir() and not (tmp_path / "out" / "store.json").exists()
    assert open_store(convert(library, tmp_path / "out")).complete


def test_what_a_killed_conversion_left_beside_a_flat_file_is_removed(small_cache, tmp_path):
    library = small_cache().fill().library
    (tmp_path / ".x.h5.0123abcd.tmp").write_bytes(b"half")
    (tmp_path / ".x.zarr.0123abcd.tmp").mkdir()
    convert(library, tmp_path / "x.h5")
    assert [path.name for path in tmp_path.glob(".*")] == [".x.zarr.0123abcd.tmp"], "another file's may be under way"
    convert(library, tmp_path / "x.zarr")
    assert list(tmp_path.glob(".*")) == []


def test_an_incomplete_list_is_not_converted(small_cache, tmp_path):
    made = small_cache()
    library = made.create()
    made.commit(library, "video", 0)
    for name in ("x.h5", "folder"):
        with pytest.raises(CacheIncompleteError, match="never finished"):
            convert(library, tmp_path / name)
        with pytest.raises(CacheIncompleteError, match="4 of 11 video items"):
            convert(library, tmp_path / name, lists=[made.list.hash])
    write_list(made.path, dataclasses.replace(made.list, name="another"), library.header["format"])
    with pytest.raises(CacheIncompleteError, match="The list another of .* was never finished"):
        convert(library, tmp_path / "folder")
    make_current(made.path, made.list)  # as after a repair that set shards aside
    with pytest.raises(CacheIncompleteError, match="4 of 11 video items"):
        convert(library, tmp_path / "folder")
    assert not (tmp_path / "folder").exists() and not (tmp_path / "x.h5").exists()


def test_files_of_others_are_not_caches(tmp_path):
    (tmp_path / "text.h5").write_text("hello")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["head"] = np.arange(4, dtype=np.uint8)
    with h5py.File(tmp_path / "json.h5", "w") as file:
        file["head"] = np.frombuffer(b'{"schema": "glscl.cache/2"}', np.uint8)
    for name in ("text.h5", "foreign.h5", "json.h5"):
        with pytest.raises(CacheFormatError, match="is not a glscl cache"):
            open_store(tmp_path / name)


def test_the_command_writes_one_list(tmp_path, glscl):
    encoder, root = Encoder(), tmp_path / "cache"
    encoder.extract(root, PLAIN, FILES)
    encoder.extract(root, MORE, MORE_FILES, name="more")
    assert glscl("convert", root, tmp_path / "x.h5")[0] == 2
    status, out, _ = glscl("convert", root, tmp_path / "x.h5", "--list", "more")
    assert status == 0 and "fingerprint" in out
    require_reads(open_store(tmp_path / "x.h5"), MORE, MORE_FILES)
    assert glscl("convert", root, tmp_path / "both", "--list", "more", "--list", "made")[0] == 0
    assert list_names(tmp_path / "both") == ["made", "more"]
