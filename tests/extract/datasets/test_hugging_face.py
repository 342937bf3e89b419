"""Data sets that the `datasets` of Hugging Face reads, made here: videos inside the rows, or files of their own."""

from __future__ import annotations

import json
import sys

import pytest

from glscl.common.errors import InputError, StorageError, UsageError
from glscl.extract.datasets import dataset_entry, read_dataset


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"hf:me/set needs the package datasets.*glscl\[datasets\]"):
        read_dataset("hf:me/set", None)
    with pytest.raises(UsageError, match="expected hf:USER/NAME"):
        dataset_entry("hf:")


@pytest.fixture
def datasets(monkeypatch):
    pytest.importorskip("datasets.config", reason="datasets is not installed: pip install 'glscl[datasets]'")
    import datasets as found

    monkeypatch.setattr(found.config, "HF_HUB_OFFLINE", True)
    return found


@pytest.fixture
def clips(tmp_path, make_video_file):
    return [make_video_file(tmp_path / "clips" / f"clip{i}.mp4", frames=3 + i, seed=i) for i in range(3)]


def test_videos_inside_the_rows_are_written_once(datasets, clips, tmp_path):
    rows = {
        "video": [{"bytes": clip.read_bytes(), "path": clip.name} for clip in clips],
        "caption": [["a dog", "a cat"], ["rain"], []],
    }
    features = datasets.Features(
        {"video": datasets.Video(decode=False), "caption": datasets.Sequence(datasets.Value("string"))}
    )
    for split, part in (("train", slice(0, 2)), ("test", slice(2, 3))):
        data = datasets.Dataset.from_dict({name: column[part] for name, column in rows.items()}, features=features)
        data.to_parquet(tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    name, videos = f"hf:{tmp_path / 'set'}", tmp_path / "videos"
    dry = dataset_entry(name).read(None, videos, dry_run=True)
    assert not videos.exists() and len(dry.videos) == 3
    found = read_dataset(name, None, videos)
    assert [(text.video, text.split, text.text) for text in found.texts] == [
        ("train/clip0.mp4", "train", "a dog"),
        ("train/clip0.mp4", "train", "a cat"),
        ("train/clip1.mp4", "train", "rain"),
    ]
    for video, clip in zip(found.videos, clips):
        with open(video.path, "rb") as file:
            assert file.read() == clip.read_bytes()
    before = [path.stat().st_mtime_ns for path in sorted(videos.rglob("*.mp4"))]
    assert read_dataset(name, None, videos).videos == found.videos
    assert [path.stat().st_mtime_ns for path in sorted(videos.rglob("*.mp4"))] == before


def test_videos_that_are_files_are_read_where_they_are(datasets, clips):
    folder = clips[0].parent
    lines = [json.dumps({"file_name": clip.name, "caption": f"the {i}th"}) for i, clip in enumerate(clips)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    found = read_dataset(f"hf:{folder}", None, folder / "unused")
    assert [video.path for video in found.videos] == [str(clip) for clip in clips]
    assert {text.text for text in found.texts} == {"the 0th", "the 1th", "the 2th"}
    assert {video.split for video in found.videos} == {"test"}  # few, and in one split: divided as rows without one


def test_a_set_without_videos_and_one_that_cannot_be_reached_are_one_line(datasets, tmp_path):
    data = datasets.Dataset.from_dict({"question": ["who"], "answer": ["me"]})
    data.to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(InputError, match="columns are question and answer; expected one of videos"):
        read_dataset(f"hf:{tmp_path / 'set'}", None)
    with pytest.raises(StorageError, match="hf://datasets/nobody/nothing"):
        read_dataset("hf:nobody/nothing", None)


def test_a_cache_is_a_dataset_of_the_hub(datasets, small_cache):
    import numpy as np

    from glscl.evaluate.exporting.hub_dataset import hub_dataset

    store = small_cache(format="hdf5").fill()
    rows = {row["video"]: row for row in hub_dataset(store, "test")}
    arrays = store.arrays("video", ["values", "offsets", "times"])
    wanted = [row for row in store.splits["test"].videos if arrays["offsets"][row + 1] > arrays["offsets"][row]]
    assert [*rows] == [store.ids("video")[row] for row in wanted]
    for row in wanted:
        found, part = rows[store.ids("video")[row]], slice(*arrays["offsets"][row : row + 2])
        np.testing.assert_array_equal(np.array(found["frame_features"], arrays["values"].dtype), arrays["values"][part])
        np.testing.assert_array_equal(np.array(found["times"], np.float32), arrays["times"][part])
        assert found["captions"] == [
            caption for caption, owner in zip(store.captions(), store.list.text_video) if owner == row
        ]
    with pytest.raises(InputError, match="no split 'none'"):
        hub_dataset(store, "none")
