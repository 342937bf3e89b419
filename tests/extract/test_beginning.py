"""The first videos are begun before torch is there, and whatever was guessed of the backbone, the cache is that of what it is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys

import pytest

from glscl.cache.schema import Annotations, VideoItem
from glscl.extract import beginning
from glscl.extract.backbone.encoder import expected_preprocessing
from glscl.extract.beginning import begun_pool, decoding_of, first_videos_begun, usual_transform
from glscl.extract.settings import ExtractSettings


def test_nothing_of_it_waits_for_torch():
    told = "import sys, glscl.extract.beginning; print([n for n in ('torch', 'open_clip') if n in sys.modules])"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT-L-14-336", "RN50", "ViTamin-B", "ViT-B-16-SigLIP", "ViT-L-16-SigLIP2-384", "demo"]
)
@pytest.mark.parametrize("asked", [{}, {"resize_mode": "squash"}, {"interpolation": "bilinear", "mean": "0.5"}])
def test_what_is_usual_is_what_open_clip_does(name, asked):
    settings = ExtractSettings(backbone=name, pretrained="a file", **asked)
    assert usual_transform(settings) == expected_preprocessing(settings).transform


def test_nothing_is_guessed_where_nothing_tells(tmp_path):
    settings = ExtractSettings(backbone="ViT-B-32")
    for other in (
        {"preprocess": "fast"},
        {"resize_mode": "longest"},
        {"backbone": "hf-hub:org/repo"},
        {"backbone": "x"},
    ):
        assert usual_transform(dataclasses.replace(settings, **other)) is None
    for config in ({}, {"model_cfg": {}}, {"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": {"resize_mode": 3}}, []):
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        assert usual_transform(dataclasses.replace(settings, backbone=f"local-dir:{tmp_path}")) is None
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"vision_cfg": {"image_size": 96}}}))
    assert usual_transform(dataclasses.replace(settings, backbone=f"local-dir:{tmp_path}")).size == (96, 96)


def test_a_pool_is_taken_over_where_it_decodes_as_wanted_and_ended_where_not(tmp_path, decoded_here, monkeypatch):
    ended, videos = [], [VideoItem(f"v{i}", "train", str(tmp_path / f"{i}.mp4")) for i in range(3)]
    for video in videos[:2]:
        (tmp_path / str(video.path)).touch()
    corpus = Annotations(dataset="csv", videos=videos, texts=[])

    class Pool(decoded_here):
        def __exit__(self, *_):
            ended.append(self)

    monkeypatch.setattr(beginning, "DecodePool", Pool)
    settings = ExtractSettings(backbone="demo", workers=2)
    wanted = decoding_of(settings, usual_transform(settings))
    with contextlib.ExitStack() as decoders:
        assert begun_pool(wanted, 2, decoders) is None, "nobody has begun"
        with first_videos_begun(corpus, settings):
            taken = begun_pool(wanted, 2, decoders)
            assert taken.decoding == wanted and begun_pool(wanted, 2, decoders) is None
        assert decoded_here.begun == [video.path for video in videos[:2]], "the third is not there"
        assert not ended
    assert ended == [taken]
    for decoding, workers in ((dataclasses.replace(wanted, decoder="pyav"), 2), (wanted, 3)):
        ended.clear()
        with first_videos_begun(corpus, settings):
            assert begun_pool(decoding, workers, decoders) is None and len(ended) == 1
        assert len(ended) == 1 and begun_pool(wanted, 2, decoders) is None
    with pytest.raises(KeyError), first_videos_begun(corpus, settings):
        raise KeyError
    assert len(ended) == 2 and begun_pool(wanted, 2, decoders) is None
