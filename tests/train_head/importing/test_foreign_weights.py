"""Weights of the public programs, read under their own names, give what those programs gave.

The golden files hold outputs of the programs for weights and inputs that a seed determines.
T texts, V videos, L tokens, F frames, D embed_dim, Q queries.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import CheckpointError, UsageError
from glscl.train_head.importing.foreign_weights import head_from_state_dict
from glscl.train_head.losses import contrastive_loss

GOLDEN = Path(__file__).parents[2] / "golden"
GLSCL = ["glscl_full_masks", "glscl_ragged", "glscl_seqlstm_ragged", "glscl_no_aggregator"]
CLIP4CLIP = {"meanP": "mean_pool", "seqTransf": "seq_transf", "seqLSTM": "seq_lstm", "tightTransf": "tight_transf"}
PARITY = {"mask_padding": False, "consistency_scale": "queries"}


def read(name):
    """(arrays, meta, state dict, texts, videos) of a golden file; weights and inputs are drawn again from the seed."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    meta = json.loads(str(arrays["meta"]))
    draw = np.random.RandomState(meta["seed"])
    weights = {}
    for key in sorted(meta["params"]):
        value = draw.standard_normal(meta["params"][key]) * 0.05
        if key.endswith("_queries") or re.search(r"(ln_\w+|norm\d)\.weight$", key):
            value = value + 1
        weights[key] = torch.from_numpy(value.astype(np.float32))
    draw = np.random.RandomState(meta["seed"] + 1)

    def features(*shape):
        return torch.from_numpy(draw.standard_normal(shape).astype(np.float32))

    texts, videos, frames, dim = meta["n_texts"], meta["n_videos"], meta["n_frames"], meta["width"]
    tokens = token_mask = None
    if "n_words" in meta:
        tokens, token_mask = features(texts, meta["n_words"], dim), torch.from_numpy(arrays["text_mask"]).bool()
    pooled = features(texts, dim)
    text = TextFeatures(pooled, tokens, token_mask)
    return arrays, meta, weights, text, VideoFeatures(
        features(videos, frames, dim), torch.from_numpy(arrays["video_mask"]).bool()
    )  # fmt: skip


def glscl_head(weights, **options):
    return head_from_state_dict(weights, source="glscl", embed_dim=64, **{**PARITY, **options})


def our_name(public):
    """The name a weight of the GLSCL program has in our head."""
    for theirs, ours in (
        ("transformerClip.resblocks.", "aggregator.blocks."),
        ("lstm_visual.", "aggregator.lstm."),
        ("transformer_decoder_noun.layers.", "decoder.layers."),
        ("frame_position_embeddings.", "aggregator.positions."),
        ("spatial_queries", "queries"),
    ):
        if public.startswith(theirs):
            return ours + public.removeprefix(theirs)
    raise AssertionError(f"no name for {public}")


@pytest.mark.parametrize("name", GLSCL)
def test_glscl_scores_are_those_of_the_public_program(name):
    arrays, meta, weights, text, video = read(name)
    head = glscl_head(weights)
    assert head.temperature == meta["temperature"] and head.local_weight == meta["local_weight"]
    with torch.no_grad():
        encoded_text, encoded_video = head.encode_text(text), head.encode_video(video)
        found = {
            "video_features": encoded_video.frame_features,
            "text_concepts": encoded_text.concepts,
            "video_concepts": encoded_video.concepts,
            "similarity_global": head.global_scores(encoded_text, encoded_video),
            "similarity_local": head.local_scores(encoded_text, encoded_video),
            "similarity": head.score(encoded_text, encoded_video),
            "logit_scale": head.logit_scale.exp(),
        }
    for key, value in found.items():
        tolerance = 1e-5 * max(1.0, float(np.abs(arrays[key]).max()) if key == "logit_scale" else 1.0)
        np.testing.assert_allclose(value.numpy(), arrays[key], rtol=0, atol=tolerance, err_msg=key)


@pytest.mark.parametrize("tile_bytes", [None, 4096])
@pytest.mark.parametrize("name", GLSCL)
def test_glscl_losses_and_gradients_are_those_of_the_public_program(name, tile_bytes):
    arrays, _, weights, text, video = read(name)
    head = glscl_head(weights, dropout=0.0).train()
    head.tile_bytes = tile_bytes
    output = head(text, video)
    contrastive = contrastive_loss(output.similarity * head.logit_scale.exp())
    loss = contrastive + sum(output.auxiliary.values())
    loss.backward()
    for value, key in (
        (contrastive, "loss_contrastive"),
        (output.auxiliary["intra_diversity"], "loss_diversity"),
        (output.auxiliary["inter_consistency"], "loss_consistency"),
        (loss, "loss"),
    ):
        assert value.item() == pytest.approx(float(arrays[key]), rel=1e-4, abs=1e-12), key
    np.testing.assert_allclose(head.queries.grad.numpy(), arrays["grad_queries"], rtol=0, atol=1e-5)
    parameters = dict(head.named_parameters())
    checked = set()
    for public, norm in zip(arrays["grad_norm_names"], arrays["grad_norms"], strict=True):
        ours = our_name(str(public))
        assert parameters[ours].grad.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-9), public
        checked.add(ours)
    assert checked == set(parameters) - {"logit_scale"}


