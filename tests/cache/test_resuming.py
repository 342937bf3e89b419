"""The command that goes on with a cache names the place where it stands, and is otherwise as it was typed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from glscl.cache.resuming import going_on
from glscl.cache.store import open_store
from glscl.common.errors import CacheIncompleteError


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("glscl extract --dataset a --out there --fps 2", "glscl extract --dataset a --out {new} --fps 2"),
        ("glscl extract --dataset a --out=there", "glscl extract --dataset a --out {new}"),
        ("glscl import-features x.npz", "glscl import-features x.npz --out {new}"),
        ("glscl extract --out {new} --format zarr", "glscl extract --out {new} --format zarr"),
        ("glscl demo", "glscl demo"),
        ("glscl extract 'no command line", "glscl extract 'no command line"),
        (None, "glscl extract --out {new}"),
    ],
)
def test_a_recorded_command_is_told_as_it_is_true_now(tmp_path, typed, expected):
    assert going_on(typed and typed.format(new=tmp_path), tmp_path, "zarr") == expected.format(new=tmp_path)


def test_what_is_true_already_stays_as_it_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert going_on("glscl extract --out a", Path("a"), "zarr") == "glscl extract --out a"
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path))
    assert going_on("glscl extract --dataset a", tmp_path / "caches" / "a", "zarr") == "glscl extract --dataset a"


def test_a_cache_that_was_moved_while_unfinished_names_itself(small_cache, tmp_path):
    made = small_cache()
    made.commit(made.create(), "video", 0)
    moved = tmp_path / "moved to"
    shutil.move(made.path, moved)
    with pytest.raises(CacheIncompleteError, match=f"glscl extract --dataset made --out '{moved}'"):
        open_store(moved).arrays("video")
