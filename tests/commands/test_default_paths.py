"""Which cache or run a bare command means, and what it says where there is none, or more than one."""

from __future__ import annotations


def test_bare_commands_say_what_is_missing_or_ambiguous(glscl, clips, tmp_path, monkeypatch, small_cache, one_line):
    one_line(glscl("train-head"), "no cache", "glscl extract")
    one_line(glscl("eval"), "no run", "glscl train-head")
    for name in ("home/caches/a", "home/caches/b"):
        small_cache(name=name).fill()
    one_line(glscl("train-head"), "caches/a", "caches/b", "--cache")
