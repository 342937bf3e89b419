"""What is left to encode: shards that were begun and are wanted whole, and keys that nobody has; never what is had."""

from __future__ import annotations

import numpy as np
import pytest

from glscl.cache.additions import Addition, write_addition
from glscl.cache.creation import StoreSpec, create_library
from glscl.cache.encoded_items import EncodedVideo, video_arrays
from glscl.cache.keys import as_array, video_key
from glscl.cache.library import Library
from glscl.cache.planning import Work, work_for
from glscl.cache.schema import Status

SPEC = StoreSpec(configuration={"backbone": {"name": "made", "pretrained": "seed"}}, embed_dim=2, dtype="float32")
KEYS = as_array(video_key(bytes([number]) * 16) for number in range(12))
OK, MISSING, BROKEN, PARTIAL, LATE = Status.OK, Status.MISSING, Status.DECODE_ERROR, Status.PARTIAL, Status.TIMED_OUT


@pytest.fixture
def library(tmp_path) -> Library:
    return create_library(tmp_path / "cache", SPEC, "hdf5")


def add(library: Library, numbers: list[int], *, shard_items: int = 2, attempt: int = 0) -> Addition:
    addition = write_addition(library.path, "video", KEYS[numbers], shard_items=shard_items, attempt=attempt)
    library.add(addition)
    return addition


def commit(library: Library, addition: Addition, shard: int, *statuses: Status) -> None:
    keys = addition.keys_of(shard)
    statuses = statuses or (OK,) * len(keys)
    videos = [EncodedVideo(np.ones((int(s.usable), 2)), np.ones(int(s.usable)), s) for s in statuses]
    failures = [
        {"key": key.tobytes().hex(), "reason": None, "status": status.name.lower()}
        for key, status in zip(keys, statuses)
        if status != OK
    ]
    library.commit(addition, shard, video_arrays(keys, videos, embed_dim=2, dtype="float32"), failures=failures)


def plan(library: Library, numbers: list[int], **options) -> Work:
    return work_for(library, "video", KEYS[numbers], **options)


def new(work: Work) -> list[int]:
    """Which keys are new, in order."""
    return [int(np.flatnonzero((key == KEYS).all(axis=1))[0]) for key in work.new]


def finish(work: Work) -> list[tuple[str, int]]:
    return [(place.addition.name, place.shard) for place in work.finish]


def test_all_of_an_empty_cache_is_new_each_key_once_in_the_order_of_the_list(library):
    work = plan(library, [3, 1, 3, 2, 1])
    assert (new(work), finish(work), work.attempt, work.had, work.left) == ([3, 1, 2], [], 0, 0, 0)
    nothing = plan(library, [])
    assert (new(nothing), finish(nothing), nothing.attempt) == ([], [], 0)


def test_what_is_had_is_not_asked_for_again_whichever_addition_has_it(library):
    one, two = add(library, [0, 1, 2]), add(library, [3, 4])
    for addition, shard in ((one, 0), (one, 1), (two, 0)):
        commit(library, addition, shard)
    work = plan(library, [4, 0, 5, 2, 6])
    assert (new(work), finish(work), work.had) == ([5, 6], [], 3)


def test_a_shard_that_was_begun_is_finished_where_all_of_it_is_wanted(library):
    addition = add(library, [0, 1, 2, 3, 4])
    commit(library, addition, 1)
    work = plan(library, [5, 4, 3, 2, 1, 0])
    assert (finish(work), new(work), work.had, work.left) == ([(addition.name, 0), (addition.name, 2)], [5], 2, 0)


def test_a_shard_that_is_not_wanted_whole_is_left_and_its_wanted_items_are_new(library):
    add(library, [0, 1, 2, 3])
    work = plan(library, [1, 2, 3])
    assert (len(work.finish), new(work), work.left, work.attempt) == (1, [1], 1, 1)
    assert plan(library, [7]).left == 0, "what holds nothing that is wanted is nobody's loss"
    for retry in (False, True):
        assert plan(library, [], retry_failed=retry).finish == []


