"""Commands on a cache: damage is found by name, and never read as if it were whole."""

from __future__ import annotations


def test_a_damaged_cache_is_found_and_never_read_as_if_whole(glscl, trained, one_line):
    shard = next(p for p in (trained / "cache" / "shards" / "video").glob("*/values/c/0/0"))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) // 2])
    one_line(glscl("eval", "--run", trained / "run"), "shards/video", "--verify")
    shard.write_bytes(data[:9] + bytes([data[9] ^ 4]) + data[10:])
    one_line(glscl("inspect", trained / "cache", "--verify"), "has 1 problem; the first", "values")
    (trained / "cache" / "store.json").write_text("{}")
    one_line(glscl("inspect", trained / "cache"), "schema")
