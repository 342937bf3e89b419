"""Trainings that are killed or stopped: resumed, they end in the same bits as one that never was.

`make test` kills at every commit point of train-head, `make test-all` at those of finetune and at many points more;
`GLSCL_FAULT_ROUNDS=200` makes it longer, `GLSCL_FAULT_SEED` chooses others.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest
from forked import Forked

HARNESS = Path(__file__).with_name("training_harness.py")
PAUSING = Path(__file__).with_name("pausing_cli.py")
ROUNDS = int(os.environ.get("GLSCL_FAULT_ROUNDS", "6"))
FEW = ("train-head:commit=1", "finetune:call=1")
MANY = (*(f"train-head:{kind}={max(2, ROUNDS // 3)}" for kind in ("call", "line", "time")), "finetune:commit=1")
SEED = os.environ.get("GLSCL_FAULT_SEED", "0")

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the trainings that it kills")


@pytest.fixture(scope="module")
def work(tmp_path_factory, make_video_file):
    folder = tmp_path_factory.mktemp("trainings")
    for i in range(8):
        make_video_file(folder / "clips" / f"clip{i}.mp4", frames=4, seed=i)
    return folder


def harness(work: Path, rounds: tuple[str, ...]) -> dict:
    """What `training_harness.py` says; it leaves the cache and the references."""
    begun = Forked([HARNESS, work, SEED, *rounds])
    said, problems = begun.communicate(timeout=3600)
    assert begun.returncode == 0, problems
    print(said)
    return json.loads(said)


@pytest.fixture(scope="module")
def report(work):
    return harness(work, FEW)


@pytest.mark.parametrize("name", ["train-head", "finetune"])
def test_a_killed_training_resumes_to_the_bits_of_an_uninterrupted_one(report, name):
    assert report[name]["problems"] == []
    assert report[name]["stopped"] > report[name]["rounds"], "most rounds die twice before the training is done"
    assert len(report[name]["commit_points"]) > 4, "the commit points were not found"


@pytest.mark.exhaustive
def test_a_training_killed_at_many_points_resumes_to_the_bits_of_an_uninterrupted_one(work, tmp_path):
    (tmp_path / "clips").symlink_to(work / "clips")
    for found in harness(tmp_path, MANY).values():
        assert found["problems"] == []
        assert found["stopped"] > found["rounds"]


def stopped(work: Path, arguments: list[str], steps: int, kind: signal.Signals) -> tuple[int, str]:
    """Exit status and last line of a training that gets a signal within a step."""
    mark = work / "paused"
    mark.unlink(missing_ok=True)
    process = Forked([PAUSING, "step", steps, mark, *arguments], os.environ | {"GLSCL_HOME": str(work)})
    while not mark.exists() and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, kind) if kind == signal.SIGINT else process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, err.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["train-head", "finetune"])
def test_a_stopped_training_says_how_to_go_on_and_does(report, work, name, glscl, one_thread):
    sys.path.insert(0, str(HARNESS.parent))
    import training_harness as harness

    out = work / f"stopped {name}"
    status, line = stopped(work, harness.command(name, work / "cache", out, resume=False), 2, signal.SIGTERM)
    assert status == 130
    assert line.startswith(f"glscl: Stopped; {out} keeps what is done. Go on: ") and line.endswith(" --resume")
    again = shlex.split(line.partition("Go on: ")[2])[1:]
    again = again[again.index(name) :]
    if name == "train-head":
        status, line = stopped(work, again, 1, signal.SIGINT)
        assert status == 130 and line.endswith(" --resume") and line.count("--resume") == 1
        assert harness.look(out) == []
    status, _, err = glscl(*again)
    assert status == 0, err
    assert json.loads(json.dumps(harness.content(out))) == json.loads((work / f"{name}.json").read_text())
