"""Every architecture of open_clip, compared with open_clip's own path: the small ones whole, the large ones at their full width with two
blocks a tower. What ran whole of those stands in benchmarks/results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from glscl.extract.backbone.parameters import MILLIONS

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
from zoo import compare

# Below 200 million parameters, and SigLIP's base models, which have just more; text towers of transformers are made small.
SMALL = [name for name, millions in MILLIONS.items() if millions < 205]
OF_TRANSFORMERS = [
    "roberta-ViT-B-32",
    "xlm-roberta-base-ViT-B-32",
    "mt5-base-ViT-B-32",
    "nllb-clip-base",
    "coca_roberta-ViT-B-32",
]
QUICK = ["ViT-S-32-alt"]
LARGE = [name for name in MILLIONS if name not in (*SMALL, *OF_TRANSFORMERS)]
UNCUT = ("MobileCLIP2-S3", "MobileCLIP2-S4")  # towers that have no number of blocks


def check(name: str, blocks: int | None = None) -> None:
    found = compare(name, blocks)
    assert found["frames"] < 1e-5 and found["texts"] < 1e-5, found
    assert min(found["apart"]) > 1e-3, "other pictures and captions have other features"
    assert found["tokens"] and found["words"] == min(32, found["context"])


@pytest.mark.parametrize("name", QUICK)
def test_a_small_architecture_encodes_as_open_clip_does(name):
    check(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", [*SMALL, *OF_TRANSFORMERS])
def test_an_architecture_encodes_as_open_clip_does(name):
    check(name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LARGE)
def test_a_large_architecture_of_two_blocks_encodes_as_open_clip_does(name):
    check(name, None if name.startswith(UNCUT) else 2)
