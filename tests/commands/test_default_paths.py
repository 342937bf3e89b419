"""Which cache or run a bare command means, and what it says where there is none, or more than one."""

from __future__ import annotations

import shutil
from dataclasses import replace

from glscl.cache.lists import make_current, write_list
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
