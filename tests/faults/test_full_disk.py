"""A disk that is really full: every command ends in one line, keeps what it had, and goes on once there is room."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("full_disk_harness.py")
ROUNDS = max(3, int(os.environ.get("GLSCL_FAULT_ROUNDS", "0")) // 16)  # of the exhaustive test
SEED = os.environ.get("GLSCL_FAULT_SEED", "0")
NAMESPACES = (
    ["unshare", "--mount"],
    ["unshare", "--mount", "--map-root-user"],
)  # the first as root, the other as anybody

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the commands that write")


def namespace() -> list[str]:
    """What gives a process mounts of its own, where the system lets us; else nothing."""
    for prefix in NAMESPACES if shutil.which("unshare") else ():
        if subprocess.run([*prefix, "true"], capture_output=True).returncode == 0:
            return prefix
    return []


@pytest.mark.parametrize("rounds", [1, pytest.param(ROUNDS, marks=pytest.mark.exhaustive)])
def test_without_room_a_command_says_so_in_one_line_and_loses_nothing(tmp_path, make_video_file, rounds):
    for i in range(8):
        make_video_file(tmp_path / "clips" / f"clip{i}.mp4", frames=4 + i % 4, seed=i)
    disk = tmp_path / "disk"
    disk.mkdir()
    command = [*namespace(), sys.executable, str(HARNESS), str(tmp_path), str(disk), str(rounds), SEED]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    print(report)
    assert report["problems"] == []
    assert set(report["failed"]) == {"zarr", "hdf5", "train-head", "eval", "save-similarity", "report", "export"}
    reason = {"tmpfs": "the disk is full", "file size limit": "File too large"}[report["disk"]]
    for line in report["messages"]:
        assert reason in line and "\n" not in line and "Traceback" not in line