@pytest.mark.parametrize("name", GLSCL)
def test_glscl_without_padding_needs_no_parity_option(name):
    """Our default differs from the public program exactly where something is padded."""
    arrays, _, weights, text, video = read(name)
    head = head_from_state_dict(weights, source="glscl", embed_dim=64)
    assert head.mask_padding
    with torch.no_grad():
        difference = (head(text, video).similarity - torch.from_numpy(arrays["similarity"])).abs()
    full = text.token_mask.all(-1)[:, None] & video.frame_mask.all(-1)[None]
    assert full.any()
    assert difference[full].max() < 1e-5
    if not full.all():
        assert difference[~full].max() > 1e-4


@pytest.mark.parametrize(("header", "expected"), CLIP4CLIP.items())
def test_clip4clip_scores_are_those_of_the_public_program(header, expected):
    arrays, _, weights, text, video = read(f"clip4clip_{header}")
    head = head_from_state_dict(weights, source="clip4clip", embed_dim=64)
    assert type(head).__module__.endswith(expected)
    with torch.no_grad():
        similarity = head(text, video).similarity * head.logit_scale.exp()
    scale = head.logit_scale.exp().item()
    np.testing.assert_allclose(similarity.numpy(), arrays["similarity"], rtol=0, atol=1e-5 * scale)


def test_sizes_come_from_the_keys():
    _, _, weights, _, _ = read("glscl_ragged")
    options = glscl_head(weights).options
    assert (options["queries"], options["decoder_layers"], options["aggregator_layers"]) == (8, 2, 4)
    assert options["aggregator"] == "seq_transf" and options["frame_positions"] == 77
    assert glscl_head(read("glscl_seqlstm_ragged")[2]).options["aggregator"] == "seq_lstm"
    options = glscl_head(read("glscl_no_aggregator")[2]).options
    assert (options["aggregator"], options["queries"], options["decoder_layers"]) == ("none", 4, 1)


def public_checkpoint():
    """A state dict with everything the public program saves: backbone, templates, the unused second side, `module.`."""
    arrays, _, weights, text, video = read("glscl_ragged")
    spare = dict(weights)
    for key, value in weights.items():
        if key.startswith("transformer_decoder_noun."):
            spare[key.replace("_noun.", "_spatial.")] = weights[key.replace(".layers.1.", ".layers.0.")].clone()
        if key.startswith("transformer_decoder_noun.layers.0."):
            spare[key.replace("transformer_decoder_noun.layers.0.", "decoder_layer_noun.")] = value.clone()
            spare[key.replace("transformer_decoder_noun.layers.0.", "decoder_layer_spatial.")] = value.clone()
    spare["noun_queries"] = torch.rand(8, 64)
    spare["clip.logit_scale"] = torch.tensor(2.5)
    spare["clip.visual.proj"] = torch.zeros(3, 3)
    spare["weight_fc.0.weight"] = torch.zeros(2, 2)
    return arrays, {f"module.{key}": value for key, value in spare.items()}, text, video


def test_a_whole_public_checkpoint_is_read_and_what_is_dropped_is_listed(caplog):
    arrays, weights, text, video = public_checkpoint()
    with caplog.at_level(logging.INFO, "glscl.train_head.importing.foreign_weights"):
        head = glscl_head(weights)
    with torch.no_grad():
        np.testing.assert_allclose(head(text, video).similarity.numpy(), arrays["similarity"], rtol=0, atol=1e-5)
    assert head.logit_scale.item() == pytest.approx(2.5)
    dropped = set(head.dropped_keys)
    assert {"clip.visual.proj", "weight_fc.0.weight", "noun_queries", "decoder_layer_noun.norm1.bias"} <= dropped
    assert "clip.logit_scale" not in dropped and "spatial_queries" not in dropped
    assert f"{len(dropped)} keys not used" in caplog.text
    assert "share_decoder=False" not in caplog.text, "an untrained second decoder is no reason to warn"


