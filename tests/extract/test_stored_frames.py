"""Frames kept beside the features: what the encoder saw, in both formats, through resume, retry, conversion and damage."""

from __future__ import annotations

import dataclasses
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from glscl.cache.frames import StoredFrames
from glscl.cache.jpeg import decode_jpeg, encode_jpeg
from glscl.cache.library import Library, open_library
from glscl.cache.records import Commit
from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.cache.store import Store, open_store
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.summary import summarise
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import CacheCorruptError, UsageError
from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.decode.video import decode
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings

HERE = pytest.mark.usefixtures("decoded_here")
LENGTHS = [12, 3, 41, 8, 20]


@pytest.fixture(scope="module")
def backbone(tiny_clip):
    return load_backbone(f"local-dir:{tiny_clip()}", words=12)


@pytest.fixture
def corpus(tmp_path, make_video):
    """Five clips with one caption each; the fourth cannot be decoded."""
    videos, texts = [], []
    for i, frames in enumerate(LENGTHS):
        path = make_video(tmp_path / "videos" / f"clip{i}.mp4", frames=frames, seed=i)
        videos.append(VideoItem(f"clip{i}", "train", str(path)))
        texts.append(TextItem(f"clip{i}#0", f"clip{i}", "train", f"clip {i}"))
    (tmp_path / "videos" / "clip3.mp4").write_text("not a video")
    return Annotations(dataset="csv", videos=videos, texts=texts)


def run(corpus, out, backbone, **options):
    options = {"fps": 2.0, "shard_videos": 2, "batch_frames": 7, "workers": 1} | options
    return extract(corpus, out, ExtractSettings(**options), backbone=backbone)


def frames_seen(item, backbone):
    """Every sampled frame of a clip as the encoder gets it, decoded here and now."""
    return decode(item.path, 2.0, prepare=backbone.transform)[0]


def jpeg_of(frame, quality):
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=quality, subsampling=0)
    return np.asarray(Image.open(io.BytesIO(out.getvalue())))


def first_commit(store: Store) -> Commit:
    """Of the shard that holds the first video."""
    about = store.library.stream("video")
    place = next(place for place in about.places if store.numbers["video"][0] in place.items)
    return about.commits[place.addition.name, place.shard]


def assert_equal_caches(a: Store, b: Store) -> None:
    for stream in ("video", "text"):
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name], err_msg=f"{stream} {name}")


@HERE
@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_stored_frames_are_what_the_encoder_saw_and_features_stay_the_same(
    corpus, backbone, tmp_path, format, monkeypatch
):
    monkeypatch.setattr(
        "glscl.cache.formats.blocks.MAX_CHUNK_BYTES", 4 * 32 * 32 * 3
    )  # several chunks a shard, cut within videos
    run(corpus, tmp_path / "none", backbone, format=format)
    run(corpus, tmp_path / "raw", backbone, format=format, store_frames="uint8")
    run(corpus, tmp_path / "jpeg", backbone, format=format, store_frames="jpeg", frame_quality=80)
    none, raw, jpeg = (open_store(tmp_path / name) for name in ("none", "raw", "jpeg"))
    assert none.fingerprint == raw.fingerprint == jpeg.fingerprint
    assert_equal_caches(none, raw)
    assert_equal_caches(none, jpeg)
    exact, lossy = StoredFrames(raw), pickle.loads(pickle.dumps(StoredFrames(tmp_path / "jpeg")))
    assert exact.available and lossy.available and not StoredFrames(none).available
    for item, video in enumerate(corpus.videos):
        if item == 3:
            assert exact.count(3) == 0 and exact.read(3).shape == lossy.read(3).shape == (0, 32, 32, 3)
            continue
        seen = frames_seen(video, backbone)
        rows = np.diff(raw.arrays("video")["offsets"])[item]
        assert exact.count(item) == lossy.count(item) == len(seen) == rows
        np.testing.assert_array_equal(exact.read(item), seen)
        np.testing.assert_array_equal(lossy.read(item), np.stack([jpeg_of(frame, 80) for frame in seen]))
        some = [len(seen) - 1, 0, 0, *range(1, len(seen))]
        np.testing.assert_array_equal(exact.read(item, some), seen[some])
        np.testing.assert_array_equal(lossy.read(item, some), lossy.read(item)[some])
    assert verify(raw.library) == verify(jpeg.library) == []
    assert [*(tmp_path / "raw" / "partial").iterdir()] == []


def test_jpeg_of_high_quality_changes_features_little(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "cache", backbone, store_frames="jpeg", dtype="float32")
    store = open_store(tmp_path / "cache")
    video = store.arrays("video")
    stored = backbone.encode_frames(StoredFrames(store).read(2))
    cached = video["values"][video["offsets"][2] : video["offsets"][3]]
    cosine = (stored * cached).sum(1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(cached, axis=1)
    assert cosine.min() > 0.999
    assert not np.array_equal(stored, cached)  # JPEG is lossy, and the page says so


@HERE
@pytest.mark.parametrize("encoding", ["uint8", "jpeg"])
def test_an_interrupted_run_goes_on_and_stores_the_same_frames(corpus, backbone, tmp_path, monkeypatch, encoding):
    run(corpus, tmp_path / "whole", backbone, store_frames=encoding)
    original, commits = Library.commit, []

    def stop_soon(self, *args, **options):
        if len(commits) == 2:
            raise KeyboardInterrupt
        commits.append(args)
        return original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Library, "commit", stop_soon)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "cut", backbone, store_frames=encoding)
    assert open_library(tmp_path / "cut").stream("video").pending()
    run(corpus, tmp_path / "cut", backbone, store_frames=encoding)
    whole, cut = open_store(tmp_path / "whole"), open_store(tmp_path / "cut")
    assert_equal_caches(whole, cut)
    for item in range(len(LENGTHS)):
        np.testing.assert_array_equal(StoredFrames(whole).read(item), StoredFrames(cut).read(item))


