"""Every score against a slow loop written from its definition: one pair at a time, and only real tokens and frames.

T texts, V videos, L tokens, F frames, D embed_dim, Q queries.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads import build_head
from glscl.train_head.heads.glscl import intra_diversity
from glscl.train_head.heads.joint import attend_from_first, attend_jointly
from glscl.train_head.heads.layers import Decoder, ResidualBlock
from glscl.train_head.heads.pooling import conditioned_cosine, gram_matrix
from glscl.train_head.heads.wti import channel_decorrelation

D = 32
TEXTS, VIDEOS = 5, 4


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def make_batch(seed=0, texts=TEXTS, videos=VIDEOS, tokens=6, frames=5):
    draw = torch.Generator().manual_seed(seed)
    token_mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (texts, 1), generator=draw)
    frame_mask = torch.arange(frames) < torch.randint(1, frames + 1, (videos, 1), generator=draw)
    return (
        TextFeatures(torch.randn(texts, D, generator=draw), torch.randn(texts, tokens, D, generator=draw), token_mask),
        VideoFeatures(torch.randn(videos, frames, D, generator=draw), frame_mask),
    )


def make_head(name, **options):
    torch.manual_seed(1)
    head = build_head(name, embed_dim=D, **options).eval()
    for key, parameter in head.named_parameters():
        if key != "logit_scale":
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return head


def unit(vector):
    return vector / vector.norm()


def loop(head, text, video, pair):
    """`pair(t, tokens, frames)` for every pair, given only what is real; frames as they were cached."""
    result = torch.empty(len(text.text_features), len(video.frame_features))
    for i in range(result.shape[0]):
        tokens = text.token_features[i][text.token_mask[i]]
        for j in range(result.shape[1]):
            frames = video.frame_features[j][video.frame_mask[j]]
            result[i, j] = pair(text.text_features[i], tokens, frames)
    return result


def check(head, pair, **sizes):
    text, video = make_batch(**sizes)
    expected = loop(head, text, video, pair)
    assert torch.allclose(head(text, video).similarity, expected, atol=1e-5, rtol=0)


def transformer(blocks, state, heads):
    """Pre-norm blocks with QuickGELU, by `nn.functional`'s own attention."""
    for block in blocks:
        normed = F.layer_norm(state, (D,), block.ln_1.weight, block.ln_1.bias, 1e-12).unsqueeze(1)
        attended, _ = F.multi_head_attention_forward(
            normed, normed, normed, D, heads, block.attn.in_proj_weight, block.attn.in_proj_bias, None, None, False,
            0.0, block.attn.out_proj.weight, block.attn.out_proj.bias, training=False,
        )  # fmt: skip
        state = state + attended.squeeze(1)
        hidden = block.mlp.c_fc(F.layer_norm(state, (D,), block.ln_2.weight, block.ln_2.bias, 1e-12))
        state = state + block.mlp.c_proj(hidden * torch.sigmoid(1.702 * hidden))
    return state


