"""With `pad_tokens` GLSCL's scores are those of its program, which reads 32 words and 12 frames whatever there is.

T texts, V videos, L tokens, F frames, D embed_dim.
"""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import glscl
from glscl.cache.store import open_store
from glscl.common.errors import UsageError
from glscl.demo import BACKBONE_DIR, BPE_PATH, corpus
from glscl.evaluate.exporting.features import export_features
from glscl.evaluate.search.model import Model
from glscl.evaluate.similarity import similarity_matrix
from glscl.extract.backbone.encoder import backbone_of_cache
from glscl.extract.listing import ListOrigin
from glscl.extract.pipeline import extract
from glscl.extract.settings import ExtractSettings
from glscl.train_head.finetuning.backbone_and_head import Clips, EndToEnd
from glscl.train_head.finetuning.pixel_learner import encode_table
from glscl.train_head.finetuning.pixels import DecodedFrames, items_of
from glscl.train_head.finetuning.settings import FinetuneSettings
from glscl.train_head.heads import build_head
from glscl.train_head.settings import resolve
from glscl.train_head.train import LoadedSplits

WORDS, FRAMES, TEMPERATURE = 32, 12, 3.0


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Annotations and videos of a small corpus."""
    return corpus.render_corpus(
        tmp_path_factory.mktemp("demo"), seed=3, workers=1, sizes={"train": 1, "val": 1, "test": 3}
    )


@pytest.fixture
def extracted(rendered, decoded_here, tmp_path):
    """The cache of its test split, with or without padding; half a frame a second leaves every video short."""

    def make(name, **options):
        settings = ExtractSettings(
            backbone="demo", fps=0.5, dtype="float32", precision="fp32", max_words=WORDS, **options
        )
        origin = ListOrigin(name="demo", recipe="demo", command="", versions={})
        extract(corpus.read(*rendered, splits=["test"]), tmp_path / name, settings, origin=origin)
        return open_store(tmp_path / name)

    return make


@pytest.fixture(scope="module")
def head():
    torch.manual_seed(0)
    made = build_head(
        "glscl", embed_dim=128, decoder_layers=2, aggregator_layers=1, mask_padding=False, consistency_scale="queries"
    ).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name != "logit_scale":
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


@torch.no_grad()
def public_scores(head, captions, videos):
    """(T, V) by a loop over captions, videos and pairs, from words and files, as the public program computes them."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{BACKBONE_DIR}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{BACKBONE_DIR}", bpe_path=str(BPE_PATH))
    model = model.eval()

    def words(caption):
        ids = tokenizer([caption], context_length=WORDS)  # (1, L), zeros behind the end
        length = int(ids[0].argmax()) + 1
        seen = torch.ones(WORDS, WORDS, dtype=torch.bool).tril() & (torch.arange(WORDS) < length)
        state = model.token_embedding(ids) + model.positional_embedding[:WORDS]
        for block in model.transformer.resblocks:
            normed = block.ln_1(state)
            state = state + block.attn(normed, normed, normed, attn_mask=~seen, need_weights=False)[0]
            state = state + block.mlp(block.ln_2(state))
        state = model.ln_final(state)[0] @ model.text_projection  # (L, D)
        return state[length - 1], state

    def frames(path):
        from PIL import Image

        shown, _ = glscl.decode(path, fps=0.5)
        pixels = torch.stack([preprocess(Image.fromarray(frame)) for frame in shown[:FRAMES]])
        pixels = torch.cat([pixels, torch.zeros(FRAMES - len(pixels), *pixels.shape[1:])])
        found, real = model.encode_image(pixels), torch.arange(FRAMES) < len(shown)  # (F, D)
        state = found + head.aggregator.positions.weight[:FRAMES]
        for block in head.aggregator.blocks:
            normed, attn = block.ln_1(state)[:, None], block.attn
            state = state + F.multi_head_attention_forward(
                normed, normed, normed, 128, 2, attn.in_proj_weight, attn.in_proj_bias, None, None, False, 0.0,
                attn.out_proj.weight, attn.out_proj.bias, training=False, key_padding_mask=~real[None],
            )[0][:, 0]  # fmt: skip
            hidden = block.mlp.c_fc(block.ln_2(state))
            state = state + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
        return found + state, real

    layers = [nn.TransformerDecoderLayer(128, 8, 2048, 0.0, batch_first=True).eval() for _ in head.decoder.layers]
    for layer, ours in zip(layers, head.decoder.layers):
        layer.load_state_dict(ours.state_dict())

    def concepts(memory):
        state = head.queries[None]
        for layer in layers:
            state = layer(state, memory[None])
        return F.normalize(state[0], dim=-1)

    texts = [(*found, concepts(found[1])) for found in map(words, captions)]
    gallery = [(*found, concepts(found[0])) for found in map(frames, videos)]
    scores = torch.empty(len(texts), len(gallery))
    for i, (pooled, _, said) in enumerate(texts):
        for j, (shown, real, seen) in enumerate(gallery):
            weights = (shown @ pooled / TEMPERATURE).softmax(0) * real
            overall = F.cosine_similarity(pooled, weights @ shown, dim=0)
            scores[i, j] = overall + 0.5 * (said * seen).sum(-1).mean()
    return scores


