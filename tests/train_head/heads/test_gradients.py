"""CLIP4Clip's four headers, slowly: what they learn is what the definitions say, parameter by parameter.

The golden files of that program hold scores and no gradients. So the headers are written here once more, from their
definitions, in plain arithmetic of float64, one pair and one sequence at a time; this reference must agree with the golden scores, and then
our heads with the gradients of the reference.

F frames, D embed_dim, S sequence length.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.importing.foreign_weights import head_from_state_dict
from glscl.train_head.losses import contrastive_loss

_spec = importlib.util.spec_from_file_location(
    "golden_files", Path(__file__).parents[1] / "importing" / "test_foreign_weights.py"
)
golden_files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden_files)

HEADERS = ("meanP", "seqLSTM", "seqTransf", "tightTransf")
OURS = {  # public prefix -> ours
    "frame_position_embeddings.": "aggregator.positions.",
    "transformerClip.resblocks.": "aggregator.blocks.",
    "lstm_visual.": "aggregator.lstm.",
    "cross.embeddings.position_embeddings.": "positions.",
    "cross.transformer.resblocks.": "blocks.",
    "cross.pooler.ln_pool.": "pool_norm.",
    "cross.pooler.dense.": "pool.",
    "similarity_dense.": "similarity.",
}
NEVER_USED = {"seqLSTM": {"frame_position_embeddings.weight"}}  # saved, and read by nothing


# ---- the reference -------------------------------------------------------------------------------------------------


def unit(vector):
    return vector / (vector @ vector).sqrt()


def layer_norm(x, w, name):
    centred = x - x.sum(-1, keepdim=True) / x.shape[-1]
    variance = (centred * centred).sum(-1, keepdim=True) / x.shape[-1]
    return centred / (variance + 1e-12).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def quick_gelu(x):
    return x / (1 + (-1.702 * x).exp())


def attention(x, w, name, heads):
    """Every entry of (S, D) attends to every entry."""
    size = x.shape[1] // heads
    queries, keys, values = (x @ w[f"{name}.in_proj_weight"].T + w[f"{name}.in_proj_bias"]).split(x.shape[1], dim=1)
    parts = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        weights = (queries[:, part] @ keys[:, part].T / size**0.5).exp()  # (S, S)
        parts.append(weights / weights.sum(1, keepdim=True) @ values[:, part])
    return linear(torch.cat(parts, dim=1), w, f"{name}.out_proj")


def transformer(x, w, name, heads, layers=4):
    """Pre-norm blocks on one sequence (S, D)."""
    for layer in range(layers):
        block = f"{name}.{layer}"
        x = x + attention(layer_norm(x, w, f"{block}.ln_1"), w, f"{block}.attn", heads)
        hidden = quick_gelu(linear(layer_norm(x, w, f"{block}.ln_2"), w, f"{block}.mlp.c_fc"))
        x = x + linear(hidden, w, f"{block}.mlp.c_proj")
    return x


def lstm(frames, w):
    """Outputs (F, D) of one uni-directional layer."""
    hidden = cell = torch.zeros_like(frames[0])
    outputs = []
    for x in frames:
        gates = w["lstm_visual.weight_ih_l0"] @ x + w["lstm_visual.bias_ih_l0"]
        gates = gates + w["lstm_visual.weight_hh_l0"] @ hidden + w["lstm_visual.bias_hh_l0"]
        enter, forget, content, leave = gates.split(len(x))
        cell = forget.sigmoid() * cell + enter.sigmoid() * content.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return torch.stack(outputs)


def aggregate(header, frames, w):
    """Real frames (F, D) of one video after the header's aggregator."""
    if header == "meanP":
        return frames
    if header == "seqLSTM":
        return frames + lstm(frames, w)
    placed = frames + w["frame_position_embeddings.weight"][: len(frames)]
    return frames + transformer(placed, w, "transformerClip.resblocks", heads=max(1, frames.shape[1] // 64))


def tight_score(text, frames, w):
    """The score of one caption (D,) and the real frames (F, D) of one video."""
    sequence = torch.cat((text[None], frames))
    sequence = sequence + w["cross.embeddings.position_embeddings.weight"][: len(sequence)]
    first = transformer(sequence, w, "cross.transformer.resblocks", heads=8)[0]
    pooled = quick_gelu(linear(layer_norm(first, w, "cross.pooler.ln_pool"), w, "cross.pooler.dense"))
    return linear(pooled, w, "similarity_dense")[0]


def reference_logits(header, text, video, mask, w, scale):
    """(T, V): `τ S`, or `S` of the tight header."""
    clips = [frames[real] for frames, real in zip(video, mask, strict=True)]
    if header == "tightTransf":
        return torch.stack([torch.stack([tight_score(t, clip, w) for clip in clips]) for t in text])
    pooled = [unit(sum(unit(x) for x in aggregate(header, clip, w)) / len(clip)) for clip in clips]
    return torch.stack([torch.stack([scale.exp() * (unit(t) @ v) for v in pooled]) for t in text])


def reference_loss(logits):
    """`½ [CE over rows + CE over columns]`, the diagonal being right."""
    size = len(logits)
    rows = sum(logits[i].exp().sum().log() - logits[i, i] for i in range(size)) / size
    columns = sum(logits[:, i].exp().sum().log() - logits[i, i] for i in range(size)) / size
    return (rows + columns) / 2


# ---- the comparison ------------------------------------------------------------------------------------------------


class Slow:
    """The reference on one golden file: logits, loss and gradients, in float64."""

    def __init__(self, header):
        self.header = header
        self.golden, _, self.weights, self.text, self.video = golden_files.read(f"clip4clip_{header}")
        w = {key: value.double().requires_grad_() for key, value in self.weights.items()}
        text = self.text.text_features.double().requires_grad_()
        frames = self.video.frame_features.double().requires_grad_()
        scale = torch.tensor(100.0).log().double().requires_grad_()
        self.logits = reference_logits(header, text, frames, self.video.frame_mask, w, scale)
        self.loss = reference_loss(self.logits)
        self.loss.backward()
        self.gradients = {key: value.grad for key, value in w.items() if key not in NEVER_USED.get(header, ())}
        self.inputs = {"text_features": text.grad, "frame_features": frames.grad}
        self.scale_gradient = scale.grad


@pytest.fixture(scope="module", params=HEADERS)
def slow(request):
    return Slow(request.param)


def test_the_slow_reference_is_the_public_program(slow):
    """Scores to 1e-5, those of the loose headers before τ; the loss of these scores, too."""
    largest = 1.0 if slow.header == "tightTransf" else 100.0
    difference = slow.logits.detach().numpy() - slow.golden["similarity"]
    assert np.abs(difference).max() <= 1e-5 * largest
    expected = reference_loss(torch.from_numpy(slow.golden["similarity"]).double())
    assert slow.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not slow.video.frame_mask.all(), "nothing is padded, so masks are not tested"


@pytest.mark.parametrize("tiled", [False, True])
def test_loss_and_gradients_of_our_heads_are_those_of_the_reference(slow, tiled):
    """Norms to 1e-4 for every parameter, the temperature and both inputs; and directions, not norms alone."""
    head = head_from_state_dict(slow.weights, source="clip4clip", embed_dim=64).train()
    if slow.header == "tightTransf":
        head.dropout.p = 0.0
    text = slow.text.text_features.clone().requires_grad_()
    frames = slow.video.frame_features.clone().requires_grad_()
    sides = head.encode_text(TextFeatures(text)), head.encode_video(VideoFeatures(frames, slow.video.frame_mask))
    if tiled:
        head.tile_bytes = 16 * head.pair_bytes(*sides)
    loss = contrastive_loss(head.score(*sides) * head.logit_scale.exp())
    loss.backward()
    assert loss.item() == pytest.approx(slow.loss.item(), rel=1e-4)
    parameters = dict(head.named_parameters())
    expected = {our_name(public): gradient for public, gradient in slow.gradients.items()}
    assert expected.keys() == parameters.keys() - {"logit_scale"}
    found = {name: parameters[name].grad for name in expected} | {
        "text_features": text.grad,
        "frame_features": frames.grad,
    }
    if head.has_logit_scale:
        found["logit_scale"], expected["logit_scale"] = head.logit_scale.grad, slow.scale_gradient
    for name, gradient in (expected | slow.inputs).items():
        norm = gradient.norm().item()
        if (header := slow.header, name) == ("tightTransf", "similarity.bias"):  # it moves all logits alike
            assert norm < 1e-12 and found[name].norm() < 1e-6
            continue
        assert norm > 1e-6, f"the gradient of {name} is too small to compare in {header}"
        assert found[name].norm().item() == pytest.approx(norm, rel=1e-4), name
        assert (found[name] - gradient).norm() < 1e-3 * norm, name


def our_name(public):
    """What the public program's weight is called in our head."""
    theirs = next(prefix for prefix in OURS if public.startswith(prefix))
    return OURS[theirs] + public.removeprefix(theirs)