def aggregate(head, frames):
    """X' of one video without padding: `X + Transformer(X + P)`."""
    module = head.aggregator
    return frames + transformer(module.blocks, frames + module.positions.weight[: len(frames)], max(1, D // 64))


def mean_pool(text, frames):
    return unit(text) @ unit(torch.stack([unit(frame) for frame in frames]).mean(0))


def test_mean_pool():
    check(make_head("mean_pool"), lambda t, tokens, frames: mean_pool(t, frames))


def test_projection():
    head = make_head("projection")
    check(
        head,
        lambda t, tokens, frames: mean_pool(head.text_map.weight @ t, frames @ head.video_map.weight.T),
    )


def test_seq_lstm():
    head = make_head("seq_lstm")

    def pair(t, tokens, frames):
        lstm = head.aggregator.lstm
        hidden, cell, outputs = torch.zeros(D), torch.zeros(D), []
        for frame in frames:
            gates = lstm.weight_ih_l0 @ frame + lstm.bias_ih_l0 + lstm.weight_hh_l0 @ hidden + lstm.bias_hh_l0
            enter, forget, content, leave = gates.chunk(4)
            cell = forget.sigmoid() * cell + enter.sigmoid() * content.tanh()
            hidden = leave.sigmoid() * cell.tanh()
            outputs.append(hidden + frame)
        return mean_pool(t, outputs)

    check(head, pair)


def test_seq_transf():
    head = make_head("seq_transf", aggregator_layers=2)
    check(head, lambda t, tokens, frames: mean_pool(t, aggregate(head, frames)))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("dropping", [False, True])
def test_tight_transf(layers, dropping):
    """With and without what pairs share in the first block, which dropout (here one that drops nothing) forbids."""
    head = make_head("tight_transf", layers=layers)
    if dropping:
        head.train()
        head.dropout.p = 1e-30

    def pair(t, tokens, frames):
        sequence = torch.cat((t[None], frames)) + head.positions.weight[: 1 + len(frames)]
        first = transformer(head.blocks, sequence, 8)[0]
        hidden = head.pool(F.layer_norm(first, (D,), head.pool_norm.weight, head.pool_norm.bias, 1e-12))
        return head.similarity(hidden * torch.sigmoid(1.702 * hidden))

    check(head, pair)


def conditioned(text, frames, temperature):
    weights = (frames @ text / temperature).softmax(0)
    return sum(weight * frame for weight, frame in zip(weights, frames, strict=True))


def reference_decoder(decoder):
    """The same weights in torch's own decoder."""
    layers = [
        nn.TransformerDecoderLayer(D, 8, dim_feedforward=layer.linear1.out_features, batch_first=True).eval()
        for layer in decoder.layers
    ]
    for theirs, ours in zip(layers, decoder.layers, strict=True):
        theirs.load_state_dict(ours.state_dict())
    return layers


@pytest.mark.parametrize("shared", [True, False])
def test_glscl(shared):
    head = make_head("glscl", queries=3, decoder_layers=2, aggregator_layers=2, share_queries=shared,
                     share_decoder=shared, temperature=2.0, local_weight=0.7)  # fmt: skip
    video_decoder = reference_decoder(head.decoder)
    text_decoder = video_decoder if shared else reference_decoder(head.text_decoder)
    text_queries = head.queries if shared else head.text_queries

    def pair(t, tokens, frames):
        frames = aggregate(head, frames)
        seen, read = head.queries[None], text_queries[None]
        for layer in video_decoder:
            seen = layer(seen, frames[None])
        for layer in text_decoder:
            read = layer(read, tokens[None])
        local = sum(unit(n) @ unit(p) for n, p in zip(read[0], seen[0], strict=True)) / 3
        return unit(t) @ unit(conditioned(t, frames, 2.0)) + 0.7 * local

    check(head, pair)


@pytest.mark.parametrize("texts", [TEXTS, 40])
def test_dicosa(texts):
    """Few texts pass the MLP pair by pair, for many its first layer runs on frames."""
    head = make_head("dicosa", chunks=4, aggregator_layers=2, temperature=2.0)

    def pair(t, tokens, frames):
        pooled = conditioned(t, aggregate(head, frames), 2.0)
        total = 0
        for ours, theirs in zip(t.chunk(4), pooled.chunk(4), strict=True):
            total = total + head.chunk_weight(head.chunk_hidden(torch.cat((ours, theirs))).relu()) * (
                unit(ours) @ unit(theirs)
            )
        return total

    check(head, pair, texts=texts)


@pytest.mark.parametrize("gram", [True, False])
def test_xpool(gram):
    """Both ways of computing it: with a vector for every pair (forced by a dropout that drops nothing), and without."""
    head = make_head("xpool")
    if not gram:
        head.train()
        head.dropout.p = 1e-30

    def pair(t, tokens, frames):
        query, normed = head.query(head.norm1(t)), head.norm1(frames)
        weights = (head.key(normed) @ query / math.sqrt(D)).softmax(0)
        hidden = head.norm2(head.out(sum(w * v for w, v in zip(weights, head.value(normed), strict=True))))
        return unit(t) @ unit(head.norm3(hidden + head.linear(hidden)))

    check(head, pair)


def test_xclip():
    head = make_head("xclip", max_words=8, max_frames=7, aggregator_layers=2)

    def reduce(scores, mapping):
        mapping = mapping[: len(scores), : len(scores)]
        return ((scores / 0.01).softmax(0) @ mapping) @ scores

    def pair(t, tokens, frames):
        video = unit(torch.stack([unit(frame) for frame in aggregate(head, frames)]).mean(0))
        words, images, sentence = F.normalize(tokens, dim=-1), F.normalize(frames, dim=-1), unit(t)
        matrix = words @ head.local_map @ images.T  # (L, F)
        by_word = torch.stack([reduce(row, head.frame_of_word_map) for row in matrix])
        by_frame = torch.stack([reduce(column, head.word_map) for column in matrix.T])
        fine = (reduce(by_word, head.word_of_frame_map) + reduce(by_frame, head.frame_map)) / 2
        coarse = sentence @ head.global_map @ video
        return (
            coarse + reduce(words @ video, head.video_word_map) + reduce(images @ sentence, head.text_frame_map) + fine
        ) / 4

    check(head, pair)


@pytest.mark.parametrize("name", ["ti", "wti"])
def test_token_wise_interaction(name):
    head = make_head(name, aggregator_layers=2)

    def pair(t, tokens, frames):
        frames = aggregate(head, frames)
        if name == "wti":
            p, q = head.token_scorer(tokens).softmax(0)[:, 0], head.frame_scorer(frames).softmax(0)[:, 0]
        else:
            p, q = torch.full((len(tokens),), 1 / len(tokens)), torch.full((len(frames),), 1 / len(frames))
        matrix = torch.stack([torch.stack([unit(w) @ unit(x) for x in frames]) for w in tokens])
        return (p @ matrix.amax(1) + q @ matrix.amax(0)) / 2

    check(head, pair)


def test_attention_pool():
    head = make_head("attention_pool", temperature=0.3)

    def pair(t, tokens, frames):
        weights = (head.frame_scorer(frames)[:, 0] / 0.3).softmax(0)
        return unit(t) @ unit(sum(w * unit(x) for w, x in zip(weights, frames, strict=True)))

    check(head, pair)


def test_query_scoring():
    head = make_head("query_scoring")

    def pair(t, tokens, frames):
        weights = torch.stack([unit(t) @ unit(x) / 0.1 for x in frames]).softmax(0)
        return unit(t) @ unit(sum(w * unit(x) for w, x in zip(weights, frames, strict=True)))

    check(head, pair)


def test_tmass_draws_a_ball_for_the_pair_that_is_scored():
    head = make_head("tmass", draws=7, radius=2.0, max_frames=8)

    def pooled(t, frames):
        query, normed = head.query(head.norm1(t)), head.norm1(frames)
        weights = (head.key(normed) @ query / math.sqrt(D)).softmax(0)
        hidden = head.norm2(head.out(sum(w * v for w, v in zip(weights, head.value(normed), strict=True))))
        return unit(head.norm3(hidden + head.linear(hidden)))

    def radius(t, frames):
        match = torch.stack([unit(t) @ unit(x) for x in frames])
        return (head.radius.weight[:, : len(frames)] @ match + head.radius.bias).exp()

    check(head, lambda t, tokens, frames: torch.stack(
        [unit(unit(t) + radius(t, frames) * noise) @ pooled(t, frames) for noise in head.noise]
    ).max())  # fmt: skip

    text, video = make_batch(texts=4, videos=4)
    encoded = head.encode_text(text), head.encode_video(video)

    def support(t, tokens, frames):
        z = pooled(t, frames)
        return unit(unit(t) + radius(t, frames) * unit(z - unit(t))) @ z

    logits = loop(head, text, video, support) * head.logit_scale.exp()
    target = torch.arange(4)
    expected = 0.8 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert head.auxiliary_losses(*encoded)["support"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_no_score_of_tmass_knows_which_video_is_the_captions_own():
    """The published evaluation pools a video with its own caption: a pair alone must score as it does among others."""
    head, (text, video) = make_head("tmass"), make_batch(texts=4, videos=4)
    whole = head(text, video).similarity
    moved = torch.tensor([2, 0, 3, 1])
    other = VideoFeatures(video.frame_features[moved], video.frame_mask[moved])
    assert torch.allclose(head(text, other).similarity, whole[:, moved], atol=1e-6)


def test_gare():
    head = make_head("gare", aggregator_layers=2, temperature=0.5)

    def step(t, frames):
        frames = [unit(x) for x in aggregate(head, frames)]
        v = unit(sum(frames) / len(frames))
        gap = head.query.weight @ (v - unit(t))
        weights = torch.stack([gap @ (head.key.weight @ x) / 0.5 for x in frames]).softmax(0)
        return v, sum(w * (head.value.weight @ x) for w, x in zip(weights, frames, strict=True))

    def pair(t, tokens, frames):
        v, change = step(t, frames)
        return unit(unit(t) + change) @ v

    check(head, pair)

    head.radius = 0.2
    text, video = make_batch(texts=4, videos=4)
    steps = [[step(t, x[m])[1] for x, m in zip(*video, strict=True)] for t in text.text_features]
    losses = head.auxiliary_losses(head.encode_text(text), head.encode_video(video))
    trust = sum(max(float(s.norm()) - 0.2, 0) ** 2 for row in steps for s in row) / 16
    diversity = sum(float((sum(unit(s) for s in row) / 4).square().sum()) for row in steps) / 4
    assert trust > 0 and losses["trust_region"].item() == pytest.approx(0.1 * trust, rel=1e-3)
    assert losses["direction_diversity"].item() == pytest.approx(0.01 * diversity, rel=1e-3)


def untrimmed(name, units):
    """The head, and what it makes of one pair by loops: cosine of the best clip, and of the frames beside it."""
    head = make_head(name, units=units, heads=2)

    def block(module, x):
        sigma = getattr(module, "sigma", None)
        q, k, v = (module.attn.in_proj_weight @ module.ln_1(x).T).T.add(module.attn.in_proj_bias).chunk(3, 1)
        read = torch.zeros(len(x), D)
        for h in range(2):
            part = slice(h * D // 2, (h + 1) * D // 2)
            for i in range(len(x)):
                logits = torch.stack([q[i, part] @ k[j, part] / math.sqrt(D / 2) for j in range(len(x))])
                if sigma is not None:
                    near = [math.exp(-((i - j) ** 2) / sigma**2) / (2 * math.pi) for j in range(len(x))]
                    logits = logits * torch.tensor(near)
                read[i, part] = logits.softmax(0) @ v[:, part]
        return module.feed_forward(x + module.attn.out_proj(read))

    def branch(module, x):
        placed = x + module.positions.weight[: len(x)]
        return x + sum(block(each, placed) for each in module.blocks) / len(module.blocks)

    def parts(t, tokens, frames):
        mapped = tokens @ head.token_map.weight.T + head.token_map.bias
        q = unit((mapped @ head.token_scorer.weight[0]).softmax(0) @ mapped)
        count = min(units, len(frames))
        groups = [[x for f, x in enumerate(frames) if f * count // len(frames) == u] for u in range(count)]
        states = branch(head.clip_branch, torch.stack([sum(group) / len(group) for group in groups]))
        seen = branch(head.frame_branch, frames)
        if name == "gmmformer":
            weights = (seen @ head.frame_scorer.weight[0]).softmax(0)
            return max(q @ unit(u) for u in states), q @ unit(weights @ seen)
        clips = [states[i:j].mean(0) for i in range(count) for j in range(i + 1, count + 1)]
        best = max(clips, key=lambda clip: float(q @ unit(clip)))
        weights = (seen @ (head.guide.weight @ best) / math.sqrt(D)).softmax(0)
        return q @ unit(best), q @ unit(weights @ seen)

    return head, parts


@pytest.mark.parametrize("name", ["ms_sl", "gmmformer"])
@pytest.mark.parametrize("units", [3, 8])
def test_heads_of_untrimmed_video(name, units):
    head, parts = untrimmed(name, units)

    def pair(t, tokens, frames):
        clip, frame = parts(t, tokens, frames)
        return 0.7 * clip + 0.3 * frame

    check(head, pair, frames=7)


def test_each_part_of_ms_sl_has_its_own_losses():
    head, parts = untrimmed("ms_sl", 4)
    text, video = make_batch(texts=3, videos=3)
    encoded = head.encode_text(text), head.encode_video(video)
    expected = [loop(head, text, video, lambda *pair, part=part: parts(*pair)[part]) for part in (0, 1)]
    for found, part in zip(head.contrasts(*encoded), expected, strict=True):
        assert torch.allclose(found, part, atol=1e-5)
    hinge = sum(
        max(0.2 + float(s[i, j] - s[i, i]), 0) + max(0.2 + float(s[i, j] - s[j, j]), 0)
        for s in expected for i in range(3) for j in range(3) if i != j
    ) / 6  # fmt: skip
    assert head.auxiliary_losses(*encoded)["triplet"].item() == pytest.approx(hinge, rel=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_best_frames(count):
    def pair(t, tokens, frames):
        cosines = sorted((float(unit(t) @ unit(x)) for x in frames), reverse=True)[:count]
        return torch.tensor(sum(cosines) / len(cosines))

    check(make_head("best_frames", count=count), pair)


@pytest.mark.parametrize("kind", ["seq_lstm", "none"])
@pytest.mark.parametrize("name", ["glscl", "dicosa", "xclip", "wti", "ti"])
def test_other_aggregators_see_one_unpadded_video_alike(name, kind):
    head = make_head(name, aggregator=kind)
    text, video = make_batch()

    def pair(t, tokens, frames):
        lone_text = TextFeatures(t[None], tokens[None], torch.ones(1, len(tokens), dtype=torch.bool))
        return head(lone_text, VideoFeatures(frames[None], torch.ones(1, len(frames), dtype=torch.bool))).similarity

    assert torch.allclose(head(text, video).similarity, loop(head, text, video, pair), atol=1e-6)


# ---- the losses of heads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["batch", "queries"])
def test_glscl_auxiliary_losses(scale):
    batch, queries, alpha, beta = 6, 3, 0.3, 0.2
    head = make_head("glscl", queries=queries, decoder_layers=1, aggregator="none", alpha=alpha, beta=beta,
                     consistency_scale=scale)  # fmt: skip
    text, video = make_batch(texts=batch, videos=batch)
    encoded_text, encoded_video = head.encode_text(text), head.encode_video(video)
    losses = head.auxiliary_losses(encoded_text, encoded_video)
    n, p = encoded_text.concepts, encoded_video.concepts

    diversity = 0.0
    mean = sum(p[b] @ p[b].T for b in range(batch)) / batch
    for i in range(queries):
        for j in range(queries):
            if i != j:
                diversity += max(0.1 + mean[i, j] - mean[i, i], 0) + max(0.1 + mean[i, j] - mean[j, j], 0)
    diversity = diversity / (queries * (queries - 1))
    assert losses["intra_diversity"].item() == pytest.approx(alpha * float(diversity), rel=1e-4, abs=1e-8)

    consistency = ((p.mean(0) - n.mean(0)) ** 2).mean()
    for q in range(queries):
        total = sum(p[b, q] @ n[b, q] for b in range(batch)) / (batch if scale == "batch" else queries)
        consistency = consistency + beta * (total - 0.75) ** 2
    assert losses["inter_consistency"].item() == pytest.approx(consistency.item(), rel=1e-5)


def test_intra_diversity_is_felt_when_queries_agree_and_gone_when_they_are_apart():
    assert intra_diversity(torch.eye(4, D).expand(3, -1, -1)).item() == 0
    alike = F.normalize(torch.ones(3, 4, D), dim=-1)
    assert intra_diversity(alike).item() == pytest.approx(2 * 0.1, rel=1e-4)
    assert intra_diversity(torch.ones(3, 1, D)).item() == 0, "one query has nothing to be apart from"


@pytest.mark.parametrize("training", [True, False])
def test_glscl_auxiliary_losses_need_pairs_and_no_mode(training):
    head = make_head("glscl", aggregator="none", dropout=0.0).train(training)
    text, video = make_batch(texts=4, videos=4)
    losses = head(text, video).auxiliary
    assert set(losses) == {"intra_diversity", "inter_consistency"}
    other = head.train(not training)(text, video).auxiliary
    assert {name: loss.item() for name, loss in losses.items()} == {name: loss.item() for name, loss in other.items()}
    assert head.train(training)(*make_batch()).auxiliary == {}
    with pytest.raises(ValueError, match="5 texts and 4 videos"):
        text, video = make_batch()
        head.auxiliary_losses(head.encode_text(text), head.encode_video(video))


def test_mask_padding_false_reads_the_padding():
    head = make_head("glscl", aggregator="none", mask_padding=False)
    text, video = make_batch()
    changed = video.frame_features.masked_fill(~video.frame_mask.unsqueeze(-1), 7.0)
    moved = head(text, VideoFeatures(changed, video.frame_mask)).similarity - head(text, video).similarity
    padded = ~video.frame_mask.all(-1)
    assert padded.any() and not padded.all()
    assert (moved[:, padded].abs() > 1e-4).any()
    assert moved[:, ~padded].abs().max() < 1e-6


def test_chunk_decorrelation_of_dicosa():
    batch, chunks = 6, 4
    head = make_head("dicosa", chunks=chunks, aggregator_layers=1, alpha=0.3, beta=0.2, correlation_divisor=5.0)
    text, video = make_batch(texts=batch, videos=batch)
    losses = head.auxiliary_losses(head.encode_text(text), head.encode_video(video))
    correlation = torch.zeros(chunks, chunks)
    for b in range(batch):
        t, frames = text.text_features[b], aggregate(head, video.frame_features[b][video.frame_mask[b]])
        sides = [
            [(chunk - chunk.mean()) / chunk.std() for chunk in side.chunk(chunks)]
            for side in (t, conditioned(t, frames, 3.0))
        ]
        for i, ours in enumerate(sides[0]):
            for j, theirs in enumerate(sides[1]):
                correlation[i, j] += ours @ theirs / 5.0 / batch
    expected = sum(
        0.3 * (correlation[i, i] - 1) ** 2 if i == j else 0.2 * correlation[i, j] ** 2
        for i in range(chunks)
        for j in range(chunks)
    )
    assert losses["chunk_decorrelation"].item() == pytest.approx(expected.item(), rel=1e-4)
    with pytest.raises(ValueError, match="5 texts and 4 videos"):
        text, video = make_batch()
        head.auxiliary_losses(head.encode_text(text), head.encode_video(video))


@pytest.mark.parametrize("alpha2", [0.0, 0.06])
def test_channel_decorrelation_of_token_wise_interaction(alpha2):
    batch = 6
    head = make_head("wti", aggregator="none", decorrelation=0.5, alpha2=alpha2)
    text, video = make_batch(texts=batch, videos=batch)
    a, b = head.encode_text(text), head.encode_video(video)

    matrices = []
    for entries, others in ((a, b), (b, a)):
        left, right, weights = [], [], []
        for i in range(batch):
            for s in range(entries.mask.shape[1]):
                if entries.mask[i, s]:
                    candidates = [others.vectors[i, o] for o in range(others.mask.shape[1]) if others.mask[i, o]]
                    left.append(entries.vectors[i, s])
                    right.append(max(candidates, key=lambda o: float(o @ left[-1])))
                    weights.append(entries.weights[i, s])
        left, right = torch.stack(left), torch.stack(right)
        left, right = (left - left.mean(0)) / left.std(0), (right - right.mean(0)) / right.std(0)
        matrices.append(sum(w * torch.outer(x, y) for w, x, y in zip(weights, left, right, strict=True)) / batch)
    c = sum(matrices) / 2
    expected = 0.11 * sum((c[d, d] - 1) ** 2 for d in range(D))
    expected = expected + alpha2 * sum(c[d, e] ** 2 for d in range(D) for e in range(D) if d != e)
    loss = head.auxiliary_losses(a, b)["channel_decorrelation"]
    assert loss.item() == pytest.approx(0.5 * expected.item(), rel=1e-4)
    assert head.train()(*make_batch()).auxiliary == {}
    text, video = make_batch()
    with pytest.raises(ValueError, match="5 texts and 4 videos"):
        head.auxiliary_losses(head.encode_text(text), head.encode_video(video))


def test_channel_decorrelation_of_equal_sides_counts_only_how_far_weights_are_from_one():
    entries = F.normalize(torch.randn(8, 1, D), dim=-1)
    mask, weights = torch.ones(8, 1, dtype=torch.bool), torch.ones(8, 1)
    loss = channel_decorrelation([(entries, entries, mask, weights)], alpha1=1.0, alpha2=0.0)
    assert loss.item() == pytest.approx(D * (7 / 8 - 1) ** 2, rel=1e-4), "n - 1 in the variance against n in the mean"


# ---- the parts ------------------------------------------------------------------------------------------------------


def test_decoder_is_torchs_own():
    torch.manual_seed(0)
    decoder = Decoder(D, 3, feedforward=64).eval()
    theirs = reference_decoder(decoder)
    queries, memory = torch.rand(4, D), torch.randn(5, 7, D)
    mask = torch.arange(7) < torch.tensor([[7], [1], [3], [6], [2]])
    state = queries.expand(5, -1, -1)
    for layer in theirs:
        state = layer(state, memory, memory_key_padding_mask=~mask)
    assert torch.allclose(decoder(queries, memory, mask), state, atol=1e-5)


def test_decoder_drops_out_differently_for_every_item():
    decoder = Decoder(D, 1, dropout=0.5).train()
    decoder.layers[0].multihead_attn.out_proj.weight.zero_()
    output = decoder(torch.rand(4, D), torch.randn(1, 3, D).expand(6, -1, -1), None)
    assert not torch.allclose(output[0], output[1], atol=1e-3)


def joint_block():
    """A block off its start, texts, frames, and their sequences pair by pair with the mask of these."""
    torch.manual_seed(0)
    block = ResidualBlock(D, 4).eval()
    for parameter in block.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    text, frames = torch.randn(3, D), torch.randn(2, 6, D)
    mask = torch.arange(6) < torch.tensor([[6], [2]])
    pairs = torch.stack([torch.stack([torch.cat((t[None], clip)) for clip in frames]) for t in text])  # (T, V, S, D)
    whole = torch.cat((torch.ones(2, 1, dtype=torch.bool), mask), 1).expand(3, -1, -1)  # (T, V, S)
    return block, text, frames, mask, pairs, whole


def test_joint_attention_is_the_attention_of_every_pair():
    block, text, frames, mask, pairs, whole = joint_block()
    found = attend_jointly(block, text, frames, mask)
    pairs = pairs.flatten(0, 1)
    expected = (pairs + block.attn(block.ln_1(pairs), mask=whole.flatten(0, 1))).view(found.shape)
    assert torch.allclose(found[whole], expected[whole], atol=1e-5)
    assert not torch.allclose(found[0, 0], found[1, 0], atol=0.1), "frames must see the caption"


def test_attention_from_the_first_position_is_that_row_of_all_attention():
    block, *_, pairs, whole = joint_block()
    pairs, whole = pairs.flatten(0, 1), whole.flatten(0, 1)
    found = attend_from_first(block.attn, pairs, whole)
    assert torch.allclose(found, block.attn(pairs, mask=whole)[:, 0], atol=1e-5)


def test_conditioned_cosine_has_correct_gradients():
    torch.manual_seed(0)
    with torch.enable_grad():
        text = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
        frames = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
        mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
        assert torch.autograd.gradcheck(
            lambda t, x: conditioned_cosine(t, x, mask, gram_matrix(x), temperature=0.7), (text, frames)
        )


def test_conditioned_cosine_is_bounded_when_frames_cancel():
    """Two opposite frames seen alike leave no direction: the score is rounding error, and must stay small."""
    frame = torch.randn(1, 1, D)
    frames = torch.cat((frame, -frame), dim=1) * 30
    text = torch.randn(200, D)
    text = text - (text @ frame[0, 0])[:, None] / frame.square().sum() * frame[0, 0]
    mask = torch.ones(1, 2, dtype=torch.bool)
    score = conditioned_cosine(text, frames, mask, gram_matrix(frames), temperature=1.0)
    assert score.abs().max() < 1.01


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e2])
def test_conditioned_cosine_is_exact_for_features_of_any_size(scale):
    text, video = make_batch()
    frames = video.frame_features * scale
    score = conditioned_cosine(text.text_features, frames, video.frame_mask, gram_matrix(frames), temperature=3.0)
    double = loop(
        None,
        TextFeatures(text.text_features.double(), text.token_features, text.token_mask),
        VideoFeatures(frames.double(), video.frame_mask),
        lambda t, tokens, x: unit(t) @ unit(conditioned(t, x, 3.0)),
    )
    assert torch.allclose(score, double, atol=1e-5, rtol=0)


@pytest.mark.parametrize("expansion", [0, 2])
def test_video_colbert(expansion):
    head = make_head("video_colbert", aggregator_layers=2, video_expansion=expansion, query_expansion=expansion)

    def best(tokens, entries):
        return sum(max(unit(token) @ unit(entry) for entry in entries) for token in tokens) / len(tokens)

    def pair(t, tokens, frames):
        tokens = torch.cat((head.query_tokens, tokens))
        return best(tokens, frames) + best(tokens, aggregate(head, torch.cat((head.video_tokens, frames))))

    check(head, pair)
    text, video = make_batch()
    levels = head.contrasts(head.encode_text(text), head.encode_video(video))
    assert torch.allclose(sum(levels), head(text, video).similarity, atol=1e-6)
