"""X-CLIP, X-Pool, DRL and DiCoSA: weights under the names that those programs save, scored by their formulas, written out here.

T texts, V videos, L words, F frames, D size of features. All entries are real, where program and head agree on everything.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import CheckpointError
from glscl.train_head.importing.foreign_weights import head_from_state_dict, head_of, source_of
from glscl.train_head.importing.import_checkpoint import import_checkpoint

T, V, L, F_, D = 5, 4, 6, 3, 64


def batch() -> tuple[TextFeatures, VideoFeatures]:
    made = torch.Generator().manual_seed(7)
    text = TextFeatures(
        torch.randn(T, D, generator=made), torch.randn(T, L, D, generator=made), torch.ones(T, L, dtype=torch.bool)
    )
    return text, VideoFeatures(torch.randn(V, F_, D, generator=made), torch.ones(V, F_, dtype=torch.bool))


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Random weights; norms near 1, square maps near the identity, as they are after training."""
    made, found = torch.Generator().manual_seed(3), {}
    for name, shape in sorted(shapes.items()):
        value = 0.1 * torch.randn(shape, generator=made)
        square = (
            len(shape) == 2 and shape[0] == shape[1] and ("proj" in name or "mat" in name or "logit_weight" in name)
        )
        found[name] = value + torch.eye(shape[0]) if square else value + 1.0 * ("norm" in name and "weight" in name)
    return found


def linear(name: str, out: int, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, size), f"{name}.bias": (out,)}


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1)


