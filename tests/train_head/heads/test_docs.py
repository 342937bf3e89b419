"""The pages about heads say what the code does."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.evaluate.published import FINE_TUNED, FROZEN, PUBLISHED
from glscl.train_head import heads
from glscl.train_head.heads import HEADS, build_head, head_options

METHODS = {  # head -> method in the list of published results
    "mean_pool": "CLIP4Clip meanP", "seq_transf": "CLIP4Clip seqTransf", "glscl": "GLSCL", "dicosa": "DiCoSA",
    "xpool": "X-Pool", "xclip": "X-CLIP", "wti": "DRL",
}  # fmt: skip
FROZEN_METHODS = {
    "mean_pool": "CLIP zero-shot, mean of 12 frames",
    "seq_transf": "CLIP4Clip seqTransf, head only",
}
DOCS = Path(__file__).parents[3] / "docs"


def blocks(page):
    """The python blocks of a page, in order."""
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture
def best_frame(monkeypatch):
    """The head of the tutorial, added as the tutorial says: its file and its line in the registry."""
    module = types.ModuleType("glscl.train_head.heads.best_frame")
    exec(compile(blocks("new-head.md")[0], "best_frame.py", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    name, target = re.fullmatch(r'\s*"(\w+)": "([\w:]+)",\s*', blocks("new-head.md")[1]).groups()
    monkeypatch.setitem(heads._CLASSES, name, target)
    return name


def test_the_tutorial_builds_a_head_that_trains(best_frame):
    space: dict = {}
    exec(compile(blocks("new-head.md")[2], "usage.py", "exec"), space)
    assert space["similarity"].shape == (4, 4)
    assert space["head"].log_sharpness.grad.abs() > 0
    assert space["head"].options == {
        "sharpness": 20.0,
        "logit_scale": pytest.approx(4.60517),
        "logit_bias": None,
        "adapter": "mlp",
    }


def test_the_head_of_the_tutorial_computes_its_formula_and_ignores_padding(best_frame):
    reference: dict = {"torch": torch}
    exec(blocks("new-head.md")[3], reference)
    head = build_head(best_frame, embed_dim=16).eval()
    torch.manual_seed(0)
    texts, frames = torch.randn(3, 16), torch.randn(2, 5, 16)
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    for tile_bytes in (None, 1):
        head.tile_bytes = tile_bytes
        similarity = head(TextFeatures(texts), VideoFeatures(frames, mask)).similarity
        for i in range(3):
            for j in range(2):
                expected = reference["best_frame"](texts[i], frames[j][mask[j]], torch.tensor(10.0))
                assert similarity[i, j].item() == pytest.approx(expected.item(), abs=1e-6)


def rows():
    """head name -> cells of its row in the table of heads.md."""
    text = (DOCS / "heads.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| \[`(\w+)`\]\(#(\w+)\) \|(.*)\|$", text, flags=re.MULTILINE)
    assert all(name == anchor for name, anchor, _ in found)
    return {name: [cell.strip() for cell in cells.split("|")] for name, _, cells in found}


def test_every_head_has_a_row_and_a_section_in_the_order_of_the_registry():
    assert list(rows()) == list(HEADS)
    text = (DOCS / "heads.md").read_text(encoding="utf-8")
    assert re.findall(r"^### `(\w+)`$", text, flags=re.MULTILINE) == list(HEADS)


@pytest.mark.parametrize("name", list(HEADS))
def test_a_row_tells_needs_index_and_parameters(name):
    needs, indexable, parameters = rows()[name][:3]
    assert ("tokens" in needs) == HEADS[name].needs_tokens
    assert indexable == ("yes" if HEADS[name].query_independent else "no")
    head = build_head(name, embed_dim=512)
    counted = sum(p.numel() for key, p in head.named_parameters() if key != "logit_scale")
    assert int(parameters.replace(",", "")) == counted


def section(name):
    text = (DOCS / "heads.md").read_text(encoding="utf-8")
    return re.search(rf"^### `{name}`$(.*?)(?=^##|\Z)", text, flags=re.MULTILINE | re.DOTALL)[1]


@pytest.mark.parametrize("name", list(HEADS))
def test_a_section_tells_formula_needs_parameters_cost_published_and_own_numbers(name):
    needs, _, parameters, multiply_adds = rows()[name][:4]
    text = section(name)
    assert "`S = " in text, "no formula"
    assert f"* Needs {needs}. Learns {parameters} numbers at D=512." in text
    assert f"{multiply_adds} multiply-adds a pair." in text
    assert "* Published" in text and "* On the built-in corpus, backbone frozen: " in text


def test_published_numbers_of_the_page_are_those_that_reports_print():
    def triple(numbers):
        return "/".join(f"{numbers[name]:.1f}" for name in ("R@1", "R@5", "R@10"))

    for name, method in METHODS.items():
        fine_tuned, frozen = section(name).split("with it frozen")
        for row in PUBLISHED[FINE_TUNED]:
            if row.method == method and row.dataset == "msrvtt":
                assert f"{triple(row.text_to_video)} | {triple(row.video_to_text)}" in fine_tuned
        found = [row for row in PUBLISHED[FROZEN] if (row.method, row.dataset) == (FROZEN_METHODS.get(name), "msrvtt")]
        assert len(re.findall(r"[\d.]+/[\d.]+/[\d.]+ ", frozen.split("\n")[0])) == sum(
            1 + bool(r.video_to_text) for r in found
        )
        assert all(triple(row.text_to_video) in frozen for row in found)
    assert {name for name in HEADS if "with it frozen" in section(name)} == METHODS.keys()


@pytest.mark.parametrize("name", list(HEADS))
def test_a_section_names_every_option_of_its_head(name):
    shared = {
        "logit_scale",
        "logit_bias",
        "adapter",
        "aggregator",
        "aggregator_layers",
        "aggregator_heads",
        "frame_positions",
    }
    for option in head_options(name):
        if option not in shared or (option in ("aggregator",)):
            assert f"`{option}" in section(name), f"{option} is not described"


@pytest.mark.parametrize("name", list(HEADS))
def test_every_section_says_how_the_head_differs_from_the_published_program(name):
    assert re.search(r"Differs\s+from\s+the\s+published\s+(program|method)|no published program", section(name))
