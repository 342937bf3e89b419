"""Videos that are judged on and were trained on are counted by what they hold, and what is not known is not called none."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from glscl.cache.store import open_store
from glscl.evaluate.ensemble import evaluate_ensemble
from glscl.evaluate.evaluation import evaluate_run
from glscl.evaluate.run_names import seen_in_training
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head.checkpoint import read_run, write_run


@pytest.fixture
def made(small_cache):
    """Twenty videos: the first twelve are trained on (the third gave no frames), the others tested on."""
    cache = small_cache(videos=20, captions=2, dim=16)
    cache.fill()
    return cache


def ids(made):
    return made.list.video_ids


def seen(store, run=None, **settings):
    notes = []
    result = evaluate_run(store, run, EvaluateSettings(confidence=False, **settings), note=notes.append).result
    return result["counts"]["videos_seen_in_training"], " ".join([*notes, seen_in_training(result) or ""]).strip()


def test_a_run_judged_on_its_own_test_split_has_seen_none_of_it(made, untrained_run):
    store = open_store(made.path)
    assert seen(store, untrained_run(store)) == (0, "")


def test_training_videos_are_known_again_whatever_list_and_id_they_stand_under(made, untrained_run):
    run = untrained_run(open_store(made.path))
    made.add_list("full", dict.fromkeys(ids(made)[7:], "test"), prefix="other name of ")
    count, notes = seen(open_store(made.path, "full"), run)
    assert count == 5
    assert "5 of the 13 videos were seen in training" in notes


def test_of_a_video_that_gave_no_frames_nothing_was_seen(made, untrained_run):
    store = open_store(made.path)
    count, _ = seen(store, untrained_run(store), split="train")
    assert count == 11 == store.table("train").num_videos


def test_two_ids_of_one_content_are_two_videos_that_were_seen(made, untrained_run):
    store = open_store(made.path)
    keys = store.list.video_key[[12, 13, 0, 1]]
    split = dict(zip(ids(made)[12:14], ["test", "test"])) | dict(zip(ids(made)[:2], ["train", "train"]))
    made.add_list("copies", split, video_key=np.stack([keys[2], keys[2], keys[2], keys[3]]))
    assert seen(open_store(made.path, "copies"), untrained_run(open_store(made.path, "copies")))[0] == 2


def test_an_untrained_head_has_seen_nothing(made):
    assert seen(open_store(made.path), split="train") == (0, "")


def test_the_list_of_a_run_is_looked_for_where_it_was_trained_too(made, small_cache, untrained_run, tmp_path):
    run = untrained_run(open_store(made.path))
    elsewhere = small_cache(name="elsewhere", videos=20, captions=2, dim=16)
    elsewhere.fill()
    shutil.rmtree(elsewhere.path / "lists")
    elsewhere.add_list("full", dict.fromkeys(ids(made)[7:], "test"))
    store = open_store(elsewhere.path)
    assert seen(store, run)[0] == 5
    made.path.rename(tmp_path / "gone")
    count, notes = seen(store, run)
    assert count is None
    assert f"was trained on the list made@{read_run(run)['list_hash']}, which is neither in {elsewhere.path}" in notes


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"imported": {"notes": []}}, "was imported"),
        ({"list": "", "list_hash": "", "annotations": ""}, "does not say which list it was trained on"),
        ({"start": "/nowhere"}, "the run /nowhere is not there any more"),
    ],
)
def test_what_a_run_was_trained_on_may_be_unknown(made, untrained_run, changes, reason):
    store = open_store(made.path)
    count, notes = seen(store, untrained_run(store, **changes))
    assert count is None and reason in notes


def test_what_the_run_it_started_from_had_seen_counts_too(made, untrained_run):
    first = untrained_run(open_store(made.path), "first")
    made.add_list("rest", dict.fromkeys(ids(made)[:9], "test") | dict.fromkeys(ids(made)[9:], "train"))
    store = open_store(made.path, "rest")
    assert seen(store, untrained_run(store, "second"))[0] == 0
    second = untrained_run(store, "second", start=str(first))
    assert seen(store, second)[0] == 8
    write_run(first, {**read_run(first), "start": str(second)})  # a circle ends
    assert seen(store, second)[0] == 8


def test_several_runs_together_have_seen_what_any_of_them_has(made, untrained_run):
    split = dict.fromkeys(ids(made)[:6], "test") | dict.fromkeys(ids(made)[6:], "train")
    made.add_list("later", split)
    own, later = open_store(made.path, "made"), open_store(made.path, "later")
    runs = untrained_run(own, "a"), untrained_run(later, "b", seed=1)

    def together(store):
        notes = []
        result = evaluate_ensemble(store, runs, EvaluateSettings(confidence=False), note=notes.append).result
        return result["counts"]["videos_seen_in_training"], " ".join([*notes, seen_in_training(result) or ""]).strip()

    assert together(own)[0] == 8 and together(later)[0] == 5
    write_run(runs[0], {**read_run(runs[0]), "list_hash": ""})
    assert together(own)[0] == 8  # at least
    count, notes = together(later)
    assert count is None and f"{runs[0]} does not say" in notes


def test_a_head_of_9k_has_seen_1990_of_the_2990_test_videos_of_full(real_data):
    from glscl.cache.keys import as_array, text_key
    from glscl.cache.lists import arrange, make_list
    from glscl.evaluate.seen_in_training import Training, videos_seen
    from glscl.extract.datasets import dataset_entry

    def listed(protocol):
        found = dataset_entry("msrvtt").read(real_data / "annotations" / "MSRVTT", None, protocol=protocol)
        found = arrange(found)
        contents = as_array(text_key(video.id) for video in found.videos)
        none = np.zeros((len(found.texts), 16), np.uint8)
        about = {"name": protocol, "family": "msrvtt", "recipe": "msrvtt"}
        return make_list(found, video_key=contents, video_content=contents, text_key=none, **about)

    full, training = listed("full"), Training([listed("9k")], [])
    run = full.splits["test"].videos
    assert len(run) == 2990
    assert videos_seen(full, "test", full.video_ids[run.start : run.stop], training) == 1990
