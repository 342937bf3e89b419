"""Real annotations and real clips through the command line: dataset → cache → head → numbers (GLSCL_REAL_DATA).

The backbone is a tiny CLIP with random weights: numbers mean nothing here, counts and messages do.
"""

from __future__ import annotations

import csv
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from glscl.cache.schema import Status
from glscl.cache.store import open_store

pytestmark = [pytest.mark.real_data, pytest.mark.slow]

WORKERS = ("--workers", 2)


@pytest.fixture
def glscl(glscl, monkeypatch, tmp_path):
    """Run a command in this process: → (standard output, or its object with --json). Fails unless the status is 0."""
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))

    def run(*arguments):
        status, out, err = glscl(*arguments)
        assert status == 0, err
        return json.loads(out) if "--json" in arguments else out

    return run


@pytest.fixture
def tiny(tiny_clip):
    return ("--backbone", f"local-dir:{tiny_clip()}")


def thinned(real_data: Path, name: str, folder: Path, lists: dict[str, list[str]]) -> Path:
    """The real annotations, but for shorter lists of ids: encoding 180,000 captions is not what is tested."""
    folder.mkdir()
    for file in (real_data / "annotations" / name).iterdir():
        if file.name not in lists:
            (folder / file.name).symlink_to(file)
    for file, ids in lists.items():
        text = json.dumps(ids) if file.endswith(".json") else "\n".join(["video_id"] * file.endswith(".csv") + ids)
        (folder / file).write_text(text)
    return folder


def listed(real_data: Path, name: str, file: str, present: set[str], missing: int) -> list[str]:
    """The ids of a real list whose clip is there, and the first few of the others, in the order of the list."""
    path = real_data / "annotations" / name / file
    ids = json.loads(path.read_text()) if path.suffix == ".json" else path.read_text().split()
    ids = [id for id in ids if id != "video_id"]
    few = set([id for id in ids if id not in present][:missing]) | present
    return [id for id in ids if id in few]


def stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir() if path.name != "SOURCE.txt"}


# --- your own data ----------------------------------------------------------------------------------------------------


def test_captions_in_a_table_become_the_same_cache_in_both_formats_and_a_head(glscl, real_data, tiny, tmp_path):
    captions = list(csv.DictReader(open(real_data / "captions.csv", newline="")))
    caches = {}
    for format in ("zarr", "hdf5"):
        done = glscl(
            *("extract", "--dataset", "csv", "--annotations", real_data / "captions.csv", "--json", *tiny, *WORKERS),
            *("--videos", real_data / "videos", "--format", format, "--out", tmp_path / format),
        )
        assert (done["videos"], done["texts"], done["failed"]) == (70, len(captions), []), done["failed"]
        report = glscl("inspect", tmp_path / format, "--verify", "--json")
        assert report["complete"] and report["problems"] == [] and len(report["splits"]) == 3
        caches[format] = open_store(tmp_path / format)
    assert caches["zarr"].fingerprint == caches["hdf5"].fingerprint
    for stream in ("video", "text"):
        for name, array in caches["zarr"].arrays(stream).items():
            np.testing.assert_array_equal(array, caches["hdf5"].arrays(stream)[name], err_msg=name)
    for format in caches:
        out = glscl("train-head", "--cache", tmp_path / format, "--out", tmp_path / f"run-{format}", "--epochs", 1)
        assert "by the recipe msrvtt" in out  # the default for own data
    results = [glscl("eval", "--run", tmp_path / f"run-{format}", "--json") for format in caches]
    assert results[0]["text_to_video"] == results[1]["text_to_video"]
    assert results[0]["counts"]["texts"] == own_captions(tmp_path / "zarr") > 0


# --- benchmarks of which a few clips are there ------------------------------------------------------------------------


def msrvtt(real_data: Path, folder: Path) -> Path:
    present = stems(real_data / "videos" / "msrvtt")
    train = listed(real_data, "MSRVTT", "MSRVTT_train.9k.csv", present, 10)
    return thinned(real_data, "MSRVTT", folder, {"MSRVTT_train.9k.csv": [id for id in train if id != "video_id"]})


def msvd(real_data: Path, folder: Path) -> Path:
    present = stems(real_data / "videos" / "msvd")
    files = [f"{split}_list.txt" for split in ("train", "val", "test")]
    return thinned(real_data, "MSVD", folder, {file: listed(real_data, "MSVD", file, present, 20) for file in files})


def activitynet(real_data: Path, folder: Path) -> Path:
    present = stems(real_data / "videos" / "activitynet")
    files = ("train_ids.json", "val_ids.json")
    return thinned(
        real_data, "ActivityNet", folder, {file: listed(real_data, "ActivityNet", file, present, 200) for file in files}
    )


# dataset → its thinned annotations, clips found in train and test, published size of the test (captions, videos)
BENCHMARKS = {
    "msrvtt": (msrvtt, 8, 5, (1_000, 1_000)),
    "msvd": (msvd, 2, 2, (27_763, 670)),
    "activitynet": (activitynet, 1, 1, (4_917, 4_917)),
}


