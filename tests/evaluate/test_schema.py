"""docs/result.schema.json and docs/results.md say exactly what `glscl eval` writes."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from glscl.evaluate.evaluation import evaluate_run
from glscl.evaluate.graded import graded_metrics
from glscl.evaluate.hubness import NORMALISATIONS
from glscl.evaluate.metrics import stored_metrics, summarise
from glscl.evaluate.settings import EvaluateSettings

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = json.loads((DOCS / "result.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def errors(result):
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message}" for e in VALIDATOR.iter_errors(result)]


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", ["zero_shot", "run", "other"])
def test_result_files_follow_the_schema(judged, name):
    result = json.loads((getattr(judged, name) / "result.json").read_text())
    assert errors(result) == []
    assert ("normalised" in result) == (name == "zero_shot") and "confidence_95" in result


def test_every_normalisation_and_a_result_without_intervals_follow_the_schema(judged):
    result = evaluate_run(
        judged.store, settings=EvaluateSettings(normalise=tuple(NORMALISATIONS), confidence=False)
    ).result
    assert set(result["normalised"]) == set(NORMALISATIONS) and "confidence_95" not in result
    assert errors(json.loads(json.dumps(result))) == []


def test_tags_follow_the_schema(judged):
    result = copy.deepcopy(judged.evaluations["run"].result)
    result["tags"] = {"order": summarise([1.0, 2.5])}
    assert errors(result) == []


def test_a_set_of_mteb_is_judged_by_its_own_measure_too(small_cache):
    made = small_cache("hdf5", videos=30, captions=1)
    made.annotations = replace(made.annotations, dataset="mteb")
    store, path = made.fill(), made.path / "scores.npy"
    result = evaluate_run(store, settings=EvaluateSettings(save_similarity=path)).result
    assert errors(json.loads(json.dumps(result))) == []
    scores = torch.from_numpy(np.load(path))
    for way, found in graded_metrics(scores, np.eye(len(scores))).items():
        assert result["mteb"][f"{way} nDCG@10"] == pytest.approx(found["nDCG@10"])


def test_the_schema_and_the_code_know_the_same_names(judged):
    definitions = SCHEMA["$defs"]
    assert set(definitions["metrics"]["required"]) == set(summarise([1.0]))
    assert tuple(definitions["intervals"]["required"]) == stored_metrics()
    names = SCHEMA["properties"]["normalised"]["propertyNames"]["enum"]
    assert set(names) == set(NORMALISATIONS)
    assert {*SCHEMA["properties"]} - {
        "tags",
        "normalised",
        "runs",
        "combine",
        "doubts",
        "graded",
        "moments",
        "mteb",
        "partially_relevant",
    } == {*judged.evaluations["run"].result}


@pytest.mark.parametrize(
    "path,value",
    [
        (("text_to_video", "R@1"), 101.0),
        (("text_to_video", "R@1"), None),
        (("text_to_video", "MdR"), 0.5),
        (("text_to_video", "R@2"), "3.0"),
        (("confidence_95", "video_to_text", "R@2"), 3.0),
        (("confidence_95", "video_to_text", "R@5"), [1.0]),
        (("selection",), "best"),
        (("frozen_backbone",), "yes"),
        (("counts", "texts"), 0),
        (("counts", "expected_texts"), "1000"),
        (("normalised", "magic"), {}),
        (("seconds", "score"), -1.0),
        (("extra",), 1),
    ],
)
def test_what_is_not_a_result_is_refused(judged, path, value):
    result = copy.deepcopy(judged.evaluations["zero_shot"].result)
    assert errors(result) == []
    inside = result
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    assert errors(result)


@pytest.mark.parametrize("key", sorted(SCHEMA["required"]))
def test_a_result_needs_all_its_keys(judged, key):
    result = {k: v for k, v in judged.evaluations["run"].result.items() if k != key}
    assert errors(result)


def test_the_page_explains_every_key():
    page = (DOCS / "results.md").read_text()
    explained = set(re.findall(r"`([^`]+)`", page))

    def keys(schema):
        for name, inner in schema.get("properties", {}).items():
            yield name
            yield from keys(inner)
            if isinstance(inner.get("additionalProperties"), dict):
                yield from keys(inner["additionalProperties"])

    assert set(keys(SCHEMA)) - {"glscl"} <= explained
    assert set(SCHEMA["$defs"]["metrics"]["properties"]) <= explained


def test_the_page_reads_the_ranks(judged, monkeypatch, capsys):
    page = (DOCS / "results.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    monkeypatch.chdir(judged.run)
    exec(compile(code, "results.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert float(printed[0]) == judged.evaluations["run"].result["text_to_video"]["R@1"]
    with np.load(judged.run / "result.ranks.npz") as file:
        listed = set(re.findall(r"^\| (`[^|]*`) \| \(", page, re.M))
        assert {name for cell in listed for name in re.findall(r"`(\w+)`", cell)} >= set(file.files) - {
            "text_ids",
            "video_ids",
        }
        assert {"text_ids", "video_ids"} <= set(re.findall(r"`(\w+)`", page))
