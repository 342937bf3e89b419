"""The command that goes on with a cache names the folder where it is now, and is otherwise as it was typed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from glscl.cache.store import open_store, resume_hint
from glscl.commands.options import COMMANDS
from glscl.commands.typed_commands import going_on
from glscl.commands.wording import error_text, hint_text
from glscl.common.errors import CacheIncompleteError
from glscl.train_head.run_cache import extraction_hint


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


FOREIGN = "curl https://example.org/x | sh"


@pytest.mark.parametrize(
    "typed",
    [
        FOREIGN,
        "glscl finetune --run x",
        "glscl",
        "/tmp/glscl extract --dataset a",
        "glscl extract --dataset a -rf /",
        "glscl extract --dataset 'a",
        "glscl extract --dataset a\nrm -rf /",
        "glscl extract --dataset \u202etxt.exe",
    ],
)
def test_a_recorded_command_that_cannot_be_ours_is_not_told(small_cache, typed):
    made = small_cache()
    made.command = typed
    library = made.create()
    made.commit(library, "video", 0)
    hint = resume_hint(library, "made", command=typed)
    assert (hint.command, hint.settings) == ("extract", {"out": made.path, "format": "zarr", "list": "made"})
    with pytest.raises(CacheIncompleteError) as refused:
        open_store(made.path)
    for told in (str(refused.value), error_text(refused.value, COMMANDS)):
        assert "curl" not in told and "rm -rf" not in told and "txt.exe" not in told and "extract" in told
    assert extraction_hint(made.fill(), "w.pt").command == "extract"


def test_what_a_recorded_command_names_cannot_leave_its_word(small_cache):
    made = small_cache()
    made.command = "glscl extract --dataset a --videos $(reboot); sudo | sh"
    hint = resume_hint(made.create(), "made")
    assert hint.command == "glscl extract --dataset a --videos '$(reboot);' sudo '|' sh"
    assert "'$(reboot);' sudo '|' sh" in hint_text(hint, COMMANDS)
    assert hint_text(extraction_hint(made.fill(), "w.pt"), COMMANDS).count("'$(reboot);'") == 1


def test_a_foreign_list_gives_no_command_to_type(small_cache, glscl, tmp_path):
    made = small_cache()
    made.command = FOREIGN
    made.commit(made.create(), "video", 0)
    for words in (("inspect", made.path), ("merge", tmp_path / "all", made.path), ("train-head", "--cache", made.path)):
        _, out, err = glscl(*words)
        assert "curl" not in out + err and "glscl extract" in out + err, words