def test_scores_are_those_of_the_public_program_from_words_and_files(rendered, extracted, head):
    store = extracted("padded", pad_tokens=True)
    table = store.table("test", frames=FRAMES, padded=True)
    assert not table.frame_mask.all(1).any() and table.frame_mask.shape[1] == FRAMES, "every video is short"
    captions = table.captions[::12]
    expected = public_scores(head, captions, [rendered[1] / f"{id}.mp4" for id in table.video_ids])
    found = similarity_matrix(head, table)
    torch.testing.assert_close(found[::12], expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(similarity_matrix(head, table, batches=(7, 2)), found, rtol=0, atol=1e-6)
    torch.testing.assert_close(similarity_matrix(head, table, max_bytes=1 << 20), found, rtol=0, atol=1e-6)
    masked = build_head("glscl", **{**head.options, "mask_padding": True}, embed_dim=128).eval()
    masked.load_state_dict(head.state_dict())
    plain = similarity_matrix(masked, store.table("test", frames=FRAMES))
    assert (plain[::12] - expected).abs().max() > 1e-2, "the padding matters here"
    assert Model(head, store, frames=FRAMES).similarity(captions, table).sub(expected).abs().max() < 1e-4


def test_a_second_pass_encodes_the_padding_anew(extracted, head, rendered):
    """From pixels and words what the cache holds; and gradients as if every padded frame and word had been encoded by itself."""
    store = extracted("padded", pad_tokens=True)
    table = store.table("test", frames=FRAMES, padded=True)
    model = EndToEnd(backbone_of_cache(store.configuration, store.path, precision="fp32", across_frames=True), head)
    settings = FinetuneSettings(max_frames=FRAMES, workers=1, videos=rendered[1])
    with DecodedFrames(store, items_of(store, table), model.backbone.transform, settings) as frames:
        anew = encode_table(model, table, store, frames, device="cpu")
        pixels = frames.read(items_of(store, table))
    for name in ("text_features", "token_values", "frame_features"):
        torch.testing.assert_close(getattr(anew, name), getattr(table, name), rtol=0, atol=1e-4)
    assert torch.equal(anew.token_count, table.token_count) and (anew.token_count == WORDS).all() and anew.padded

    model.towers.requires_grad_(True)
    weight = model.towers.visual.conv1.weight
    features = model.video_features(Clips.from_frames(pixels, FRAMES, torch.device("cpu"))).frame_features  # (V, F, D)
    draw = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    (ours,) = torch.autograd.grad((features * draw).sum(), weight)
    gone = torch.zeros(1, 3, *model.backbone.transform.size)
    each = [
        model.backbone.image_features(torch.from_numpy(shown[f : f + 1]))[0]
        if f < len(shown)
        else model.towers.encode_image(gone)[0]
        for shown in pixels
        for f in range(FRAMES)
    ]
    (theirs,) = torch.autograd.grad((torch.stack(each) * draw.flatten(0, 1)).sum(), weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_other_heads_and_exports_see_nothing_of_the_padding(extracted, tmp_path):
    store, plain = extracted("padded", pad_tokens=True), extracted("plain")
    assert store.fingerprint != plain.fingerprint
    ours, theirs = store.table("test", frames=FRAMES), plain.table("test", frames=FRAMES)
    for rows in (slice(0, 20), slice(7, 9)):
        for one, other in zip(
            (*ours.texts(rows), *ours.videos(slice(0, 3))), (*theirs.texts(rows), *theirs.videos(slice(0, 3)))
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    assert (store.arrays("text", ["token_ids"])["token_ids"] == -1).any()
    export_features(store, tmp_path / "out", to="npz")
    lengths = [len(np.load(path)["features"]) for path in sorted((tmp_path / "out" / "tokens").iterdir())]
    assert max(lengths) < WORDS


def test_a_cache_without_padding_is_refused(extracted, head):
    store, settings = extracted("plain"), resolve({"head": "glscl", "options": {"mask_padding": False}}, dataset="demo")
    for use in (
        lambda: store.table("test", padded=True),
        lambda: LoadedSplits(store).load("test", settings),
        lambda: Model(head, store, frames=FRAMES).table("test"),
    ):
        with pytest.raises(UsageError, match="does not hold what stands behind its captions"):
            use()
    with pytest.raises(UsageError, match="`pad_tokens` needs `tokens`"):
        extracted("other", pad_tokens=True, tokens=False)