def apply(w: dict[str, torch.Tensor], name: str, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def xpool_score(w, text, video):
    def norm(number, x):
        name = f"pool_frames.layer_norm{number}"
        return F.layer_norm(x, (D,), w[f"{name}.weight"], w[f"{name}.bias"])

    frames = norm(1, video.frame_features)
    query = apply(w, "pool_frames.cross_attn.q_proj", norm(1, text.text_features))
    key, value = (apply(w, f"pool_frames.cross_attn.{side}_proj", frames) for side in "kv")
    attention = (torch.einsum("td,vfd->vtf", query, key) / D**0.5).softmax(-1)
    pooled = norm(2, apply(w, "pool_frames.cross_attn.out_proj", attention @ value))  # (V, T, D)
    pooled = norm(3, pooled + apply(w, "pool_frames.linear_proj", pooled))
    return torch.einsum("td,vtd->tv", unit(text.text_features), unit(pooled))


def drl_score(w, text, video):
    def weights(name, x):
        if f"{name}.0.weight" not in w:
            return torch.full(x.shape[:2], 1 / x.shape[1])
        return apply(w, f"{name}.2", apply(w, f"{name}.0", x).relu())[..., 0].softmax(-1)

    p, q = weights("text_weight_fc", text.token_features), weights("video_weight_fc", video.frame_features)
    cosines = torch.einsum("tld,vfd->tvlf", unit(text.token_features), unit(video.frame_features))
    return (torch.einsum("tvl,tl->tv", cosines.amax(3), p) + torch.einsum("tvf,vf->tv", cosines.amax(2), q)) / 2


def dicosa_score(w, text, video):
    attention = (torch.einsum("td,vfd->tvf", text.text_features, video.frame_features) / 3.0).softmax(-1)
    pooled = torch.einsum("tvf,vfd->tvd", attention, video.frame_features).view(T, V, 8, -1)
    chunks = text.text_features.view(T, 1, 8, -1).expand_as(pooled)
    weight = apply(w, "weight_fc.2", apply(w, "weight_fc.0", torch.cat((chunks, pooled), -1)).relu())[..., 0]
    return (weight * (unit(chunks) * unit(pooled)).sum(-1)).sum(-1)


def xclip_score(w, text, video):
    def reduce(scores, name):  # over the last dimension
        return ((scores / 0.01).softmax(-1) @ w[name] * scores).sum(-1)

    frames, words, sentence = unit(video.frame_features), unit(text.token_features), unit(text.text_features)
    whole = unit(frames.mean(1))
    fine = torch.einsum("tld,de,vfe->tvlf", words, w["local_mat_weight"], frames)
    by_word = reduce(fine.transpose(2, 3), "word_mat_weight")  # (T, V, F)
    by_frame = reduce(fine, "frame_mat_weight")  # (T, V, L)
    parts = [
        sentence @ w["global_mat_weight"] @ whole.T,
        reduce(torch.einsum("tld,vd->tvl", words, whole), "word_logit_weight"),
        reduce(torch.einsum("td,vfd->tvf", sentence, frames), "frame_logit_weight"),
        (reduce(by_word, "frame_mat_weight2") + reduce(by_frame, "word_mat_weight2")) / 2,
    ]
    return sum(parts) / 4


XPOOL = {
    key: shape
    for name in ("cross_attn.q_proj", "cross_attn.k_proj", "cross_attn.v_proj", "cross_attn.out_proj", "linear_proj")
    for key, shape in linear(f"pool_frames.{name}", D, D).items()
} | {f"pool_frames.layer_norm{i}.{part}": (D,) for i in (1, 2, 3) for part in ("weight", "bias")}
WTI = {
    key: shape
    for side in ("text", "video")
    for key, shape in (linear(f"{side}_weight_fc.0", D, D) | linear(f"{side}_weight_fc.2", 1, D)).items()
}
XCLIP = {name: (D, D) for name in ("global_mat_weight", "local_mat_weight")}
XCLIP |= {name: (L, L) for name in ("word_logit_weight", "word_mat_weight", "word_mat_weight2")}
XCLIP |= {name: (F_, F_) for name in ("frame_logit_weight", "frame_mat_weight", "frame_mat_weight2")}
DICOSA = linear("weight_fc.0", D // 2, D // 4) | linear("weight_fc.2", 1, D // 2)
PROGRAMS = {
    "xpool": (XPOOL, xpool_score, "xpool"),
    "drl": (WTI, drl_score, "wti"),
    "xclip": (XCLIP, xclip_score, "xclip"),
    "dicosa": (DICOSA, dicosa_score, "dicosa"),
}
BACKBONE = {"clip.logit_scale": torch.tensor(4.2), "clip.visual.proj": torch.zeros(8, D)}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_head_scores_as_its_program_does(program):
    shapes, score, name = PROGRAMS[program]
    weights, (text, video) = tensors(shapes), batch()
    whole = {f"module.{key}": value for key, value in {**weights, **BACKBONE}.items()}
    assert source_of({**weights, **BACKBONE}) == program and head_of(weights, program) == name
    head = head_from_state_dict(whole, embed_dim=D)
    with torch.no_grad():
        torch.testing.assert_close(head(text, video).similarity, score(weights, text, video), rtol=0, atol=2e-6)
    assert head.logit_scale.item() == pytest.approx(4.2)
    assert head.dropped_keys == ("clip.visual.proj",)


def test_drl_without_weights_of_words_is_plain_interaction():
    text, video = batch()
    with pytest.raises(CheckpointError, match="no head of a known program"):
        head_from_state_dict({"something": torch.zeros(1)}, embed_dim=D)
    head = head_from_state_dict(BACKBONE, "drl", embed_dim=D)
    with torch.no_grad():
        torch.testing.assert_close(head(text, video).similarity, drl_score({}, text, video), rtol=0, atol=2e-6)


@pytest.mark.parametrize("program", ["drl", "dicosa", "xclip"])
@pytest.mark.parametrize("aggregator", ["seq_transf", "seq_lstm"])
def test_the_aggregator_of_frames_comes_along(program, aggregator):
    shapes, score, _ = PROGRAMS[program]
    extra = {"frame_position_embeddings.weight": (77, D)}
    if aggregator == "seq_lstm":
        extra |= {f"lstm_visual.{part}_{side}_l0": (4 * D, D) for part in ("weight",) for side in ("ih", "hh")}
        extra |= {f"lstm_visual.bias_{side}_l0": (4 * D,) for side in ("ih", "hh")}
    else:
        block = {f"{norm}.{part}": (D,) for norm in ("ln_1", "ln_2") for part in ("weight", "bias")}
        block |= {"attn.in_proj_weight": (3 * D, D), "attn.in_proj_bias": (3 * D,)}
        block |= linear("attn.out_proj", D, D) | linear("mlp.c_fc", 4 * D, D) | linear("mlp.c_proj", D, 4 * D)
        extra |= {f"transformerClip.resblocks.0.{name}": shape for name, shape in block.items()}
    weights, (text, video) = tensors({**shapes, **extra}), batch()
    head = head_from_state_dict({**weights, **BACKBONE}, embed_dim=D)
    assert head.options["aggregator"] == aggregator
    with torch.no_grad():
        frames = head.aggregator(video.frame_features, video.frame_mask)
        found = head(text, video).similarity
        if program == "xclip":  # single frames are compared as they were
            return
        expected = score(weights, text, video._replace(frame_features=frames))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    assert not torch.allclose(frames, video.frame_features, atol=1e-3)


@pytest.mark.parametrize("program", PROGRAMS)
def test_missing_and_unknown_keys_are_named_as_the_program_names_them(program):
    weights = tensors(PROGRAMS[program][0])
    gone = sorted(weights)[-1]
    del weights[gone]
    with pytest.raises(CheckpointError, match=f"unknown keys: surprise; missing keys: {gone}"):
        head_from_state_dict({**weights, "surprise": torch.ones(1)}, program, embed_dim=D)


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_program_is_told_by_its_keys_when_a_run_is_made(tmp_path, small_cache, program):
    store = small_cache(dim=D).fill()
    weights = tensors(PROGRAMS[program][0])
    torch.save({"epoch": 3, "state_dict": {**weights, **BACKBONE}}, tmp_path / "best.pth")
    done = import_checkpoint(tmp_path / "best.pth", store, tmp_path / "run")
    assert done.head == PROGRAMS[program][2]
    np.testing.assert_allclose(done.options["logit_scale"], np.log(100), rtol=1e-6)
