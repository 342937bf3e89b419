"""Ranks and metrics against hand-worked matrices, a slow reference, the public programs and their own symmetries."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.common.errors import InputError, NonFiniteError, UsageError
from glscl.evaluate.metrics import partially_relevant, retrieval_metrics, rsum, summarise
from glscl.evaluate.ranks import (
    pair,
    query_videos,
    ranks_of_tiles,
    retrieval_ranks,
    spans,
)

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "metrics.npz")
NAMES = ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR")


def mean_rank(target, others):
    """The definition, one query at a time."""
    return 1 + sum(o > target for o in others) + sum(o == target for o in others) / 2


def slow_ranks(S, video_of_text):
    T, V = S.shape
    captions = {v: [t for t in range(T) if video_of_text[t] == v] for v in sorted(set(video_of_text))}
    t2v = [mean_rank(S[t, video_of_text[t]], [S[t, v] for v in range(V) if v != video_of_text[t]]) for t in range(T)]
    group, caption = [], []
    for v, own in captions.items():
        best = max(S[t, v] for t in own)
        group.append(mean_rank(best, [max(S[t, v] for t in texts) for g, texts in captions.items() if g != v]))
        caption.append(mean_rank(best, [S[t, v] for t in range(T) if video_of_text[t] != v]))
    return {"text_to_video": t2v, "video_to_text": group, "video_to_text_caption": caption}


@st.composite
def matrices(draw, square=False):
    """Scores with many ties, and a mapping in any order in which some videos have no caption and some have several."""
    T = draw(st.integers(1, 9))
    V = T if square else draw(st.integers(1, 7))
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    seed = draw(st.integers(0, 2**31))
    r = np.random.RandomState(seed)
    return r.randint(0, levels, (T, V)).astype(np.float32), None if square else r.randint(0, V, T)


# ---- worked by hand --------------------------------------------------------------------------------------------------


def test_one_caption_a_video_worked_by_hand():
    S = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.1, 0.6, 0.5]])
    ranks = retrieval_ranks(S)
    assert ranks["text_to_video"].tolist() == [1, 2, 2]
    assert ranks["video_to_text"].tolist() == [1, 1, 1]
    assert ranks["video_to_text_caption"].tolist() == [1, 1, 1]
    result = retrieval_metrics(S)
    assert result["text_to_video"] == {
        "R@1": pytest.approx(100 / 3), "R@5": 100, "R@10": 100, "R@50": 100, "MdR": 2, "MnR": pytest.approx(5 / 3),
        "queries": 3,
    }  # fmt: skip
    assert list(result) == ["text_to_video", "video_to_text", "video_to_text_caption"]


def test_several_captions_a_video_worked_by_hand():
    # Captions 0 1 2 belong to video 0, caption 3 to video 1, caption 4 to video 3; video 2 has none.
    S = np.array([
        [0.5, 0.9, 0.1, 0.0],
        [0.6, 0.8, 0.7, 0.2],
        [0.1, 0.7, 0.9, 0.8],
        [0.7, 0.6, 0.1, 0.3],
        [0.2, 0.1, 0.9, 0.5],
    ])  # fmt: skip
    ranks = retrieval_ranks(S, [0, 0, 0, 1, 3])
    assert ranks["text_to_video"].tolist() == [2, 3, 4, 2, 2]  # the video without captions is a rival
    # Group scores a video: video 0 {.6 .7 .2}, video 1 {.9 .6 .1}, video 3 {.8 .3 .5}.
    assert ranks["video_to_text"].tolist() == [2, 2, 2]
    # Caption ranks: video 0's best is .6 behind .7; video 1's .6 behind .9 .8 .7; video 3's .5 behind .8.
    assert ranks["video_to_text_caption"].tolist() == [2, 4, 2]
    assert query_videos([0, 0, 0, 1, 3]).tolist() == [0, 1, 3]


def test_ties_share_the_mean_rank_worked_by_hand():
    S = np.array([[0.5, 0.5, 0.5, 0.1], [0.2, 0.9, 0.9, 0.9], [0.0, 0.0, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1]])
    assert retrieval_ranks(S)["text_to_video"].tolist() == [2, 2, 2.5, 4]


def test_a_videos_other_captions_are_no_competitors_in_the_caption_convention():
    # The video's two captions tie at the top with one caption of another video: rank 1.5, not 2.
    S = np.array([[0.9, 0.0], [0.9, 0.1], [0.9, 0.5]])
    assert retrieval_ranks(S, [0, 0, 1])["video_to_text_caption"].tolist() == [1.5, 1]
    # Twice the same caption of one video ties with itself only: still first.
    S = np.array([[0.9, 0.0], [0.9, 0.1], [0.3, 0.5]])
    assert retrieval_ranks(S, [0, 0, 1])["video_to_text_caption"].tolist() == [1, 1]


def test_summary_counts_percent_median_and_mean():
    result = summarise([1, 1.5, 5, 10, 11, 51])
    assert result == {
        "R@1": pytest.approx(100 / 6), "R@5": 50, "R@10": pytest.approx(400 / 6), "R@50": pytest.approx(500 / 6),
        "MdR": 7.5, "MnR": pytest.approx(79.5 / 6), "queries": 6,
    }  # fmt: skip
    assert rsum(result) == pytest.approx(800 / 6)


def test_partially_relevant_retrieval_sums_four_recalls():
    assert partially_relevant(np.array([1, 1, 5, 10, 100, 101])) == pytest.approx(
        {"R@100": 500 / 6, "SumR": (200 + 300 + 400 + 500) / 6}
    )


# ---- references ------------------------------------------------------------------------------------------------------


@given(matrices())
@settings(max_examples=60, deadline=None)
def test_ranks_equal_the_slow_reference(case):
    S, video_of_text = case
    ranks = {direction: of.tolist() for direction, of in retrieval_ranks(S, video_of_text).items()}
    assert ranks == slow_ranks(S, video_of_text.tolist())


@given(matrices(), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_tiles_of_any_size_give_the_same_ranks(case, text_step, video_step):
    S, video_of_text = case
    pairing = pair(video_of_text, num_texts=len(S), num_videos=S.shape[1])
    ranks = ranks_of_tiles(
        lambda texts, videos: torch.from_numpy(S)[pairing.rows(texts)][:, slice(*videos)],
        pairing,
        text_spans=spans(len(S), text_step),
        video_spans=spans(S.shape[1], video_step),
        directions=["text_to_video", "video_to_text", "video_to_text_caption"],
    )
    expected = retrieval_ranks(S, video_of_text)
    assert all((ranks[direction] == expected[direction]).all() for direction in expected)


def test_matrices_larger_than_a_tile_are_counted_once(monkeypatch):
    r = np.random.RandomState(0)
    S, video_of_text = r.standard_normal((90, 17)), r.randint(0, 17, 90)
    whole = retrieval_ranks(S, video_of_text)
    monkeypatch.setattr("glscl.evaluate.ranks._TILE", 50)
    tiled = retrieval_ranks(S, video_of_text)
    assert all((tiled[direction] == whole[direction]).all() for direction in whole)


@pytest.mark.parametrize("key,direction", [("t2v", "text_to_video"), ("v2t", "video_to_text")])
def test_one_caption_a_video_equals_the_public_program(key, direction):
    result = retrieval_metrics(GOLDEN["similarity"])[direction]
    np.testing.assert_allclose([result[name] for name in NAMES], GOLDEN[key], rtol=1e-12)


@pytest.mark.parametrize("key,direction", [("multi_t2v", "text_to_video"), ("multi_v2t", "video_to_text")])
def test_several_captions_a_video_equal_the_public_program(key, direction):
    result = retrieval_metrics(GOLDEN["multi_similarity"], GOLDEN["multi_video_of_text"])[direction]
    # The public program computes these in float32, hence the tolerance.
    np.testing.assert_allclose([result[name] for name in NAMES], GOLDEN[key], rtol=1e-6)


# ---- properties ------------------------------------------------------------------------------------------------------


@given(matrices(), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_order_of_texts_and_videos_changes_nothing(case, seed):
    S, video_of_text = case
    r = np.random.RandomState(seed)
    rows, columns = r.permutation(S.shape[0]), r.permutation(S.shape[1])
    shuffled = retrieval_metrics(S[rows][:, columns], np.argsort(columns)[video_of_text[rows]])
    expected = retrieval_metrics(S, video_of_text)
    for direction in expected:
        assert shuffled[direction] == pytest.approx(expected[direction], rel=1e-12)


@given(matrices())
@settings(max_examples=40, deadline=None)
def test_rising_functions_of_the_scores_change_nothing(case):
    S, video_of_text = case
    expected = retrieval_metrics(S, video_of_text)
    assert retrieval_metrics(3 * S.astype(np.float64) - 7, video_of_text) == expected
    assert retrieval_metrics(np.tanh(S.astype(np.float64) / 500), video_of_text) == expected


@given(st.integers(1, 40), st.sampled_from([0.0, -3.5, 1e30]))
@settings(max_examples=20, deadline=None)
def test_a_constant_matrix_scores_like_chance(n, value):
    result = retrieval_metrics(np.full((n, n), value))
    assert all(of["MnR"] == of["MdR"] == (n + 1) / 2 and of["queries"] == n for of in result.values())


@given(matrices())
@settings(max_examples=40, deadline=None)
def test_both_conventions_agree_on_the_first_rank(case):
    ranks = retrieval_ranks(*case)
    group, caption = ranks["video_to_text"], ranks["video_to_text_caption"]
    assert ((group == 1) == (caption == 1)).all()
    assert (caption >= group).all()


@given(matrices(square=True))
@settings(max_examples=40, deadline=None)
def test_the_diagonal_is_the_identity_mapping_and_directions_are_transposes(case):
    S, _ = case
    ranks = retrieval_ranks(S)
    assert (ranks["text_to_video"] == retrieval_ranks(S, np.arange(len(S)))["text_to_video"]).all()
    assert (ranks["video_to_text"] == ranks["video_to_text_caption"]).all()
    assert (ranks["video_to_text"] == retrieval_ranks(S.T)["text_to_video"]).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, np.ndarray.tolist])
def test_arrays_tensors_and_lists_of_any_precision_are_accepted(dtype, kind):
    r = np.random.RandomState(3)
    S, video_of_text = r.randint(-9, 9, (12, 5)), r.randint(0, 5, 12)
    assert retrieval_metrics(kind(S.astype(dtype)), kind(video_of_text)) == retrieval_metrics(S, video_of_text)


def test_bfloat16_gradients_strides_and_read_only_memory_are_accepted(recwarn):
    S = np.random.RandomState(4).randint(-9, 9, (7, 7)).astype(np.float32)
    expected = retrieval_metrics(S)
    frozen = S.copy()
    frozen.flags.writeable = False
    assert retrieval_metrics(torch.from_numpy(S).bfloat16().requires_grad_()) == expected
    assert retrieval_metrics(S.T.copy().T) == expected
    assert retrieval_metrics(S[::-1].copy()[::-1]) == expected
    assert retrieval_metrics(frozen) == expected
    assert retrieval_metrics(S.astype(">f8")) == expected
    assert retrieval_metrics(S.astype(np.longdouble)) == expected
    assert not recwarn.list


def test_metrics_leave_the_matrix_alone():
    S = np.random.RandomState(5).standard_normal((6, 6))
    before = S.copy()
    retrieval_metrics(S)
    assert (before == S).all()


# ---- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("video_of_text", [None, [4, 3, 2, 1, 0]])
@pytest.mark.parametrize("function", [retrieval_metrics, retrieval_ranks])
def test_a_score_that_is_not_finite_is_refused_and_named(function, value, video_of_text):
    S = np.random.RandomState(6).standard_normal((5, 5))
    S[3, 2] = value
    with pytest.raises(NonFiniteError, match=r"text row 3 with video column 2 is -?(nan|inf)"):
        function(S, video_of_text)


def test_empty_input_is_refused():
    for shape in [(0, 0), (0, 4), (4, 0)]:
        with pytest.raises(InputError, match="nothing to rank"):
            retrieval_metrics(np.zeros(shape), np.zeros(shape[0], int))
    with pytest.raises(InputError, match="at least one query"):
        summarise([])


@pytest.mark.parametrize(
    "similarity,video_of_text,message",
    [
        (np.zeros((3, 4)), None, "not square"),
        (np.zeros(3), None, "2 dimensions"),
        (np.zeros((3, 4)), [0, 1], "one entry for each of 3 texts"),
        (np.zeros((3, 4)), [0, 1, 4], "text 2 belongs to video 4, there are videos 0 to 3"),
        (np.zeros((3, 4)), [-1, 1, 0], "text 0 belongs to video -1"),
        (np.zeros((3, 4)), [0.0, 1.0, 2.0], "expected integers"),
        (np.zeros((3, 3), complex), None, "expected real numbers"),
        (np.full((2, 2), "x"), None, "expected real numbers"),
    ],
)
def test_misshapen_input_is_refused_with_what_was_found(similarity, video_of_text, message):
    with pytest.raises(InputError, match=message):
        retrieval_metrics(similarity, video_of_text)


def test_conventions_choose_what_is_computed_and_unknown_ones_are_refused():
    S = np.eye(3)
    assert list(retrieval_metrics(S, conventions=["caption"])) == ["text_to_video", "video_to_text_caption"]
    assert list(retrieval_metrics(S, conventions=())) == ["text_to_video"]
    for wrong in (["groups"], "group"):
        with pytest.raises(UsageError, match="conventions are group, caption"):
            retrieval_metrics(S, conventions=wrong)
