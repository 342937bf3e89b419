"""Extractions killed, or with a failing disk, at many points, also inside the commit: nothing committed is lost.

`make test` has one sweep a format: at every commit point in the code, and at a few points more. `make test-all`
adds many points at random; `GLSCL_FAULT_ROUNDS=200` makes it longer, `GLSCL_FAULT_SEED` chooses others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glscl.cache.schema import STREAMS
from glscl.cache.store import open_store

HARNESS = Path(__file__).with_name("crash_harness.py")
FEW = {"commit": 1, "call": 2, "time": 1, "disk": 3, "size": 2}  # rounds; of `commit` at every point
ROUNDS = int(os.environ.get("GLSCL_FAULT_ROUNDS", "66"))
SEED = os.environ.get("GLSCL_FAULT_SEED", "0")

FORMATS = pytest.mark.parametrize("format", ["zarr", "hdf5"])

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the extractions that it kills")


@pytest.fixture(scope="module")
def clips(tmp_path_factory, make_video_file):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(8):
        make_video_file(folder / f"clip{i}.mp4", frames=4 + i % 4, seed=i)
    (folder / "clip4.mp4").write_text("no video")
    return folder


def harness(folder, clips, format, rounds: dict[str, int]) -> dict:
    """The report of `crash_harness.py`; every round ends with a look at the cache and with its completion."""
    (folder / "clips").symlink_to(clips)
    asked = (f"{kind}={count}" for kind, count in rounds.items())
    command = [sys.executable, str(HARNESS), str(folder), format, SEED, *asked]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert report["problems"] == []
    return report


def assert_equal_caches(path: Path, reference: Path) -> None:
    whole, finished = open_store(reference), open_store(path)
    for stream in STREAMS:
        for name, array in whole.arrays(stream).items():
            np.testing.assert_array_equal(finished.arrays(stream)[name], array, err_msg=f"{stream} {name}")


def assert_one_line_each(messages: list[str]) -> None:
    kinds = ("the disk is full", "no permission to write there", "Input/output error", "File too large")
    assert messages and all(any(kind in line for kind in kinds) for line in messages)


@FORMATS
def test_death_at_every_commit_point_and_a_failing_disk_cost_nothing_committed(format, clips, tmp_path):
    report = harness(tmp_path, clips, format, FEW)
    places = {place.split(" < ")[0] for place in report["commit_points"]}
    assert len(report["commit_points"]) > 6 and places >= {"link", "rename", "unlink"}, "commit points were not found"
    for kind in ("commit", "call"):  # at a moment of the clock it may be done already
        assert report["stopped"][kind] == report["rounds"][kind] > 0, "every one of these points lies within the run"
    assert report["stopped"]["disk"] and report["stopped"]["size"]
    assert_one_line_each(report["messages"])
    assert_equal_caches(tmp_path / "cache", tmp_path / "reference")


@pytest.mark.exhaustive
@FORMATS
def test_a_killed_extraction_loses_nothing_committed_and_is_finished_to_the_same_values(format, clips, tmp_path):
    report = harness(tmp_path, clips, format, dict.fromkeys(("call", "line", "time"), ROUNDS // 3))
    assert report["stopped"]["call"] == report["stopped"]["line"] == ROUNDS // 3
    assert_equal_caches(tmp_path / "cache", tmp_path / "reference")


@pytest.mark.exhaustive
@FORMATS
def test_a_failing_disk_is_one_line_and_costs_nothing_committed(format, clips, tmp_path):
    report = harness(tmp_path, clips, format, dict.fromkeys(("disk", "size"), max(6, ROUNDS // 8)))
    assert all(report["stopped"].values())
    assert_one_line_each(report["messages"])
    assert_equal_caches(tmp_path / "cache", tmp_path / "reference")
