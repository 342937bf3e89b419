"""Extraction as a whole on small real mp4 files: values, order, resume, failures, retries."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from msgspec import structs

from glscl.cache.library import Library, open_library
from glscl.cache.schema import STREAMS, Annotations, Status, TextItem, VideoItem
from glscl.cache.store import Store, open_store
from glscl.common.errors import (
    CacheIncompleteError,
    DecodeError,
    FingerprintError,
    InputError,
    NotFoundError,
    UsageError,
)
from glscl.common.settings import build
from glscl.extract import engine, pipeline
from glscl.extract.backbone.encoder import expected_preprocessing, load_backbone
from glscl.extract.batching import Stopwatch
from glscl.extract.datasets import first_videos
from glscl.extract.decode.video import decode
from glscl.extract.pipeline import _bound_by, extract, settings_of
from glscl.extract.settings import ExtractSettings

HERE = pytest.mark.usefixtures("decoded_here")
LENGTHS = [12, 30, 3, 8, 41, 1, 17, 12]


@pytest.fixture(scope="module")
def backbone(tiny_clip):
    return load_backbone(f"local-dir:{tiny_clip()}", words=12)


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
    options = {
        "fps": 2.0,
        "shard_videos": 3,
        "shard_texts": 5,
        "batch_frames": 7,
        "batch_texts": 4,
        "workers": 2,
    } | options
    return extract(corpus, out, ExtractSettings(**options), backbone=backbone)


def assert_equal_caches(a: Store, b: Store) -> None:
    for stream in ("video", "text"):
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name], err_msg=f"{stream} {name}")


@HERE
def test_features_are_those_of_the_frames_and_captions_one_by_one(corpus, backbone, tmp_path):
    summary = run(corpus, tmp_path / "cache", backbone, dtype="float32")
    store = open_store(tmp_path / "cache")
    video, text = store.arrays("video"), store.arrays("text")
    assert store.complete and summary.frames == video["offsets"][-1] and summary.failed == []
    for i, item in enumerate(corpus.videos):
        frames, times = decode(item.path, 2.0, prepare=backbone.transform)
        rows = slice(video["offsets"][i], video["offsets"][i + 1])
        np.testing.assert_allclose(video["values"][rows], backbone.encode_frames(frames), atol=1e-5)
        np.testing.assert_array_equal(video["times"][rows], times)
        assert video["frames_total"][i] == LENGTHS[i]
    for i, item in enumerate(corpus.texts):
        tokens, encoded = backbone.tokenize([item.text]), backbone.encode_texts([item.text])
        rows = slice(text["offsets"][i], text["offsets"][i + 1])
        np.testing.assert_allclose(text["values"][rows], encoded.token_features[0, : tokens.lengths[0]], atol=1e-5)
        np.testing.assert_allclose(text["pooled"][i], encoded.text_features[0], atol=1e-5)
        np.testing.assert_array_equal(text["token_ids"][rows], tokens.ids[0, : tokens.lengths[0]])
    assert store.list.text_video.tolist() == [i // 2 for i in range(len(corpus.texts))]
    assert {"logit_scale", "positional_embedding", "black_frame"} < set(store.backbone_tensors())


def test_format_and_number_of_workers_do_not_change_a_bit(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "a", backbone, format="zarr", workers=1)
    run(corpus, tmp_path / "b", backbone, format="hdf5", workers=3)
    a, b = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    assert a.fingerprint == b.fingerprint
    assert_equal_caches(a, b)


@HERE
@pytest.mark.parametrize("after", [1, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in (4, 5)), 6])
def test_an_interrupted_run_goes_on_and_ends_in_the_same_bits(corpus, backbone, tmp_path, monkeypatch, after):
    run(corpus, tmp_path / "whole", backbone)
    commits = 0
    original = Library.commit

    def stop_soon(self, *args, **options):
        nonlocal commits
        commits += 1
        if commits > after:
            raise KeyboardInterrupt
        return original(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Library, "commit", stop_soon)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, tmp_path / "cut", backbone)
    with pytest.raises(CacheIncompleteError, match="never finished"):
        open_store(tmp_path / "cut")
    begun = open_library(tmp_path / "cut")
    assert sum(len(begun.stream(stream).commits) for stream in STREAMS) == after
    run(corpus, tmp_path / "cut", backbone)
    assert_equal_caches(open_store(tmp_path / "whole"), open_store(tmp_path / "cut"))


@HERE
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
    kept = [path.read_text() for path in (tmp_path / "cache" / "commits").rglob("*.json")]
    assert not [text for text in kept if "clip1" in text or str(tmp_path) in text], "a commit names no file"
    assert failures["clip6"] == {"id": "clip6", "reason": "no file found for this id", "status": "missing"}
    video = store.arrays("video")
    assert np.diff(video["offsets"])[[1, 6]].tolist() == [0, 0]
    assert video["status"].tolist() == [0, 2, 0, 0, 0, 0, 1, 0]
    assert np.isfinite(video["values"]).all()
    assert store.list.text_video.tolist() == [i // 2 for i in range(16)]
    assert np.flatnonzero(store.status("text") == Status.MISSING).tolist() == [12, 13], "captions of no file"


def test_failed_videos_are_asked_again_and_the_others_kept(corpus, backbone, tmp_path, decoded_here):
    failing = corpus.videos[1].path
    decoded_here.failing[failing] = "no progress for 60 s"
    summary = run(corpus, tmp_path / "cache", backbone)
    assert [(f["id"], f["reason"]) for f in summary.failed] == [("clip1", "no progress for 60 s")]
    before = open_store(tmp_path / "cache").arrays("video")
    decoded_here.decoded.clear()
    decoded_here.failing.clear()
    assert run(corpus, tmp_path / "cache", backbone).already_complete
    summary = run(corpus, tmp_path / "cache", backbone, retry_failed=True)
    assert summary.failed == [] and summary.videos == 8 and not summary.already_complete
    assert decoded_here.decoded == [failing] and (summary.encoded["videos"], summary.encoded["texts"]) == (1, 0)
    after = open_store(tmp_path / "cache")
    video = after.arrays("video")
    assert (video["status"] == Status.OK).all()
    for i in (0, 2, 3, 4, 5, 6, 7):
        old = before["values"][before["offsets"][i] : before["offsets"][i + 1]]
        np.testing.assert_array_equal(video["values"][video["offsets"][i] : video["offsets"][i + 1]], old)
    about = after.library.stream("video")
    assert sorted((each.attempt, len(each.keys)) for each in about.additions) == [(0, 8), (1, 1)]
    assert all(row["decoder"] != "none" for place in about.places for row in after.library.ledger("video", place)
               if place.addition.attempt)  # fmt: skip
    assert run(corpus, tmp_path / "cache", backbone, retry_failed=True).already_complete, "nothing failed any more"


@HERE
def test_strict_stops_at_the_first_failure(corpus, backbone, tmp_path, make_video):
    (tmp_path / "videos" / "clip1.mp4").write_text("not a video")
    with pytest.raises(DecodeError, match=r"'clip1' gives no frames: .*`strict`"):
        run(corpus, tmp_path / "cache", backbone, strict=True)
    missing = [structs.replace(corpus.videos[0], path=None), *corpus.videos[1:]]
    with pytest.raises(NotFoundError, match="1 video is missing, the first is 'clip0'"):
        run(dataclasses.replace(corpus, videos=missing), tmp_path / "other", backbone, strict=True)


@HERE
def test_a_corpus_without_any_usable_video_is_an_error(corpus, backbone, tmp_path):
    nowhere = dataclasses.replace(corpus, videos=[structs.replace(v, path=None) for v in corpus.videos])
    with pytest.raises(NotFoundError, match="None of the 8 videos of csv was found, for example 'clip0'.*`videos`"):
        run(nowhere, tmp_path / "a", backbone)
    with pytest.raises(InputError, match="lists no video"):
        run(Annotations(dataset="csv", videos=[], texts=[]), tmp_path / "b", backbone)
    for video in corpus.videos:
        open(video.path, "w").close()
    with pytest.raises(
        DecodeError, match=r"None of the 8 videos gave frames; the first, 'clip0': .*See all reasons: inspect"
    ):
        run(corpus, tmp_path / "c", backbone)
    assert not (tmp_path / "a").exists()


@HERE
def test_every_frame_is_taken_natively_and_a_cap_spreads_them(corpus, backbone, tmp_path):
    summary = run(corpus, tmp_path / "native", backbone, fps="native")
    assert summary.frames == sum(LENGTHS)
    capped = run(corpus, tmp_path / "capped", backbone, fps="native", max_frames=5)
    assert capped.frames == sum(min(n, 5) for n in LENGTHS)
    assert capped.fingerprint != summary.fingerprint


@HERE
def test_without_tokens_only_pooled_text_is_stored(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "cache", backbone, tokens=False)
    text = open_store(tmp_path / "cache").arrays("text")
    assert text["values"].shape == (0, 64) and len(text["token_ids"]) == 0
    assert np.isfinite(text["pooled"]).all() and text["pooled"].any(axis=1).all()


def test_what_bounds_a_run_is_what_the_others_waited_for():
    decode = Stopwatch(waiting=6.0, encoding=3.0, writing=1.0, decoding=6.0, frames=5)
    encode = Stopwatch(waiting=1.0, encoding=6.0, writing=1.0, decoding=30.0, frames=5)
    assert _bound_by(decode) == "decode (60 % of the time)"
    assert _bound_by(encode) == "encode (75 % of the time)", "decoding that takes long beside it holds nothing up"
    assert _bound_by(Stopwatch(writing=1.0)) is None


def test_on_shared_cores_the_stage_that_takes_most_of_them_bounds_a_run():
    slowed_down = dict(waiting=1.0, encoding=6.0, decoding=12.0, frames=5)  # each waits for the other's cores
    decode = Stopwatch(**slowed_down, decoding_cpu=9.0, encoding_cpu=3.0)
    assert _bound_by(decode, 2) == "decode (75 % of the time)"
    encode = Stopwatch(**slowed_down, decoding_cpu=4.0, encoding_cpu=12.0)
    assert _bound_by(encode, 2) == "encode (75 % of the time)"
    slow_disk = Stopwatch(waiting=9.0, encoding=3.0, decoding_cpu=1.0, encoding_cpu=6.0, frames=5)
    assert _bound_by(slow_disk, 2) == "decode (75 % of the time)"


@HERE
def test_clips_of_one_file_are_videos_of_their_own(corpus, backbone, tmp_path):
    path = corpus.videos[4].path  # 41 frames at 4 a second
    clips = [VideoItem("a", "test", path, 0.0, 3.0), VideoItem("b", "test", path, 3.0, 6.5)]
    run(Annotations(dataset="csv", videos=clips, texts=[]), tmp_path / "cache", backbone)
    video = open_store(tmp_path / "cache").arrays("video")
    times = [video["times"][a:b].tolist() for a, b in zip(video["offsets"][:-1], video["offsets"][1:])]
    assert times == [[0.0, 0.5, 1.0, 1.5, 2.0, 2.5], [3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0]]


@HERE
def test_the_first_videos_of_each_split_keep_their_captions_and_the_result_notes_it(corpus, backbone, tmp_path):
    few = first_videos(corpus, 2)
    assert [v.id for v in few.videos] == ["clip0", "clip1", "clip6", "clip7"]
    assert [t.video for t in few.texts] == [v.id for v in few.videos for _ in range(2)]
    assert few.notes == ["`limit=2`: 4 of 8 videos were taken"]
    assert run(few, tmp_path / "few", backbone).as_dict()["notes"][:1] == few.notes


@HERE
def test_settings_in_force_are_kept_in_the_cache_and_leave_the_fingerprint_alone(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "a", backbone, max_frames=1, part="1/1")
    run(corpus, tmp_path / "b", backbone, max_frames=1, batch_frames=8, decoder="auto")
    a, b = open_store(tmp_path / "a"), open_store(tmp_path / "b")
    kept = a.list.settings
    assert build(ExtractSettings, kept).max_frames == 1 and kept["batch_frames"] == 7 and kept["part"] is None
    assert (kept["backbone"], kept["max_words"], kept["precision"]) == (backbone.name, 12, "fp32")
    assert a.fingerprint == b.fingerprint


@HERE
@pytest.mark.parametrize(
    "options",
    [
        {"fps": "native", "max_frames": 2, "dtype": "float32", "decoder": "pyav"},
        {"sampling": "public", "preprocess": "fast", "tokens": False, "precision": "bf16", "mean": "0.5"},
        {"max_words": 9, "pad_tokens": True, "resize_mode": "squash", "quick_gelu": True},
    ],
)
def test_what_a_cache_says_of_itself_makes_the_same_features_again(corpus, tiny_clip, tmp_path, options):
    few, asked = first_videos(corpus, 1), {"backbone": f"local-dir:{tiny_clip()}", "max_words": 12, "workers": 1}
    extract(few, tmp_path / "a", ExtractSettings(**asked | options))
    made = open_store(tmp_path / "a").configuration
    again = build(ExtractSettings, settings_of(made), {"workers": 1})
    assert {name: getattr(again, name) for name in options if name != "mean"} == {
        name: value for name, value in options.items() if name != "mean"
    }
    extract(few, tmp_path / "b", again)
    assert open_store(tmp_path / "b").configuration == made


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
        ({"backbone": {"name": "a", "pretrained": "imported"}, "sampling": {}}, "imported features"),
        ({"backbone": {"name": "a", "pretrained": "b"}}, "does not say how .*sampling"),
        ("all of it", "does not say how"),
    ],
)
def test_what_no_extraction_made_is_not_extracted_again(configuration, message):
    with pytest.raises(UsageError, match=message):
        settings_of(configuration)


@pytest.mark.parametrize("predicted", [True, False])
def test_a_new_cache_has_its_first_videos_decoded_while_the_backbone_is_loaded(
    corpus, backbone, tiny_clip, tmp_path, monkeypatch, decoded_here, predicted
):
    """Whatever is expected of a backbone, the cache is that of what it is."""
    begun, pools = [], []

    class Pool(decoded_here):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            pools.append(self)

    def load(settings, device):
        begun.extend(decoded_here.begun)
        return backbone

    monkeypatch.setattr(pipeline, "DecodePool", Pool)
    monkeypatch.setattr(pipeline, "backbone_of", load)
    named = {"backbone": f"local-dir:{tiny_clip()}", "pretrained": "", "max_words": 12, "fps": 2.0}
    if not predicted:
        told = expected_preprocessing(ExtractSettings(**named, resize_mode="squash"))
        monkeypatch.setattr(pipeline, "expected_preprocessing", lambda settings: told)
    settings = ExtractSettings(**named, precision="fp32")
    extract(corpus, tmp_path / "named", settings)
    paths = [video.path for video in corpus.videos]
    assert begun == paths and decoded_here.decoded == paths and len(pools) == (1 if predicted else 2)
    extract(corpus, tmp_path / "given", settings, backbone=backbone)
    assert_equal_caches(open_store(tmp_path / "named"), open_store(tmp_path / "given"))
    decoded_here.begun.clear()
    extract(corpus, tmp_path / "named", settings)
    assert not decoded_here.begun  # nothing is wanted


@HERE
def test_a_cache_in_bfloat16_goes_on_so_where_the_processor_has_no_tiles(corpus, tiny_clip, tmp_path, monkeypatch):
    named = ExtractSettings(backbone=f"local-dir:{tiny_clip()}", pretrained="", max_words=12, fps=2.0)
    monkeypatch.setitem(engine.MILLIONS, named.backbone, engine.LARGE)
    found = []
    for tiles, some in ((True, first_videos(corpus, 1)), (False, corpus)):
        monkeypatch.setattr(engine, "has_matrix_tiles", lambda tiles=tiles: tiles)
        found.append(extract(some, tmp_path / "cache", named))
    assert found[0].fingerprint == found[1].fingerprint and found[1].complete and found[1].reused["videos"] == 2
    library = open_library(tmp_path / "cache")
    assert library.configuration["backbone"]["precision"] == "bf16 weights"
    with pytest.raises(FingerprintError, match="precision"):
        extract(corpus, tmp_path / "cache", dataclasses.replace(named, precision="fp32"))
    extract(corpus, tmp_path / "other", named)
    assert open_library(tmp_path / "other").configuration["backbone"]["precision"] == "fp32"
