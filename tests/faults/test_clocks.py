"""A clock that is set while something runs, back by a year or forward by ten, changes no value and misjudges no writer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import crash_harness as crash

from glscl.cache.library import Library
from glscl.cache.lock import hold, locks
from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.verification import verify
from glscl.commands.default_paths import newest_run
from glscl.common.errors import CacheBusyError
from glscl.extract import pipeline
from glscl.extract.backbone.encoder import load_backbone
from glscl.train_head.checkpoint import write_run
from glscl.train_head.heads import build_head
from glscl.train_head.loop import fit
from glscl.train_head.reports import Reporter
from glscl.train_head.settings import TrainSettings

YEAR = 365 * 86400
JUMPS = (-1, 10, 0, -1, 10)  # years from the right time


class Clock:
    """What the clock on the wall shows, for everything in this process; the steady clock runs on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.years, self.jumps = 0, 0
        now = time.time
        shown = {"gmtime": time.gmtime, "localtime": time.localtime}
        monkeypatch.setattr(time, "time", lambda: now() + self.years * YEAR)
        monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
        for name, original in shown.items():
            monkeypatch.setattr(time, name, lambda at=None, of=original: of(time.time() if at is None else at))
        written = time.strftime
        monkeypatch.setattr(
            time, "strftime", lambda form, at=None: written(form, time.localtime() if at is None else at)
        )

    def jump(self) -> None:
        self.years = JUMPS[self.jumps % len(JUMPS)]
        self.jumps += 1


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_an_extraction_gives_the_same_cache_whatever_the_clock_does(clock, tmp_path, make_video_file, monkeypatch):
    for i in range(crash.VIDEOS):
        make_video_file(tmp_path / "clips" / f"clip{i}.mp4", frames=4, seed=i)
    monkeypatch.setattr(pipeline, "DecodePool", crash.DecodesHere)
    backbone = load_backbone("demo", None, words=12, device="cpu", precision="fp32")
    crash.extract(tmp_path / "whole", tmp_path / "clips", "zarr", backbone)
    committing, committed = Library.commit, []

    def commit(self, addition, shard, *args, **options):
        clock.jump()
        won = committing(self, addition, shard, *args, **options)
        clock.jump()
        committed.append((addition.name, shard))
        if len(committed) == 3:
            raise KeyboardInterrupt  # the rest is for the next run, at another time
        return won

    monkeypatch.setattr(Library, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        crash.extract(tmp_path / "cache", tmp_path / "clips", "zarr", backbone)
    assert crash.finish(tmp_path / "cache", tmp_path / "clips", "zarr", backbone, tmp_path / "whole") == []
    assert clock.jumps >= 10 and len(committed) == len(set(committed)), "nothing was committed twice"
    assert locks(tmp_path / "cache") == []


@pytest.mark.parametrize(("begun", "now"), [(-1, 10), (10, -1), (0, -1)])
def test_a_lock_is_judged_by_its_process_and_not_by_its_age(clock, tmp_path, begun, now):
    clock.years = begun
    with hold(tmp_path) as file:
        clock.years = now
        assert [lock.stale for lock in locks(tmp_path)] == [False]
        with pytest.raises(CacheBusyError, match=f"process {os.getpid()}"), hold(tmp_path):
            raise AssertionError("the lock was given twice")
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pid": gone.pid}))
        assert [lock.stale for lock in locks(tmp_path)] == [True]
        with hold(tmp_path) as taken:
            assert [lock.file for lock in locks(tmp_path)] == [taken]


def test_two_repairs_at_one_time_keep_what_both_set_aside(clock, small_cache, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form, at=None: "20260101T000000")
    cache = small_cache("hdf5", videos=4, captions=1)
    for _ in range(2):
        cache.fill()
        record = cache.path / "lists" / "made" / f"{cache.list.hash}.json"
        record.write_bytes(record.read_bytes()[:-9])
        name = record.relative_to(cache.path).as_posix()
        assert set(repair(cache.path).aside) == {name, "lists/made/current"}
    assert len(list(cache.path.glob(f"damaged/*/{name}"))) == 2
    assert verify(cache.create()) == []


class Jumping(Reporter):
    """Sets the clock after every step; interrupts at one of them."""

    def __init__(self, clock: Clock, stop: tuple[int, int] | None = None) -> None:
        self.clock, self.stop = clock, stop

    def step(self, report) -> None:
        self.clock.jump()
        if (report.epoch, report.step) == self.stop:
            raise KeyboardInterrupt


def test_a_training_ends_in_the_same_bits_whatever_the_clock_does(clock, tmp_path):
    rng = np.random.default_rng(0)
    table = FeatureTable.from_features(
        TextFeatures(torch.from_numpy(rng.standard_normal((16, 8)).astype(np.float32))),
        VideoFeatures(
            torch.from_numpy(rng.standard_normal((8, 3, 8)).astype(np.float32)), torch.ones(8, 3, dtype=torch.bool)
        ),
        torch.arange(16) // 2,
    )

    def head():
        torch.manual_seed(0)
        return build_head("projection", embed_dim=8)

    settings = TrainSettings(epochs=3, batch_size=4, log_every=1)
    fit(straight := head(), table, settings)
    with pytest.raises(KeyboardInterrupt):
        fit(head(), table, settings, out=tmp_path, reporter=Jumping(clock, (2, 3)))
    resumed = head()
    done = fit(resumed, table, settings, out=tmp_path, reporter=Jumping(clock), resume=True)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    assert all(row["seconds"] >= 0 and row["captions_per_second"] > 0 for row in done.history)


def test_the_newest_run_is_the_one_written_last_even_after_the_clock_was_set_back(tmp_path, monkeypatch):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path))
    for name, years in (("old", 0), ("from the future", 10), ("older", -1)):
        write_run(tmp_path / "runs" / name, {"history": []})
        when = time.time() + years * YEAR
        os.utime(tmp_path / "runs" / name / "run.json", (when, when))
    assert newest_run().name == "from the future"
    write_run(tmp_path / "runs" / "new", {"history": []})
    assert newest_run().name == "new"
    write_run(tmp_path / "runs" / "old", {"history": []})
    assert newest_run().name == "old"
