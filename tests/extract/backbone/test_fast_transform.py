"""`preprocess=fast` against open_clip's own preprocessing: the same pictures to within a grey level, the same features."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from glscl.cache.fingerprint import fingerprint
from glscl.cache.store import open_store
from glscl.common.errors import BackboneError, FingerprintError, UsageError
from glscl.extract.backbone.encoder import Backbone, load_backbone
from glscl.extract.backbone.fast_transform import FastTransform
from glscl.extract.backbone.loading import DEMO_BACKBONE
from glscl.extract.decode.sampling import Sampling
from glscl.extract.decode.video import Decoding, FrameChunk, VideoTask, decode_video
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings

SIZES = [(320, 240), (240, 320), (1280, 720), (64, 48), (31, 500), (33, 32), (224, 224), (5, 5)]
RESIZING = [
    {},
    {"resize_mode": "longest", "fill_color": 40},
    {"resize_mode": "squash"},
    {"interpolation": "bilinear"},
]


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Something like a photograph: large shapes, fine texture, hard edges."""
    rng = np.random.default_rng(seed)
    width, height = size
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse).astype(int) + rng.integers(-15, 16, (height, width, 3))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def both_ways(folder) -> tuple[Backbone, Backbone]:
    return load_backbone(f"local-dir:{folder}"), load_backbone(f"local-dir:{folder}", preprocess="fast")


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.fixture
def tiny_clip_resized(tiny_clip, tmp_path):
    """`tiny_clip_resized(settings)` → a folder whose backbone preprocesses so."""

    def make(settings: dict):
        folder = shutil.copytree(tiny_clip(), tmp_path / "backbone")
        file = folder / "open_clip_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"preprocess_cfg": settings}))
        return folder

    return make


@pytest.mark.parametrize("settings", RESIZING, ids=lambda s: "-".join(map(str, s.values())) or "shortest")
def test_pictures_of_any_shape_are_those_of_open_clip_within_a_grey_level(tiny_clip_resized, settings):
    slow, fast = both_ways(tiny_clip_resized(settings))
    for size in SIZES:
        given = picture(size)
        a, b = slow.transform(given), fast.transform(given)
        assert b.shape == a.shape and b.dtype == np.uint8 and b.flags.c_contiguous
        assert np.abs(a.astype(int) - b).mean() < 1, size


def test_features_have_a_cosine_above_0_999_with_those_of_open_clips_preprocessing():
    slow, fast = both_ways(DEMO_BACKBONE)
    pictures = [picture(size, seed) for seed, size in enumerate(SIZES)]
    a, b = (each.encode_frames(np.stack([each.transform(p) for p in pictures])) for each in (slow, fast))
    assert cosines(a, b).min() > 0.999


def test_other_kinds_of_pictures_become_rgb_first(tiny_clip):
    slow, fast = both_ways(tiny_clip())
    for mode in ("L", "RGBA"):
        given = picture((60, 40)).convert(mode)
        assert np.abs(slow.transform(given).astype(int) - fast.transform(given)).mean() < 1, mode


def test_it_travels_to_workers(tiny_clip):
    transform = both_ways(tiny_clip())[1].transform
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(transform))(picture((90, 70))), transform(picture((90, 70)))
    )


def test_it_is_part_of_the_fingerprint_and_the_default_is_as_it_was(tiny_clip):
    slow, fast = both_ways(tiny_clip())
    assert "method" not in slow.description.preprocessing
    assert fast.description.preprocessing == slow.description.preprocessing | {"method": "fast"}
    assert fingerprint(dataclasses.asdict(slow.description)) != fingerprint(dataclasses.asdict(fast.description))


def test_unknown_ways_and_unknown_steps_are_refused(tiny_clip):
    with pytest.raises(UsageError, match="`preprocess` is 'faster'; expected one of open_clip, fast"):
        load_backbone(f"local-dir:{tiny_clip()}", preprocess="faster")
    with pytest.raises(BackboneError, match="does not know the step function"):
        FastTransform([lambda given: given], (32, 32))


def test_a_cache_made_fast_holds_the_same_features_and_refuses_to_be_mixed(tiny_clip, tmp_path, make_video):
    from glscl.cache.schema import Annotations, TextItem, VideoItem

    paths = [make_video(tmp_path / f"{i}.mp4", frames=12, seed=i, size=(96 + 32 * i, 72)) for i in range(3)]
    corpus = Annotations(
        dataset="csv",
        videos=[VideoItem(p.stem, "test", str(p)) for p in paths],
        texts=[TextItem(f"{p.stem}#0", p.stem, "test", "a clip") for p in paths],
    )
    slow, fast = both_ways(tiny_clip())
    settings = ExtractSettings(fps=2.0, dtype="float32", workers=1)
    extract(corpus, tmp_path / "slow", settings, backbone=slow)
    extract(corpus, tmp_path / "fast", settings, backbone=fast)
    a, b = (open_store(tmp_path / name).arrays("video")["values"] for name in ("slow", "fast"))
    assert len(a) == len(b) == 18 and cosines(a, b).min() > 0.999
    with pytest.raises(FingerprintError, match="preprocessing"):
        extract(corpus, tmp_path / "slow", settings, backbone=fast)


@pytest.mark.real_data
def test_real_clips_look_the_same(real_data):
    files = [p for p in sorted((real_data / "videos").rglob("*")) if p.suffix in (".mp4", ".avi", ".webm")][::8]
    slow, fast = both_ways(DEMO_BACKBONE)
    apart, near = [], []
    for path in files:
        for chunk in decode_video(VideoTask(0, str(path)), Decoding(sampling=Sampling(fps=1, max_frames=4))):
            if isinstance(chunk, FrameChunk):
                pictures = [Image.fromarray(frame) for frame in chunk.frames]
                a, b = (np.stack([each.transform(p) for p in pictures]) for each in (slow, fast))
                apart.append(np.abs(a.astype(int) - b).mean())
                near.append(cosines(slow.encode_frames(a), fast.encode_frames(b)).min())
    assert len(apart) > 10
    assert max(apart) < 1 and min(near) > 0.999
