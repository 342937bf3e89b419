"""Several writers of one cache: parts, processes of one launch, parts in folders of their own; all give the same values."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked

from glscl.cache import creation
from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.frames import StoredFrames
from glscl.cache.library import Library, open_library
from glscl.cache.lists import current_version
from glscl.cache.lock import locks
from glscl.cache.schema import STREAMS, Annotations, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.verification import verify
from glscl.common.errors import FingerprintError
from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings

LENGTHS = [9, 14, 3, 8, 21, 5, 11]


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("demo", words=12)


@pytest.fixture(autouse=True)
def one_thread():
    """As the processes of a launch have: the sums of a matrix product may depend on it in the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def table(tmp_path, make_video):
    """Seven clips and their captions as a CSV file."""
    rows = []
    for i, frames in enumerate(LENGTHS):
        make_video(tmp_path / "videos" / f"clip{i}.mp4", frames=frames, seed=i)
        rows += [[f"clip{i}.mp4", f"caption {k} of clip {i}", "train" if i < 5 else "test"] for k in (0, 1)]
    with open(tmp_path / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["video", "caption", "split"], *rows])
    return tmp_path / "table.csv"


@pytest.fixture
def corpus(tmp_path, make_video):
    videos, texts = [], []
    for i, frames in enumerate(LENGTHS):
        path = make_video(tmp_path / "videos" / f"clip{i}.mp4", frames=frames, seed=i)
        videos.append(VideoItem(f"clip{i}", "train", str(path)))
        texts += [TextItem(f"clip{i}#{k}", f"clip{i}", "train", f"caption {k} of clip {i}") for k in (0, 1)]
    return Annotations(dataset="csv", videos=videos, texts=texts)


def run(corpus, out, backbone, **options):
    options = {"fps": 2.0, "shard_videos": 2, "shard_texts": 5, "batch_frames": 7, "workers": 1} | options
    return extract(corpus, out, ExtractSettings(**options), backbone=backbone)


def assert_equal_caches(a, b):
    assert a.fingerprint == b.fingerprint and a.complete and b.complete
    for stream in ("video", "text"):
        for name, array in a.arrays(stream).items():
            np.testing.assert_array_equal(array, b.arrays(stream)[name], err_msg=f"{stream} {name}")


@pytest.mark.usefixtures("decoded_here")
def test_parts_on_one_folder_give_the_cache_that_one_run_gives(corpus, backbone, tmp_path):
    whole = run(corpus, tmp_path / "whole", backbone)
    assert whole.complete and whole.finished_here and whole.part is None
    first = run(corpus, tmp_path / "parts", backbone, part="1/3")
    assert not first.complete and not first.finished_here and first.texts_without_video is None
    assert first.shards == {"video": {"committed": 2, "planned": 4}, "text": {"committed": 1, "planned": 3}}
    assert (first.videos, first.texts) == (3, 5) and current_version(tmp_path / "parts", "csv") is None
    again = run(corpus, tmp_path / "parts", backbone, part="1/3")
    assert again.already_complete and not again.complete
    assert not run(corpus, tmp_path / "parts", backbone, part="3/3").complete
    last = run(corpus, tmp_path / "parts", backbone, part="2/3")
    assert last.complete and last.finished_here
    assert_equal_caches(open_store(tmp_path / "whole"), open_store(tmp_path / "parts"))
    assert verify(open_library(tmp_path / "parts")) == [] and locks(tmp_path / "parts") == []
    assert run(corpus, tmp_path / "parts", backbone).already_complete


@pytest.mark.usefixtures("decoded_here")
def test_a_run_without_part_finishes_what_parts_left(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "whole", backbone)
    run(corpus, tmp_path / "parts", backbone, part="2/2")
    assert run(corpus, tmp_path / "parts", backbone).finished_here
    assert_equal_caches(open_store(tmp_path / "whole"), open_store(tmp_path / "parts"))


@pytest.mark.usefixtures("decoded_here")
def test_parts_in_folders_of_their_own_are_merged(corpus, backbone, tmp_path):
    run(corpus, tmp_path / "whole", backbone, store_frames="jpeg", batch_frames=7)
    for i in (1, 2):  # what a machine is set to do beside does not change a value
        run(corpus, tmp_path / f"part{i}", backbone, part=f"{i}/2", store_frames="jpeg", workers=i)
    merge([tmp_path / "part1", tmp_path / "part2"], tmp_path / "merged")
    whole, merged = open_store(tmp_path / "whole"), open_store(tmp_path / "merged")
    assert_equal_caches(whole, merged)
    assert all(StoredFrames(whole).stored(i) == StoredFrames(merged).stored(i) for i in range(len(LENGTHS)))
    np.testing.assert_equal(merged.backbone_tensors(), whole.backbone_tensors())


