"""What every head must do; the suite finds new heads by itself.

T texts, V videos, L tokens, F frames, D embed_dim.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.common.errors import UsageError
from glscl.train_head.heads import HEAD_NAMES, HEADS, HeadOutput, build_head, head_options
from glscl.train_head.heads.base import slice_items
from glscl.train_head.losses import contrastive_loss

D = 64
NAMES = list(HEADS)
QUERY_INDEPENDENT = [name for name in NAMES if HEADS[name].query_independent]
NEEDS_TOKENS = [name for name in NAMES if HEADS[name].needs_tokens]

# A constant added to these moves all logits of one softmax alike, so the loss cannot depend on them.
WITHOUT_GRADIENT = {
    "tight_transf": {"similarity.bias"},
    "xpool": {"key.bias"},
    "wti": {"token_scorer.2.bias", "frame_scorer.2.bias"},
    "attention_pool": {"frame_scorer.2.bias"},
    "tmass": {"key.bias"},
}


def make_batch(texts=5, videos=4, tokens=7, frames=6, dim=D, seed=0, scale=1.0):
    """Random features with ragged lengths; padding is zero."""
    draw = torch.Generator().manual_seed(seed)
    token_mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (texts, 1), generator=draw)
    frame_mask = torch.arange(frames) < torch.randint(1, frames + 1, (videos, 1), generator=draw)
    pooled = torch.randn(texts, dim, generator=draw) * scale
    words = torch.randn(texts, tokens, dim, generator=draw) * scale * token_mask.unsqueeze(-1)
    images = torch.randn(videos, frames, dim, generator=draw) * scale * frame_mask.unsqueeze(-1)
    return TextFeatures(pooled, words, token_mask), VideoFeatures(images, frame_mask)


def make_head(name, *, noise=0.05, seed=0, dim=D, **options):
    """A head whose every parameter was moved off its start, in evaluation mode."""
    torch.manual_seed(seed)
    head = build_head(name, embed_dim=dim, **options)
    with torch.no_grad():
        for key, parameter in head.named_parameters():
            if key != "logit_scale":
                parameter.add_(torch.randn_like(parameter) * noise)
    return head.eval()


def training_loss(head, text, video):
    """The loss the trainer takes."""
    output = head(text, video)
    return contrastive_loss(output.similarity * head.logit_scale.exp()) + sum(output.auxiliary.values())


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor any operation made."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("name", NAMES)
def test_similarity_has_texts_on_rows_and_is_finite(name):
    output = make_head(name)(*make_batch())
    assert isinstance(output, HeadOutput)
    assert output.similarity.shape == (5, 4)
    assert output.similarity.dtype == torch.float32
    assert output.similarity.isfinite().all()
    assert output.similarity.std() > 1e-4, "the score does not depend on its inputs"
    assert output.auxiliary == {}, "five texts and four videos are not pairs"


@pytest.mark.parametrize("name", NAMES)
def test_padding_never_changes_similarity(name):
    head = make_head(name)
    text, video = make_batch()
    draw = torch.Generator().manual_seed(9)

    def lengthen(features, mask, by):
        longer = 1e3 * torch.randn(len(features), features.shape[1] + by, D, generator=draw)
        longer_mask = torch.cat((mask, torch.zeros(len(mask), by, dtype=torch.bool)), 1)
        longer[:, : features.shape[1]] = torch.where(mask.unsqueeze(-1), features, longer[:, : features.shape[1]])
        return longer, longer_mask

    longer_text = TextFeatures(text.text_features, *lengthen(text.token_features, text.token_mask, 4))
    longer_video = VideoFeatures(*lengthen(video.frame_features, video.frame_mask, 3))
    expected = head(text, video).similarity
    assert torch.allclose(head(longer_text, longer_video).similarity, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_score_of_slices_is_slice_of_score(name):
    head = make_head(name)
    text, video = make_batch(texts=7, videos=5)
    encoded_text, encoded_video = head.encode_text(text), head.encode_video(video)
    whole = head.score(encoded_text, encoded_video)
    part = head.score(slice_items(encoded_text, 2, 6), slice_items(encoded_video, 1, 4))
    assert torch.allclose(part, whole[2:6, 1:4], atol=1e-6, rtol=0)
    alone = head.encode_text(TextFeatures(*(field[3:4] for field in text)))
    assert torch.allclose(head.score(alone, encoded_video), whole[3:4], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_encoded_fields_have_the_item_first(name):
    head = make_head(name)
    text, video = make_batch(texts=7, videos=5)
    assert all(len(field) == 7 for field in head.encode_text(text))
    assert all(len(field) == 5 for field in head.encode_video(video))


@pytest.mark.parametrize("name", NAMES)
def test_tiles_change_neither_score_nor_gradients(name):
    text, video = make_batch(texts=6, videos=6)
    results = []
    for tile_bytes in (None, 1):
        head = make_head(name)
        head.tile_bytes = tile_bytes
        with torch.no_grad():
            without_gradient = head(text, video).similarity
        loss = training_loss(head, text, video)
        loss.backward()
        gradients = {key: p.grad for key, p in head.named_parameters() if p.grad is not None}
        results.append((without_gradient, loss.detach(), gradients))
    (score, loss, gradients), (tiled_score, tiled_loss, tiled_gradients) = results
    assert torch.allclose(tiled_score, score, atol=1e-6, rtol=0)
    assert torch.allclose(tiled_loss, loss, rtol=1e-5)
    assert gradients.keys() == tiled_gradients.keys()
    for key, gradient in gradients.items():
        assert torch.allclose(tiled_gradients[key], gradient, rtol=1e-3, atol=1e-5), key


@pytest.mark.parametrize("adapter", ["none", "linear", "mlp"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name, adapter):
    head = make_head(name, adapter=adapter).train()
    training_loss(head, *make_batch(texts=6, videos=6)).backward()
    for key, parameter in head.named_parameters():
        if not parameter.requires_grad:
            assert key == "logit_scale" and not head.has_logit_scale
            continue
        assert parameter.grad is not None, f"{key} is not used"
        assert parameter.grad.isfinite().all(), key
        if key not in WITHOUT_GRADIENT.get(name, ()):
            assert parameter.grad.abs().sum() > 0, f"{key} gets no gradient"


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_autocast_stays_within_the_stated_bound(name):
    """The bound is the last cell of the head's row in docs/heads.md, for cosines that spread by 0.1 to 0.2."""
    page = (Path(__file__).parents[3] / "docs" / "heads.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| \[`{name}`\].*\| ([\d.]+) \|$", page, flags=re.MULTILINE)
    assert row, "docs/heads.md states no bound"
    bound = float(row[1])
    assert bound <= 0.005
    for seed in range(3):
        head = make_head(name, seed=seed)
        text, video = make_batch(seed=seed)
        with torch.no_grad():
            expected = head(text, video).similarity
            with torch.autocast("cpu", dtype=torch.bfloat16):
                output = head(text, video).similarity
        assert output.dtype == torch.float32
        assert (output - expected).abs().max() <= bound


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("texts", "videos", "frames"), [(1, 4, 6), (5, 1, 6), (1, 1, 1), (2, 3, 1), (2, 9, 6)])
def test_one_text_one_video_one_frame_and_batches_of_any_shape(name, texts, videos, frames):
    output = make_head(name)(*make_batch(texts=texts, videos=videos, frames=frames))
    assert output.similarity.shape == (texts, videos)
    assert output.similarity.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("texts", "videos", "frames"), [(1, 1, 1), (1, 4, 6), (9, 2, 6)])