@pytest.mark.parametrize("dataset", BENCHMARKS)
def test_a_benchmark_whose_videos_are_mostly_missing_goes_the_whole_way_and_says_so(
    glscl, real_data, tiny, tmp_path, dataset
):
    make, train_clips, test_clips, (published_texts, published_videos) = BENCHMARKS[dataset]
    annotations = make(real_data, tmp_path / "annotations")
    where = ("--dataset", dataset, "--annotations", annotations, "--videos", real_data / "videos" / dataset)
    counted = glscl("extract", *where, "--dry-run", "--json")["splits"]
    assert (counted["train"]["found"], counted["test"]["found"]) == (train_clips, test_clips)
    assert counted["test"]["expected_videos"] == published_videos

    out = glscl("extract", *where, *tiny, *WORKERS, "--max-frames", 24, "--out", tmp_path / "cache")
    assert f"{train_clips + test_clips} videos" in out and "captions lost their video" in out
    report = glscl("inspect", tmp_path / "cache", "--json")
    test = report["splits"]["test"]
    assert report["complete"] and report["failed_by_status"] == {"missing": sum(c["missing"] for c in counted.values())}
    assert (test["videos"], test["videos_listed"]) == (test_clips, counted["test"]["videos"])
    assert (test["expected_videos"], test["expected_captions"]) == (published_videos, published_texts)
    queries = {text.id for text in open_store(tmp_path / "cache").plan.texts if text.split == "test"}
    assert test["texts_without_video"] == len(queries) - own_captions(tmp_path / "cache")
    printed = glscl("inspect", tmp_path / "cache")
    assert f"{published_videos:,}" in printed and "no file found for this id" in printed

    training = ("train-head", "--cache", tmp_path / "cache", "--epochs", 1, "--head", "seq_transf")
    if train_clips > 1:
        out = glscl(*training)
        assert f"by the recipe {dataset}" in out and "max_frames 12" in out
        out = glscl("eval")
    else:
        with pytest.raises(AssertionError, match="Nothing can be learnt from batches of 1"):
            glscl(*training)
        out = glscl("eval", "--cache", tmp_path / "cache", "--zero-shot", "--out", tmp_path / "result.json")
    assert f"note: {test_clips:,} videos of {published_videos:,} published: not comparable" in out
    assert f"note: {test['texts_without_video']:,} captions lost their video and are not queries" in out
    (result,) = tmp_path.glob("home/runs/*/result.json" if train_clips > 1 else "result.json")
    counts = json.loads(result.read_text())["counts"]
    assert counts == {
        "texts": own_captions(tmp_path / "cache"),
        "videos": test_clips,
        "texts_without_video": test["texts_without_video"],
        "videos_failed": counted["test"]["missing"],
        "expected_texts": published_texts,
        "expected_videos": published_videos,
        "videos_seen_in_training": 0,
    }


def own_captions(cache: Path) -> int:
    """Test captions whose clip is there, counted from the plan and the status alone."""
    store = open_store(cache)
    status = dict(zip(store.ids("video"), store.arrays("video", ["status"])["status"]))
    return sum(text.split == "test" and status[text.video] == Status.OK for text in store.plan.texts)


def test_the_clips_of_msvd_carry_all_their_real_captions(glscl, real_data, tiny, tmp_path):
    annotations = msvd(real_data, tmp_path / "annotations")
    with open(real_data / "annotations" / "MSVD" / "raw-captions.pkl", "rb") as file:
        captions = pickle.load(file)
    glscl(
        *("extract", "--dataset", "msvd", "--annotations", annotations, "--videos", real_data / "videos" / "msvd"),
        *("--splits", "test", *tiny, *WORKERS, "--out", tmp_path / "cache"),
    )
    store = open_store(tmp_path / "cache")
    texts = dict(zip(store.ids("text"), store.captions()))
    for clip in ("j2Dhf-xFUxU_13_20", "klteYv1Uv9A_27_33"):
        expected = [" ".join(" ".join(words).split()) for words in captions[clip]]
        assert [texts[f"{clip}#{i}"] for i in range(len(expected))] == expected
        assert f"{clip}#{len(expected)}" not in texts


# --- every file there is ----------------------------------------------------------------------------------------------


def test_every_real_and_every_made_file_is_extracted_or_has_its_reason(glscl, real_data, tiny, tmp_path):
    done = glscl(
        *("extract", "--dataset", "folder", "--videos", real_data, *tiny, *WORKERS, "--fps", 0.5, "--time-limit", 120),
        *("--out", tmp_path / "cache", "--json"),
    )
    report = glscl("inspect", tmp_path / "cache", "--verify", "--json")
    assert report["complete"] and report["problems"] == [] and report["splits"]["test"]["videos_listed"] == 178
    store = open_store(tmp_path / "cache")
    video = store.arrays("video")
    frames, status = np.diff(video["offsets"]), video["status"]
    usable = np.isin(status, [Status.OK, Status.PARTIAL])
    assert ((frames > 0) == usable).all() and done["videos"] == usable.sum()
    reasons = {failure["id"]: failure["reason"] for failure in report["failed"]}
    assert set(reasons) == {id for id, s in zip(store.ids("video"), status) if s != Status.OK}
    assert all(reasons.values()) and Status.TIMED_OUT not in status

    table = {f"videos/{row['file']}": row for row in csv.DictReader(open(real_data / "video_table.csv", newline=""))}
    for id, ok in zip(store.ids("video"), usable):
        if id in table:
            assert ok == bool(int(table[id]["decoded_frames"] or 0)), (id, reasons.get(id))
        elif id.startswith("made/"):
            assert ok == (id not in ("made/audio_only.mp4", "made/text.mp4")), id

    library = store.library
    rows = [row for place in library.stream("video").places for row in library.ledger("video", place)]
    ledger = [rows[number] for number in store.numbers["video"]]
    groups = [id.split("/")[0] for id in store.ids("video")]
    counts = Counter((g, record["decoder"], Status(int(s)).name) for g, record, s in zip(groups, ledger, status))
    assert len(ledger) == 178 and counts["videos", "pyav", "OK"] > 110, counts
    planned = [record for record, ok in zip(ledger, usable) if ok and record["decoder"] == "pyav" and record["codec"]]
    assert planned and all(record["packets"] > 0 for record in planned)
    assert sum(bool(record.get("note")) for record in ledger) < 40, "of few files everything must be decoded"
