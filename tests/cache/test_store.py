"""One behaviour for every format: order, resume, failures, fingerprints, competing and dying writers, damage."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from msgspec import structs

from glscl.cache import library as library_module
from glscl.cache.creation import create_store
from glscl.cache.formats import STORES, hdf5_store
from glscl.cache.formats.blocks import chunk_shape
from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.cache.shard_arrays import LAYOUT, decode_features, encode_features
from glscl.cache.store import open_store
from glscl.cache.upkeep.verification import verify, verify_commit
from glscl.common.errors import (
    CacheCorruptError,
    CacheFormatError,
    CacheIncompleteError,
    FingerprintError,
    InputError,
    NonFiniteError,
    NotFoundError,
    StorageError,
    UsageError,
)

TOLERANCE = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 0.0}


@pytest.fixture(params=sorted(STORES))
def format(request):
    return request.param


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
            taken = store.take_rows("video", "values", rows, items=range(start, stop))
            np.testing.assert_array_equal(taken, part["values"][rows])


def test_a_caption_of_a_video_without_frames_points_nowhere(small_cache, format):
    store = small_cache(format).fill()
    index = store.arrays("text")["video_index"]
    np.testing.assert_array_equal(index[3:12], [1, 1, 1, -1, -1, -1, 3, 3, 3])
    np.testing.assert_array_equal(store.arrays("text", raw=True)["video_index"][6:9], [2, 2, 2])


def test_both_formats_hold_the_same_arrays(small_cache):
    a, b = (small_cache(f, name=f).fill() for f in ("zarr", "hdf5"))
    assert a.fingerprint == b.fingerprint
    for stream in LAYOUT:
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name], err_msg=f"{stream} {name}")


def test_uncompressed_arrays_are_mapped_not_copied(small_cache, format):
    store = small_cache(format).fill()
    readers = store.format.rows(store.path / store.commits("video")[0].path, list(LAYOUT["video"]))
    assert all(isinstance(reader.map(), np.memmap) for reader in readers.values())


def test_an_array_larger_than_one_chunk_is_read_whole(small_cache, format, monkeypatch):
    monkeypatch.setattr("glscl.cache.formats.blocks.MAX_CHUNK_BYTES", 40)
    made = small_cache(format)
    made.fill()
    store = open_store(made.path)
    frames = np.concatenate([v.frame_features for v in made.videos])
    np.testing.assert_allclose(store.arrays("video")["values"], frames, rtol=1e-3)
    assert verify_commit(store, store.committed("video", 0)) == []


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
    assert [p for shard in range(3) for p in verify_commit(store, store.committed("video", shard))] == []


def test_opening_again_resumes_with_what_is_missing(small_cache, format):
    made = small_cache(format)
    store = made.create()
    made.commit(store, "video", 1)
    again = made.create()
    assert again.pending("video") == [0, 2]
    assert not again.complete
    with pytest.raises(CacheIncompleteError, match=r"1 of 3 video shards .* glscl extract --dataset made"):
        again.arrays("video")
    assert again.arrays("video", items=range(4, 8))["status"].tolist() == [0, 3, 0, 0]
    with pytest.raises(CacheIncompleteError):
        again.finish()


def test_only_the_first_of_two_writers_of_a_shard_counts(small_cache, format):
    made = small_cache(format)
    one, two = made.create(), made.create()
    assert made.commit(one, "video", 0)
    path = one.commits("video")[0].path
    assert not made.commit(two, "video", 0)
    assert two.commits("video")[0].path == path
    assert os.listdir(made.path / "shards" / "video").count(Path(path).name) == 1
    assert len([n for n in os.listdir(made.path / "shards" / "video") if n != "zarr.json"]) == 1


def test_a_higher_revision_replaces_a_shard(small_cache, format):
    made = small_cache(format)
    store = made.fill()
    made.videos[2] = made.videos[0]
    assert made.commit(store, "video", 0, revision=1)
    store.finish()
    again = open_store(made.path)
    assert again.commits("video")[0].revision == 1
    assert again.arrays("video")["status"][2] == 0
    assert (again.arrays("text")["video_index"] >= 0).all()


def test_another_configuration_is_refused_and_named(small_cache, format):
    made = small_cache(format)
    made.fill()
    other = dataclasses.replace(made.spec, configuration={"backbone": {"name": "ViT-B-16", "pretrained": "seed"}})
    with pytest.raises(FingerprintError, match=r"backbone\.name: found 'made', expected 'ViT-B-16'.*`out`"):
        create_store(made.path, other, format)


def test_other_annotations_are_refused(small_cache, format):
    made = small_cache(format)
    made.create()
    changed = dataclasses.replace(made.annotations, texts=made.annotations.texts[:-1])
    with pytest.raises(FingerprintError, match="annotations"):
        create_store(made.path, dataclasses.replace(made.spec, annotations=changed), format)


def test_where_the_videos_lie_and_how_shards_are_cut_does_not_change_the_fingerprint(small_cache):
    made = small_cache()
    moved = [structs.replace(v, path="/elsewhere/" + v.id) for v in made.annotations.videos]
    annotations = dataclasses.replace(made.annotations, videos=moved)
    other = dataclasses.replace(made.spec, annotations=annotations, shard_items={"video": 2, "text": 3})
    assert create_store(made.path.with_name("b"), other, "hdf5").fingerprint == made.create().fingerprint


def test_another_format_on_the_same_folder_is_refused(small_cache):
    made = small_cache("zarr")
    made.create()
    with pytest.raises(UsageError, match="is a zarr cache; asked for hdf5"):
        create_store(made.path, made.spec, "hdf5")


def test_items_of_a_split_are_brought_together(tmp_path, small_cache):
    videos = [VideoItem(str(i), ("test", "train")[i % 2], None) for i in range(6)]
    texts = [TextItem(f"{v.id}#0", v.id, v.split, "x") for v in videos]
    annotations = Annotations(dataset="mixed", videos=videos, texts=texts)
    store = create_store(tmp_path / "c", dataclasses.replace(small_cache().spec, annotations=annotations))
    assert [v.id for v in store.plan.videos] == ["0", "2", "4", "1", "3", "5"]
    assert store.splits["train"].videos == range(3, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: {"videos": [*a.videos, a.videos[0]]}, "stands twice"),
        (lambda a: {"texts": [*a.texts, a.texts[0]]}, "stands twice"),
        (lambda a: {"texts": [structs.replace(a.texts[0], split="test"), *a.texts[1:]]}, "belongs to one split"),
    ],
)
def test_annotations_that_contradict_themselves_are_refused(small_cache, change, message):
    made = small_cache()
    broken = dataclasses.replace(made.annotations, **change(made.annotations))
    with pytest.raises(InputError, match=message):
        create_store(made.path, dataclasses.replace(made.spec, annotations=broken))


def test_a_folder_of_something_else_is_left_alone(tmp_path, small_cache):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "thesis.tex").write_text("mine")
    with pytest.raises(CacheFormatError, match=r"not a glscl cache and not empty: found thesis\.tex"):
        small_cache().create()
    assert os.listdir(tmp_path / "cache") == ["thesis.tex"]


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
        json.dumps({k: v for k, v in head.items() if k != "splits"}),
        json.dumps(head | {"splits": [1]}),
    ):
        (made.path / "store.json").write_text(broken)
        with pytest.raises(CacheFormatError):
            open_store(made.path)


def test_a_writer_that_dies_before_its_commit_loses_only_that_shard(small_cache, format, monkeypatch):
    made = small_cache(format)
    store = made.create()
    made.commit(store, "video", 0)
    before = open_store(made.path).arrays("video", items=range(4))

    def die(*_):
        raise KeyboardInterrupt

    for name in ("put_if_absent", "sync_tree"):
        with monkeypatch.context() as patch:
            patch.setattr(library_module, name, die)
            with pytest.raises(KeyboardInterrupt):
                made.commit(store, "video", 1)
        assert open_store(made.path).pending("video") == [1, 2]
    made.fill()
    after = open_store(made.path)
    for name, array in before.items():
        np.testing.assert_array_equal(after.arrays("video", items=range(4))[name], array)
    assert not (made.path / "partial").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_failing_disk_is_one_clear_error_and_costs_nothing_committed(small_cache, format, monkeypatch, code):
    made = small_cache(format)
    store = made.create()
    made.commit(store, "video", 0)

    def fail(path, *_):
        Path(path).mkdir() if format == "zarr" else Path(path).write_bytes(b"half a sh")
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(type(store.format), "write", staticmethod(fail))
        with pytest.raises(StorageError, match=r"Cannot write .*cache"):
            made.commit(store, "video", 1)
    again = open_store(made.path)
    assert again.pending("video") == [1, 2]
    assert verify_commit(again, again.committed("video", 0)) == []
    assert os.listdir(made.path / "partial") == []
    assert made.fill().complete


def test_what_hdf5_says_of_a_full_disk_in_many_lines_becomes_one(small_cache, monkeypatch, capfd):
    made = small_cache("hdf5")
    store = made.create()
    told = "Can't write (file write failed: time = Sat\n, filename = 'x.h5', errno = 28, error message = 'No space')"
    for kind in (OSError, RuntimeError):
        with monkeypatch.context() as patch:
            patch.setattr(hdf5_store, "_write_arrays", lambda *_, kind=kind: (_ for _ in ()).throw(kind(told)))
            with pytest.raises(StorageError, match="cache: the disk is full. Free some space") as error:
                made.commit(store, "video", 0)
        assert "\n" not in str(error.value)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(StorageError, match="the disk is full"):
            made.commit(store, "video", 0)
    assert capfd.readouterr().err == ""
    assert made.fill().complete


def test_an_output_that_cannot_be_made_is_named(tmp_path, small_cache):
    (tmp_path / "file").write_text("")
    made = small_cache(name="file/cache")
    with pytest.raises(StorageError, match="a file stands where a folder is expected"):
        made.create()


@pytest.mark.parametrize("stream", ["video", "text"])
def test_every_flipped_bit_of_the_data_is_found(small_cache, format, stream):
    store = small_cache(format).fill()
    shard = store.path / store.commits(stream)[0].path
    files = (
        [shard]
        if shard.is_file()
        else sorted(p for p in shard.rglob("c/*") if p.is_file())
        + sorted(p for p in shard.rglob("c/0/0") if p.is_file())
    )
    rng = np.random.default_rng(0)
    mapped = {name: reader.map() for name, reader in store.format.rows(shard, list(LAYOUT[stream])).items()}
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
        assert verify_commit(store, store.committed(stream, 0)), f"byte {place} of {file} was flipped"
        file.write_bytes(original)
    assert verify_commit(store, store.committed(stream, 0)) == []


def test_a_truncated_or_vanished_shard_is_an_error_not_zeros(small_cache, format):
    made = small_cache(format)
    commit = made.fill().commits("video")[1]
    shard = made.path / commit.path
    victims = [shard] if shard.is_file() else [p for p in shard.rglob("*") if p.is_file()]
    for file in victims:
        data = file.read_bytes()
        for damage in (b"", data[: len(data) // 2]):
            file.write_bytes(damage)
            with pytest.raises(CacheCorruptError, match=r"inspect \(.*verify=True"):
                open_store(made.path).arrays("video")
            assert verify_commit(open_store(made.path), commit)
        file.unlink()
        with pytest.raises(CacheCorruptError, match=r"inspect \(.*verify=True"):
            open_store(made.path).arrays("video")
        file.write_bytes(data)
    assert verify(open_store(made.path)) == []
    shutil.rmtree(shard) if shard.is_dir() else shard.unlink()
    with pytest.raises(CacheCorruptError, match="committed but not there"):
        open_store(made.path).arrays("video")


def test_damaged_commits_and_manifests_are_named(small_cache, format):
    made = small_cache(format)
    made.fill()
    manifest = (made.path / "manifest.json").read_text()
    for broken in ("{", "[]", "{}", manifest.replace('"shard"', '"shird"'), manifest.replace('"fingerprint"', '"f"')):
        (made.path / "manifest.json").write_text(broken)
        with pytest.raises((CacheFormatError, CacheCorruptError), match=r"manifest\.json"):
            open_store(made.path).arrays("video")
    (made.path / "manifest.json").unlink()
    assert open_store(made.path).complete
    (made.path / "commits" / "video" / "00001.json").write_text("{}")
    with pytest.raises(CacheCorruptError, match=r"00001\.json"):
        open_store(made.path).arrays("video")


def test_features_that_are_not_finite_are_refused_by_name(small_cache):
    made = small_cache()
    made.videos[6].frame_features[0, 3] = np.nan
    store = made.create()
    with pytest.raises(NonFiniteError, match=r"'vidéo6'.*`precision=fp32`"):
        made.commit(store, "video", 1)
    made.texts[0].text_features[0] = 1e6  # finite, but not in float16
    with pytest.raises(NonFiniteError, match="as float16"):
        made.commit(store, "text", 0)


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


def test_a_killed_writer_leaves_a_cache_that_the_next_one_completes(small_cache, format, tmp_path):
    """SIGKILL at three moments of a real process that commits as fast as it can."""
    script = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[1])
        from pathlib import Path
        from conftest import SmallCache
        made = SmallCache(Path(sys.argv[2]), sys.argv[3], "float16", videos=24, captions=3, dim=8, seed=0)
        store = made.create()
        print("ready", flush=True)
        for stream in ("text", "video"):
            for shard in store.pending(stream):
                made.commit(store, stream, shard)
                print(stream, shard, flush=True)
        """
    )
    made = small_cache(format, videos=24)
    whole = small_cache(format, videos=24, name="whole").fill()
    for lines in (1, 5, 9):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(Path(__file__).parents[1]), str(made.path), format],
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = open_store(made.path)
        for stream in ("video", "text"):
            assert [p for commit in store.commits(stream).values() for p in verify_commit(store, commit)] == []
    finished = made.fill()
    for stream in LAYOUT:
        for name, array in whole.arrays(stream).items():
            np.testing.assert_array_equal(finished.arrays(stream)[name], array)
