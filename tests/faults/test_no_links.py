"""File systems without hard links, as vfat, exFAT, and many FUSE and SMB mounts are: everything works there.

Refused in this process, where our code, zarr's and Python's make them all; `test_with_the_system_refusing_links` has the
system's own calls refuse them, under the real command.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from formats import BOTH, EITHER

from glscl.cache import files
from glscl.cache.library import open_library
from glscl.cache.store import open_store
from glscl.cache.upkeep.convert import convert
from glscl.cache.upkeep.merge import merge
from glscl.cache.upkeep.repair import repair
from glscl.cache.upkeep.verification import verify
from glscl.extract.importing.import_features import FeatureFiles, import_features
from glscl.extract.settings import ImportSettings

SHIM = """
#define _GNU_SOURCE
#include <errno.h>
int link(const char *a, const char *b) { errno = EPERM; return -1; }
int linkat(int d, const char *a, int e, const char *b, int f) { errno = EPERM; return -1; }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) { errno = EINVAL; return -1; }
"""


@pytest.fixture(params=["rename", "neither"], autouse=True)
def without_links(request, monkeypatch):
    """No hard links, and no rename that spares what exists either."""
    tried = []

    def refuse(*names, **_):
        tried.append(names)
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    if request.param == "neither":
        monkeypatch.setattr(files, "_rename_if_absent", lambda *_: None)
    yield
    assert tried, "nothing of this test makes links where it can"


@pytest.fixture(params=EITHER)
def cache(small_cache, request):
    """A cache that is written here, not copied from an earlier test."""
    made = small_cache(request.param)
    made.create()
    made.fill()
    return made


def same(one, other):
    return all(
        np.array_equal(one.arrays(stream)[name], other.arrays(stream)[name])
        for stream in ("video", "text")
        for name in ("values", "offsets")
    )


@pytest.mark.parametrize("cache", BOTH, indirect=True)
def test_a_cache_is_written_and_read(cache):
    assert verify(open_library(cache.path)) == []
    assert open_store(cache.path).complete


@pytest.mark.parametrize("name", ["folder", "flat.zarr", "flat.h5"])
def test_a_cache_is_converted(cache, tmp_path, name):
    convert(open_library(cache.path), tmp_path / name)
    assert same(open_store(cache.path), open_store(tmp_path / name))


def test_caches_are_merged_and_repaired(cache, tmp_path):
    assert merge([cache.path], tmp_path / "all").copied
    assert same(open_store(cache.path), open_store(tmp_path / "all"))
    commit = next((tmp_path / "all/commits/video").glob("*-*.json"))
    commit.write_text("{")
    assert repair(tmp_path / "all").restored
    assert same(open_store(cache.path), open_store(tmp_path / "all"))


def test_features_are_imported(small_cache, tmp_path):
    made = small_cache(videos=4)
    np.savez(tmp_path / "features.npz", **{v.id: np.ones((2, 8), np.float32) for v in made.annotations.videos})
    np.save(tmp_path / "texts.npy", np.ones((len(made.annotations.texts), 8), np.float32))
    given = FeatureFiles(tmp_path / "features.npz", tmp_path / "texts.npy")
    import_features(made.annotations, given, made.path, ImportSettings(format="zarr"))
    assert open_store(made.path).complete


@pytest.mark.parametrize("without_links", ["neither"], indirect=True)
@pytest.mark.skipif(shutil.which("cc") is None or not sys.platform.startswith("linux"), reason="no C compiler")
def test_with_the_system_refusing_links(small_cache, tmp_path):
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "shim.so", tmp_path / "shim.c"], check=True)
    made = small_cache("hdf5")
    made.create()
    made.fill()
    alone = os.environ | {"LD_PRELOAD": str(tmp_path / "shim.so"), "GLSCL_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "glscl", "merge", tmp_path / "all", made.path]
    done = subprocess.run(command, capture_output=True, text=True, env=alone, timeout=300)
    assert done.returncode == 0, done.stderr
    assert same(open_store(made.path), open_store(tmp_path / "all"))
    shards = [path for path in (tmp_path / "all" / "shards").rglob("*.h5")]
    assert shards and all(path.stat().st_nlink == 1 for path in shards)
