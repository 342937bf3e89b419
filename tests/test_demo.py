"""`glscl demo` from end to end, with a corpus of a few videos."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from glscl.cache.store import open_store
from glscl.common.errors import UsageError
from glscl.demo.stages import DemoSettings, chance, run_demo, table
from glscl.evaluate.metrics import retrieval_metrics

SCHEMA = Path(__file__).parents[1] / "docs" / "result.schema.json"
EXAMPLES = SCHEMA.parents[1] / "examples"
SIZES = {"train": 8, "val": 4, "test": 10}
DIRECTIONS = ("text_to_video", "video_to_text", "video_to_text_caption")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    return out, run_demo(out, DemoSettings(sizes=SIZES, epochs=1, workers=1))


def test_every_entry_of_the_results_is_a_result(demo):
    out, done = demo
    results = json.loads((out / "results.json").read_text())
    assert results == done.results
    assert list(results) == ["chance", "zero_shot", "projection", "seq_transf", "glscl"]
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    for name, result in results.items():
        assert not list(validator.iter_errors(result)), name
        assert result["counts"]["texts"] == result["text_to_video"]["queries"] == 200
        assert set(result["confidence_95"]) == set(DIRECTIONS)
    assert results["glscl"]["selection"] == "validation" and results["zero_shot"]["run"] is None


def test_the_heads_have_runs_and_the_page_and_the_times_stand_beside(demo):
    out, done = demo
    for head in ("projection", "seq_transf", "glscl"):
        assert json.loads((out / "runs" / head / "result.json").read_text()) == done.results[head]
    assert json.loads((out / "seconds.json").read_text()) == done.seconds
    assert {"render", "extract", "zero_shot", "glscl", "report"} <= set(done.seconds)
    page = (out / "report.html").read_text()
    assert "seq_transf" in page and "chance" in page
    assert [row[0] for row in table(done.results)[1:]] == ["chance", "zero-shot (mean_pool)", *list(done.results)[2:]]


def test_the_last_line_is_a_command_that_serves_it(demo, glscl, monkeypatch, tmp_path):
    from glscl.evaluate.serve.server import Server

    out, done = demo
    (tmp_path / "out of the demo").symlink_to(out)
    monkeypatch.setattr("glscl.demo.stages.run_demo", lambda *_, **__: done)
    status, said, _ = glscl("demo", "--out", tmp_path / "out of the demo")
    program, *words = shlex.split(said.splitlines()[-1].partition(": ")[2])
    assert status == 0 and Path(program).name == "glscl"
    monkeypatch.setattr(Server, "serve_requests", lambda server: server._ready())
    status, said, err = glscl(*words, "--port", 0)
    assert status == 0 and "  cache/demo: 22 videos, by glscl, best_frames" in said, err


def test_a_second_demo_in_the_same_folder_trains_nothing_again_but_goes_on_with_a_second_pass(demo):
    out, done = demo
    weights, lines = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}, []
    tuned = run_demo(out, DemoSettings(sizes=SIZES, epochs=1, workers=1, finetune=True), say=lines.append)
    assert {path: path.stat().st_mtime_ns for path in weights} == weights
    for name, result in done.results.items():
        assert {d: tuned.results[name][d] for d in DIRECTIONS} == {d: result[d] for d in DIRECTIONS}
    assert "fine-tuning the text tower with glscl (1 epoch)" in lines
    assert list(tuned.results) == [*done.results, "finetuned"] and {"finetune", "extract_again"} <= set(tuned.seconds)
    result, before = tuned.results["finetuned"], tuned.results["glscl"]
    assert result["frozen_backbone"] is False and result["cache_fingerprint"] != before["cache_fingerprint"]
    run = json.loads((out / "runs" / "finetuned" / "run.json").read_text())
    assert run["start"] == str(out / "runs" / "glscl") and run["settings"]["freeze"] == "vision"
    old, new = open_store(out / "cache"), open_store(out / "cache-finetuned")
    np.testing.assert_array_equal(old.arrays("video", ["values"])["values"], new.arrays("video", ["values"])["values"])
    assert not np.array_equal(old.arrays("text", ["pooled"])["pooled"], new.arrays("text", ["pooled"])["pooled"])
    assert table(tuned.results)[-1][0] == "glscl, fine-tuned" and "fine-tuned" in (out / "report.html").read_text()


def test_a_demo_of_other_videos_wants_another_folder(demo):
    out, _ = demo
    other = DemoSettings(sizes=SIZES | {"train": 9}, epochs=1, workers=1)
    with pytest.raises(UsageError, match="holds runs on other videos. Choose another folder with `out`"):
        run_demo(out, other)


def test_chance_is_what_random_scores_give_on_average(demo):
    _, done = demo
    expected = chance(done.results["glscl"])
    video_of_text = np.repeat(np.arange(10), 20)
    rng = np.random.default_rng(0)
    drawn = [retrieval_metrics(rng.standard_normal((200, 10)), video_of_text) for _ in range(300)]
    for direction in DIRECTIONS:
        for metric in ("R@1", "R@5", "R@10", "MnR"):
            values = [of[direction][metric] for of in drawn]
            error = 4 * np.std(values) / np.sqrt(len(values))
            assert abs(np.mean(values) - expected[direction][metric]) <= error + 1e-9, (direction, metric)


@pytest.mark.parametrize("name", ["compare-heads", "search-videos"])
def test_a_notebook_runs_on_what_the_demo_made(demo, monkeypatch, capsys, name):
    out, _ = demo
    cells = json.loads((EXAMPLES / f"{name}.ipynb").read_text())["cells"]
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    space = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), space)
        if "parameters" in cell["metadata"].get("tags", ()):
            space |= {
                "FOLDER": str(out),
                "HEADS": ["projection", "attention_pool"],
                "EPOCHS": 1,
                "SIZES": SIZES,
            }
    printed = capsys.readouterr().out
    assert space["done"].encoded == {"videos": 0, "texts": 0, "frames": 0}
    if name == "compare-heads":
        assert list(space["judged"]) == ["mean_pool", "projection", "attention_pool"] and "attention_pool" in printed
    else:
        assert [hit.rank for hit in space["hits"]] == [1, 2, 3] and space["trained"].record["head"] == "projection"