def test_a_second_decoder_that_was_trained_is_pointed_out(caplog):
    _, weights, _, _ = public_checkpoint()
    weights["module.transformer_decoder_spatial.layers.1.norm1.bias"] += 0.1
    glscl_head(weights)
    assert "pass share_decoder=False" in caplog.text


def test_unshared_queries_and_decoder_are_read_when_asked_for():
    _, weights, text, video = public_checkpoint()
    weights = {key.removeprefix("module."): value for key, value in weights.items()}
    for key in weights:
        if key.startswith("transformer_decoder_spatial"):
            weights[key] = weights[key] + 0.01 * torch.randn_like(weights[key])
    head = glscl_head(weights, share_queries=False, share_decoder=False)
    assert torch.equal(head.queries, weights["spatial_queries"])
    assert torch.equal(head.text_queries, weights["noun_queries"])
    first = "layers.0.linear1.weight"
    assert torch.equal(head.decoder.state_dict()[first], weights[f"transformer_decoder_spatial.{first}"])
    assert torch.equal(head.text_decoder.state_dict()[first], weights[f"transformer_decoder_noun.{first}"])
    assert not torch.allclose(head(text, video).similarity, glscl_head(weights)(text, video).similarity, atol=1e-4)


def test_half_precision_weights_are_read_into_float32():
    _, _, weights, text, video = read("glscl_ragged")
    head = glscl_head({key: value.half() for key, value in weights.items()})
    assert all(parameter.dtype == torch.float32 for parameter in head.parameters())
    difference = head(text, video).similarity - glscl_head(weights)(text, video).similarity
    assert difference.abs().max() < 1e-2


def test_unknown_and_missing_keys_are_named():
    _, _, weights, _, _ = read("glscl_ragged")
    weights["transformer_decoder_noun.layers.0.norm4.weight"] = torch.ones(64)
    weights["surprise"] = torch.ones(1)
    del weights["transformerClip.resblocks.2.ln_1.bias"]
    del weights["spatial_queries"]
    with pytest.raises(CheckpointError) as caught:
        glscl_head(weights)
    message = str(caught.value)
    unknown, missing = message.split("missing keys: ")
    assert "surprise" in unknown and "transformer_decoder_noun.layers.0.norm4.weight" in unknown
    assert "transformerClip.resblocks.2.ln_1.bias" in missing and "spatial_queries" in missing


def test_missing_keys_of_layers_nobody_has_seen_are_named_as_the_program_would():
    _, _, weights, _, _ = read("glscl_ragged")
    with pytest.raises(CheckpointError, match=r"missing keys: .*transformer_decoder_noun\.layers\.2\.linear1\.bias"):
        glscl_head(weights, decoder_layers=3)
    with pytest.raises(CheckpointError, match=r"missing keys: .*noun_queries"):
        glscl_head(weights, share_queries=False)


def test_more_layers_than_asked_for_are_unknown_keys():
    _, _, weights, _, _ = read("glscl_ragged")
    with pytest.raises(CheckpointError, match=r"unknown keys: .*transformerClip\.resblocks\.3\."):
        glscl_head(weights, aggregator_layers=3)


def test_shapes_that_do_not_fit_are_named():
    _, _, weights, _, _ = read("glscl_ragged")
    with pytest.raises(CheckpointError, match=r"spatial_queries of glscl has shape \(8, 64\), .* expects \(12, 64\)"):
        glscl_head(weights, queries=12)
    with pytest.raises(CheckpointError, match=r"has shape .*64.*expects.*128"):
        head_from_state_dict(weights, source="glscl", embed_dim=128)


def test_an_empty_glscl_state_dict_is_refused():
    with pytest.raises(CheckpointError, match=r"missing keys: .*spatial_queries"):
        glscl_head({})


def test_unknown_sources_and_options_are_refused_with_the_choices():
    with pytest.raises(UsageError, match="no source 'nothing'; choose from glscl, xclip, xpool"):
        head_from_state_dict({}, source="nothing", embed_dim=64)
    with pytest.raises(UsageError, match="head mean_pool has no option 'queries'"):
        head_from_state_dict({}, source="clip4clip", embed_dim=64, queries=3)


def test_clip4clip_takes_the_temperature_of_the_backbone_and_drops_the_rest_of_it():
    weights = {"clip.logit_scale": torch.tensor(4.0), "clip.visual.proj": torch.zeros(2, 2)}
    head = head_from_state_dict(weights, source="clip4clip", embed_dim=8)
    assert head.logit_scale.item() == 4.0
    assert head.dropped_keys == ("clip.visual.proj",)
    weights = dict(read("clip4clip_tightTransf")[2], **weights)
    head = head_from_state_dict(weights, source="clip4clip", embed_dim=64)
    assert head.logit_scale.item() == 0.0, "the tight head has no temperature"
