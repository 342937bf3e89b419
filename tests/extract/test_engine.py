"""An engine that makes shards elsewhere, here in a few lines: the same cache, and nothing asked of it where all is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_extraction import ORIGIN, WORDS, MadeBackbone, MadePool, require_equal, require_reads, write

from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.common.errors import UsageError
from glscl.common.progress import Progress
from glscl.extract import engine
from glscl.extract.captions import extract_captions
from glscl.extract.engine import AboutBackbone, Engine, precision_in_force
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings
from glscl.extract.videos import VideoExtraction

SETTINGS = ExtractSettings(
    backbone="made", pretrained="seed", max_words=WORDS, dtype="float32", shard_videos=2, shard_texts=3, batch_frames=4
)


class Elsewhere:
    """Attributes: asked: which of its methods were called."""

    precision = "fp32"

    def __init__(self) -> None:
        self.made, self.asked = MadeBackbone(), []

    def backbone(self):
        self.asked.append("backbone")
        return AboutBackbone.of(self.made)

    def captions(self, library, places, captions, progress: Progress) -> int:
        self.asked.append("captions")
        return extract_captions(library, places, captions, self.made, SETTINGS, progress=progress)

    def videos(self, library, places, sources, listed, progress: Progress):
        self.asked.append("videos")
        videos = VideoExtraction(library, places, sources, listed, self.made, SETTINGS)
        videos.run(MadePool(), progress)
        return videos.watch


@pytest.fixture
def corpus(tmp_path):
    contents = {"a": b"one", "b": b"broken", "c": b"three", "d": None}
    paths = {id: each and str(write(tmp_path / "videos" / f"{id}.mp4", each)) for id, each in contents.items()}
    videos = [VideoItem(id, "train", path) for id, path in paths.items()]
    texts = [TextItem(f"{id}#0", id, "train", f"a {id}") for id in contents]
    return Annotations(dataset="made", videos=videos, texts=texts), contents


def test_the_cache_is_the_same_and_the_engine_is_not_asked_twice(corpus, tmp_path, extractor):
    annotations, contents = corpus
    engine = Elsewhere()
    assert isinstance(engine, Engine)
    done = extract(annotations, tmp_path / "there", SETTINGS, origin=ORIGIN, device=engine)
    assert done.complete and done.encoded == {"videos": 3, "texts": 3, "frames": 8}
    assert engine.asked == ["backbone", "captions", "videos"]
    require_reads(open_store(tmp_path / "there"), annotations, contents)
    extractor(annotations, tmp_path / "here", format="zarr")
    require_equal(open_store(tmp_path / "there"), open_store(tmp_path / "here"))
    assert extract(annotations, tmp_path / "there", SETTINGS, origin=ORIGIN, device=engine).already_complete
    assert engine.asked == ["backbone", "captions", "videos"]


def test_what_is_no_engine_is_refused(corpus, tmp_path: Path):
    with pytest.raises(UsageError, match=r"`device` is 5 \(int\); expected a string or device or Engine"):
        extract(corpus[0], tmp_path / "cache", SETTINGS, device=5)


@pytest.mark.parametrize(
    ("backbone", "device", "tiles", "made_with", "expected"),
    [
        ("ViT-B-32", "cpu", True, None, "bf16"),
        ("ViT-B-32", "cpu", False, None, "fp32"),
        ("demo", "cpu", True, None, "fp32"),  # products are not what it waits for
        ("ViT-B-32", "cpu", True, "fp32", "fp32"),  # a cache goes on as it began
        ("ViT-B-32", "cpu", False, "bf16 weights", "bf16"),
        (
            "ViT-B-32",
            "cpu",
            True,
            "fp16",
            "bf16",
        ),  # which no processor computes: the cache is refused by its fingerprint
        ("ViT-B-32", "cuda", True, None, "fp16"),
        ("ViT-B-32", "cuda", True, "fp32", "fp32"),
    ],
)
def test_auto_is_what_a_cache_was_made_with_or_what_pays(monkeypatch, backbone, device, tiles, made_with, expected):
    monkeypatch.setattr(engine, "has_matrix_tiles", lambda: tiles)
    settings = ExtractSettings(backbone=backbone)
    assert precision_in_force(settings, torch.device(device), made_with) == expected
    said = ExtractSettings(backbone=backbone, precision="fp32")
    assert precision_in_force(said, torch.device(device), made_with) == "fp32"
