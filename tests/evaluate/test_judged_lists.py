"""Numbers of different lists never stand side by side without a word, and those of one test do."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from glscl.cache.store import open_store
from glscl.common.errors import NotFoundError, UsageError
from glscl.common.tables import render
from glscl.evaluate.compare.comparison import compare_runs
from glscl.evaluate.ensemble import evaluate_ensemble, sharing_list
from glscl.evaluate.evaluated_run import EvaluatedRun, open_cache_of, read_evaluated, with_distinct_names
from glscl.evaluate.evaluation import evaluate_run, write_result
from glscl.evaluate.judged_lists import by_judged_data, list_notes, split_hash
from glscl.evaluate.report.examination import examine
from glscl.evaluate.report.page import write_report
from glscl.evaluate.run_names import result_name
from glscl.evaluate.search.model import load_run
from glscl.evaluate.settings import EvaluateSettings

QUICK = EvaluateSettings(confidence=False)
LIST = ("list", "list_hash", "annotations", "split_annotations")


@pytest.fixture
def made(small_cache):
    """Twenty videos, twelve to train on."""
    cache = small_cache(videos=20, captions=2, dim=16)
    cache.fill()
    return cache


@pytest.fixture
def lists(made):
    """Stores of one cache: its own list; one with the same test split and less to train on; one with another test split."""
    ids = made.list.video_ids
    made.add_list("short", dict.fromkeys(ids[:6], "train") | dict.fromkeys(ids[12:], "test"))
    made.add_list("full", dict.fromkeys(ids[:6], "train") | dict.fromkeys(ids[6:], "test"))
    return {name: open_store(made.path, name) for name in ("made", "short", "full")}


def judged(store, run=None, name=""):
    return EvaluatedRun.from_evaluation(evaluate_run(store, run, QUICK), name=name, folder=run)


def older(run):
    """A result as it was before results told their list."""
    return replace(run, result={key: value for key, value in run.result.items() if key not in LIST})


def test_the_hash_of_a_split_is_that_of_its_own_entries_in_any_order(made, lists):
    own = lists["made"].list
    assert split_hash(own, "test") == split_hash(lists["short"].list, "test")
    assert split_hash(own, "test") != split_hash(lists["full"].list, "test")
    assert split_hash(own, "train") != split_hash(lists["short"].list, "train")
    other_way = made.add_list("reversed", dict.fromkeys(own.video_ids[:11:-1], "test"))
    assert other_way.video_ids == own.video_ids[:11:-1] and split_hash(other_way, "test") == split_hash(own, "test")
    for text in made.annotations.texts:
        if text.id.endswith("#0"):
            made.annotations.texts[made.annotations.texts.index(text)] = replace_text(text)
    assert split_hash(made.list, "test") != split_hash(own, "test")


def replace_text(text):
    return type(text)(text.id, text.video, text.split, f"{text.text}!")


# ---- compare ---------------------------------------------------------------------------------------------------------


def test_lists_with_one_test_split_share_a_table_that_names_them(lists):
    runs = [judged(lists["made"], name="a"), judged(lists["short"], name="b"), judged(lists["made"], name="c")]
    comparison = compare_runs(runs, published=False, resamples=20)
    assert [other.name for other in comparison.against] == ["b", "c"]
    first = comparison.tables()[0]
    where = f"a, c on made@{lists['made'].list_hash}; b on short@{lists['short'].list_hash}"
    said = f"Judged on lists that differ, but not in this split: {where}."
    assert said in first.notes and said in comparison.as_dict()["notes"]
    assert not any("lists" in note for note in compare_runs(runs[::2], published=False).tables()[0].notes)


def test_the_same_annotations_with_other_files_are_told(made, lists):
    own = lists["made"].list
    other = own.video_key.copy()
    other[0] = other[13]
    made.add_list(
        "made", {id: "train" if row < 12 else "test" for row, id in enumerate(own.video_ids)}, video_key=other
    )
    newer = open_store(made.path, "made")
    assert newer.list.annotations == own.annotations and newer.list_hash != own.hash
    runs = [judged(lists["made"], name="a"), judged(newer, name="b")]
    table = compare_runs(runs, published=False, resamples=20).tables()[0]
    said = f"lists of the same annotations with other files: a on made@{own.hash}; b on made@{newer.list_hash}"
    assert any(said in note for note in table.notes)
    assert said in render(table, "terminal")


def test_other_test_videos_have_a_table_of_their_own_and_are_not_tested(lists):
    runs = [judged(lists["made"], name="a"), judged(lists["full"], name="b"), judged(lists["short"], name="c")]
    comparison = compare_runs(runs, published=False, resamples=20)
    assert [other.name for other in comparison.against] == ["c"]
    versions = {name: f"{name}@{store.list_hash}" for name, store in lists.items()}
    told = f"b was not tested against a: they were judged on other videos or captions, {versions['made']} and {versions['full']}."
    assert told in comparison.notes
    tables = comparison.tables()
    assert [table.title for table in tables[:2]] == [
        f"made, test ({versions['made']}, {versions['short']})",
        f"made, test ({versions['full']})",
    ]
    assert [{row.cells[0] for row in table.rows} for table in tables[:2]] == [{"a", "c"}, {"b"}]
    assert comparison.as_dict()["runs"]["b"]["list"] == "full"


def test_a_result_that_does_not_say_its_list_is_told_apart(lists):
    old, new = older(judged(lists["made"], name="old")), judged(lists["made"], name="new")
    comparison = compare_runs([old, new, judged(lists["full"], name="full")], published=False, resamples=20)
    first, second = comparison.tables()[:2]
    assert {row.cells[0] for row in first.rows} == {"old", "new"}
    assert "old: not known which list it was judged on." in first.notes
    assert not any("not known" in note for note in second.notes)
    assert list_notes([("old", old.result)]) == ["old: not known which list it was judged on."]
    assert [each.members for each in by_judged_data([old.result, old.result])] == [[0, 1]]


def test_a_run_that_has_seen_what_it_is_judged_on_is_marked_in_every_table(lists, untrained_run):
    run = untrained_run(lists["made"])
    seen, clean = judged(lists["full"], run), judged(lists["full"])
    assert seen.result["counts"]["videos_seen_in_training"] == 6
    comparison = compare_runs([replace(clean, name="zero-shot"), seen], published=False, resamples=20)
    assert [each.name for each in comparison.runs] == ["zero-shot", "mean_pool ‡"]
    said = "mean_pool ‡: 6 of the 14 videos were seen in training: the numbers do not tell how it does on others."
    for table in comparison.tables():
        assert "mean_pool ‡" in render(table, "terminal") and said in table.notes, table.title
        assert r"mean\_pool \ddag{}" in render(table, "latex")
    assert set(comparison.as_dict()["runs"]) == {"zero-shot", "mean_pool"}
    both = replace(seen, result={**seen.result, "selection": "test"})
    assert with_distinct_names([both])[0].name == "mean_pool †‡"
    assert with_distinct_names(with_distinct_names([both]))[0].name == "mean_pool †‡"


# ---- report ----------------------------------------------------------------------------------------------------------


def test_a_report_tells_lists_apart_and_marks_what_was_seen(lists, untrained_run, undrawn, tmp_path):
    run = untrained_run(lists["made"])
    runs = [judged(lists["made"], run, "own"), judged(lists["full"], run, "more"), judged(lists["short"], name="less")]
    page = write_report(runs, tmp_path / "report.html", resamples=5).read_text()
    versions = {name: f"{name}@{store.list_hash}" for name, store in lists.items()}
    assert f"Results: made, test ({versions['made']}, {versions['short']})" in page
    assert f"Results: made, test ({versions['full']})" in page
    assert "more ‡: 6 of the 14 videos were seen in training" in page and "own ‡" not in page
    assert page.count(">seen in training<") == 4  # in both directions, also beside the metrics that are folded away
    assert f"own on {versions['made']}; less on {versions['short']}" in page
    assert f"<dt>List</dt><dd>{versions['full']}</dd>" in page
    assert f"captions of 22 videos, of the list {versions['made']}" in page
    assert "<dt>Judged videos seen in training</dt><dd>6</dd>" in page


def test_failures_of_two_lists_are_listed_apart(lists, undrawn, tmp_path):
    failures = [{"id": "v", "reason": "broken", "status": "decode_error"}]
    runs = [replace(judged(lists[name], name=name), failures=failures) for name in ("made", "short", "full")]
    page = write_report(runs, tmp_path / "report.html", resamples=5).read_text()
    assert page.count("broken") == 3


# ---- results and caches ----------------------------------------------------------------------------------------------


def test_a_result_is_read_back_on_the_version_it_was_judged_on(made, lists, tmp_path):
    write_result(tmp_path / "result.json", evaluate_run(lists["made"], settings=QUICK))
    own = lists["made"].list
    made.add_list("made", dict.fromkeys(own.video_ids[:3], "train") | dict.fromkeys(own.video_ids[3:9], "test"))
    store, run = open_cache_of(read_evaluated(tmp_path))
    assert store.list_hash == own.hash and run.notes == () and set(run.text_ids) <= set(run.captions)
    assert examine(run, store).notes == ()


def test_a_cache_whose_list_has_other_captions_is_not_shown_beside_a_result(lists, small_cache, tmp_path):
    write_result(tmp_path / "result.json", evaluate_run(lists["full"], settings=QUICK))
    run = read_evaluated(tmp_path)
    moved = small_cache(name="moved", videos=20, captions=2, dim=16)
    moved.fill()
    store, noted = open_cache_of(run, moved.path)
    assert store is None
    assert (
        f"other videos or captions than mean_pool was judged on (made@{moved.list.hash}, then full@" in noted.notes[0]
    )
    moved.add_list("second", {moved.list.video_ids[0]: "test"})
    store, noted = open_cache_of(run, moved.path)
    assert store is None and "has several lists: made, second" in noted.notes[0]
    short = EvaluatedRun(result=evaluate_run(lists["short"], settings=QUICK).result)
    store, noted = open_cache_of(short, small_cache(name="once more", videos=20, captions=2, dim=16).fill().path)
    assert store is not None and noted.notes == ()  # another list with the same test split


def test_results_of_several_lists_stand_in_one_folder(lists, tmp_path):
    assert [result_name("test"), result_name("val"), result_name("val", "full")] == [
        "result.json",
        "result-val.json",
        "result-val@full.json",
    ]
    write_result(tmp_path / result_name("test"), evaluate_run(lists["made"], settings=QUICK))
    write_result(tmp_path / result_name("test", "full"), evaluate_run(lists["full"], settings=QUICK))
    assert read_evaluated(tmp_path).result["list"] == read_evaluated(tmp_path, list="made").result["list"] == "made"
    assert read_evaluated(tmp_path, list="full").result["list"] == "full"
    with pytest.raises(NotFoundError, match=r"not judged on the split test of the list short.*eval \(.*list=short\)"):
        read_evaluated(tmp_path, list="short")


# ---- which list is meant ---------------------------------------------------------------------------------------------


def test_a_run_is_judged_and_searched_at_its_own_version_unless_a_list_is_named(made, lists, untrained_run):
    run = untrained_run(lists["short"])
    ids = lists["short"].list.video_ids
    made.add_list("short", dict.fromkeys(ids[:9], "test"))
    for cache in (None, made.path, str(made.path)):
        assert evaluate_run(cache, run, QUICK).result["list_hash"] == lists["short"].list_hash
        assert load_run(run, cache).cache.list_hash == lists["short"].list_hash
        assert evaluate_run(cache, run, QUICK, list="full").result["list"] == "full"
        assert load_run(run, cache, list="made").cache.list_name == "made"
    assert evaluate_run(lists["made"], run, QUICK).result["list"] == "made"
    assert evaluate_run(lists["made"], run, QUICK, list="full").result["list"] == "full"
    assert load_run(run, lists["full"]).cache is lists["full"]


def test_without_a_run_the_list_must_be_said_where_there_are_several(made, lists):
    with pytest.raises(UsageError, match=r"several lists: full, made, short.*`list`"):
        evaluate_run(made.path, settings=QUICK)
    assert evaluate_run(made.path, settings=QUICK, list="short").result["list"] == "short"
    with pytest.raises(UsageError, match="neither a cache nor a run"):
        evaluate_run(None)


def test_runs_of_different_lists_are_judged_as_one_only_where_a_list_is_named(lists, untrained_run):
    a, b = untrained_run(lists["made"], "a"), untrained_run(lists["short"], "b")
    imported = untrained_run(lists["made"], "c", list="", list_hash="", annotations="")
    with pytest.raises(UsageError, match=r"a was trained on the list made@\w+, .*b on short@\w+.*`list`"):
        sharing_list([a, b])
    assert sharing_list([imported, b]) == b and sharing_list([imported]) == imported and sharing_list([a, a]) == a
    result = evaluate_ensemble(lists["full"], [a, b], QUICK).result
    assert [result[key] for key in LIST[:2]] == ["full", lists["full"].list_hash]
    assert np.isfinite(result["text_to_video"]["MnR"])
