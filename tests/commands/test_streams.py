"""Nobody listens any more: a closed pipe, terminal or stream, a full disk under the output. The work is done all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from glscl import cli
from glscl.commands.options import main
from glscl.commands.streams import Unbreakable
from glscl.common.signals import interrupts_deferred


def pipe_without_reader():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


def test_what_cannot_be_written_is_lost_once_and_later_writes_are_quiet():
    stream = Unbreakable(pipe_without_reader())
    assert stream.lost is None
    for _ in range(2):
        print("a line", file=stream, flush=True)
        assert isinstance(stream.lost, BrokenPipeError)
    stream.close()  # what was buffered does not fail at the end of the process either


def test_a_training_whose_lines_nobody_reads_trains_to_its_end(small_cache, tmp_path, monkeypatch, capfd):
    cache = small_cache(videos=24).fill()
    monkeypatch.setattr(sys, "stdout", pipe_without_reader())
    monkeypatch.setattr(sys, "stderr", pipe_without_reader())
    fixed = ["--head", "projection", "--epochs", "2", "--batch-size", "8", "--validation", "4", "--device", "cpu"]
    assert main(cli.app, ["train-head", "--cache", str(cache.path), "--out", str(tmp_path / "run"), *fixed]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["complete"]


def run(redirected: str, *arguments: object) -> tuple[int, str, str]:
    command = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "glscl", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full, which stands for a full disk")
def test_a_result_that_found_no_room_is_told_by_line_and_status(small_cache):
    status, _, err = run(">/dev/full", "inspect", small_cache().fill().path, "--json")
    assert status == 1
    assert err.splitlines()[-1] == "glscl: Done, but not all of it could be printed: No space left on device"
    assert "Traceback" not in err


def test_streams_that_were_closed_from_the_start_stop_nothing(small_cache):
    cache = small_cache().fill().path
    status, out, _ = run("<&- 2>&-", "inspect", cache, "--verify", "--json")
    assert status == 0 and json.loads(out)["problems"] == []


def test_no_file_gets_the_number_of_a_standard_stream_that_is_closed():
    program = "from glscl.commands.streams import standard_streams\nwith standard_streams(): print(open('/dev/null').fileno())"
    done = subprocess.run(
        ["sh", "-c", '"$@" <&- 2>&-', "sh", sys.executable, "-c", program], capture_output=True, text=True
    )
    assert int(done.stdout) > 2


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no SIGHUP")
@pytest.mark.parametrize("nohup", [False, True], ids=["terminal closed", "nohup"])
def test_a_closed_terminal_stops_like_ctrl_c_unless_that_is_ignored(nohup, small_cache, monkeypatch, capsys):
    cache = small_cache().fill().path
    monkeypatch.setattr(
        "glscl.cache.upkeep.verification.verify", lambda *_, **__: signal.raise_signal(signal.SIGHUP) or []
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        assert main(cli.app, ["inspect", str(cache), "--verify"]) == (0 if nohup else 130)
        with interrupts_deferred() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert stop.is_set() != nohup
    finally:
        signal.signal(signal.SIGHUP, before)
