"""Which cache or run a bare command means, and what it says where there is none, or more than one."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from dataclasses import replace

import pytest

from glscl.cache.lists import make_current, write_list
from glscl.cache.lock import hold_folder
from glscl.commands.default_paths import run_folder
from glscl.commands.shared import open_cache


def test_bare_commands_say_what_is_missing_or_ambiguous(glscl, clips, tmp_path, monkeypatch, small_cache, one_line):
    one_line(glscl("train-head"), "no cache", "glscl extract")
    one_line(glscl("eval"), "no run", "glscl train-head")
    for name in ("home/caches/a", "home/caches/b"):
        small_cache(name=name).fill()
    one_line(glscl("train-head"), "caches/a", "caches/b", "--cache")


def test_a_run_means_its_cache_and_its_version_of_a_list_where_nothing_else_is_named(two_runs, cache, monkeypatch):
    run, _ = two_runs
    monkeypatch.setenv("GLSCL_HOME", str(cache.path.parents[1]))
    first = cache.list
    kept = {text.video for text in cache.annotations.texts[3:]}
    cache.annotations = replace(
        cache.annotations,
        videos=[video for video in cache.annotations.videos if video.id in kept],
        texts=cache.annotations.texts[3:],
    )
    newest = cache.list
    write_list(cache.path, newest, cache.format)
    make_current(cache.path, newest)
    copy = shutil.copytree(cache.path, cache.path.parents[2] / "copy")
    for given, folder, list, version in (
        (None, None, None, newest),
        (None, run, None, first),
        (None, run, "made", newest),
        (copy, run, None, first),
        (copy, None, first.hash, first),
    ):
        opened = open_cache(given, folder, list)
        assert (opened.list_hash, opened.path) == (version.hash, given or cache.path)
    cache.path.rename(cache.path.with_name("moved"))
    assert open_cache(None, run).path == cache.path.with_name("moved"), "of a cache that is gone, the only one there is"


def reserve(names):
    with run_folder(None, "glscl") as folder:
        names.put(folder.name)
        names.close()
        names.join_thread()
        os._exit(0)  # before anything was written


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_runs_that_begin_in_one_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path))
    monkeypatch.setattr(time, "strftime", lambda _: "20261128-120000")
    context = multiprocessing.get_context("fork")
    names = context.Queue()
    racing = [context.Process(target=reserve, args=(names,)) for _ in range(8)]
    for each in racing:
        each.start()
    found = [names.get(timeout=60) for _ in racing]
    for each in racing:
        each.join()
    assert len(set(found)) == 8 and "glscl-20261128-120000" in found
    assert sorted(os.listdir(tmp_path / "runs")) == sorted(found), "they are there before anything is in them"


def test_a_reserved_folder_goes_where_nothing_came_of_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path))
    with run_folder(None, "package.module:Class") as empty, run_folder(None, "package.module:Class") as used:
        assert empty.is_dir() and empty.name.startswith("Class-") and empty != used
        (used / "run.json").write_text("{}")
    assert not empty.exists() and used.exists()
    with run_folder(tmp_path / "given", "glscl") as given:
        assert given == tmp_path / "given" and not given.exists()


def test_a_folder_that_is_being_written_is_refused_by_every_command_that_writes_there(
    glscl, tmp_path, small_cache, one_line
):
    cache, out = small_cache().fill().path, tmp_path / "run"
    with hold_folder(out, what="finetune"):
        who = f"{out} is being written by glscl finetune (process {os.getpid()} on "
        small = ("--head", "projection", "--epochs", "1", "--batch-size", "2", "--device", "cpu")
        one_line(glscl("train-head", "--cache", cache, "--out", out, *small), who, "Wait until", status=1)
        one_line(glscl("train-head", "--cache", cache, "--out", out, *small, "--resume"), "holds no run", status=1)
        one_line(glscl("train-head", "--cache", cache, "--out", out, *small, "--sweep", "lr=0.1,0.2"), who, status=1)
        one_line(glscl("demo", "--out", out), who, status=1)
        one_line(glscl("export", "--zero-shot", "--cache", cache, "--out", out), who, status=1)
    assert not out.exists() or not any(out.iterdir())
