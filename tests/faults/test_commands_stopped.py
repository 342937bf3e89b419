"""`glscl extract` with its decoding processes, ended in every way, one after another on one cache; then finished."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from forked import Forked

from glscl import cli
from glscl.cache.library import open_library
from glscl.cache.lock import locks
from glscl.cache.schema import STREAMS
from glscl.cache.store import open_store
from glscl.cache.upkeep.verification import verify
from glscl.commands.options import main

PAUSING = Path(__file__).with_name("pausing_cli.py")

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the processes in /proc")


class Extraction:
    """The command in a session of its own, standing still after `commits` commits."""

    def __init__(self, folder: Path, arguments: list[str], commits: int) -> None:
        mark = folder / "paused"
        mark.unlink(missing_ok=True)
        self.process = Forked([PAUSING, "commit", commits, mark, *arguments], os.environ | {"GLSCL_HOME": str(folder)})
        while not mark.exists() and self.process.poll() is None:
            time.sleep(0.02)

    def end(self, kind: signal.Signals, *, group: bool) -> None:
        """To the whole group, as a terminal sends Ctrl-C and a batch system SIGTERM, or to the process alone."""
        if group:
            os.killpg(self.process.pid, kind)
        else:
            self.process.send_signal(kind)
        self.out, self.err = self.process.communicate(timeout=60)

    def left(self) -> list[int]:
        """Processes of its session that still live, zombies included, after a moment for them to end."""
        deadline = time.monotonic() + 30
        while (found := _session(self.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found


def _session(session: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def videos(tmp_path_factory, make_video_file):
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(8):
        split = "train" if i < 5 else "test"
        make_video_file(folder / split / f"clip{i}.mp4", frames=4 + 2 * i, seed=i)
        (folder / split / f"clip{i}.txt").write_text(f"a red square moves\nclip {i} shows a shape\n")
    return folder


def arguments(videos: Path, out: Path, format: str) -> list[str]:
    fixed = ["--backbone", "demo", "--device", "cpu", "--shard-videos", "2", "--shard-texts", "8", "--workers", "2"]
    return ["extract", "--dataset", "folder", "--videos", str(videos), "--out", str(out), "--format", format, *fixed]


def committed(cache: Path) -> dict[str, bytes]:
    return {p.relative_to(cache).as_posix(): p.read_bytes() for p in sorted(cache.glob("commits/*/*.json"))}


KILLED, TERMINATED = (2, signal.SIGKILL, False), (1, signal.SIGTERM, True)  # after so many commits; the whole group?
ALONE, INTERRUPTED = (1, signal.SIGTERM, False), (1, signal.SIGINT, True)


@pytest.mark.parametrize(
    "endings",
    [
        pytest.param((KILLED, INTERRUPTED), id="few"),
        pytest.param((KILLED, ALONE, TERMINATED, INTERRUPTED), id="all", marks=pytest.mark.exhaustive),
    ],
)
def test_whatever_ends_an_extraction_the_same_command_finishes_it(endings, videos, tmp_path, capsys, one_thread):
    assert main(cli.app, arguments(videos, tmp_path / "whole", "hdf5")) == 0
    cache, before = tmp_path / "cache", {}
    command = arguments(videos, cache, "zarr")
    for commits, kind, group in endings:
        run = Extraction(tmp_path, command, commits)
        assert run.process.poll() is None, run.process.communicate()
        if kind == signal.SIGKILL:
            check_what_others_can_do_meanwhile(cache, command, run.process.pid, capsys)
        run.end(kind, group=group)
        assert run.left() == [], f"processes outlived {kind.name}"
        if kind == signal.SIGKILL:
            assert [lock.stale for lock in locks(cache)] == [True]
        else:
            assert run.process.returncode == 130
            assert "the same command again goes on from there" in run.err and "Traceback" not in run.err
            assert locks(cache) == []
        assert verify(open_library(cache)) == []
        now = committed(cache)
        assert len(now) == len(before) + commits and before.items() <= now.items()
        before = now

    assert main(cli.app, command) == 0
    assert before.items() <= committed(cache).items()
    ours, theirs = open_store(cache), open_store(tmp_path / "whole")
    assert ours.complete and verify(ours.library) == [] and locks(cache) == []
    for stream in STREAMS:
        for name, array in theirs.arrays(stream).items():
            np.testing.assert_array_equal(ours.arrays(stream)[name], array, err_msg=f"{stream} {name}")


def check_what_others_can_do_meanwhile(cache: Path, command: list[str], writer: int, capsys) -> None:
    """A second extraction is refused, readers see what is committed, training says what it waits for."""
    assert main(cli.app, command) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"process {writer} on" in line and "since" in line

    assert main(cli.app, ["inspect", str(cache), "--verify", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert not report["complete"] and report["problems"] == []
    assert sum(shards["committed"] for shards in report["shards"].values()) == 2

    assert main(cli.app, ["train-head", "--cache", str(cache), "--head", "projection"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert "was never finished" in lines[-1] and "Finish it: " in lines[-1]