@pytest.mark.parametrize("begun", [False, True], ids=["", "killed"])
def test_each_part_asks_again_for_its_own_failed_videos(corpus, backbone, tmp_path, monkeypatch, decoded_here, begun):
    failing = [corpus.videos[i].path for i in (1, 2, 4)]  # shards 0, 1 and 2; asked for again in two
    decoded_here.failing.update(dict.fromkeys(failing, "no progress for 60 s"))
    run(corpus, tmp_path / "cache", backbone)
    decoded_here.failing.clear()
    decoded_here.decoded.clear()
    if begun:  # a launch that is killed before its first commit leaves an addition, and the parts finish that
        with monkeypatch.context() as patch:
            patch.setattr(Library, "commit", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(corpus, tmp_path / "cache", backbone, part="1/2", retry_failed=True)
        decoded_here.decoded.clear()
    first = run(corpus, tmp_path / "cache", backbone, part="1/2", retry_failed=True)
    assert [failure["id"] for failure in first.failed] == ["clip4"] and first.encoded["videos"] == 2
    last = run(corpus, tmp_path / "cache", backbone, part="2/2", retry_failed=True)
    assert last.failed == [] and last.encoded["videos"] == 1
    assert open_store(tmp_path / "cache").failures() == [] and sorted(decoded_here.decoded) == failing
    assert len(open_library(tmp_path / "cache").stream("video").additions) == 2


def interrupt(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.usefixtures("decoded_here")
def test_of_two_runs_that_begin_a_cache_together_the_first_decides_how(corpus, backbone, tmp_path, monkeypatch):
    """The second finds no store.json, and has lost by the time it writes one."""
    spec = StoreSpec(configuration={"backbone": {"name": "b", "pretrained": "p"}}, embed_dim=4)
    put = creation.put_if_absent

    def meanwhile(path, data):
        if path.name == "store.json":
            monkeypatch.setattr(creation, "put_if_absent", put)
            run(corpus, tmp_path / "cache", backbone)
        return put(path, data)

    monkeypatch.setattr(creation, "put_if_absent", meanwhile)
    with pytest.raises(FingerprintError, match="made by another encoder"):
        create_library(tmp_path / "cache", spec)
    store = open_store(tmp_path / "cache")
    assert store.ids("video")[:2] == ["clip0", "clip1"] and store.complete and verify(store.library) == []


# --- as commands ----------------------------------------------------------------------------------------------


def command(table, out, *more):
    options = ["--backbone", "demo", "--fps", "2", "--max-words", "12", "--shard-videos", "1", "--shard-texts", "3"]
    options += ["--batch-frames", "7", "--workers", "1", "--annotations", table, "--videos", table.parent / "videos"]
    return ["-m", "glscl", "extract", "--dataset", "csv", *options, "--out", out, *more]


def start(arguments, **environment):
    return Forked(arguments, os.environ | {key: str(value) for key, value in environment.items()})


def whole_cache(table, out, backbone):
    from glscl.extract.datasets import DATASETS

    found = DATASETS["csv"].read(table, table.parent / "videos", splits=None)
    run(found, out, backbone, shard_videos=1, shard_texts=3, list="csv-table")
    return open_store(out)


@pytest.mark.slow
def test_processes_of_one_launch_share_the_work_and_speak_with_one_voice(table, backbone, tmp_path):
    out = tmp_path / "cache"
    launch = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    running = [start(command(table, out, "--json"), RANK=i, LOCAL_RANK=i, **launch) for i in (0, 1)]
    ended = [process.communicate(timeout=300) for process in running]
    assert [process.returncode for process in running] == [0, 0], ended
    assert_equal_caches(whole_cache(table, tmp_path / "whole", backbone), open_store(out))
    results = [json.loads(stdout) for stdout, _ in ended if stdout.strip()]
    assert [(r["complete"], r["finished_here"], r["videos"], r["texts"]) for r in results] == [(True, True, 7, 14)]
    said = ended[0][1] + ended[1][1]
    lines = ("cache: 7 videos", "captions: 8/8 captions in", "videos: 4/4 videos in")  # bars of process 0's share
    assert [said.count(line) for line in lines] == [1, 1, 1], said
    assert "--part" not in open_store(out).list.command and locks(out) == []


DECODING_HERE = """
import sys, time
sys.path.insert(0, {folder!r})
from decoding_here import DecodesHere
from glscl import cli
from glscl.commands.options import main
from glscl.extract import pipeline
if "2/2" in sys.argv:  # stands still at its first video
    DecodesHere.decode = lambda *_: time.sleep(300)
pipeline.DecodePool = DecodesHere
sys.exit(main(cli.app, sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_part_loses_nothing_that_the_other_did(table, backbone, tmp_path):
    out, script = tmp_path / "cache", tmp_path / "decoding_here.py"
    script.write_text(DECODING_HERE.format(folder=str(Path(__file__).parents[1])))
    parts = [start([script, *command(table, out, "--part", f"{i}/2")[2:]]) for i in (1, 2)]
    while not any(lock.part == (2, 2) for lock in locks(out)) and parts[1].poll() is None:
        time.sleep(0.01)
    parts[1].send_signal(signal.SIGKILL)
    said, errors = parts[0].communicate(timeout=300)
    parts[1].communicate(timeout=300)
    assert (parts[0].returncode, parts[1].returncode) == (0, -signal.SIGKILL), errors
    assert "part 1/2 is done" in said and "not complete until the other parts are done" in said
    begun = open_library(out)
    video, text = ({shard for _, shard in begun.stream(stream).commits} for stream in STREAMS)
    assert video >= {0, 2, 4, 6} and text >= {0, 2, 4} and current_version(out, "csv-table") is None
    whole = whole_cache(table, tmp_path / "whole", backbone)
    whole_cache(table, out, backbone)  # the same once more without --part
    assert_equal_caches(whole, open_store(out))
    assert verify(open_library(out)) == [] and locks(out) == [] and [*(out / "partial").iterdir()] == []
