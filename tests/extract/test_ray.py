"""Extraction on a real Ray cluster of two nodes: the same cache, value for value, also where a node or a process is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from glscl.cache.frames import StoredFrames
from glscl.cache.schema import STREAMS, Annotations, TextItem, VideoItem
from glscl.cache.store import open_store
from glscl.common.errors import BackboneError, DecodeError, UsageError
from glscl.common.progress import Progress
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'glscl[ray]'")
pytestmark = pytest.mark.exhaustive  # a cluster takes half a minute to start
LENGTHS = [9, 14, 3, 8, 21, 5, 11]
SETTINGS = {"backbone": "demo", "max_words": 12, "shard_videos": 2, "shard_texts": 4, "batch_frames": 8, "fps": 5.0}


@pytest.fixture(scope="module")
def cluster():
    from ray.cluster_utils import Cluster

    os.environ["OMP_NUM_THREADS"] = "1"
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    found.add_node(num_cpus=2)
    ray.init(address=found.address, logging_level="ERROR", log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, make_video_file):
    """Seven clips, one of which is no video and one is not there, and two captions each."""
    folder, videos, texts = tmp_path_factory.mktemp("videos"), [], []
    for i, frames in enumerate(LENGTHS):
        path = make_video_file(folder / f"clip{i}.mp4", frames=frames, seed=i)
        videos.append(VideoItem(f"clip{i}", "train", None if i == 6 else str(path)))
        texts += [TextItem(f"clip{i}#{k}", f"clip{i}", "train", f"caption {k} of clip {i}") for k in (0, 1)]
    (folder / "clip4.mp4").write_text("no video")
    return Annotations(dataset="csv", videos=videos, texts=texts)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, corpus):
    """The cache that one process makes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as each encoder has
    out = tmp_path_factory.mktemp("alone") / "cache"
    extract(corpus, out, ExtractSettings(**SETTINGS, store_frames="jpeg", workers=1))
    torch.set_num_threads(before)
    return open_store(out)


def on_cluster(corpus, out, **options):
    from glscl.extract.cluster.ray_engine import RayEngine

    notes = []
    settings = ExtractSettings(**{**SETTINGS, "store_frames": "jpeg", **options})
    with RayEngine(settings) as engine:
        done = extract(corpus, out, settings, device=engine, progress=Progress(quiet=True, note=notes.append))
    return done, notes


def encoders():
    """Processes that make a shard at the moment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::Encoder.make"):
                found.append(int(path.parent.name))
    return found


def assert_equal(one, other):
    assert one.fingerprint == other.fingerprint and one.complete and other.complete
    for stream in STREAMS:
        assert one.ids(stream) == other.ids(stream)
        for name, array in one.arrays(stream).items():
            np.testing.assert_array_equal(array, other.arrays(stream)[name], err_msg=f"{stream} {name}")
    for item in range(one.num_items["video"]):
        np.testing.assert_array_equal(StoredFrames(one).read(item), StoredFrames(other).read(item))


def test_the_cache_equals_that_of_one_machine(cluster, corpus, alone, tmp_path):
    done, _ = on_cluster(corpus, tmp_path / "cache")
    assert done.complete and done.encoded["videos"] == 6 and done.encoded["frames"] == alone.count_frames()
    assert [row["id"] for row in done.failed] == ["clip4", "clip6"]
    assert_equal(open_store(tmp_path / "cache"), alone)
    again, _ = on_cluster(corpus, tmp_path / "cache")
    assert again.already_complete and again.encoded["videos"] == 0


def test_an_encoder_and_a_node_that_are_killed_cost_the_shards_in_hand(cluster, corpus, alone, tmp_path):
    """A second node comes, works, and goes with all its processes; an encoder on the other is killed by the system."""
    node = cluster.add_node(num_cpus=2)
    killed, ended = [], threading.Event()

    def kill():
        while not (making := encoders()) and not ended.is_set():
            time.sleep(0.01)
        for process in making[:1]:
            os.kill(process, signal.SIGKILL)
            killed.append(process)
        shards = tmp_path / "cache" / "commits" / "video"
        while not (shards.is_dir() and any(shards.iterdir())):
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=kill)
    thread.start()
    done, notes = on_cluster(corpus, tmp_path / "cache", shard_videos=1)
    ended.set()
    thread.join()
    assert killed and done.complete
    assert_equal(open_store(tmp_path / "cache"), alone)


def test_what_goes_wrong_there_is_said_here(cluster, corpus, tmp_path):
    with pytest.raises(BackboneError, match="no-such"):
        on_cluster(corpus, tmp_path / "one", backbone="no-such-model", max_words=32)
    with pytest.raises(DecodeError, match="'clip4' gives no frames"):
        on_cluster(
            Annotations(dataset="csv", videos=corpus.videos[:6], texts=corpus.texts[:12]), tmp_path / "two", strict=True
        )


def test_where_no_cluster_is_one_line_says_so(monkeypatch):
    from glscl.extract.cluster.ray_engine import RayEngine

    def nothing(**_: object):
        raise ConnectionError("Could not find any running Ray instance.\nMore lines")

    monkeypatch.setattr(ray, "init", nothing)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(
        UsageError, match=r"no Ray cluster at `address=auto`: Could not find any running Ray instance\."
    ):
        RayEngine(ExtractSettings(backbone="demo"))
