"""A disk that is really full: every command ends in one line, keeps what it had, and goes on once there is room."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from forked import Forked

HARNESS = Path(__file__).with_name("full_disk_harness.py")
ROUNDS = max(3, int(os.environ.get("GLSCL_FAULT_ROUNDS", "0")) // 16)  # of the exhaustive test
SEED = os.environ.get("GLSCL_FAULT_SEED", "0")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the commands that write")


@pytest.mark.parametrize("rounds", [1, pytest.param(ROUNDS, marks=pytest.mark.exhaustive)])
def test_without_room_a_command_says_so_in_one_line_and_loses_nothing(tmp_path, make_video_file, rounds):
    for i in range(8):
        make_video_file(tmp_path / "clips" / f"clip{i}.mp4", frames=4 + i % 4, seed=i)
    disk = tmp_path / "disk"
    disk.mkdir()
    begun = Forked([HARNESS, tmp_path, disk, rounds, SEED])
    said, problems = begun.communicate(timeout=3600)
    assert begun.returncode == 0, problems
    report = json.loads(said)
    print(report)
    assert report["problems"] == []
    assert set(report["failed"]) == {"zarr", "hdf5", "train-head", "eval", "save-similarity", "report", "export"}
    reason = {"tmpfs": "the disk is full", "file size limit": "File too large"}[report["disk"]]
    for line in report["messages"]:
        assert reason in line and "\n" not in line and "Traceback" not in line
