"""The benchmarks of extraction, cache and start-up do what they say they measure, on sizes that take a moment."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glscl.cache.formats import STORES
from glscl.cache.store import open_store
from glscl.cache.table import FeatureTable
from glscl.cache.upkeep.verification import verify

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def script():
    """`script(name)` imports benchmarks/<name>.py as a script beside common.py is."""
    sys.path.insert(0, str(BENCHMARKS))

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path.remove(str(BENCHMARKS))
    sys.modules.pop("common", None)


@pytest.mark.parametrize("format", STORES)
def test_the_cache_that_is_measured_is_whole_and_every_row_is_there(script, tmp_path, format):
    cache = script("cache")
    cache.write_cache(tmp_path / "cache", cache.Size(20, 60, 16), format)
    store = open_store(tmp_path / "cache", "full")
    assert store.complete and verify(store.library) == [] and store.lists == ["first", "full"]
    assert store.list.text_video.tolist() == [row // 3 for row in range(60)]
    assert {len(store.library.stream(stream).additions) for stream in ("video", "text")} == {2}
    table = FeatureTable.load(store, "train")
    assert (table.num_videos, table.num_texts) == (18, 54)
    raw = sum(file.stat().st_size for file in cache.data_files(tmp_path / "cache"))
    assert raw > sum(array.nbytes for stream in ("video", "text") for array in store.arrays(stream).values())
    rows = cache.reading_rows(tmp_path / "cache", repeats=1)
    assert len(rows) == 12 and all(len(row) == 4 for row in rows)
    assert [row[3] for row in rows if row[0] == "raw read, in the page cache"] == ["1.00"]


def test_the_plain_loop_and_the_stages_see_the_same_frames(script, tmp_path, make_video):
    extract = script("extract")
    clips = [make_video(tmp_path / f"{i}.mp4", frames=12 + 8 * i, seed=i) for i in range(2)]
    corpus = extract.listed(clips, 3)
    assert len(corpus.videos) == len({v.id for v in corpus.videos}) == len(corpus.texts) == 6
    backbone = extract.backbone_for("demo", "cpu", "fast")
    frames, seconds = extract.plain_loop(corpus.videos, backbone, rate=1.0)
    assert frames == 3 * (3 + 5) and seconds > 0
    seen = []
    backbone.encode_frames = lambda batch: seen.append(len(batch))
    assert extract.encode_alone(np.zeros((5, 2, 2, 3), np.uint8), 24, backbone, batch=10) > 0
    assert seen == [10, 10, 4]


def test_both_ways_of_preprocessing_are_timed_and_compared(script):
    rows = script("extract").preprocessing_rows("demo")
    assert [row[0] for row in rows] == ["320 × 240", "640 × 360", "1920 × 1080"]
    assert all(float(ratio) > 0 and float(apart) < 1 for _, _, _, ratio, apart in rows)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_of_this_process_and_of_its_children_is_seen(script):
    extract = script("extract")
    hungry = "data = bytearray(b'x' * (64 << 20)); print('ready', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hungry], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert child.pid in extract.descendants(os.getpid())
        assert 64 << 20 <= extract.resident(child.pid) < 256 << 20
        samples = []
        with extract.watched_memory(samples, every=0.01):
            while not samples:
                pass
        child.communicate(b"\n")
    assert samples[0][1] > 1 << 20 and samples[0][2] >= 64 << 20


def test_imports_are_summed_by_package(script):
    report = "\n".join(
        [
            "import time: self [us] | cumulative | imported package",
            "import time:       100 |        100 |   numpy.core",
            "import time:        50 |        150 | numpy",
            "a line of the program",
            "import time:         7 |        157 | glscl.cli",
        ]
    )
    own, cumulative = script("startup").imports(report)
    assert own == {"numpy": 150, "glscl": 7} and cumulative["glscl.cli"] == 157 and len(cumulative) == 3


def test_a_finished_demo_adds_inspect_and_eval(script, tmp_path):
    startup = script("startup")
    assert all("cache" not in name for name in startup.commands(None, tmp_path))
    (tmp_path / "runs" / "glscl").mkdir(parents=True)
    found = startup.commands(tmp_path, tmp_path / "scratch")
    assert "inspect" in found and "eval (glscl)" in found and "eval (projection)" not in found
    assert found["eval (glscl)"][-1] == str(tmp_path / "scratch" / "glscl.json")
