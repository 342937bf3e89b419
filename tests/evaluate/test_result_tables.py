"""Tables keep frozen and fine-tuned apart, say what must be said, and can be read back in every style."""

import csv
import io
import itertools

import pytest

from glscl.common.errors import UsageError
from glscl.common.tables import STYLES, Measured, render
from glscl.evaluate.metrics import main_metrics
from glscl.evaluate.paired import Paired, paired_test
from glscl.evaluate.published import FROZEN
from glscl.evaluate.result_tables import (
    coverage_notes,
    paired_table,
    result_notes,
    results_tables,
)


def result(head="glscl", *, r1=31.25, frozen=True, dataset="msrvtt", run=None, selection="validation", normalised=None):
    metrics = {"R@1": r1, "R@5": 50.0, "R@10": 60.0, "R@50": 90.0, "MdR": 3.5, "MnR": 22.04, "queries": 1000}
    return {
        "dataset": dataset, "split": "test", "head": head, "run": run, "backbone": "ViT-B-32", "selection": selection,
        "frozen_backbone": frozen, "text_to_video": metrics, "video_to_text": metrics, "normalised": normalised or {},
    }  # fmt: skip


def methods(table):
    return list(dict.fromkeys(row.cells[0] for row in table.rows))


def test_results_of_frozen_and_fine_tuned_backbones_never_share_a_section():
    (table,) = results_tables([result("a"), result("b", frozen=False), result("c")])
    sections = {row.cells[0]: row.section for row in table.rows}
    assert sections["a"] == sections["c"] == "Frozen backbone"
    assert sections["b"] == "Fine-tuned backbone"
    assert sections["CLIP zero-shot, mean of 12 frames"] == "Published, frozen backbone"
    assert sections["GLSCL"] == "Published, fine-tuned backbone"
    for row in table.rows:
        assert (row.cells[2] == FROZEN) == ("frozen" in row.section.lower())
    assert any("not comparable" in note for note in table.notes)
    (table,) = results_tables([result("a"), result("c")], published=False)
    assert len(table.rows) == 4 and not any("not comparable" in note for note in table.notes)


def test_each_dataset_has_its_own_table_with_its_own_published_rows():
    tables = results_tables([result("a", dataset="msvd"), result("b", dataset="demo"), result("c", dataset="msvd")])
    assert [table.title for table in tables] == ["msvd, test", "demo, test"]
    assert methods(tables[0])[:2] == ["a", "c"]
    assert methods(tables[1]) == ["b"]
    assert [row.cells[3] for row in tables[1].rows] == ["t2v", "v2t"]


def test_published_rows_stand_beside_their_own_test_set_alone():
    official = result("a") | {
        "counts": {"videos": 2990, "texts": 59800, "expected_videos": 2990, "expected_texts": 59800}
    }
    short = result("a") | {"counts": {"videos": 990, "texts": 990, "expected_videos": 1000, "expected_texts": 1000}}
    assert len(methods(results_tables([short])[0])) > 10
    for other in (official, result("a") | {"split": "val"}):
        assert methods(results_tables([other])[0]) == ["a"]


def test_a_normalised_result_stands_below_its_own_and_names_its_extra_data():
    metrics = result(r1=40.0)["text_to_video"]
    both = {"text_to_video": metrics, "video_to_text": metrics}
    normalised = {
        "qb-norm": {**both, "bank": "first caption of 9000 training videos", "transductive": False},
        "dsl": {**both, "bank": "none", "transductive": True},
    }
    (table,) = results_tables([result(normalised=normalised), result("b", selection="test")], published=False)
    assert methods(table) == ["glscl", "glscl + qb-norm", "glscl + dsl *", "b †"]
    assert table.rows[2].cells[3:5] == ("t2v", 40.0)
    notes = " ".join(table.notes)
    assert "glscl + qb-norm uses extra data: first caption of 9000 training videos." in notes
    assert "glscl + dsl sees all test queries at once." in notes
    assert "*: not what a query gets that comes alone." in notes
    assert "b † was selected on the test split, so its numbers are optimistic." in notes


