"""Extraction as a whole on small real mp4 files: values, order, resume, failures, retries."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from msgspec import structs

from glscl.cache.schema import Annotations, Status, TextItem, VideoItem
from glscl.cache.store import Store, open_store
from glscl.common.errors import DecodeError, InputError, NotFoundError
from glscl.extract import pipeline
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.datasets import first_videos
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import decode_video
from glscl.extract.pipeline import extract

LENGTHS = [12, 30, 3, 8, 41, 1, 17, 12]


@pytest.fixture(scope="module")
def backbone(tiny_clip):
    return Backbone.load(f"local-dir:{tiny_clip()}", words=12)


@pytest.fixture
def corpus(tmp_path, make_video):
    """Eight clips of different lengths with two captions each; six train, two test."""
    videos, texts = [], []
    for i, frames in enumerate(LENGTHS):
        split = "train" if i < 6 else "test"
        path = make_video(tmp_path / "videos" / f"clip{i}.mp4", frames=frames, seed=i)
        videos.append(VideoItem(f"clip{i}", split, str(path)))
        texts += [
            TextItem(f"clip{i}#{k}", f"clip{i}", split, f"caption {k} of clip {i} " + "long " * i) for k in (0, 1)
        ]
    return Annotations(dataset="csv", videos=videos, texts=texts)


def run(corpus, out, backbone, **options):
    options = {"shard_videos": 3, "shard_texts": 5, "batch_frames": 7, "batch_texts": 4, "workers": 2} | options
    return extract(corpus, out, backbone=backbone, sampling=options.pop("sampling", Sampling(fps=2)), **options)


def assert_equal_caches(a: Store, b: Store) -> None:
    for stream in ("video", "text"):
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name], err_msg=f"{stream} {name}")


def test_features_are_those_of_the_frames_and_captions_one_by_one(corpus, backbone, tmp_path):
    summary = run(corpus, tmp_path / "cache", backbone, dtype="float32")
    store = open_store(tmp_path / "cache")
    video, text = store.arrays("video"), store.arrays("text")
    assert store.complete and summary.frames == video["offsets"][-1] and summary.failed == []
    for i, item in enumerate(corpus.videos):
        chunks = [
            c for c in decode_video(item.path, Sampling(fps=2), geometry=backbone.geometry) if hasattr(c, "times")
        ]
        rows = slice(video["offsets"][i], video["offsets"][i + 1])
        frames = np.concatenate([c.frames for c in chunks])
        np.testing.assert_allclose(video["values"][rows], backbone.encode_frames(frames), atol=1e-5)
        np.testing.assert_array_equal(video["times"][rows], np.concatenate([c.times for c in chunks]))
        assert video["frames_total"][i] == LENGTHS[i]
    for i, item in enumerate(corpus.texts):
        tokens = backbone.tokenize([item.text])
        encoded = backbone.encode_texts(tokens)
        rows = slice(text["offsets"][i], text["offsets"][i + 1])
        np.testing.assert_allclose(text["values"][rows], encoded.token_features[0, : tokens.lengths[0]], atol=1e-5)
        np.testing.assert_allclose(text["pooled"][i], encoded.text_features[0], atol=1e-5)
        np.testing.assert_array_equal(text["token_ids"][rows], tokens.ids[0, : tokens.lengths[0]])
        assert text["video_index"][i] == i // 2
    assert {"logit_scale", "positional_embedding", "black_frame"} < set(store.backbone_tensors())


def test_format_and_number_of_workers_do_not_change_a_bit(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "a", backbone, format="zarr", workers=1)
    run(corpus, tmp_path / "b", backbone, format="hdf5", workers=3)
    a, b = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    assert a.fingerprint == b.fingerprint
    assert_equal_caches(a, b)


@pytest.mark.parametrize("after", [1, 4, 5, 6])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bits(corpus, backbone, tmp_path, monkeypatch, after):
    run(corpus, tmp_path / "whole", backbone)
    commits = 0
    original = Store.commit

    def stop_soon(self, *args, **options):
        nonlocal commits
        commits += 1
        if commits > after:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "commit", stop_soon)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "cut", backbone)
    begun = open_store(tmp_path / "cut")
    assert not begun.complete
    assert len(begun.commits("video")) + len(begun.commits("text")) == after
    run(corpus, tmp_path / "cut", backbone)
    assert_equal_caches(open_store(tmp_path / "whole"), open_store(tmp_path / "cut"))


def test_a_finished_cache_is_left_alone(corpus, backbone, tmp_path, monkeypatch):
    run(corpus, tmp_path / "cache", backbone)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")}
    monkeypatch.setattr(pipeline, "DecodePool", None)
    assert run(corpus, tmp_path / "cache", backbone).already_complete
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*")} == before


def spoil(corpus, tmp_path, make_video):
    """One file of text, one missing file; the rest stays."""
    (tmp_path / "videos" / "clip1.mp4").write_text("not a video")
    videos = list(corpus.videos)
    videos[6] = structs.replace(videos[6], path=None)
    return dataclasses.replace(corpus, videos=videos)


def test_broken_and_missing_videos_cost_only_themselves_and_are_named(corpus, backbone, tmp_path, make_video):
    summary = run(spoil(corpus, tmp_path, make_video), tmp_path / "cache", backbone)
    assert (summary.videos, summary.texts_without_video) == (6, 4)
    store = open_store(tmp_path / "cache")
    failures = {f["id"]: f for f in store.failures()}
    assert failures["clip1"]["status"] == "decode_error" and failures["clip1"]["reason"]
    assert failures["clip6"] == {"id": "clip6", "reason": "no file found for this id", "status": "missing"}
    video = store.arrays("video")
    assert np.diff(video["offsets"])[[1, 6]].tolist() == [0, 0]
    assert video["status"].tolist() == [0, 2, 0, 0, 0, 0, 1, 0]
    assert np.isfinite(video["values"]).all()
    assert store.arrays("text")["video_index"].tolist() == [0, 0, -1, -1, 2, 2, 3, 3, 4, 4, 5, 5, -1, -1, 7, 7]


def test_failed_videos_are_asked_again_and_the_others_kept(corpus, backbone, tmp_path, make_video):
    run(spoil(corpus, tmp_path, make_video), tmp_path / "cache", backbone)
    before, ledger = open_store(tmp_path / "cache").arrays("video"), open_store(tmp_path / "cache").ledger(0)
    make_video(tmp_path / "videos" / "clip1.mp4", frames=LENGTHS[1], seed=1)
    assert run(corpus, tmp_path / "cache", backbone).already_complete
    summary = run(corpus, tmp_path / "cache", backbone, retry_failed=True)
    assert summary.failed == [] and summary.videos == 8 and not summary.already_complete
    after = open_store(tmp_path / "cache")
    video = after.arrays("video")
    assert (video["status"] == Status.OK).all()
    for i in (0, 2, 3, 4, 5, 7):
        old = before["values"][before["offsets"][i] : before["offsets"][i + 1]]
        np.testing.assert_array_equal(video["values"][video["offsets"][i] : video["offsets"][i + 1]], old)
    assert (after.arrays("text")["video_index"] >= 0).all()
    assert after.commits("video")[0].revision == 1 and after.commits("video")[1].revision == 0
    assert after.ledger(0)[0] == ledger[0] and ledger[0]["decoder"] != "none"


def test_strict_stops_at_the_first_failure(corpus, backbone, tmp_path, make_video):
    (tmp_path / "videos" / "clip1.mp4").write_text("not a video")
    with pytest.raises(DecodeError, match=r"'clip1' gives no frames: .*--strict"):
        run(corpus, tmp_path / "cache", backbone, strict=True)
    missing = [structs.replace(corpus.videos[0], path=None), *corpus.videos[1:]]
    with pytest.raises(NotFoundError, match="1 videos are missing, the first is 'clip0'"):
        run(dataclasses.replace(corpus, videos=missing), tmp_path / "other", backbone, strict=True)


def test_a_corpus_without_any_usable_video_is_an_error(corpus, backbone, tmp_path):
    nowhere = dataclasses.replace(corpus, videos=[structs.replace(v, path=None) for v in corpus.videos])
    with pytest.raises(NotFoundError, match="None of the 8 videos of csv was found, for example 'clip0'.*--videos"):
        run(nowhere, tmp_path / "a", backbone)
    with pytest.raises(InputError, match="lists no video"):
        run(Annotations(dataset="csv", videos=[], texts=[]), tmp_path / "b", backbone)
    for video in corpus.videos:
        open(video.path, "w").close()
    with pytest.raises(DecodeError, match=r"None of the 8 videos gave frames; the first, 'clip0': .*glscl inspect"):
        run(corpus, tmp_path / "c", backbone)
    assert not (tmp_path / "a").exists()


def test_every_frame_is_taken_natively_and_a_cap_spreads_them(corpus, backbone, tmp_path):
    summary = run(corpus, tmp_path / "native", backbone, sampling=Sampling(fps=None))
    assert summary.frames == sum(LENGTHS)
    capped = run(corpus, tmp_path / "capped", backbone, sampling=Sampling(fps=None, max_frames=5))
    assert capped.frames == sum(min(n, 5) for n in LENGTHS)
    assert capped.fingerprint != summary.fingerprint


def test_without_tokens_only_pooled_text_is_stored(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "cache", backbone, tokens=False)
    text = open_store(tmp_path / "cache").arrays("text")
    assert text["values"].shape == (0, 64) and len(text["token_ids"]) == 0
    assert np.isfinite(text["pooled"]).all() and text["pooled"].any(axis=1).all()


def test_clips_of_one_file_are_videos_of_their_own(corpus, backbone, tmp_path):
    path = corpus.videos[4].path  # 41 frames at 4 a second
    clips = [VideoItem("a", "test", path, 0.0, 3.0), VideoItem("b", "test", path, 3.0, 6.5)]
    run(Annotations(dataset="csv", videos=clips, texts=[]), tmp_path / "cache", backbone)
    video = open_store(tmp_path / "cache").arrays("video")
    times = [video["times"][a:b].tolist() for a, b in zip(video["offsets"][:-1], video["offsets"][1:])]
    assert times == [[0.0, 0.5, 1.0, 1.5, 2.0, 2.5], [3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0]]


def test_the_first_videos_of_each_split_keep_their_captions_and_the_result_notes_it(corpus, backbone, tmp_path):
    few = first_videos(corpus, 2)
    assert [v.id for v in few.videos] == ["clip0", "clip1", "clip6", "clip7"]
    assert [t.video for t in few.texts] == [v.id for v in few.videos for _ in range(2)]
    assert few.notes == ["--limit 2: 4 of 8 videos were taken"]
    assert run(few, tmp_path / "few", backbone).as_dict()["notes"] == few.notes
