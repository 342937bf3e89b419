"""Extractions killed with SIGKILL at many points, also inside the commit: nothing committed is lost or changed.

`GLSCL_FAULT_ROUNDS=200` makes the run longer, `GLSCL_FAULT_SEED` chooses other points.
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
ROUNDS = int(os.environ.get("GLSCL_FAULT_ROUNDS", "45"))
SEED = os.environ.get("GLSCL_FAULT_SEED", "0")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the extractions that it kills")


@pytest.fixture(scope="module")
def clips(tmp_path_factory, make_video_file):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(8):
        make_video_file(folder / f"clip{i}.mp4", frames=4 + 2 * i, seed=i)
    (folder / "clip4.mp4").write_text("no video")
    return folder


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_a_killed_extraction_loses_nothing_committed_and_is_finished_to_the_same_values(format, clips, tmp_path):
    (tmp_path / "clips").symlink_to(clips)
    command = [sys.executable, str(HARNESS), str(tmp_path), format, str(ROUNDS), SEED]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert report["problems"] == []
    assert sum(report["killed"].values()) >= ROUNDS * 8 // 9, "so few died that little was tried"
    assert all(report["killed"].values())
    whole, finished = open_store(tmp_path / "reference"), open_store(tmp_path / "cache")
    for stream in STREAMS:
        for name, array in whole.arrays(stream).items():
            np.testing.assert_array_equal(finished.arrays(stream)[name], array, err_msg=f"{stream} {name}")