def test_batches_of_any_shape_give_finite_gradients(name, texts, videos, frames):
    head = make_head(name).train()
    text, video = make_batch(texts=texts, videos=videos, frames=frames)
    output = head(text, video)
    ((output.similarity * head.logit_scale.exp()).square().mean() + sum(output.auxiliary.values())).backward()
    assert output.similarity.shape == (texts, videos)
    gradients = [parameter.grad for parameter in head.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_are_computed_in_float32(name, dtype):
    head = make_head(name)
    text, video = make_batch()

    def convert(features, to):
        return type(features)(*(f.to(dtype).to(to) if f.is_floating_point() else f for f in features))

    half = head(convert(text, dtype), convert(video, dtype)).similarity
    assert torch.equal(half, head(convert(text, torch.float32), convert(video, torch.float32)).similarity)


@pytest.mark.parametrize("name", NAMES)
def test_options_rebuild_the_head(name):
    head = make_head(name, adapter="mlp", logit_scale=1.5)
    assert set(head.options) == set(head_options(name))
    rebuilt = build_head(name, embed_dim=D, **json.loads(json.dumps(head.options))).eval()
    rebuilt.load_state_dict(head.state_dict())
    assert rebuilt.options == head.options
    assert rebuilt.logit_scale.item() == 1.5
    batch = make_batch()
    assert torch.equal(rebuilt(*batch).similarity, head(*batch).similarity)


@pytest.mark.parametrize("name", NAMES)
def test_default_options_are_recorded(name):
    options = build_head(name, embed_dim=D).options
    expected = dict(head_options(name), logit_scale=math.log(100) if HEADS[name].has_logit_scale else 0.0)
    assert options == expected


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_is_deterministic(name):
    head = make_head(name)
    batch = make_batch()
    assert torch.equal(head(*batch).similarity, head(*batch).similarity)


@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_one_head_and_one_loss(name):
    losses = []
    for _ in range(2):
        head = make_head(name, seed=3).train()
        losses.append(training_loss(head, *make_batch(texts=4, videos=4)))
    assert torch.equal(*losses)


@pytest.mark.parametrize("name", NAMES)
def test_zero_vectors_stay_finite_in_score_and_gradient(name):
    head = make_head(name).train()
    text, video = make_batch(texts=4, videos=4)
    text.text_features[1] = 0
    text.token_features[2] = 0
    video.frame_features[0] = 0
    text.token_mask[3] = False  # never in a cache, but a batch padded across processes may hold such an item
    video.frame_mask[3] = False
    loss = training_loss(head, text, video)
    loss.backward()
    assert head.eval()(text, video).similarity.isfinite().all()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


@pytest.mark.parametrize("adapter", ["linear", "mlp"])
@pytest.mark.parametrize("name", NAMES)
def test_adapters_change_nothing_at_start_and_something_later(name, adapter):
    torch.manual_seed(0)
    plain = build_head(name, embed_dim=D).eval()
    torch.manual_seed(1)
    adapted = build_head(name, embed_dim=D, adapter=adapter).eval()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    batch = make_batch()
    assert torch.allclose(adapted(*batch).similarity, plain(*batch).similarity, atol=1e-6, rtol=0)
    for side in (adapted.text_adapter, adapted.video_adapter):
        before = adapted(*batch).similarity
        with torch.no_grad():
            for parameter in side.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        assert not torch.allclose(adapted(*batch).similarity, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", QUERY_INDEPENDENT)
def test_query_independent_heads_give_vectors_to_index(name):
    head = make_head(name)
    text, video = make_batch()
    encoded_text, encoded_video = head.encode_text(text), head.encode_video(video)
    texts, videos = head.text_vectors(encoded_text), head.video_vectors(encoded_video)
    assert texts.shape == (5, D) and videos.shape == (4, D)
    assert torch.allclose(videos.norm(dim=-1), torch.ones(4), atol=1e-5)
    assert torch.allclose(texts @ videos.T, head.score(encoded_text, encoded_video), atol=1e-6)


def test_which_heads_are_query_independent_and_which_need_tokens():
    assert set(QUERY_INDEPENDENT) == {"mean_pool", "projection", "seq_lstm", "seq_transf", "attention_pool"}
    assert set(NEEDS_TOKENS) == {"glscl", "xclip", "wti", "ti", "video_colbert", "ms_sl", "gmmformer"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS_TOKENS])
def test_heads_that_need_no_tokens_do_without(name):
    text, video = make_batch()
    head = make_head(name)
    without = TextFeatures(text.text_features)
    assert torch.equal(head(without, video).similarity, head(text, video).similarity)


@pytest.mark.parametrize("name", NEEDS_TOKENS)
def test_heads_that_need_tokens_say_so(name):
    text, video = make_batch()
    with pytest.raises(UsageError, match=r"token features.*Extract again with `tokens`"):
        make_head(name)(TextFeatures(text.text_features), video)


@pytest.mark.parametrize("name", NAMES)
def test_features_of_another_size_are_refused(name):
    head = make_head(name)
    text, video = make_batch(dim=32)
    with pytest.raises(UsageError, match="32-d, the head was built for embed_dim 64"):
        head.encode_text(text)
    with pytest.raises(UsageError, match="32-d, the head was built for embed_dim 64"):
        head.encode_video(video)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_refused_with_the_choices(name):
    with pytest.raises(UsageError, match=f"head {name} has no option 'colour'.*logit_scale.*adapter"):
        build_head(name, embed_dim=D, colour=3)


def test_unknown_heads_are_refused_with_the_choices():
    with pytest.raises(UsageError, match=r"no head 'glcsl'.*mean_pool.*glscl"):
        build_head("glcsl", embed_dim=D)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("glscl", {"aggregator": "transformer"}, "aggregator must be one of seq_transf, seq_lstm, none"),
        ("glscl", {"consistency_scale": "video"}, "consistency_scale must be one of 'batch', 'queries'"),
        ("glscl", {"queries": 0}, "queries must be at least 1, found 0"),
        ("glscl", {"decoder_layers": 0}, "decoder_layers must be at least 1"),
        ("glscl", {"temperature": 0.0}, "temperature must be above 0"),
        ("glscl", {"dropout": 1.0}, "dropout must be at least 0 and below 1, found 1.0"),
        ("glscl", {"aggregator_heads": 7}, "width 64 cannot be split into 7 heads"),
        ("seq_transf", {"aggregator_layers": 0}, "aggregator_layers must be at least 1"),
        ("tight_transf", {"heads": 5}, "width 64 cannot be split into 5 heads"),
        ("dicosa", {"chunks": 7}, "size 64 cannot be cut into 7 equal chunks"),
        ("mean_pool", {"adapter": "lora"}, "adapter must be one of none, linear, mlp"),
        ("query_scoring", {"temperature": -1.0}, "temperature must be above 0"),
    ],
)
def test_values_that_cannot_be_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        build_head(name, embed_dim=D, **options)


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="embed_dim must be at least 1"):
        build_head("mean_pool", embed_dim=0)
    with pytest.raises(UsageError, match="8 attention heads, which do not divide 60"):
        build_head("glscl", embed_dim=60, aggregator="none")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("seq_transf", {"frame_positions": 5}, "a sequence of 6 entries does not fit 5 learned positions"),
        ("glscl", {"frame_positions": 5}, "a sequence of 6 entries does not fit 5 learned positions"),
        ("tight_transf", {"positions": 6}, "a sequence of 7 entries does not fit 6 learned positions"),
        ("xclip", {"max_frames": 5}, "6 frames do not fit a head built with max_frames=5"),
        ("xclip", {"max_words": 6}, "7 tokens do not fit a head built with max_words=6"),
    ],
)
def test_sequences_longer_than_the_head_are_refused(name, options, message):
    with pytest.raises(UsageError, match=message):
        make_head(name, **options)(*make_batch())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean_pool", 0),
        ("projection", 524_288),
        ("seq_lstm", 2_101_248),
        ("seq_transf", 12_648_960),
        ("tight_transf", 12_913_153),
        ("glscl", 25_265_152),
        ("dicosa", 12_648_960 + 33_281),
        ("xpool", 1_316_352),
        ("xclip", 12_648_960 + 527_792),
        ("wti", 12_648_960 + 526_338),
        ("ti", 12_648_960),
        ("attention_pool", 263_169),
        ("query_scoring", 0),
        ("video_colbert", 12_648_960 + 6 * 512),
        ("tmass", 1_316_352 + 13 * 512),
        ("gare", 12_648_960 + 3 * 512**2),
        ("ms_sl", 2 * 3_152_384 + 160 * 512 + 2 * 512**2 + 2 * 512),
        ("gmmformer", 8 * 3_152_384 + 160 * 512 + 512**2 + 3 * 512),
        ("best_frames", 0),
    ],
)
def test_number_of_parameters_at_512(name, expected):
    with torch.device("meta"):  # nothing is drawn
        head = build_head(name, embed_dim=512)
    assert sum(p.numel() for key, p in head.named_parameters() if key != "logit_scale") == expected


