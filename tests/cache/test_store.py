"""One behaviour for every format: order, resume, failures, better items, competing and dying writers, damage."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import textwrap
from collections.abc import Container
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from forked import Forked
from formats import EITHER
from snapshots import snapshot

from glscl.cache import library as library_module
from glscl.cache.additions import write_addition
from glscl.cache.creation import create_library
from glscl.cache.encoded_items import EncodedVideo, video_arrays
from glscl.cache.formats import STORES, hdf5_store
from glscl.cache.formats.blocks import chunk_shape
from glscl.cache.library import Library, open_library
from glscl.cache.reading import read_rows
from glscl.cache.schema import STREAMS, Status
from glscl.cache.shard_arrays import LAYOUT, decode_features, encode_features
from glscl.cache.store import Store, open_store
from glscl.cache.upkeep.verification import verify, verify_commit
from glscl.common.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    FingerprintError,
    NonFiniteError,
    NotFoundError,
    StorageError,
    UsageError,
)

TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 0.0}


@pytest.fixture(params=sorted(STORES))
def format(request):
    return request.param


def problems_of(library: Library, stream: str, shards: Container[int] = range(99)) -> list[str]:
    """What is wrong with the committed shards of a stream."""
    about = library.stream(stream)
    return [
        problem
        for place in about.committed()
        if place.shard in shards
        for problem in verify_commit(library, about.commit_of(place), place.addition.keys)
    ]


def shard_file(library: Library, stream: str, shard: int) -> Path:
    """Where a shard lies, counted over all additions."""
    about = library.stream(stream)
    return library.path / about.commit_of(about.places[shard]).path


def unfinished(made) -> Store:
    """The list of a cache that was never finished, seen on what is there."""
    return open_store(made.path, made.list.hash)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_what_was_committed_is_read_back_in_order(small_cache, format, dtype):
    made = small_cache(format, dtype)
    made.fill()
    store = open_store(made.path)
    video, text = store.arrays("video"), store.arrays("text")
    frames = np.concatenate([v.frame_features for v in made.videos])
    np.testing.assert_allclose(video["values"], frames, rtol=TOLERANCE[dtype])
    np.testing.assert_array_equal(np.diff(video["offsets"]), [len(v.frame_features) for v in made.videos])
    np.testing.assert_array_equal(video["status"], [int(v.status) for v in made.videos])
    np.testing.assert_allclose(text["pooled"], [t.text_features for t in made.texts], rtol=TOLERANCE[dtype])
    np.testing.assert_array_equal(text["token_ids"], np.concatenate([t.token_ids for t in made.texts]))
    assert store.ids("video") == [v.id for v in made.annotations.videos]
    assert store.captions() == [t.text for t in made.annotations.texts]
    assert store.complete and store.failures()[0]["reason"] == "moov atom not found"
    assert store.list.text_video.tolist() == [row for row in range(len(made.videos)) for _ in range(3)]
    assert store.splits["test"].expected.videos == 50


def test_any_run_of_items_equals_the_slice_of_the_whole(small_cache, format):
    store = small_cache(format).fill()
    whole = store.arrays("video")
    for start in range(0, 12):
        for stop in range(start, 12):
            part = store.arrays("video", items=range(start, stop))
            first, last = whole["offsets"][start], whole["offsets"][min(stop, 11)]
            np.testing.assert_array_equal(part["values"], whole["values"][first:last])
            np.testing.assert_array_equal(part["times"], whole["times"][first:last])
            np.testing.assert_array_equal(part["pooled"], whole["pooled"][start:stop])
            np.testing.assert_array_equal(part["offsets"], whole["offsets"][start : min(stop, 11) + 1] - first)
            rows = np.arange(0, last - first, 2)
            taken = read_rows(store.library, "video", "values", rows, store.numbers["video"][start:stop])
            np.testing.assert_array_equal(taken, part["values"][rows])


def test_both_formats_hold_the_same_arrays(small_cache):
    a, b = (small_cache(f, name=f).fill() for f in ("zarr", "hdf5"))
    assert a.fingerprint == b.fingerprint
    for stream in LAYOUT:
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name], err_msg=f"{stream} {name}")


def test_uncompressed_arrays_are_mapped_not_copied(small_cache, format):
    store = small_cache(format).fill()
    readers = store.library.format.rows(shard_file(store.library, "video", 0), list(LAYOUT["video"]))
    assert all(isinstance(reader.map(), np.memmap) for reader in readers.values())


def test_an_array_larger_than_one_chunk_is_read_whole(small_cache, format, monkeypatch):
    monkeypatch.setattr("glscl.cache.formats.blocks.MAX_CHUNK_BYTES", 40)
    made = small_cache(format)
    made.fill()
    store = open_store(made.path)
    frames = np.concatenate([v.frame_features for v in made.videos])
    np.testing.assert_allclose(store.arrays("video")["values"], frames, rtol=1e-3)
    assert problems_of(store.library, "video") == []


def test_chunks_of_a_large_array_are_of_equal_size(monkeypatch):
    monkeypatch.setattr("glscl.cache.formats.blocks.MAX_CHUNK_BYTES", 40)
    shapes = {(n, 2): chunk_shape((n, 2), np.dtype(np.float16)) for n in (0, 1, 10, 11, 21, 100)}
    assert shapes == {
        (0, 2): (1, 2),
        (1, 2): (1, 2),
        (10, 2): (10, 2),
        (11, 2): (6, 2),
        (21, 2): (7, 2),
        (100, 2): (10, 2),
    }
    assert chunk_shape((3, 50), np.dtype(np.float16)) == (1, 50)


def test_a_shard_of_zeros_alone_is_stored_and_verified(small_cache, format):
    made = small_cache(format)
    made.videos = [v._replace(frame_features=np.zeros((0, 8), np.float32), times=v.times[:0]) for v in made.videos]
    store = made.fill()
    assert store.arrays("video")["values"].shape == (0, 8)
    assert not store.arrays("video")["pooled"].any()
    assert problems_of(store.library, "video") == []


def test_opening_again_resumes_with_what_is_missing(small_cache, format):
    made = small_cache(format)
    made.commit(made.create(), "video", 1)
    again = made.create()
    assert made.pending(again, "video") == [0, 2]
    assert not again.settle(made.addition("video")) and not unfinished(made).complete
    with pytest.raises(CacheIncompleteError, match=r"list made .*was never finished.* glscl extract --dataset made"):
        open_store(made.path)
    store = unfinished(made)
    with pytest.raises(CacheIncompleteError, match=r"4 of 11 video items .* glscl extract --dataset made"):
        store.arrays("video")
    assert store.arrays("video", items=range(4, 8))["status"].tolist() == [0, 3, 0, 0]


def test_only_the_first_of_two_writers_of_a_shard_counts(small_cache, format):
    made = small_cache(format)
    one, two = made.create(), made.create()
    assert made.commit(one, "video", 0)
    path = shard_file(one, "video", 0)
    assert not made.commit(two, "video", 0)
    assert shard_file(two, "video", 0) == path
    assert [name for name in os.listdir(made.path / "shards" / "video") if name != "zarr.json"] == [path.name]


def commit_again(made, library: Library, video: int, status: Status, attempt: int) -> None:
    """Another item of the key of a video, in an addition of its own."""
    keys = made.addition("video").keys[video : video + 1]
    frames = made.videos[0].frame_features[: int(status.usable)]
    again = EncodedVideo(frames, np.arange(len(frames), dtype=np.float32), status, "again")
    addition = write_addition(made.path, "video", keys, shard_items=4, attempt=attempt)
    library.refresh()
    failed = [{"key": keys.tobytes().hex(), "reason": "again", "status": status.name.lower()}]
    arrays = video_arrays(keys, [again], embed_dim=8, dtype=made.dtype)
    library.commit(addition, 0, arrays, failures=failed if status != Status.OK else [])


def test_of_several_items_of_a_key_the_most_usable_counts_whichever_came_first(small_cache, format):
    made = small_cache(format)
    library = made.fill().library
    commit_again(made, library, 2, Status.TIMED_OUT, 1)  # as bad as what is there: the smaller name counts
    names = [addition.name for addition in library.stream("video").additions]
    reason = "again" if names[0] != made.addition("video").name else "moov atom not found"
    assert open_store(made.path).failures()[0]["reason"] == reason
    commit_again(made, library, 2, Status.PARTIAL, 2)
    assert open_store(made.path).status()[2] == Status.PARTIAL
    commit_again(made, library, 2, Status.OK, 3)
    commit_again(made, library, 2, Status.DECODE_ERROR, 4)
    commit_again(made, library, 0, Status.MISSING, 1)
    store = open_store(made.path)
    assert store.status().tolist() == [0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0]
    arrays = store.arrays("video")
    assert np.diff(arrays["offsets"])[2] == 1
    np.testing.assert_allclose(arrays["pooled"][2], arrays["values"][arrays["offsets"][2]] / np.linalg.norm(
        arrays["values"][arrays["offsets"][2]].astype(np.float32)), rtol=2e-3, atol=1e-3)  # fmt: skip
    assert store.complete and [each["id"] for each in store.failures()] == ["-v_5.mov"]
    assert verify(store.library) == []


def test_another_configuration_is_refused_and_named(small_cache, format):
    made = small_cache(format)
    made.fill()
    other = dataclasses.replace(made.spec, configuration={"backbone": {"name": "ViT-B-16", "pretrained": "seed"}})
    with pytest.raises(FingerprintError, match=r"backbone\.name: found 'made', expected 'ViT-B-16'.*`out`"):
        create_library(made.path, other, format)


def test_another_format_on_the_same_folder_is_refused(small_cache):
    made = small_cache("zarr")
    made.create()
    with pytest.raises(UsageError, match="is a zarr cache; asked for hdf5"):
        create_library(made.path, made.spec, "hdf5")


@pytest.mark.parametrize("file", ["thesis.tex", "partial/thesis.tex"])
def test_a_folder_of_something_else_is_left_alone(tmp_path, small_cache, file):
    (tmp_path / "cache" / "partial").mkdir(parents=True)
    (tmp_path / "cache" / file).write_text("mine")
    before = snapshot(tmp_path)
    with pytest.raises(CacheFormatError, match=rf"not a glscl cache and not empty: found {file}"):
        small_cache().create()
    assert snapshot(tmp_path) == before


def test_opening_what_is_not_a_cache_says_so(tmp_path, small_cache):
    with pytest.raises(NotFoundError, match="No cache at"):
        open_store(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CacheFormatError, match=r"no store\.json"):
        open_store(tmp_path / "empty")
    made = small_cache()
    made.fill()
    head = json.loads((made.path / "store.json").read_text())
    for broken in (
        "",
        "[]",
        '{"schema":',
        json.dumps(head | {"schema": "glscl.cache/9"}),
        json.dumps(head | {"format": "parquet"}),
        json.dumps(head | {"configuration": {**head["configuration"], "dtype": "float32"}}),
        json.dumps({k: v for k, v in head.items() if k != "configuration"}),
        json.dumps({k: v for k, v in head.items() if k != "format"}),
        json.dumps(head | {"stored_frames": [1]}),
    ):
        (made.path / "store.json").write_text(broken)
        with pytest.raises(CacheFormatError):
            open_store(made.path)


def test_a_writer_that_dies_before_its_commit_loses_only_that_shard(small_cache, format, monkeypatch):
    made = small_cache(format)
    library = made.create()
    made.commit(library, "video", 0)
    before = unfinished(made).arrays("video", items=range(4))

    def die(*_):
        raise KeyboardInterrupt

    for name in ("put_if_absent", "sync_tree"):
        with monkeypatch.context() as patch:
            patch.setattr(library_module, name, die)
            with pytest.raises(KeyboardInterrupt):
                made.commit(library, "video", 1)
        assert made.pending(open_library(made.path), "video") == [1, 2]
    after = made.fill()
    for name, array in before.items():
        np.testing.assert_array_equal(after.arrays("video", items=range(4))[name], array)
    assert not any((made.path / "partial").iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failing_disk_is_one_clear_error_and_costs_nothing_committed(small_cache, format, monkeypatch, code):
    made = small_cache(format)
    library = made.create()
    made.commit(library, "video", 0)

    def fail(path, *_):
        Path(path).mkdir() if format == "zarr" else Path(path).write_bytes(b"half a sh")
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(type(library.format), "write", staticmethod(fail))
        with pytest.raises(StorageError, match=r"Cannot write .*cache"):
            made.commit(library, "video", 1)
    again = open_library(made.path)
    assert made.pending(again, "video") == [1, 2]
    assert problems_of(again, "video") == []
    assert os.listdir(made.path / "partial") == []
    assert made.fill().complete


def test_what_hdf5_says_of_a_full_disk_in_many_lines_becomes_one(small_cache, monkeypatch, capfd):
    made = small_cache("hdf5")
    library = made.create()
    told = "Can't write (file write failed: time = Sat\n, filename = 'x.h5', errno = 28, error message = 'No space')"
    for kind in (OSError, RuntimeError):
        with monkeypatch.context() as patch:
            patch.setattr(hdf5_store, "_write_arrays", lambda *_, kind=kind: (_ for _ in ()).throw(kind(told)))
            with pytest.raises(StorageError, match="cache: the disk is full. Free some space") as error:
                made.commit(library, "video", 0)
        assert "\n" not in str(error.value)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(StorageError, match="the disk is full"):
            made.commit(library, "video", 0)
    assert capfd.readouterr().err == ""
    assert made.fill().complete


def test_an_output_that_cannot_be_made_is_named(tmp_path, small_cache):
    (tmp_path / "file").write_text("")
    made = small_cache(name="file/cache")
    with pytest.raises(StorageError, match="a file stands where a folder is expected"):
        made.create()


@pytest.mark.parametrize("stream", ["video", "text"])
def test_every_flipped_bit_of_the_data_is_found(small_cache, format, stream):
    library = small_cache(format, videos=4).fill().library
    shard = shard_file(library, stream, 0)
    files = (
        [shard]
        if shard.is_file()
        else sorted(p for p in shard.rglob("c/*") if p.is_file())
        + sorted(p for p in shard.rglob("c/0/0") if p.is_file())
    )
    rng = np.random.default_rng(0)
    mapped = {name: reader.map() for name, reader in library.format.rows(shard, list(LAYOUT[stream])).items()}
    places = []
    for name, array in mapped.items():
        file = shard if shard.is_file() else next(p for p in files if name in p.parts)
        start = array.offset if isinstance(array, np.memmap) else 0
        places += [(file, start + int(rng.integers(array.nbytes))) for _ in range(3) if array.nbytes]
    del mapped
    assert len(places) > 20
    for file, place in places:
        data = bytearray(file.read_bytes())
        data[place] ^= 1 << int(rng.integers(8))
        original = file.read_bytes()
        file.write_bytes(data)
        assert problems_of(library, stream), f"byte {place} of {file} was flipped"
        file.write_bytes(original)
    assert problems_of(library, stream) == []


def test_a_truncated_or_vanished_shard_is_an_error_not_zeros(small_cache, format):
    made = small_cache(format)
    shard = shard_file(made.fill().library, "video", 1)
    victims = [shard] if shard.is_file() else [p for p in shard.rglob("*") if p.is_file()]

    def require_named(file: Path) -> None:
        assert problems_of(open_library(made.path), "video", shards=[1])
        keys = any(part.startswith("id_") for part in file.parts)  # which a reader has from the addition
        raises = pytest.raises(CacheCorruptError, match=r"inspect \(.*verify=True")
        with contextlib.nullcontext() if keys else raises:
            open_store(made.path).arrays("video")

    for file in victims:
        data = file.read_bytes()
        for damage in (b"", data[: len(data) // 2]):
            file.write_bytes(damage)
            require_named(file)
        file.unlink()
        require_named(file)
        file.write_bytes(data)
    assert verify(open_library(made.path)) == []
    shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    with pytest.raises(CacheCorruptError, match="committed but not there"):
        open_store(made.path).arrays("video")


def test_damaged_commits_are_named_and_the_gathered_ones_may_be_deleted(small_cache, format):
    made = small_cache(format)
    made.fill()
    name = made.addition("video").name
    gathered = made.path / "commits" / "video" / f"{name}.json"
    good = gathered.read_text()
    rows = json.loads(good)["commits"]
    for broken in (
        "{",
        "[]",
        "{}",
        good.replace('"shard"', '"shird"'),
        good.replace("glscl.commits/1", "glscl.commits/2"),
        good.replace(f'"addition": "{name}", "commits"', '"addition": "0123456789abcdef", "commits"'),
        json.dumps(json.loads(good) | {"commits": rows[:-1]}),
        json.dumps(json.loads(good) | {"commits": [*rows, rows[0]]}),
        json.dumps(json.loads(good) | {"commits": None}),
    ):
        assert broken != good
        gathered.write_text(broken)
        with pytest.raises((CacheFormatError, CacheCorruptError), match=f"{name}\\.json"):
            open_store(made.path).arrays("video")
    gathered.unlink()
    assert open_store(made.path).complete
    (made.path / "commits" / "video" / f"{name}-00001.json").write_text("{}")
    with pytest.raises(CacheCorruptError, match=rf"{name}-00001\.json"):
        open_store(made.path).arrays("video")


@pytest.mark.parametrize("lost", ["files.jsonl", "gathered", "current"])
def test_files_that_only_save_time_may_be_lost(small_cache, format, lost):
    made = small_cache(format)
    store = made.fill()
    (made.path / "files.jsonl").write_bytes(b'["/videos/a.mp4", 1, 2, "00000000000000000000000000000000"]\n')
    before = {stream: store.arrays(stream) for stream in STREAMS}
    gone = {
        "files.jsonl": [made.path / "files.jsonl"],
        "gathered": [made.path / "commits" / s / f"{made.addition(s).name}.json" for s in STREAMS],
        "current": [made.path / "lists" / "made" / "current"],
    }[lost]
    for path in gone:
        path.unlink()
    after = unfinished(made)
    assert after.complete and verify(after.library) == []
    for stream, arrays in before.items():
        for name, array in after.arrays(stream).items():
            np.testing.assert_array_equal(array, arrays[name])
    assert after.plan.videos == store.plan.videos
    made.finish(made.create())  # as the next extraction ends
    assert open_store(made.path).list_hash == made.list.hash
    assert all(path.exists() for path in gone if lost != "files.jsonl")


def test_features_that_are_not_finite_are_refused_by_name(small_cache):
    made = small_cache()
    made.videos[6].frame_features[0, 3] = np.nan
    library = made.create()
    key = made.addition("video").keys[6].tobytes()
    with pytest.raises(NonFiniteError, match=rf"{key.hex()}.*`precision=fp32`") as caught:
        made.commit(library, "video", 1)
    assert caught.value.key == key and "'vidéo6'" in str(caught.value.named("vidéo6"))
    made.texts[0].text_features[0] = 1e6  # finite, but not in float16
    with pytest.raises(NonFiniteError, match="as float16"):
        made.commit(library, "text", 0)


def test_bfloat16_rounds_as_torch_does():
    values = np.concatenate([np.random.default_rng(0).standard_normal(2000), [0.0, -0.0, 65504, 1e-38]]).astype(
        np.float32
    )
    expected = torch.from_numpy(values).bfloat16()
    np.testing.assert_array_equal(
        encode_features(values, "bfloat16"), expected.view(torch.int16).numpy().view(np.uint16)
    )
    np.testing.assert_array_equal(
        decode_features(encode_features(values, "bfloat16"), "bfloat16"), expected.float().numpy()
    )


@pytest.mark.parametrize("format", EITHER)
def test_a_killed_writer_leaves_a_cache_that_the_next_one_completes(small_cache, format, tmp_path):
    """SIGKILL at three moments of a real process that commits as fast as it can."""
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        sys.path.insert(0, "TESTS")
        from conftest import SmallCache
        made = SmallCache(Path(sys.argv[1]), sys.argv[2], "float16", videos=24, captions=3, dim=8, seed=0)
        library = made.create()
        print("ready", flush=True)
        for stream in ("text", "video"):
            for shard in made.pending(library, stream):
                made.commit(library, stream, shard)
                print(stream, shard, flush=True)
        """
    )
    (tmp_path / "writer.py").write_text(script.replace("TESTS", str(Path(__file__).parents[1])))
    made = small_cache(format, videos=24)
    whole = small_cache(format, videos=24, name="whole").fill()
    for lines in (1, 5, 9):
        process = Forked([tmp_path / "writer.py", made.path, format])
        assert len(process.lines(lines)) == lines
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert verify(open_library(made.path)) == []
    finished = made.fill()
    for stream in LAYOUT:
        for name, array in whole.arrays(stream).items():
            np.testing.assert_array_equal(finished.arrays(stream)[name], array)