def test_normalisations_with_one_bank_share_a_note():
    both = dict.fromkeys(("text_to_video", "video_to_text"), result()["text_to_video"])
    bank = {**both, "bank": "first caption of 9 training videos", "transductive": False}
    assert result_notes("a", {"normalised": {"qb-norm": bank, "nnn": bank}}) == [
        "a + qb-norm, nnn use extra data: first caption of 9 training videos."
    ]


def test_a_split_that_was_not_judged_whole_is_said_once():
    counts = {"texts": 990, "videos": 995, "expected_texts": 1000, "expected_videos": 1000, "texts_without_video": 10}
    whole = {**counts, "texts": 1000, "videos": 1000, "texts_without_video": 0}
    results = [{**result(name), "counts": of} for name, of in (("a", counts), ("b", counts), ("c", whole))]
    notes = coverage_notes([(of["head"], of) for of in results])
    assert notes == [
        "a, b: judged on 995 of 1,000 published videos and 990 of 1,000 published captions, so not comparable with "
        "published numbers.",
        "a, b: 10 captions lost their video and are no queries.",
    ]
    assert coverage_notes([("a", results[0]), ("b", results[1])])[1].startswith("All: ")
    assert coverage_notes([("c", results[2])]) == []
    (table,) = results_tables(results)
    assert set(notes) <= set(table.notes)


def test_intervals_stand_below_in_text_and_in_columns_of_their_own_in_csv():
    confidence = {
        direction: {name: [1.25, 2.5] for name in main_metrics()} for direction in ("text_to_video", "video_to_text")
    }
    (table,) = results_tables([{**result(), "confidence_95": confidence}], published=False)
    assert table.rows[0].cells[4] == Measured(31.25, 1.25, 2.5)
    lines = render(table, "terminal").splitlines()
    below = next(i for i, line in enumerate(lines) if line.startswith("glscl")) + 1
    assert lines[below].split() == ["95", "%", *["1.2–2.5"] * 5]
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [(row["Direction"], row["R@1"], row["R@1 low"], row["R@1 high"]) for row in rows] == [
        ("t2v", "31.25", "1.25", "2.5"),
        ("v2t", "31.25", "1.25", "2.5"),
    ]
    assert r"1.2--2.5" in render(table, "latex") and "| 95 % |" in render(table, "markdown")


def test_p_values_have_a_column_where_there_is_something_to_test():
    p_values = {"b": {"text_to_video": 0.004, "video_to_text": 0.5}}
    (table,) = results_tables([result("a"), result("b")], p_values=p_values, published=True)
    assert table.columns[-1] == "p"
    assert [row.cells[-1] for row in table.rows[:5]] == [None, None, "0.0040", "0.50", None]
    assert any("against a" in note for note in table.notes)
    assert "p" not in results_tables([result("a")])[0].columns


def test_runs_of_one_head_are_told_apart():
    (table,) = results_tables([result(run="runs/1"), result(run="runs/2"), result("b", run="runs/3")], published=False)
    assert methods(table) == ["glscl (runs/1)", "glscl (runs/2)", "b"]
    (table,) = results_tables([result()], published=False, names=["mine"])
    assert table.rows[0].cells[0] == "mine"
    with pytest.raises(UsageError, match="2 names for 1 results"):
        results_tables([result()], names=["a", "b"])


def test_every_style_renders_every_table_and_an_unknown_one_is_refused():
    tables = [*results_tables([result(), result("b", frozen=False)])]
    tables.append(paired_table("a", "b", {"text_to_video": paired_test([1, 2, 3], [1, 1, 5], resamples=10)}))
    for table, style in itertools.product(tables, STYLES):
        text = render(table, style)
        assert text.endswith("\n")
        assert all(row.cells[0] in text.replace(r"\_", "_") for row in table.rows)


def test_the_table_of_a_comparison_shows_both_runs_the_difference_and_p():
    tests = {"video_to_text": {"R@1": Paired(40.0, 42.0, 2.0, [0.5, 3.5], 0.004)}}
    text = render(paired_table("old", "new", tests), "terminal")
    assert text.startswith("new against old\n")
    assert ["R@1", "40.0", "42.0", "2.0", "0.5", "3.5", "0.0040"] in [line.split() for line in text.splitlines()]
