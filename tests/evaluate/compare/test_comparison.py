"""Reading runs back, and putting them side by side: what lacks is said, what is said can be parsed."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from glscl.common.errors import InputError, NotFoundError
from glscl.common.tables import STYLES, render
from glscl.evaluate.compare.comparison import compare_runs
from glscl.evaluate.evaluated_run import EvaluatedRun, open_cache_of, read_evaluated, with_distinct_names
from glscl.evaluate.metrics import main_metrics
from glscl.evaluate.paired import paired_test
from glscl.evaluate.result_tables import SHORT_NAMES


@pytest.fixture
def runs(judged):
    return [open_cache_of(read_evaluated(folder))[1] for folder in (judged.zero_shot, judged.run, judged.other)]


@pytest.fixture
def copied(judged, tmp_path):
    """A copy of the glscl run that a test may damage."""
    return shutil.copytree(judged.run, tmp_path / "copied")


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_a_run_is_read_back_as_it_was_judged(judged):
    for name in ("zero_shot", "run"):
        read, evaluation = read_evaluated(getattr(judged, name)), judged.evaluations[name]
        assert read.result == json.loads(json.dumps(evaluation.result)) and read.notes == ()
        for direction, ranks in evaluation.ranks.items():
            np.testing.assert_array_equal(read.ranks[direction], ranks)
        assert list(read.text_ids) == evaluation.text_ids and list(read.video_ids) == evaluation.video_ids
        np.testing.assert_array_equal(read.video_of_text, evaluation.video_of_text)
        assert [row["epoch"] for row in read.history] == ([1, 2, 3] if name == "run" else [])
        made = EvaluatedRun.from_evaluation(evaluation, folder=judged.run if name == "run" else None)
        assert made.history == read.history and made.title == read.title
    assert read_evaluated(judged.run / "result.json").run["command"] == read.run["command"]


def test_the_cache_adds_captions_failures_and_provenance(judged):
    store, run = open_cache_of(read_evaluated(judged.run))
    assert store.path == judged.store.path
    assert set(run.text_ids) <= set(run.captions) and all("caption" in text for text in run.captions.values())
    assert run.extraction["command"] == "glscl extract --dataset made"
    assert run.failures == []  # those of the small cache are in its training split


def test_what_is_not_a_run_is_refused(judged, tmp_path, copied):
    with pytest.raises(NotFoundError, match="There is no run at"):
        read_evaluated(tmp_path / "none")
    with pytest.raises(NotFoundError, match=r"Do: eval \(run=.*, split=val\)"):
        read_evaluated(judged.run, split="val")
    result = json.loads((copied / "result.json").read_text())
    for content, message in (
        ("{", "cannot be read as a result"),
        ("[]", "found a list"),
        (json.dumps({k: v for k, v in result.items() if k != "counts"}), "missing required field counts"),
        (json.dumps({**result, "text_to_video": {"R@1": "high"}}), "no number for R@1"),
    ):
        (copied / "result.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_evaluated(copied)


def damage_ranks(folder):
    (folder / "result.ranks.npz").write_bytes(b"PK not a zip")


def other_ranks(folder):
    shutil.copy(folder.parent / "other.npz", folder / "result.ranks.npz")


@pytest.mark.parametrize(
    "damage,message",
    [
        (lambda folder: (folder / "result.ranks.npz").unlink(), "are not there"),
        (damage_ranks, "cannot be read"),
        (other_ranks, "belong to another evaluation"),
    ],
)
def test_ranks_that_cannot_be_had_become_a_sentence(judged, copied, damage, message):
    shutil.copy(judged.other / "result.ranks.npz", copied.parent / "other.npz")
    damage(copied)
    run = read_evaluated(copied)
    assert run.ranks is None and message in run.notes[0]
    comparison = compare_runs([read_evaluated(judged.run), run], published=False)
    assert comparison.against == [] and any("was not tested" in note for note in comparison.notes)
    assert any(message in note for note in comparison.tables()[0].notes)


def test_a_history_or_cache_that_cannot_be_had_becomes_a_sentence(copied, judged, small_cache):
    (copied / "history.jsonl").write_text("{not json")
    assert "no training curves" in read_evaluated(copied).notes[0]
    (copied / "run.json").write_text("{}")
    assert "How it was trained is not known" in read_evaluated(copied).notes[0]
    run = replace(read_evaluated(judged.run), result={**read_evaluated(judged.run).result, "cache": "/nowhere"})
    store, noted = open_cache_of(run)
    assert store is None and "/nowhere is not there" in noted.notes[0]
    store, noted = open_cache_of(run, judged.store.path)
    assert store is not None and noted.notes == ()
    store, noted = open_cache_of(run, small_cache(videos=4, dim=4).fill().path)
    assert store is None and "is another one" in noted.notes[0]
    (copied / "empty").mkdir()
    store, noted = open_cache_of(run, copied / "empty")
    assert store is None and "cannot be read" in noted.notes[0]


def test_names_are_distinct(runs):
    zero, run, other = runs
    assert [of.name for of in with_distinct_names(runs)] == ["mean_pool", "glscl (run)", "glscl (other) †"]
    assert [of.name for of in with_distinct_names([run, run])] == ["glscl (run)", "glscl (run) #2"]
    named = [replace(of, name="same") for of in (zero, run, other)]
    assert [of.name for of in with_distinct_names(named)] == ["same", "same #2", "same #3 †"]


# ---- comparing -------------------------------------------------------------------------------------------------------


def test_later_runs_are_tested_against_the_first(runs):
    comparison = compare_runs(runs, published=False, resamples=200, top=3)
    assert [of.name for of in comparison.against] == ["glscl (run)", "glscl (other) †"]
    for of, run in zip(comparison.against, runs[1:]):
        for direction in SHORT_NAMES:
            cluster = runs[0].video_of_text if direction == "text_to_video" else None
            expected = paired_test(runs[0].ranks[direction], run.ranks[direction], cluster, resamples=200)
            assert of.tests[direction] == expected
            assert of.tests[direction]["R@1"].after == run.result[direction]["R@1"]
        assert of.improved + of.worsened + of.unchanged == len(run.text_ids)
        gains = [moved.before - moved.after for moved in of.most_improved]
        assert gains == sorted(gains, reverse=True) and all(gain > 0 for gain in gains)
        assert all(moved.caption == runs[0].captions[moved.id] for moved in (*of.most_improved, *of.most_worsened))


def test_where_no_caption_moved_no_empty_table_stands(runs):
    same = compare_runs([runs[1], replace(runs[1], name="again")], published=False, resamples=20)
    assert not [table.title for table in same.tables() if not table.rows]
    assert "0 captions rank higher in again, 0 lower" in " ".join(same.tables()[-1].notes)


def test_the_other_way_round_p_is_the_same_and_the_difference_the_opposite(runs):
    (there,) = compare_runs(runs[:2], published=False, resamples=200).against
    (back,) = compare_runs(runs[1::-1], published=False, resamples=200).against
    for direction in SHORT_NAMES:
        for name in main_metrics():
            assert there.tests[direction][name].p == back.tests[direction][name].p
            assert there.tests[direction][name].difference == -back.tests[direction][name].difference
    assert [moved.id for moved in there.most_improved] == [moved.id for moved in back.most_worsened]
    (same,) = compare_runs([runs[1], runs[1]], published=False, resamples=50).against
    assert all(test.p == 1 for tests in same.tests.values() for test in tests.values())
    assert same.most_improved == same.most_worsened == [] and same.unchanged == len(runs[1].text_ids)


def test_runs_on_other_splits_or_queries_are_not_tested(runs):
    first, second = runs[:2]
    elsewhere = replace(second, result={**second.result, "split": "val"})
    comparison = compare_runs([first, elsewhere], published=False)
    assert comparison.against == [] and "judged on made/test and made/val" in comparison.notes[0]
    assert len(comparison.tables()) == 2
    strangers = replace(second, text_ids=[f"x{name}" for name in second.text_ids])
    assert "share no query" in compare_runs([first, strangers], published=False).notes[0]


def test_runs_that_lost_different_videos_are_tested_on_what_both_ranked(runs):
    first, second = runs[:2]
    kept = np.arange(4, len(second.text_ids))
    part = replace(
        second,
        text_ids=[second.text_ids[i] for i in kept],
        video_of_text=second.video_of_text[kept],
        ranks={**second.ranks, "text_to_video": second.ranks["text_to_video"][kept]},
    )
    comparison = compare_runs([first, part], published=False, resamples=50)
    assert comparison.against[0].queries["text_to_video"] == len(kept)
    assert f"{len(kept)} of {len(first.text_ids)} text to video" in comparison.notes[0]


def test_nothing_to_compare_is_an_error():
    with pytest.raises(InputError, match="no runs"):
        compare_runs([])


# ---- what comes out --------------------------------------------------------------------------------------------------


def test_csv_can_be_read_back_with_every_digit(runs):
    comparison = compare_runs(runs, published=False, resamples=100)
    tables = [list(csv.DictReader(io.StringIO(render(table, "csv")))) for table in comparison.tables()]
    by_row = {(row["Method"], row["Direction"]): row for row in tables[0]}
    for run in comparison.runs:
        for direction, short in SHORT_NAMES.items():
            row = by_row[run.name, short]
            for name in main_metrics():
                assert float(row[name]) == run.result[direction][name]
                assert [float(row[f"{name} low"]), float(row[f"{name} high"])] == run.result["confidence_95"][
                    direction
                ][name]
    tests = {(row["Section"], row["Metric"]): float(row["Difference"]) for row in tables[1]}
    assert tests["text to video", "R@1"] == comparison.against[0].tests["text_to_video"]["R@1"].difference
    moved = [row["Caption"] for row in tables[2]]
    assert moved == [of.caption for of in (*comparison.against[0].most_improved, *comparison.against[0].most_worsened)]


def test_markdown_and_latex_can_be_read_back(runs):
    table = compare_runs(runs, published=False, resamples=100).tables()[0]
    expected = {
        (name, short): [f"{run.result[direction][metric]:.1f}" for metric in main_metrics()]
        for run, name in zip(runs, ("mean_pool", "glscl (run)", "glscl (other) †"))
        for direction, short in SHORT_NAMES.items()
    }
    lines = [line.strip("| ").split(" | ") for line in render(table, "markdown").splitlines() if line.startswith("| ")]
    found = {(cells[0], cells[3]): cells[4:9] for cells in lines if (cells[0], cells[3]) in expected}
    assert found == expected
    text = render(table, "latex").replace(r"\_", "_").replace(r"\dag{}", "†")
    lines = [line[:-3].split(" & ") for line in text.splitlines() if line.endswith(r" \\")]
    found = {(cells[0], cells[3]): cells[4:9] for cells in lines if len(cells) > 4 and (cells[0], cells[3]) in expected}
    assert found == expected


def test_a_test_selected_run_is_marked_and_published_rows_stand_apart(runs):
    counts = {**runs[0].result["counts"], "expected_videos": 1000}  # of 1k-A
    named = [replace(run, result={**run.result, "dataset": "msrvtt", "counts": counts}) for run in runs]
    table = compare_runs(named, resamples=50).tables()[0]
    assert any("glscl (other) † was selected on the test split" in note for note in table.notes)
    sections = list(dict.fromkeys(row.section for row in table.rows))
    assert sections == ["Frozen backbone", "Published, frozen backbone", "Published, fine-tuned backbone"]
    without = compare_runs(named, published=False, resamples=50)
    assert {row.section for row in without.tables()[0].rows} == {"Frozen backbone"}
    assert without.as_dict()["published"] == []


@pytest.mark.parametrize("style", STYLES)
def test_every_table_with_a_test_selected_run_marks_it_in_every_style(runs, style):
    comparison = compare_runs(runs, resamples=50)
    marked = [table for table in comparison.tables() if "(other)" in f"{table.title} {table.rows}"]
    assert len(marked) == 3
    for table in marked:
        text = render(table, style).replace(r"\dag{}", "†")
        assert "glscl (other) †" in text
        if style != "csv":  # which has no notes
            assert "so its numbers are optimistic" in text
    assert not any("†" in render(table, style) for table in comparison.tables() if table not in marked)
    assert set(comparison.as_dict()["runs"]) == {"mean_pool", "glscl (run)", "glscl (other)"}


@pytest.fixture
def glscl(capsys):
    """The command line in this process: arguments -> (status, standard output, standard error)."""
    from glscl import cli
    from glscl.commands.options import main

    def run(*arguments):
        status = main(cli.app, [str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


def test_the_command_compares(judged, glscl):
    status, out, _ = glscl("compare", judged.zero_shot, judged.run, "--resamples", 50, "--top", 1)
    assert status == 0 and "mean_pool" in out and "glscl against mean_pool" in out and "[Improved: " in out
    status, out, err = glscl("compare", judged.zero_shot, judged.run, "--resamples", 50, "--json", "--format", "csv")
    found = json.loads(out)
    assert status == 0 and "Table,Section,Method" in err
    assert found["runs"]["glscl"]["text_to_video"] == judged.evaluations["run"].result["text_to_video"]
    assert 0 < found["against_first"]["glscl"]["tests"]["text_to_video"]["R@1"]["p"] <= 1
    assert found["against_first"]["glscl"]["most_improved"][0]["caption"]
    status, _, err = glscl("compare", judged.run, "--format", "html")
    assert status == 2 and "'terminal', 'markdown', 'csv', 'latex'" in err
    status, _, err = glscl("compare", judged.root / "none")
    assert status == 1 and "There is no run at" in err


def test_the_command_reports(judged, glscl, tmp_path):
    page, plots = tmp_path / "page.html", tmp_path / "plots"
    status, out, _ = glscl(
        "report", judged.zero_shot, judged.run, "--out", page, "--plots", plots, "--examples", 1, "--json"
    )
    assert status == 0 and json.loads(out)["report"] == str(page)
    assert "<h1>Text-video retrieval: made, test</h1>" in page.read_text()
    assert {path.suffix for path in plots.iterdir()} == {".png", ".pdf"} and Path(
        plots, "loss.png"
    ).stat().st_size > 3000
