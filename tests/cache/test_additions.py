"""Additions name themselves by their content; a key is found whatever the order in which they came."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glscl.cache.additions import WORST, KeyIndex, read_addition, read_additions, write_addition
from glscl.cache.keys import as_array, text_key
from glscl.common.errors import CacheCorruptError


def made_keys(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 16), np.uint8)


def test_an_addition_reads_back_and_is_written_once(tmp_path):
    keys = made_keys(10)
    first = write_addition(tmp_path, "video", keys, shard_items=4)
    file = tmp_path / "additions" / "video" / f"{first.name}.txt"
    before = file.stat().st_mtime_ns, file.stat().st_ino
    again = write_addition(tmp_path, "video", keys, shard_items=4)
    assert again.name == first.name and (file.stat().st_mtime_ns, file.stat().st_ino) == before
    (found,) = read_additions(tmp_path, "video")
    assert found.name == first.name and found.num_shards == 3 and found.attempt == 0
    assert [list(found.shard_range(n)) for n in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    np.testing.assert_array_equal(found.keys, keys)
    assert "\n" not in repr(found) and "10 items in 3 shards" in repr(found)


def test_other_keys_order_shards_stream_or_attempt_is_another_addition(tmp_path):
    keys = made_keys(4)
    made = [
        write_addition(tmp_path, "video", keys, shard_items=4),
        write_addition(tmp_path, "video", keys[::-1], shard_items=4),
        write_addition(tmp_path, "video", keys, shard_items=2),
        write_addition(tmp_path, "video", keys, shard_items=4, attempt=1),
        write_addition(tmp_path, "text", keys, shard_items=4),
    ]
    assert len({each.name for each in made}) == 5 and len(read_additions(tmp_path, "video")) == 4


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"0" * 32 + b"\n",
        lambda data: data.replace(b'"items": 3', b'"items": 4'),
        lambda data: data.replace(b'"attempt": 0', b'"attempt": 1'),
        lambda data: data.replace(b'"shard_items": 2', b'"shard_items": 0'),
        lambda data: data.replace(b"video", b"text"),
        lambda data: data.replace(b"addition/1", b"addition/2"),
        lambda data: data[:-2] + b"\x80\n",
        lambda data: data[: data.index(b"\n") + 1],
        lambda data: b"",
        lambda data: b"[" * 10_000,
    ],
)
def test_a_damaged_addition_is_one_line(tmp_path, change):
    made = write_addition(tmp_path, "video", made_keys(3), shard_items=2)
    file = tmp_path / "additions" / "video" / f"{made.name}.txt"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CacheCorruptError, match=made.name):
        read_addition(file, "video")


def slowly_found(keys: list[bytes], rank: list[int], wanted: list[bytes]) -> list[int]:
    """The same as `KeyIndex.find`, one key after another."""
    found = []
    for key in wanted:
        places = [(rank[i], i) for i in range(len(keys)) if keys[i] == key and rank[i] < WORST]
        found.append(min(places)[1] if places else -1)
    return found


# few different bytes, at both ends of a key: equal keys, and keys that share their first or last eight bytes, are common
FEW = st.tuples(st.integers(0, 2), st.integers(0, 2)).map(lambda ends: bytes([ends[0]] * 8 + [ends[1]] * 8))
ITEMS = st.lists(st.tuples(FEW, st.sampled_from([0, 1, 2, WORST])), max_size=12)


@given(ITEMS, st.lists(FEW, max_size=12))
def test_the_best_item_of_a_key_is_found(items, wanted):
    keys, rank = [key for key, _ in items], [rank for _, rank in items]
    index = KeyIndex(as_array(keys), np.array(rank, np.uint8))
    assert index.find(as_array(wanted)).tolist() == slowly_found(keys, rank, wanted)
    assert len(index) == len({key for key, r in items if r < WORST})


def test_a_great_many_keys_are_found():
    keys = as_array(text_key(f"caption {i}") for i in range(20_000))
    index = KeyIndex(keys, np.zeros(len(keys), np.uint8))
    order = np.random.default_rng(0).permutation(len(keys))
    np.testing.assert_array_equal(index.find(keys[order]), order)
    assert (index.find(made_keys(1000)) == -1).all()
