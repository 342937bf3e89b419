"""Extraction, merge and conversion killed, or with a failing disk, at many points, also inside the commit: nothing is lost.

`make test` has one sweep a format: a second extraction at every commit point in the code; in Zarr at those where something
appears, for vanishing is the same. Every command dies at a few points in HDF5; what they do differently in Zarr is how a
shard is written, which the sweep and a conversion show.
`make test-all` adds many points at random; `GLSCL_FAULT_ROUNDS=200` makes it longer, `GLSCL_FAULT_SEED` chooses others.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from forked import Forked

HARNESS = Path(__file__).with_name("crash_harness.py")
STAGES = ("first", "second", "retry", "merge", "convert")
SWEEP = {"second": {"commit": 1, "time": 1, "disk": 2, "size": 1}}  # rounds; of `commit` at every point
FEW = {"call": 1, "disk": 1}
SHORT = {"hdf5": dict.fromkeys(STAGES, FEW) | SWEEP, "zarr": {"convert": FEW, "second": {"appear": 1, "disk": 2}}}
ROUNDS = int(os.environ.get("GLSCL_FAULT_ROUNDS", "66"))
SEED = os.environ.get("GLSCL_FAULT_SEED", "0")

FORMATS = pytest.mark.parametrize("format", ["zarr", "hdf5"])

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the commands that it kills")


@pytest.fixture(scope="module")
def clips(tmp_path_factory, make_video_file):
    folder = tmp_path_factory.mktemp("clips")
    for i in range(10):
        make_video_file(folder / f"clip{i}.mp4", frames=4 + i % 4, seed=i)
    (folder / "clip4.mp4").write_text("no video")
    return folder


def harness(folder, clips, format, rounds: dict[str, dict[str, int]]) -> dict[str, dict]:
    """The report of `crash_harness.py`; every round ends with a look at the cache and with its completion."""
    (folder / "clips").symlink_to(clips)
    asked = [f"{stage}:{kind}={count}" for stage, kinds in rounds.items() for kind, count in kinds.items()]
    begun = Forked([HARNESS, folder, format, SEED, *asked])
    said, problems = begun.communicate(timeout=3600)
    assert begun.returncode == 0, problems
    report = json.loads(said)
    print(report)
    assert [line for stage in report.values() for line in stage["problems"]] == []
    return report


def assert_one_line_each(messages: list[str]) -> None:
    kinds = ("the disk is full", "no permission to write there", "Input/output error", "File too large")
    assert messages and all(any(kind in line for kind in kinds) for line in messages)


def assert_commit_points(stage: dict) -> None:
    """Points were found, and every one of them lies within the run."""
    names, rounds = {place.split(" < ")[0] for place in stage["commit_points"]}, stage["rounds"]
    kind = "commit" if "commit" in rounds else "appear"
    assert len(stage["commit_points"]) > 6 and names >= {"link", "rename"}, stage["commit_points"]
    assert stage["stopped"][kind] == rounds[kind] > 6


@FORMATS
def test_death_at_every_commit_point_and_a_failing_disk_cost_nothing_committed(format, clips, tmp_path):
    report = harness(tmp_path, clips, format, SHORT[format])
    assert_commit_points(report["second"])
    for stage in report.values():  # at a moment of the clock it may be done already
        assert stage["stopped"].get("call") == stage["rounds"].get("call")
    assert sum(stage["stopped"]["disk"] for stage in report.values()) >= len(report) // 2
    assert_one_line_each([line for stage in report.values() for line in stage["messages"]])


@pytest.mark.exhaustive
@FORMATS
@pytest.mark.parametrize("stage", STAGES)
def test_a_command_that_was_killed_loses_nothing_committed_and_ends_with_the_same_values(
    stage, format, clips, tmp_path
):
    kills = dict.fromkeys(("call", "line", "time"), max(2, ROUNDS // 9))
    report = harness(tmp_path, clips, format, {stage: {"commit": 2, **kills}})[stage]
    assert_commit_points(report)
    assert report["stopped"]["call"] == report["stopped"]["line"] == kills["call"]


@pytest.mark.exhaustive
@FORMATS
@pytest.mark.parametrize("stage", STAGES)
def test_a_failing_disk_is_one_line_and_costs_nothing_committed(stage, format, clips, tmp_path):
    report = harness(tmp_path, clips, format, {stage: dict.fromkeys(("disk", "size"), max(6, ROUNDS // 11))})[stage]
    assert report["stopped"]["disk"]
    assert_one_line_each(report["messages"])
