"""Jobs on single files: each may hang, die or grow at its own cost."""

from __future__ import annotations

import os
import time

import pytest

from glscl.common.errors import DecodeError, NotFoundError
from glscl.extract.decode.jobs import MEMORY, JobPool
from glscl.extract.decode.stills import still


@pytest.fixture(scope="module")
def pool():
    with JobPool(1) as made:
        made.warm()
        yield made


def test_a_job_gives_what_its_function_gives_and_raises_what_it_raises(pool):
    assert pool.submit(os.path.join, "a", "b", limit=30).result() == "a/b"
    with pytest.raises(NotFoundError, match="no such file"):
        pool.submit(still, "/nowhere.mp4", 0.0, 320, (1, 1), limit=30).result()


def test_one_that_hangs_dies_or_grows_costs_only_itself(pool):
    began = time.monotonic()
    with pytest.raises(DecodeError, match=r"not done after 0\.3 s"):
        pool.submit(time.sleep, 60, limit=0.3).result()
    with pytest.raises(DecodeError, match="died"):
        pool.submit(os._exit, 3, limit=30).result()
    with pytest.raises(DecodeError, match="died"):
        pool.submit(os.abort, limit=30).result()
    with pytest.raises(DecodeError, match="memory"):
        pool.submit(bytearray, 2 * MEMORY, limit=30).result()
    assert pool.submit(os.getpid, limit=30).result() > 0 and time.monotonic() - began < 60


def test_one_that_nobody_waits_for_is_ended(pool):
    job = pool.submit(time.sleep, 60, limit=100)
    time.sleep(0.2)
    began = time.monotonic()
    assert job.cancel()
    assert pool.submit(os.getpid, limit=30).result() and time.monotonic() - began < 30


def test_the_end_waits_for_nobody():
    with JobPool(2) as pool:
        jobs = [pool.submit(time.sleep, 60, limit=100) for _ in range(4)]
        time.sleep(0.5)
        began = time.monotonic()
    assert time.monotonic() - began < 20
    for job in jobs:
        with pytest.raises(DecodeError):
            job.result(timeout=10)
    with pytest.raises(DecodeError, match="end has come"):
        pool.submit(os.getpid, limit=1).result()
