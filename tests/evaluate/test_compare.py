"""Paired tests against enumeration, the queries that moved, and tables that keep frozen and fine-tuned apart."""

import csv
import io
import itertools
import json

import numpy as np
import pytest
from glscl.errors import InputError, UsageError
from glscl.evaluate.compare import (
    METRICS,
    STYLES,
    Change,
    Paired,
    Row,
    Table,
    common_queries,
    most_changed,
    paired_table,
    paired_test,
    render,
    results_tables,
)
from glscl.evaluate.confidence import resampled_metrics
from glscl.evaluate.metrics import summarise
from glscl.evaluate.published import FINE_TUNED, FROZEN, HEAD_GFLOPS, PUBLISHED
from hypothesis import given, settings
from hypothesis import strategies as st

# ---- paired tests ----------------------------------------------------------------------------------------------------


def some_ranks(seed, n):
    r = np.random.RandomState(seed)
    return np.floor(r.exponential(5, n)) + 1 + r.randint(0, 2, n) / 2


def enumerated_p(before, after, cluster):
    """Every way to exchange the two runs, cluster by cluster."""

    def difference(a, b):
        first, second = summarise(a), summarise(b)
        return np.array([second[name] - first[name] for name in METRICS])

    observed = np.abs(difference(before, after))
    names = np.unique(cluster)
    large = []
    for exchange in itertools.product([False, True], repeat=len(names)):
        swap = np.isin(cluster, names[np.array(exchange)])
        found = difference(np.where(swap, after, before), np.where(swap, before, after))
        large.append(np.abs(found) >= observed - 1e-9)
    return np.mean(large, axis=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("clustered", [False, True])
def test_p_values_approach_those_of_all_exchanges(seed, clustered):
    before, after = some_ranks(seed, 10), some_ranks(seed + 50, 10) + seed % 2
    cluster = np.arange(10) // 2 if clustered else np.arange(10)
    tests = paired_test(before, after, cluster if clustered else None, resamples=4000, seed=seed)
    np.testing.assert_allclose([tests[name].p for name in METRICS], enumerated_p(before, after, cluster), atol=0.035)


@given(st.integers(0, 1000), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_a_comparison_gives_both_metrics_and_turned_round_the_opposite(seed, n):
    before, after = some_ranks(seed, n), some_ranks(seed + 1, n)
    there, back = paired_test(before, after, resamples=30), paired_test(after, before, resamples=30)
    for name in METRICS:
        assert there[name].before == summarise(before)[name] and there[name].after == summarise(after)[name]
        assert there[name].difference == -back[name].difference
        assert there[name].interval_95 == pytest.approx([-edge for edge in reversed(back[name].interval_95)])
        assert there[name].p == back[name].p and 1 / 31 <= there[name].p <= 1
        assert there[name].interval_95[0] <= there[name].interval_95[1]


def test_a_run_against_itself_is_never_different():
    tests = paired_test(some_ranks(0, 50), some_ranks(0, 50))
    assert all(of.p == 1 and of.difference == 0 and of.interval_95 == [0, 0] for of in tests.values())


def test_a_clear_gain_is_found_and_chance_is_not():
    r = np.random.RandomState(1)
    before = np.floor(r.exponential(20, 500)) + 1
    assert paired_test(before, np.maximum(1, before // 2))["MnR"].p < 0.01
    shuffled_p = [paired_test(some_ranks(s, 60), some_ranks(s + 500, 60), resamples=100)["MnR"].p for s in range(100)]
    assert np.mean(np.array(shuffled_p) < 0.05) < 0.13


def test_captions_that_share_a_video_count_as_one_trial():
    video = np.repeat(np.arange(6), 30)
    before, after = np.full(180, 3.0), np.full(180, 1.0)
    assert paired_test(before, after)["R@1"].p < 0.001
    assert paired_test(before, after, video)["R@1"].p == pytest.approx(2 / 2**6, abs=0.015)


def test_the_interval_draws_the_same_queries_for_both_runs():
    before = some_ranks(3, 300)
    after = before + 1
    assert paired_test(before, after)["MnR"].interval_95 == [1, 1]
    assert np.ptp(resampled_metrics(before, resamples=100, seed=0)[:, -1]) > 0.5


@pytest.mark.parametrize(
    "before,after,message",
    [([1, 2], [1, 2, 3], "ranked 2 and 3 queries"), ([], [], "at least one query"), ([1], [np.inf], "rank of query 0")],
)
def test_runs_that_cannot_be_paired_are_refused(before, after, message):
    for function in (paired_test, most_changed):
        with pytest.raises(InputError, match=message):
            function(before, after)
    with pytest.raises(UsageError, match="resamples"):
        paired_test([1], [1], resamples=0)


# ---- queries ---------------------------------------------------------------------------------------------------------


def test_the_queries_that_moved_furthest_come_first_and_all_are_counted():
    changes = most_changed([1, 10, 50, 4, 7, 2], [1, 1, 5, 40, 8, 2], top=1)
    assert changes[:3] == (2, 2, 2)
    assert changes.most_improved == [Change(2, 50, 5)]
    assert changes.most_worsened == [Change(3, 4, 40)]
    changes = most_changed([5, 5, 5], [4, 4, 6])
    assert changes.most_improved == [Change(0, 5, 4), Change(1, 5, 4)]
    assert changes.most_worsened == [Change(2, 5, 6)]


def test_only_common_queries_are_compared():
    first, second = common_queries(["a", "b", "c", "d"], ["d", "x", "b"])
    assert first.tolist() == [1, 3] and second.tolist() == [2, 0]
    with pytest.raises(InputError, match="share no query"):
        common_queries(["a"], ["b"])
    with pytest.raises(InputError, match="'a' stands twice in the second run"):
        common_queries(["a"], ["a", "b", "a"])


# ---- published -------------------------------------------------------------------------------------------------------


def test_published_rows_keep_frozen_and_fine_tuned_apart():
    assert set(PUBLISHED) == {FROZEN, FINE_TUNED}
    assert all("GLSCL" not in row.method for row in PUBLISHED[FROZEN])
    assert {row.dataset for row in PUBLISHED[FROZEN]} == {row.dataset for row in PUBLISHED[FINE_TUNED]}


def test_published_numbers_are_plausible_and_complete():
    for rows in PUBLISHED.values():
        assert len({(row.method, row.dataset, row.backbone) for row in rows}) == len(rows)
        for row in rows:
            for metrics in filter(None, (row.text_to_video, row.video_to_text)):
                assert 0 < metrics["R@1"] < metrics["R@5"] < metrics["R@10"] < 100
                assert all(metrics[name] >= 1 for name in metrics)
            assert row.source or row.method.startswith("CLIP zero-shot")
    (row,) = (r for r in PUBLISHED[FINE_TUNED] if (r.method, r.backbone) == ("GLSCL + QB-Norm", "ViT-B-32"))
    assert row.text_to_video == {"R@1": 50.0, "R@5": 73.7, "R@10": 82.8, "MdR": 1.5, "MnR": 14.2}
    (row,) = (r for r in PUBLISHED[FINE_TUNED] if r.method == "Prompt Switch")
    assert "MdR" not in row.text_to_video and row.text_to_video["MnR"] == 14.1
    assert min(HEAD_GFLOPS.values()) == HEAD_GFLOPS["CLIP4Clip"]


# ---- tables ----------------------------------------------------------------------------------------------------------


def result(head="glscl", *, r1=31.25, frozen=True, dataset="msrvtt", run=None, selection="validation", normalised=None):
    metrics = {"R@1": r1, "R@5": 50.0, "R@10": 60.0, "R@50": 90.0, "MdR": 3.5, "MnR": 22.04, "queries": 1000}
    return {
        "dataset": dataset, "split": "test", "head": head, "run": run, "backbone": "ViT-B-32", "selection": selection,
        "frozen_backbone": frozen, "text_to_video": metrics, "video_to_text": metrics, "normalised": normalised or {},
    }  # fmt: skip


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
    assert len(table.rows) == 2 and not any("not comparable" in note for note in table.notes)


def test_each_dataset_has_its_own_table_with_its_own_published_rows():
    tables = results_tables([result("a", dataset="msvd"), result("b", dataset="demo"), result("c", dataset="msvd")])
    assert [table.title for table in tables] == ["msvd, test", "demo, test"]
    assert [row.cells[0] for row in tables[0].rows][:2] == ["a", "c"]
    assert [row.cells[0] for row in tables[1].rows] == ["b"]


def test_a_normalised_result_stands_below_its_own_and_names_its_extra_data():
    metrics = result(r1=40.0)["text_to_video"]
    normalised = {"qb-norm": {"text_to_video": metrics, "bank": "first caption of 9000 training videos"},
                  "dsl": {"text_to_video": metrics, "video_to_text": metrics}}  # fmt: skip
    (table,) = results_tables([result(normalised=normalised), result("b", selection="test")], published=False)
    assert [row.cells[0] for row in table.rows] == ["glscl", "glscl + qb-norm", "glscl + dsl", "b"]
    assert table.rows[1].cells[3] == 40.0 and table.rows[1].cells[-1] is None
    notes = " ".join(table.notes)
    assert "glscl + qb-norm uses extra data: first caption of 9000 training videos." in notes
    assert "glscl + dsl sees all test queries at once." in notes
    assert "b was selected on the test split." in notes


def test_runs_of_one_head_are_told_apart():
    (table,) = results_tables([result(run="runs/1"), result(run="runs/2"), result("b", run="runs/3")], published=False)
    assert [row.cells[0] for row in table.rows] == ["glscl (runs/1)", "glscl (runs/2)", "b"]
    (table,) = results_tables([result()], published=False, names=["mine"])
    assert table.rows[0].cells[0] == "mine"
    with pytest.raises(UsageError, match="2 names for 1 results"):
        results_tables([result()], names=["a", "b"])


TABLE = Table(
    "A & B",
    ("Method", "R@1", "50_%"),
    (Row("Ours", ("a|b_c", 31.25, None)), Row("Theirs", ("d,\"e\" ~ \\", 9.96, -0.04))),
    ("A note.",),
)


def test_terminal_tables_line_up():
    text = render(TABLE, "terminal")
    lines = text.splitlines()
    assert lines[0] == "A & B" and lines[2].split() == ["Method", "R@1", "50_%"] and lines[-1] == "A note."
    cells = [line for line in lines if line.startswith(("a|b_c", "d,"))]
    assert [line.index(value) + len(value) for line, value in zip(cells, ["31.2", "10.0"])] == [len(lines[2]) - 6] * 2
    assert cells[0].endswith("–") and cells[1].endswith(" 0.0")
    assert "[Ours]" in lines and "[Theirs]" in lines


def test_markdown_tables_have_as_many_cells_in_every_line():
    lines = [line for line in render(TABLE, "markdown").splitlines() if line.startswith("|")]
    assert lines[1] == "|---|---:|---:|"
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    assert "a\\|b_c" in lines[3] and "**Theirs**" in lines[4]


def test_csv_keeps_every_digit_and_the_section():
    rows = list(csv.reader(io.StringIO(render(TABLE, "csv"))))
    assert rows[0] == ["Table", "Section", "Method", "R@1", "50_%"]
    assert rows[1] == ["A & B", "Ours", "a|b_c", "31.25", ""]
    assert rows[2] == ["A & B", "Theirs", 'd,"e" ~ \\', "9.96", "-0.04"]


def test_latex_escapes_what_latex_would_read():
    text = render(TABLE, "latex")
    assert r"Method & R@1 & 50\_\% \\" in text and r"a|b\_c & 31.2 & -- \\" in text
    assert r"\textasciitilde{} \textbackslash{} & 10.0 & 0.0 \\" in text
    assert r"\begin{tabular}{lrr}" in text and r"\multicolumn{3}{l}{\textit{Theirs}} \\" in text
    assert text.count(r"\midrule") == 2


def test_every_style_renders_every_table_and_an_unknown_one_is_refused():
    tables = [*results_tables([result(), result("b", frozen=False)])]
    tables.append(paired_table("a", "b", {"text_to_video": paired_test([1, 2, 3], [1, 1, 5], resamples=10)}))
    for table, style in itertools.product(tables, STYLES):
        text = render(table, style)
        assert text.endswith("\n")
        assert all(row.cells[0] in text.replace(r"\_", "_") for row in table.rows)
    with pytest.raises(UsageError, match="terminal, markdown, csv, latex"):
        render(TABLE, "html")


def test_the_table_of_a_comparison_shows_both_runs_the_difference_and_p():
    tests = {"video_to_text": {"R@1": Paired(40.0, 42.0, 2.0, [0.5, 3.5], 0.004)}}
    text = render(paired_table("old", "new", tests), "terminal")
    assert text.startswith("new against old\n")
    assert ["R@1", "40.0", "42.0", "2.0", "0.5", "3.5", "0.0040"] in [line.split() for line in text.splitlines()]


def test_comparisons_go_into_json():
    tests = paired_test([1, 2, 3], [1, 1, 5], resamples=10)
    assert json.loads(json.dumps({name: of._asdict() for name, of in tests.items()}))["MdR"]["before"] == 2
    assert json.loads(json.dumps(most_changed([1, 2], [2, 1])._asdict()))["improved"] == 1
