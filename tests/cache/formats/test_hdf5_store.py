"""A disk that fails under an HDF5 file: one error, and a process that lives on, however far writing had come."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from glscl.cache.store import open_store
from glscl.cache.upkeep.convert import convert

PROGRAM = """
import os, resource, signal, sys
from pathlib import Path
from glscl.cache.upkeep.convert import convert
from glscl.cache.library import open_library
from glscl.common.errors import StorageError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
library, out, size = open_library(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
convert(library, out).unlink()  # what stays open from the first time on
before = sorted(os.listdir("/proc/self/fd"))
for limit in range(size - 1, 0, -size // 15):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        convert(library, out)
    except StorageError as error:
        assert "File too large" in str(error), error
    else:
        sys.exit(f"{limit} bytes were enough")
    assert not list(out.parent.iterdir()), list(out.parent.iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
convert(library, out)
assert sorted(os.listdir("/proc/self/fd")) == before
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE") or sys.platform != "linux", reason="limits of Linux")
def test_a_write_that_fails_anywhere_is_one_error_and_leaves_nothing_open(small_cache, tmp_path):
    library = small_cache("hdf5", videos=4).fill().library
    (tmp_path / "whole").mkdir()
    (tmp_path / "out").mkdir()
    size = convert(library, tmp_path / "whole" / "flat.h5").stat().st_size
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, library.path, tmp_path / "out" / "flat.h5", str(size)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for stream in ("video", "text"):
        ours, theirs = (open_store(tmp_path / name / "flat.h5").arrays(stream) for name in ("whole", "out"))
        assert all((ours[name] == theirs[name]).all() for name in ours)
