"""A metric is one entry of `METRICS`: nothing else is said of it, and it is everywhere."""

from __future__ import annotations

import json
import shutil
from unittest import mock

import jsonschema
import pytest

from glscl.commands.printing import result_table
from glscl.common.errors import UsageError
from glscl.common.tables import render
from glscl.evaluate.compare.comparison import compare_runs
from glscl.evaluate.confidence import confidence_95
from glscl.evaluate.evaluated_run import read_evaluated
from glscl.evaluate.evaluation import evaluate_run, write_result
from glscl.evaluate.metrics import METRICS, Metric, chance, retrieval_metrics, summarise
from glscl.evaluate.report import table_contents
from glscl.evaluate.report.page import write_report
from glscl.evaluate.settings import EvaluateSettings


def reciprocal(ranks, counts):
    return (counts / ranks).sum(-1) / counts.sum(-1)


@pytest.fixture
def folders(judged, tmp_path, monkeypatch):
    """Two runs that were judged while there was one metric more."""
    entry = Metric(reciprocal, bounds=(0, 1), digits=3, meaning="mean of 1 / rank")
    monkeypatch.setitem(METRICS, "MRR", entry)
    found = []
    for name in ("run", "other"):
        folder = shutil.copytree(getattr(judged, name), tmp_path / name)
        settings = EvaluateSettings(normalise=("dsl",) if name == "run" else ())
        write_result(folder / "result.json", evaluate_run(judged.store, folder, settings))
        found.append(folder)
    return found


def test_a_result_file_holds_it_with_its_interval(folders):
    result = json.loads((folders[0] / "result.json").read_text())
    ranks = read_evaluated(folders[0]).ranks
    for direction in ("text_to_video", "video_to_text", "video_to_text_caption"):
        value, (low, high) = result[direction]["MRR"], result["confidence_95"][direction]["MRR"]
        assert value == pytest.approx((1 / ranks[direction]).mean()) and low <= value <= high
        assert "MRR" in result["normalised"]["dsl"][direction]
    assert summarise([1, 2, 4])["MRR"] == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert retrieval_metrics([[1.0]])["text_to_video"]["MRR"] == 1 and confidence_95([2, 2])["MRR"] == [0.5, 0.5]
    assert chance(2)["MRR"] == 0.75


def test_one_that_adds_up_many_counts_at_once_is_refused(monkeypatch):
    monkeypatch.setitem(METRICS, "MRR", Metric(lambda ranks, counts: (counts / ranks).sum() / counts.sum()))
    with pytest.raises(UsageError, match=r"metric MRR gives shape \(\) .* sum over the last axis"):
        confidence_95([1, 2, 4])


def test_the_schema_admits_it(folders, result_schema):
    result = json.loads((folders[0] / "result.json").read_text())
    jsonschema.Draft202012Validator(result_schema).validate(result)


def test_the_table_of_an_evaluation_shows_it(folders):
    result = json.loads((folders[0] / "result.json").read_text())
    lines = render(result_table(result)).splitlines()
    assert lines[0].split()[-1] == "MRR"
    assert lines[1].split()[-1] == f"{result['text_to_video']['MRR']:.3f}"
    low, high = result["confidence_95"]["text_to_video"]["MRR"]
    assert lines[2].split()[-1] == f"{low:.3f}–{high:.3f}"


@pytest.mark.parametrize("style", ["terminal", "markdown", "csv", "latex"])
def test_compare_shows_and_tests_it(folders, style):
    comparison = compare_runs([read_evaluated(folder) for folder in folders], resamples=20)
    results, tests = (render(table, style) for table in comparison.tables()[:2])
    value = comparison.runs[0].result["text_to_video"]["MRR"]
    assert "MRR" in results and (str(value) if style == "csv" else f"{value:.3f}") in results
    assert sum(line.split(",")[2:3] == ["MRR"] or "MRR" in line.split() for line in tests.splitlines()) == 2
    told = comparison.as_dict()["against_first"]
    assert all("MRR" in test["tests"]["video_to_text"] for test in told.values())


def test_the_report_shows_it_with_interval_chance_and_difference(folders, tmp_path):
    runs = [read_evaluated(folder) for folder in folders]
    with mock.patch.object(table_contents, "figures_of", lambda *_: ()):
        page = write_report(runs, tmp_path / "report.html", resamples=20).read_text()
    value, gallery = runs[0].result["text_to_video"]["MRR"], runs[0].result["counts"]["videos"]
    assert f"{value:.3f}" in page and f"{chance(gallery)['MRR']:.3f}" in page
    assert page.count('<th scope="col">MRR</th>') >= 4  # results and differences, in both directions
    assert "<li>MRR: mean of 1 / rank.</li>" in page
    assert "For R@K and MRR more is better, for MdR and MnR less." in page


def test_results_that_were_written_before_it_was_thought_of_are_still_read(judged, folders):
    old = read_evaluated(judged.zero_shot)
    assert "MRR" not in old.result["text_to_video"]
    table = compare_runs([old, read_evaluated(folders[0])], published=False, resamples=20).tables()[0]
    column = table.columns.index("MRR")
    assert table.rows[0].cells[column] is None and table.rows[-1].cells[column] is not None


def test_a_value_that_cannot_be_is_refused(folders):
    from glscl.common.errors import InputError

    path = folders[0] / "result.json"
    result = json.loads(path.read_text())
    result["text_to_video"]["MRR"] = 1.5
    path.write_text(json.dumps(result))
    with pytest.raises(InputError, match="text_to_video has no number for MRR"):
        read_evaluated(folders[0])
