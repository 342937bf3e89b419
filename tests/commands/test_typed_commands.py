"""The command that goes on with a cache names the folder where it is now, and is otherwise as it was typed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from glscl.cache.store import open_store, resume_hint
from glscl.commands.options import COMMANDS
from glscl.commands.typed_commands import going_on
from glscl.commands.wording import error_text
from glscl.common.errors import CacheIncompleteError


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("glscl extract --dataset a --out there --fps 2", "glscl extract --dataset a --out {new} --fps 2"),
        ("glscl extract --dataset a --out=there", "glscl extract --dataset a --out {new}"),
        ("glscl import-features x.npz", "glscl import-features x.npz --out {new}"),
        ("glscl extract --out {new} --format zarr", "glscl extract --out {new} --format zarr"),
        ("glscl extract --out {new} --format hdf5", "glscl extract --out {new} --format zarr"),
        ("glscl demo", "glscl demo"),
        ("glscl extract 'no command line", "glscl extract 'no command line"),
    ],
)
def test_a_recorded_command_is_told_as_it_is_true_now(tmp_path, typed, expected):
    told = going_on(typed.format(new=tmp_path), {"out": tmp_path, "format": "zarr"})
    assert told == expected.format(new=tmp_path)


def test_what_is_true_already_stays_as_it_was_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = {"out": Path("a"), "format": "zarr"}
    assert going_on("glscl extract --out a", now) == "glscl extract --out a"
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path))
    now = {"out": tmp_path / "caches" / "a", "format": "zarr"}
    assert going_on("glscl extract --dataset a", now) == "glscl extract --dataset a"


def test_a_cache_that_was_moved_while_unfinished_names_itself(small_cache, tmp_path):
    made = small_cache()
    made.commit(made.create(), "video", 0)
    moved = tmp_path / "moved to"
    shutil.move(made.path, moved)
    with pytest.raises(CacheIncompleteError) as refused:
        open_store(moved).arrays("video")
    assert error_text(refused.value, COMMANDS).endswith(f"Finish it: glscl extract --dataset made --out '{moved}'")
    assert refused.value.hint.command == "glscl extract --dataset made"


def test_a_cache_without_a_recorded_command_is_gone_on_with_by_its_folder(small_cache, tmp_path):
    made = small_cache()
    made.command = ""
    hint = resume_hint(made.create(), "made")
    assert (hint.command, hint.settings) == ("extract", {"out": made.path, "format": "zarr", "list": "made"})
