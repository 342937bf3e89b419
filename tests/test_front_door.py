"""`import glscl`: quick, typed, and true to docs/python.md."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import glscl
from glscl.common import arguments
from glscl.evaluate.search.model import zero_shot

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def test_importing_loads_nothing_else():
    code = "import sys, glscl; print([m for m in ('torch', 'numpy', 'zarr', 'msgspec', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in glscl.__all__ if name != "__version__"])
def test_every_name_is_there_with_a_docstring(name):
    found = getattr(glscl, name)
    assert name in dir(glscl)
    if callable(found):
        assert inspect.getdoc(found)
        parameters = inspect.signature(found).parameters.values() if inspect.isfunction(found) else ()
        assert len(parameters) <= 8


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'encode'"):
        _ = glscl.encode


@pytest.fixture
def cache(small_cache) -> glscl.Store:
    return small_cache("hdf5", dim=128).fill()


ANNOTATIONS = glscl.Annotations(dataset="made", videos=[], texts=[])
WRONG = {  # of the kind of the argument → a call, and what it says
    "a list": (lambda cache: glscl.extract("captions.csv", "out"), "`annotations` is 'captions.csv' (str); expected A"),
    "an encoder": (
        lambda cache: glscl.extract(ANNOTATIONS, "out", backbone="ViT-B-32"),
        "expected Backbone or None. `glscl.load_backbone` gives one",
    ),
    "a cache": (lambda cache: glscl.train(cache.path, None, "r"), "expected Store. `glscl.open_cache` gives one"),
    "settings": (
        lambda cache: glscl.train(cache, {"head": "xpool"}, "r"),
        "`settings` is of type dict; expected TrainSettings or None",
    ),
    "settings of another stage": (
        lambda cache: glscl.evaluate(cache, None, glscl.TrainSettings()),
        "`settings` is of type TrainSettings; expected EvaluateSettings or None",
    ),
    "a value in settings": (
        lambda cache: glscl.train(cache, glscl.TrainSettings(epochs="many"), "r"),
        "`epochs` is 'many'; expected int, got str",
    ),
    "a path": (lambda cache: glscl.open_cache(None), "`path` is None; expected a path or a string"),
    "a run": (lambda cache: glscl.load_run(3), "`run` is 3 (int); expected a path or a string"),
    "a number": (lambda cache: cache.table("test", frames="12"), "`frames` is '12' (str); expected an integer or None"),
    "a device": (lambda cache: glscl.train(cache, None, "r", device="gpu"), "`device` is 'gpu'; expected cpu, cuda, "),
    "sentences": (
        lambda cache: zero_shot(cache).encode_texts("a dog"),
        "`texts` is 'a dog' (str); expected a sequence of str",
    ),
    "a sentence": (lambda cache: zero_shot(cache).search(["a dog"]), "`sentence` is of type list; expected a string"),
    "a table": (
        lambda cache: zero_shot(cache).similarity(["a dog"], cache),
        "`table` is of type Store; expected FeatureTable or None. `Store.table` gives one",
    ),
    "a name": (lambda cache: glscl.build_head(3, embed_dim=8), "`name` is 3 (int); expected a string"),
    "an option": (
        lambda cache: glscl.build_head("glscl", embed_dim=8, queries="8"),
        "`queries` is '8' (str); expected an integer",
    ),
    "an address": (lambda cache: glscl.Client(8765), "`url` is 8765 (int); expected a string"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_argument_of_another_type_ends_in_one_line_before_anything_happens(kind, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, said = WRONG[kind]
    with pytest.raises(glscl.GlsclError) as refused:
        call(cache)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert not any((tmp_path / name).exists() for name in ("out", "r"))


def test_a_column_of_strings_and_numbers_of_numpy_are_taken():
    arguments.require("texts", np.array(["a dog", "a cat"]), Sequence[str])
    arguments.require("top", np.int64(3), int)
    arguments.require("fps", np.float32(2), float | None)


def test_what_is_left_out_python_says_itself():
    with pytest.raises(TypeError, match=r"extract\(\) missing 1 required positional argument: 'out'"):
        glscl.extract(ANNOTATIONS)


@pytest.mark.parametrize("name", [name for name in glscl.__all__ if hasattr(getattr(glscl, name), "__wrapped__")])
def test_every_annotation_of_the_front_door_can_be_read(name):
    function = getattr(glscl, name)
    named = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    assert arguments._kinds(function).keys() >= {*named}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A few videos of the built-in corpus with a table of captions."""
    from glscl.demo.corpus import render_corpus

    root = tmp_path_factory.mktemp("front-door")
    annotations, videos = render_corpus(root / "demo", seed=0, sizes={"train": 12, "val": 0, "test": 6}, workers=1)
    found = glscl.read_dataset("demo", annotations, videos)
    (root / "videos").symlink_to(videos)
    rows = [f'{Path(path).name},"{t.text}",{t.split}' for t in found.texts for path in [files(found)[t.video]]]
    (root / "captions.csv").write_text("video,caption,split\n" + "\n".join(rows) + "\n")
    return root


def files(found: glscl.Annotations) -> dict[str, str]:
    return {video.id: video.path for video in found.videos if video.path is not None}


def test_the_page_runs_from_top_to_bottom(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    space = {"torch": torch, "F": F, "clip": next((folder / "videos").iterdir())}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/python.md, block {number + 1}", "exec"), space)
    table, text, similarity = space["table"], space["text"], space["similarity"]
    assert table.num_videos == 12 and similarity.shape == (2, 6) and len(text.text_features) == 1
    assert space["cache"].list_name == space["model"].cache.list_name == space["judged"].result["list"] == "test-only"
    assert space["judged"].result["counts"]["videos_seen_in_training"] == 0
    assert space["done"].failed == [] and (folder / "runs" / "mine" / "best.safetensors").exists()
    assert space["frames"].ndim == 4 and len(space["features"]) == len(space["times"])
    loop = blocks[1].split("optimizer =")[1]
    assert len(loop.strip().splitlines()) <= 10
    for name in (
        "cache",
        "table",
        "head",
        "settings",
        "result",
        "model",
        "backbone",
        "judged",
        "found",
        "done",
        "text",
    ):
        shown = repr(space[name])
        assert "\n" not in shown and len(shown) <= 200, shown
