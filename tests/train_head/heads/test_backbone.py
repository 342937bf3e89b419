"""Starting a head from parts of the backbone's text transformer.

D embed_dim.
"""

from __future__ import annotations

import pytest
import torch

from glscl.train_head.heads import HEADS, build_head

D = 32
WITH_TRANSFORMER = ["seq_transf", "glscl", "dicosa", "xclip", "wti", "ti", "tight_transf", "gare"]


def make_tensors(layers=4, width=D, positions=77, logit_scale=4.0):
    """Tensors under open_clip's names."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,),
        "ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width), "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width), "mlp.c_proj.bias": (width,),
    }  # fmt: skip
    tensors = {"positional_embedding": torch.randn(positions, width, generator=draw)}
    tensors["logit_scale"] = torch.tensor(logit_scale)
    for layer in range(layers):
        for name, shape in shapes.items():
            tensors[f"transformer.resblocks.{layer}.{name}"] = torch.randn(shape, generator=draw)
    return tensors


def transformer_of(head):
    """(positions, blocks) of a head, wherever they are."""
    module = head if hasattr(head, "blocks") else head.aggregator
    return module.positions.weight, module.blocks


def make_head(name, **options):
    heads = {"heads": 4} if name == "tight_transf" else {}
    return build_head(name, embed_dim=D, **heads, **options)


@pytest.mark.parametrize("name", WITH_TRANSFORMER)
def test_blocks_positions_and_temperature_are_copied(name):
    head, tensors = make_head(name), make_tensors(layers=6)
    result = head.initialise_from_backbone(tensors)
    positions, blocks = transformer_of(head)
    assert torch.equal(positions, tensors["positional_embedding"])
    for index, block in enumerate(blocks):
        for key, parameter in block.named_parameters():
            assert torch.equal(parameter, tensors[f"transformer.resblocks.{index}.{key}"])
    prefix = "" if name == "tight_transf" else "aggregator."
    expected = {f"{prefix}positions", *(f"{prefix}blocks.{i}" for i in range(4))}
    if name != "tight_transf":
        expected.add("logit_scale")
        assert head.logit_scale.item() == 4.0
    assert set(result.initialised) == expected
    assert result.skipped == []


@pytest.mark.parametrize("name", sorted({*HEADS} - {*WITH_TRANSFORMER, "video_colbert"}))
def test_heads_without_a_transformer_take_the_temperature_only(name):
    head = build_head(name, embed_dim=D)
    result = head.initialise_from_backbone(make_tensors())
    assert result.initialised == ["logit_scale"] and result.skipped == []
    assert head.logit_scale.item() == 4.0


def test_a_temperature_above_the_clamp_is_clamped():
    head = build_head("mean_pool", embed_dim=D)
    head.initialise_from_backbone({"logit_scale": torch.tensor([4.7])})
    assert head.logit_scale.exp().item() == pytest.approx(100, rel=1e-5)


def test_positions_of_expansion_tokens_come_first_and_the_last_stay_as_they_were():
    head, tensors = build_head("video_colbert", embed_dim=D), make_tensors()
    result = head.initialise_from_backbone(tensors)
    assert torch.equal(head.aggregator.positions.weight[:77], tensors["positional_embedding"])
    assert len(head.aggregator.positions.weight) == 79 and len(result.skipped) == 1 and "[77:]" in result.skipped[0]


def test_other_aggregators_are_left_alone():
    head = build_head("glscl", embed_dim=D, aggregator="seq_lstm")
    assert head.initialise_from_backbone(make_tensors()).initialised == ["logit_scale"]


def test_missing_layers_are_skipped_and_named():
    head = make_head("seq_transf")
    before = head.aggregator.blocks[3].mlp.c_fc.weight.clone()
    tensors = make_tensors(layers=3)
    del tensors["transformer.resblocks.1.ln_2.bias"]
    result = head.initialise_from_backbone(tensors)
    assert {"aggregator.blocks.0", "aggregator.blocks.2"} <= set(result.initialised)
    assert [line.split(":")[0] for line in result.skipped] == ["aggregator.blocks.1", "aggregator.blocks.3"]
    assert "has no transformer.resblocks.1.ln_2.bias" in result.skipped[0]
    assert torch.equal(head.aggregator.blocks[3].mlp.c_fc.weight, before)


def test_a_block_that_does_not_fit_is_skipped_whole():
    head = make_head("seq_transf")
    before = {key: value.clone() for key, value in head.state_dict().items()}
    result = head.initialise_from_backbone(make_tensors(width=48))
    assert result.initialised == ["logit_scale"]
    assert len(result.skipped) == 5
    assert "rows of 32" in result.skipped[0] and "shape (144, 48), expected (96, 32)" in result.skipped[1]
    after = head.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key != "logit_scale")


@pytest.mark.parametrize("length", [16, 100])
def test_positions_of_another_length_are_copied_as_far_as_they_go(length):
    head, tensors = make_head("seq_transf"), make_tensors(positions=length)
    rest = head.aggregator.positions.weight[length:].clone()
    result = head.initialise_from_backbone(tensors)
    rows = min(length, 77)
    assert torch.equal(head.aggregator.positions.weight[:rows], tensors["positional_embedding"][:rows])
    assert torch.equal(head.aggregator.positions.weight[rows:], rest[: 77 - rows])
    assert result.skipped == (["aggregator.positions[16:]: the backbone has 16 of 77"] if length == 16 else [])


def test_nothing_to_copy_is_said():
    result = make_head("seq_transf").initialise_from_backbone({})
    assert result.initialised == []
    assert len(result.skipped) == 6