def test_logit_scale_starts_at_log_100_and_is_learned_but_where_there_is_no_temperature():
    for name in HEAD_NAMES:
        head = build_head(name, embed_dim=D)
        if name == "tight_transf":
            assert head.logit_scale.item() == 0 and not head.logit_scale.requires_grad
        else:
            assert head.logit_scale.exp().item() == pytest.approx(100) and head.logit_scale.requires_grad


@pytest.mark.parametrize("name", ["projection", "attention_pool", "mean_pool"])
def test_identity_start(name):
    """`projection` starts as `mean_pool`; `attention_pool` with equal logits is `mean_pool`."""
    batch = make_batch()
    head = build_head(name, embed_dim=D).eval()
    if name == "attention_pool":
        torch.nn.init.zeros_(head.frame_scorer[2].weight)
    expected = build_head("mean_pool", embed_dim=D)(*batch).similarity
    assert torch.allclose(head(*batch).similarity, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["glscl", "query_scoring", "xpool"])
def test_factored_scores_never_make_a_vector_for_every_pair(name):
    texts = videos = 200
    head = make_head(name)
    text, video = make_batch(texts=texts, videos=videos, frames=6)
    with torch.no_grad():
        encoded_text, encoded_video = head.encode_text(text), head.encode_video(video)
        with LargestTensor() as largest:
            head.score(encoded_text, encoded_video)
    assert largest.numel <= texts * videos * 6


@pytest.mark.parametrize("name", NAMES)
def test_tiles_keep_within_their_budget(name):
    """No operation makes a tensor above the budget, nor above the two inputs and the result."""
    head = make_head(name)
    text, video = make_batch(texts=20, videos=20)
    head.tile_bytes = 1 << 16
    with torch.no_grad():
        encoded_text, encoded_video = head.encode_text(text), head.encode_video(video)
        with LargestTensor() as largest:
            head.score(encoded_text, encoded_video)
    inputs = max(field.numel() for field in (*encoded_text, *encoded_video))
    assert 4 * largest.numel <= max(head.tile_bytes, 4 * 20 * 20, 4 * inputs)


@pytest.mark.parametrize("name", NAMES)
def test_heads_can_be_double(name):
    head = make_head(name)
    text, video = make_batch()
    single = head(text, video).similarity
    double = head.double()(text, video).similarity
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), single, atol=2e-6)
