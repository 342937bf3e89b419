"""The pages under docs/ are true: their snippets run, their tables agree with the code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from glscl.cache.frame_format import FRAME_ARRAYS
from glscl.cache.lists import list_arrays
from glscl.cache.schema import Status
from glscl.cache.shard_arrays import FLOAT, LAYOUT
from glscl.train_head.heads import HEAD_NAMES
from glscl.train_head.recipes import RECIPES
from glscl.train_head.settings import resolve

DOCS = Path(__file__).parents[1] / "docs"


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S)


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
def test_the_cache_page_reads_both_formats_without_us(small_cache, format):
    made = small_cache(format)
    store = made.fill()
    code = "\n".join(python_blocks("cache-format.md"))
    assert "glscl" not in re.sub(r'"glscl\.cache/2"', "", code)
    space = {"CACHE": str(made.path)}
    exec(compile(code, "cache-format.md", "exec"), space)
    assert space["video_ids"] == store.ids("video") and space["captions"] == store.captions()
    first = store.arrays("video", ["values", "pooled"], items=range(1))
    np.testing.assert_array_equal(space["frames"], first["values"])
    np.testing.assert_allclose(space["mean_pooled"], first["pooled"][0], atol=1e-3)  # rows are float16
    assert len(space["items_of"]("text")) == store.num_items["text"]


def test_the_cache_page_lists_every_array_of_a_list(small_cache):
    page = (DOCS / "cache-format.md").read_text()
    table = page[page.index("| array of a list") : page.index("```python", page.index("| array of a list"))]
    listed = {}
    for names, dtypes in re.findall(r"^\| (`.*?) \| (.*?) \|", table, re.M):
        names, dtypes = re.findall(r"`(\w+)`", names), re.findall(r"[a-z]+\d+", dtypes)
        listed |= dict(zip(names, dtypes * len(names)))
    assert listed == {name: str(array.dtype) for name, array in list_arrays(small_cache().list).items()}


def test_the_cache_page_lists_every_array_with_its_dtype():
    page = (DOCS / "cache-format.md").read_text()
    rows = re.findall(r"^\| (both|video|text) \| (.*?) \| (.*?) \|", page, re.M)
    listed = {}
    for stream, names, dtypes in rows:
        names = re.findall(r"`(\w+)`", names)
        dtypes = re.findall(r"[a-z]+\d+", dtypes) * len(names)
        for name, dtype in zip(names, dtypes):
            for s in ("video", "text") if stream == "both" else (stream,):
                listed[s, name] = dtype
    expected = {
        (stream, name): "float16" if spec.dtype == FLOAT else spec.dtype
        for stream, layout in LAYOUT.items()
        for name, spec in layout.items()
    }
    assert listed == expected


def test_the_cache_page_lists_the_arrays_of_stored_frames():
    page = (DOCS / "cache-format.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\w+) \|", page, re.M)
    assert {(encoding, name) for encoding, name, _ in rows} == {
        (e, n) for e, names in FRAME_ARRAYS.items() for n in names
    }
    space: dict = {}
    exec(next(block for block in python_blocks("cache-format.md") if "stored_frame" in block), space)
    frames = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    np.testing.assert_array_equal(space["stored_frame"]({"frames": frames}, 1), frames[1])
    jpeg = {"frame_bytes": np.frombuffer(b"onetwo3", np.uint8), "frame_offsets": np.array([0, 3, 6, 7])}
    assert [space["stored_frame"](jpeg, row) for row in range(3)] == [b"one", b"two", b"3"]


def test_the_cache_page_names_every_status():
    page = (DOCS / "cache-format.md").read_text()
    for status in Status:
        assert f"{int(status)} {status.name.lower().replace('_', ' ')}" in page


def test_the_page_of_commands_is_what_the_commands_say():
    subprocess.run([sys.executable, DOCS / "make_cli_page.py", "--check"], check=True)


def test_the_page_of_recipes_is_what_the_code_says():
    page = (DOCS / "recipes.md").read_text()
    rows = [line.strip("| \n").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    names = ("queries", "temperature", "alpha", "beta", "decoder_layers", "local_weight")
    found = {row[0]: [float(cell) for cell in row[1:]] for row in rows if row[0] in RECIPES and len(row) == 12}
    expected = {}
    for name in ("msrvtt", "msvd", "lsmdc", "didemo", "activitynet"):
        recipe = RECIPES[name]
        options, settings = recipe.heads["glscl"].options, resolve({}, dataset=name)
        expected[name] = [
            recipe.words,
            recipe.frames,
            recipe.fps,
            settings.batch_size,
            settings.epochs,
            *(options[n] for n in names),
        ]
    assert found == expected


def test_the_readme_counts_the_heads():
    found = re.search(r"\*\*(\d+) heads\*\*", (DOCS.parent / "README.md").read_text())
    assert found and int(found[1]) == len(HEAD_NAMES)


def test_every_module_that_the_changelog_says_things_moved_to_is_there():
    moved = (DOCS.parent / "CHANGELOG.md").read_text().split("### Moved Python names")[1]
    rows = re.findall(r"^\| `[a-z_.]+` \| `([a-z_., ]+)` \|$", moved, re.M)
    modules = {name for row in rows for name in row.split(", ")}
    assert len(modules) > 80
    assert [name for name in sorted(modules) if importlib.util.find_spec(f"glscl.{name}") is None] == []
