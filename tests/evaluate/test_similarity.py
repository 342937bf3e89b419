"""Scores in tiles: equal to the head's own, finite, bounded, and the same ranks with and without the matrix."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.common.errors import InputError, NonFiniteError, UsageError
from glscl.evaluate.ranks import retrieval_ranks
from glscl.evaluate.similarity import ranks, similarity_matrix
from glscl.train_head.heads import HEAD_NAMES, build_head

D = 64


def make_table(T=23, V=9, *, F=4, L=6, seed=0, video_of_text=None, shared_text=None):
    """Captions of unequal length, videos of unequal length, captions in no order, one video without captions."""
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randn(T, L, D, generator=g)
    text = torch.randn(T, D, generator=g)
    frames = torch.randn(V, F, D, generator=g)
    if video_of_text is None:
        video_of_text = torch.randint(0, V - 1, (T,), generator=g)
    token_mask = torch.arange(L) < torch.randint(2, L + 1, (T, 1), generator=g)
    frame_mask = torch.arange(F) < torch.randint(1, F + 1, (V, 1), generator=g)
    for one, other in shared_text or []:
        tokens[other], text[other], token_mask[other] = tokens[one], text[one], token_mask[one]
    return FeatureTable.from_features(
        TextFeatures(text, tokens, token_mask),
        VideoFeatures(frames, frame_mask),
        video_of_text,
        text_ids=[f"t{i}" for i in range(T)],
        video_ids=[f"v{i}" for i in range(V)],
    )


class Side(NamedTuple):
    item: Tensor
    kind: Tensor


class CoarseHead(nn.Module):
    """Scores of a few whole numbers, so that ties abound; counts what it is asked to do."""

    needs_tokens = False

    def __init__(self, levels=3):
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.levels = levels
        self.texts_encoded = self.videos_encoded = 0
        self.largest = (0, 0)
        self.modes = set()

    def encode_text(self, text):
        self.texts_encoded += len(text.text_features)
        self.modes.add((self.training, self.dropout.training, torch.is_grad_enabled()))
        return Side(self.dropout(text.text_features), torch.zeros(len(text.text_features)))

    def encode_video(self, video):
        self.videos_encoded += len(video.frame_features)
        return Side(video.frame_features.sum(1), torch.zeros(len(video.frame_features)))

    def score(self, text, video):
        self.largest = max(self.largest, (len(text.item), len(video.item)))
        return (text.item @ video.item.T).sign() * self.levels // 2


def assert_same_ranks(found, expected):
    assert list(found) == list(expected)
    for direction in expected:
        np.testing.assert_array_equal(found[direction], expected[direction])


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_tiles_give_what_the_head_gives_at_once(name):
    torch.manual_seed(1)
    head, table = build_head(name, embed_dim=D).eval(), make_table()
    with torch.no_grad():
        whole = head(table.texts(slice(None)), table.videos(slice(None))).similarity
    for batch in (4, 100):
        tiled = similarity_matrix(head, table, batches=(batch, batch - 1))
        assert tiled.dtype == torch.float32 and tiled.shape == (23, 9)
        torch.testing.assert_close(tiled, whole, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_items_encoded_in_batches_of_like_length_score_as_if_at_once(name):
    torch.manual_seed(4)
    head, table = build_head(name, embed_dim=D).eval(), make_table(T=40, V=30)
    with torch.no_grad():
        whole = head(table.texts(slice(None)), table.videos(slice(None))).similarity
    few_at_once = 4 * 16 * 4 * 7 * (D * 4 + 1)  # bytes for a batch of about four of the longest captions
    torch.testing.assert_close(similarity_matrix(head, table, max_bytes=few_at_once), whole, atol=2e-6, rtol=1e-5)


def test_captions_are_encoded_with_little_padding(monkeypatch):
    table, batches, texts = make_table(T=200, V=9, L=30), [], FeatureTable.texts

    def remembering(self, index):
        batches.append(tuple(texts(self, index).token_mask.shape))
        return texts(self, index)

    monkeypatch.setattr(FeatureTable, "texts", remembering)
    ten_at_once = 4 * 16 * 10 * 31 * (D * 4 + 1)
    similarity_matrix(build_head("ti", embed_dim=D), table, max_bytes=ten_at_once, batches=(200, 1024))
    first, *batches = batches  # the first caption says how large a batch may be
    computed, real = sum(n * width for n, width in batches), int(table.token_count.sum())
    assert first[0] == 1 and len(batches) >= 20 and sum(n for n, _ in batches) == 200
    assert computed < 1.1 * real < 0.6 * 200 * 30


@pytest.mark.parametrize("name", HEAD_NAMES)
@pytest.mark.parametrize("limits", [{}, {"batches": (5, 4)}, {"max_bytes": 1 << 17, "batches": (7, 1024)}])
def test_ranks_without_the_matrix_equal_those_of_the_matrix(name, limits):
    torch.manual_seed(2)
    # Captions of different videos that are word for word the same make ties.
    head, table = build_head(name, embed_dim=D), make_table(shared_text=[(0, 7), (0, 20), (3, 11)])
    expected = retrieval_ranks(similarity_matrix(head, table, **limits), table.video_of_text)
    assert_same_ranks(ranks(head, table, **limits), expected)


@pytest.mark.parametrize("seed", range(6))
def test_ranks_are_exact_where_ties_abound_and_groups_span_tiles(seed):
    table, head = make_table(T=40, V=6, seed=seed), CoarseHead(levels=1 + seed % 3)
    expected = retrieval_ranks(similarity_matrix(head, table), table.video_of_text)
    assert any((of % 1 == 0.5).any() for of in expected.values())
    for batches in [(1, 1), (3, 2), (7, 6), (40, 1), (1, 6)]:
        assert_same_ranks(ranks(head, table, batches=batches), expected)


def test_directions_choose_what_is_ranked():
    table, head = make_table(), CoarseHead()
    expected = ranks(head, table)
    assert list(expected) == ["text_to_video", "video_to_text", "video_to_text_caption"]
    assert_same_ranks(ranks(head, table, directions=["video_to_text"]), {"video_to_text": expected["video_to_text"]})
    for wrong in (["video_to_video"], "text_to_video"):
        with pytest.raises(UsageError, match="directions are text_to_video"):
            ranks(head, table, directions=wrong)


def test_the_matrix_follows_the_table_whatever_the_order_of_its_captions():
    table = make_table(T=9, V=9, video_of_text=torch.arange(9).flip(0))
    head = build_head("mean_pool", embed_dim=D)
    text = torch.nn.functional.normalize(table.texts(slice(None)).text_features, dim=-1)
    video = head.encode_video(table.videos(slice(None))).vectors
    torch.testing.assert_close(similarity_matrix(head, table, batches=(2, 1024)), text @ video.T)


def test_each_side_is_encoded_once():
    table, head = make_table(), CoarseHead()
    similarity_matrix(head, table, batches=(4, 2))
    assert (head.texts_encoded, head.videos_encoded) == (23, 9)
    ranks(head, table, batches=(4, 2))
    assert (head.texts_encoded, head.videos_encoded) == (46, 18)


def test_texts_that_cannot_be_kept_are_encoded_twice_for_ranks_and_once_for_the_matrix():
    table, head = make_table(T=400), CoarseHead()
    similarity_matrix(head, table, batches=(50, 2), max_bytes=40_000)
    assert head.texts_encoded == 400
    ranks(head, table, batches=(50, 2), max_bytes=40_000)
    assert 400 + 400 < head.texts_encoded <= 400 + 800


def test_tiles_shrink_to_the_memory_allowed():
    table, head = make_table(T=400, V=50), CoarseHead()
    similarity_matrix(head, table, max_bytes=16_000)
    texts, videos = head.largest
    assert texts * videos * 16 <= 4_000
    for wrong in ({"max_bytes": 0}, {"batches": (0, 4)}, {"batches": (4, -1)}):
        with pytest.raises(UsageError, match="must be at least 1"):
            similarity_matrix(head, table, **wrong)


def test_the_head_is_used_in_evaluation_mode_without_gradients_and_left_as_it_was():
    table, head = make_table(), CoarseHead().train()
    head.dropout.eval()  # a part that was frozen stays so
    similarity_matrix(head, table)
    assert head.modes == {(False, False, False)}
    assert head.training and not head.dropout.training and torch.is_grad_enabled()


def test_the_head_is_left_as_it_was_when_scoring_fails():
    table, head = make_table(), CoarseHead(levels=float("nan")).train()
    with pytest.raises(NonFiniteError):
        ranks(head, table)
    assert head.training and head.dropout.training and torch.is_grad_enabled()


@pytest.mark.parametrize("function", [similarity_matrix, ranks])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_score_that_is_not_finite_names_the_text_and_the_video(function, value):
    table, head = make_table(), build_head("mean_pool", embed_dim=D)
    table.frame_features[4, 0, 2] = value
    with pytest.raises(NonFiniteError, match=r"text \d+ \(t\d+\) with video 4 \(v4\) is nan"):
        function(head, table, batches=(4, 3))
    table = make_table()
    table.text_features[17, 3] = value
    with pytest.raises(NonFiniteError, match=r"text 17 \(t17\) with video \d \(v\d\) is nan"):
        function(head, table, batches=(4, 3))


def test_autocast_around_the_call_does_not_round_the_scores():
    table, head = make_table(), build_head("glscl", embed_dim=D)
    expected = similarity_matrix(head, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (similarity_matrix(head, table) == expected).all()


def test_seconds_and_progress_are_reported():
    table, head = make_table(), build_head("seq_transf", embed_dim=D)
    seconds, seen = {"encode": 100.0}, []
    ranks(head, table, batches=(5, 3), seconds=seconds, progress=lambda *at: seen.append(at))
    assert set(seconds) == {"encode", "score", "metrics"}
    assert seconds["encode"] > 100 and seconds["score"] > 0 and seconds["metrics"] >= 0
    assert seen[-1] == (23 * 9, 23 * 9) and [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_an_empty_table_is_refused():
    empty = make_table().subset(torch.tensor([], dtype=torch.int64))
    for function in (similarity_matrix, ranks):
        with pytest.raises(InputError, match="nothing to rank"):
            function(CoarseHead(), empty)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", HEAD_NAMES)
def test_a_cuda_device_gives_the_scores_of_the_cpu_and_the_head_returns_home(name):
    torch.manual_seed(3)
    head, table = build_head(name, embed_dim=D), make_table()
    expected = similarity_matrix(head, table)
    tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    found = similarity_matrix(head, table, device="cuda", batches=(5, 1024))
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == tf32
    assert found.device.type == "cpu" and head.logit_scale.device.type == "cpu"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    matrix_ranks = retrieval_ranks(found, table.video_of_text)
    assert_same_ranks(ranks(head, table, device="cuda", batches=(5, 1024)), matrix_ranks)