def test_a_pending_shard_whose_keys_are_had_elsewhere_is_dead(library):
    add(library, [0, 1])
    commit(library, add(library, [0, 1, 2], shard_items=3), 0)
    work = plan(library, [0, 1, 2])
    assert (finish(work), new(work), work.had, work.left) == ([], [], 3, 0)


@pytest.mark.parametrize("parts", [1, 3])
def test_of_pending_shards_that_share_keys_one_is_finished(library, parts):
    add(library, [0, 1])
    add(library, [1])
    add(library, [1, 2])
    work = plan(library, [0, 1, 2] if parts == 1 else [1], parts=parts)
    made = [key.tobytes() for place in work.finish for key in place.addition.keys_of(place.shard)]
    made += [key.tobytes() for key in work.new]
    assert sorted(made) == sorted(key.tobytes() for key in (KEYS[:3] if parts == 1 else KEYS[1:2])), "each key once"


@pytest.mark.parametrize("parts", [1, 3])
def test_a_part_leaves_to_others_what_they_may_be_at_work_on(library, parts):
    add(library, [0, 1, 2, 3])
    work = plan(library, [1, 2, 3, 4], parts=parts)
    assert len(work.finish) == 1 and work.left == 1
    assert new(work) == ([1, 4] if parts == 1 else [4])


def test_what_is_missing_is_asked_for_again_as_another_addition(library):
    commit(library, add(library, [0, 1]), 0, OK, MISSING)
    work = plan(library, [0, 1])
    assert (new(work), work.attempt, work.had) == ([1], 1, 1)
    again = add(library, [1], attempt=1)
    commit(library, again, 0, MISSING)
    assert plan(library, [0, 1]).attempt == 2
    commit(library, add(library, [1], attempt=2), 0)
    assert new(plan(library, [0, 1])) == []


@pytest.mark.parametrize(("status", "tried"), [(BROKEN, True), (LATE, True), (PARTIAL, False), (OK, False)])
def test_failures_are_tried_again_where_that_is_asked_for(library, status, tried):
    commit(library, add(library, [0, 1]), 0, status, OK)
    assert new(plan(library, [0, 1])) == []
    work = plan(library, [0, 1], retry_failed=True)
    assert (new(work), work.attempt) == (([0], 1) if tried else ([], 0))


def test_a_retry_that_was_begun_comes_first_and_nothing_is_tried_twice_meanwhile(library):
    commit(library, add(library, [0, 1, 2, 3]), 0, BROKEN, BROKEN)
    commit(library, add(library, [0, 1, 2, 3]), 1, BROKEN, LATE)
    retry = add(library, [0, 1, 2], attempt=1)
    work = plan(library, [0, 1, 2, 3, 4], retry_failed=True)
    assert (finish(work), new(work), work.had) == ([(retry.name, 0), (retry.name, 1)], [4], 1)
    commit(library, retry, 0, OK, BROKEN)  # the launch that planned it was killed here
    work = plan(library, [0, 1, 2, 3], retry_failed=True)
    assert (finish(work), new(work)) == ([(retry.name, 1)], [])
    assert new(plan(library, [0, 1, 2, 3])) == []
    commit(library, retry, 1, OK)
    work = plan(library, [0, 1, 2, 3], retry_failed=True)
    assert (finish(work), new(work), work.attempt) == ([], [1, 3], 2)


def test_a_retry_of_what_is_no_longer_wanted_holds_up_nothing(library):
    commit(library, add(library, [0, 1]), 0, BROKEN, BROKEN)
    add(library, [0, 1], attempt=1)
    work = plan(library, [0], retry_failed=True)
    assert (finish(work), new(work), work.left) == ([], [0], 1)
    work = plan(library, [0, 1, 2], retry_failed=True)
    assert (len(work.finish), new(work)) == (1, [2])