@pytest.mark.parametrize("encoding", ["uint8", "jpeg"])
def test_a_repeated_attempt_keeps_the_frames_of_the_other_videos(
    corpus, backbone, tmp_path, make_video, encoding, decoded_here
):
    path = str(make_video(tmp_path / "videos" / "clip3.mp4", frames=8, seed=3))
    decoded_here.failing[path] = "no progress for 60 s"
    run(corpus, tmp_path / "cache", backbone, store_frames=encoding)
    before = [StoredFrames(tmp_path / "cache").stored(item) for item in range(len(LENGTHS))]
    decoded_here.failing.clear()
    run(corpus, tmp_path / "cache", backbone, store_frames=encoding, retry_failed=True)
    frames = StoredFrames(tmp_path / "cache")
    assert [frames.stored(item) for item in (0, 1, 2, 4)] == [before[item] for item in (0, 1, 2, 4)]
    assert decoded_here.decoded.count(path) == 2 and len(decoded_here.decoded) == 6, "the others are not made again"
    assert before[3] == (b"", []) and frames.count(3) == len(frames_seen(corpus.videos[3], backbone))
    assert verify(frames.store.library) == []


@HERE
def test_another_choice_for_the_same_cache_is_one_clear_line(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "none", backbone)
    with pytest.raises(
        UsageError, match=r"none was begun with stored frames: none; asked for: jpeg of quality 95, 32×32"
    ):
        run(corpus, tmp_path / "none", backbone, store_frames="jpeg")
    run(corpus, tmp_path / "jpeg", backbone, store_frames="jpeg", frame_quality=80)
    with pytest.raises(
        UsageError, match=r"Go on with `store_frames=jpeg` `frame_quality=80`, or choose another folder"
    ):
        run(corpus, tmp_path / "jpeg", backbone, store_frames="jpeg")
    with pytest.raises(UsageError, match="holds no frames.*`store_frames=jpeg`"):
        StoredFrames(tmp_path / "none").read(0)


@HERE
@pytest.mark.parametrize(("out", "encoding"), [("other", "jpeg"), ("flat.h5", "uint8"), ("flat.zarr", "jpeg")])
def test_conversion_carries_the_frames(corpus, backbone, tmp_path, encoding, out):
    run(corpus, tmp_path / "cache", backbone, store_frames=encoding)
    store = open_store(tmp_path / "cache")
    converted = open_store(convert(store.library, tmp_path / out))
    assert converted.frames == store.frames and verify(converted.library) == []
    for item in range(len(LENGTHS)):
        assert StoredFrames(converted).stored(item) == StoredFrames(store).stored(item)
    assert summarise(converted.library)["stored_frames"]["bytes"] > 0


@HERE
@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@pytest.mark.parametrize("encoding", ["uint8", "jpeg"])
def test_a_flipped_bit_and_a_cut_file_are_found(corpus, backbone, tmp_path, format, encoding):
    run(corpus, tmp_path / "cache", backbone, store_frames=encoding, format=format)
    store = open_store(tmp_path / "cache")
    first = store.frames.arrays[0]
    shard = store.path / first_commit(store).path
    file = shard if format == "hdf5" else next(path for path in (shard / first / "c").rglob("*") if path.is_file())
    whole = file.read_bytes()
    piece = StoredFrames(store).stored(0)[0][:50]
    at = whole.index(piece)
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert [line for line in verify(open_library(store.path)) if first in line]
    file.write_bytes(whole[: at + 20])
    with pytest.raises(CacheCorruptError, match=r"inspect \(.*verify=True"):
        StoredFrames(store.path).read(0)
    assert verify(open_library(store.path))


@HERE
def test_frames_that_are_not_what_the_head_says_are_refused(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "cache", backbone, store_frames="jpeg")
    frames = StoredFrames(tmp_path / "cache")
    with pytest.raises(ValueError, match="a JPEG of 8×4 pixels, expected 32×32"):
        decode_jpeg(encode_jpeg(np.zeros((8, 4, 3), np.uint8), 95), (32, 32))
    with pytest.raises(ValueError, match="no JPEG"):
        decode_jpeg(b"GIF89a", (32, 32))
    commit = first_commit(frames.store)
    longer = {**commit.arrays["frame_bytes"], "shape": [commit.arrays["frame_bytes"]["shape"][0] + 1]}
    commit.arrays["frame_bytes"] = longer
    with pytest.raises(CacheCorruptError, match=r"frame_bytes is uint8\[\d+\], expected uint8\[\d+\].*verify=True"):
        frames.read(0)


@HERE
def test_inspect_says_how_frames_are_stored_and_how_large_they_are(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "cache", backbone, store_frames="uint8")
    report = summarise(open_library(tmp_path / "cache"))
    frames = report["frames"]
    expected = {"encoding": "uint8", "size": [32, 32], "quality": None, "bytes": frames * 32 * 32 * 3}
    assert report["stored_frames"] == expected
    run(dataclasses.replace(corpus, videos=corpus.videos[:1], texts=[]), tmp_path / "other", backbone)
    assert summarise(open_library(tmp_path / "other"))["stored_frames"] is None
