"""What a forecast counts, and that no file can stop it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from glscl.cache.schema import Annotations, TextItem, VideoItem
from glscl.extract import forecast as module
from glscl.extract.forecast import forecast, lengths_of
from glscl.extract.settings import ExtractSettings

NOTHING = {"videos": 0, "texts": 0}


def listed(*spans, path=None):
    videos = [VideoItem(f"v{i}", "test", path, start, end) for i, (start, end) in enumerate(spans)]
    texts = [TextItem(f"{v.id}#0", v.id, "test", "a dog and a cat") for v in videos]
    return Annotations(dataset="x", videos=videos, texts=texts, expected={}, notes=[], written=[])


def test_frames_and_bytes_are_those_of_the_settings():
    settings = ExtractSettings(backbone="ViT-B-32", fps=2.0, max_words=32)
    found = forecast(listed((0.0, 10.0), (10.0, 40.0)), settings, there=NOTHING)
    assert (found.videos, found.texts, found.frames) == (2, 1, 80)  # one sentence under both
    vectors = 80 + 1 + (1.2 * 5 + 2)
    assert found.bytes == round(vectors * 512 * 2)
    capped = forecast(listed((0.0, 10.0), (10.0, 40.0)), dataclasses.replace(settings, max_frames=12), there=NOTHING)
    assert capped.frames == 24
    doubled = forecast(listed((0.0, 10.0)), dataclasses.replace(settings, dtype="float32", tokens=False), there=NOTHING)
    assert doubled.bytes == (20 + 1) * 512 * 4
    raw = forecast(listed((0.0, 10.0)), dataclasses.replace(settings, store_frames="uint8"), there=NOTHING)
    assert raw.bytes and raw.bytes > 20 * 3 * 224 * 224


def test_larger_backbones_take_longer_and_what_is_there_is_left_out():
    found = listed((0.0, 10.0), (0.0, 10.0))
    small, large = (
        forecast(found, ExtractSettings(backbone=name), there=NOTHING).encode_seconds
        for name in ("ViT-B-32", "ViT-L-14")
    )
    assert small and large and 10 < large / small < 30
    assert forecast(found, ExtractSettings(backbone="RN50"), there=NOTHING).encode_seconds is None
    half = forecast(found, ExtractSettings(), there={"videos": 1, "texts": 1})
    assert (half.videos, half.texts, half.frames) == (1, 0, 10)


def test_bfloat16_takes_less_time_where_the_processor_has_tiles_for_it(monkeypatch):
    def seconds(precision, tiles):
        monkeypatch.setattr(module, "has_matrix_tiles", lambda: tiles)
        settings = ExtractSettings(backbone="ViT-B-32", precision=precision)
        return forecast(listed((0.0, 10.0)), settings, there=NOTHING).encode_seconds

    assert seconds("fp32", True) == seconds("fp32", False) == seconds("bf16", False)
    assert 2.9 <= seconds("fp32", True) / seconds("bf16", True) <= 4


def test_what_nobody_knows_is_not_foreseen():
    found = forecast(listed((None, None)), ExtractSettings(), there=NOTHING)
    assert (found.lengths, found.frames, found.bytes, found.decode_seconds) == (None, None, None, None)
    found = forecast(listed((None, None)), ExtractSettings(backbone="hf-hub:a/b"), there=NOTHING, usual_seconds=9.7)
    assert (found.lengths, found.frames, found.bytes) == ("data set", 10, None)


def test_files_that_say_no_length_are_left_out(make_video_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.mp4").write_text("no video")
    Path("av.py").write_text("raise SystemExit")  # no code of the folder is run
    make_video_file(tmp_path / "whole.mp4", frames=12, fps=4)
    assert lengths_of(["broken.mp4", "whole.mp4", "nowhere.mp4"]) == [3.0]


def test_a_file_that_hangs_costs_itself_alone(make_video_file, tmp_path, monkeypatch):
    monkeypatch.setattr("glscl.extract.forecast.FILE_SECONDS", 1.5)
    os.mkfifo(tmp_path / "pipe.mp4")  # nobody writes into it
    whole = make_video_file(tmp_path / "whole.mp4")
    assert lengths_of([str(whole), str(tmp_path / "pipe.mp4"), str(whole)]) == [3.0, 3.0]
