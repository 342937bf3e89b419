"""`import glscl`: quick, typed, and true to docs/python.md."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import glscl

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
        assert "\n" not in repr(space[name]) or name == "head", name
