"""What a command says at its end must be true: the command that it names goes on and ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

QUICK = ("--head", "projection", "--batch-size", "8", "--validation", "4", "--device", "cpu")


@pytest.fixture
def last_line(glscl, monkeypatch, tmp_path):
    """Run a command in this process: its exit status and the last line on standard error."""
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))

    def run(*arguments):
        status, _, err = glscl(*arguments)
        return status, (err.strip().splitlines() or [""])[-1]

    return run


@contextlib.contextmanager
def full_disk(name: str, at: int) -> Iterator[None]:
    """From the `at`-th file of that name on, nothing that is written gets its place."""
    replace, calls = os.replace, []

    def refuse(source, target):
        calls.extend([target] if Path(target).name == name else [])
        if len(calls) >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        yield


@pytest.mark.parametrize("more", [(), ("--sweep", "lr=1e-2,1e-3")], ids=["train-head", "sweep"])
def test_after_a_full_disk_the_command_that_is_named_ends_the_training(last_line, small_cache, tmp_path, more):
    small_cache(name="home/caches/made", videos=24).fill()
    with full_disk("run.json", 2):
        status, line = last_line("train-head", *QUICK, "--epochs", 3, *more)
    assert status == 1 and "the disk is full. Free some space, then go on: glscl train-head" in line
    again = shlex.split(line.partition("go on: ")[2])[1:]
    (out,) = (tmp_path / "home" / "runs").iterdir()
    assert again[again.index("--out") + 1] == str(out)
    assert last_line(*again)[0] == 0
    assert list((tmp_path / "home" / "runs").iterdir()) == [out], "it went on in its own folder"
    assert (out / ("sweep.json" if more else "history.jsonl")).exists()


def test_where_there_is_no_permission_another_folder_stays_the_advice(last_line, small_cache, tmp_path):
    small_cache(name="home/caches/made", videos=24).fill()
    (tmp_path / "file").touch()
    status, line = last_line("train-head", *QUICK, "--epochs", 1, "--out", tmp_path / "file" / "run")
    assert status == 1 and line.endswith("Choose another folder with --out")


@pytest.mark.skipif(sys.platform != "linux", reason="the file system takes any bytes as names")
def test_places_whose_names_are_no_utf8_hold_caches_and_runs_like_others(last_line, small_cache, tmp_path):
    odd = tmp_path / os.fsdecode(b"a b\n\xff\xc3\xbc")
    cache = small_cache(name=f"{odd.name}/cache", videos=24).fill()
    cache.library.write_backbone_tensors({"positions": np.ones((2, 8), np.float32)})
    run, out = odd / "run", odd / "converted"
    assert last_line("convert", cache.path, out)[0] == 0
    assert last_line("inspect", out, "--verify", "--json")[0] == 0
    assert last_line("convert", cache.path, odd / "flat.h5")[0] == 0
    fixed = ("train-head", *QUICK, "--cache", out, "--epochs", 2, "--out", run)
    with full_disk("run.json", 2):
        status, line = last_line(*fixed)
    assert status == 1 and "go on: " in line
    assert last_line(*fixed, "--resume")[0] == 0
    assert last_line("eval", "--run", run, "--device", "cpu")[0] == 0


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="the system has no /dev/zero, a file without end")
def test_a_device_is_no_file_of_annotations(last_line, tmp_path):
    status, line = last_line(
        "extract", "--dataset", "csv", "--annotations", "/dev/zero", "--videos", tmp_path, "--dry-run"
    )
    assert status == 1 and "/dev/zero: is a device, expected a file" in line
