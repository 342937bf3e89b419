"""Hubness normalisations against slow references, the public program, extreme temperatures and their definitions."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.common.errors import InputError, NonFiniteError, UsageError
from glscl.evaluate.hubness import (
    NORMALISATIONS,
    OnlineNNN,
    OnlineQBNorm,
    csls,
    dual_inverted_softmax,
    dual_softmax,
    inverted_softmax,
    nnn,
    normalised_ranks,
    qb_norm,
    sinkhorn,
)
from glscl.evaluate.metrics import retrieval_metrics
from glscl.evaluate.ranks import retrieval_ranks

GOLDEN = np.load(Path(__file__).parent.parent / "golden" / "metrics.npz")
NAMES = ("R@1", "R@5", "R@10", "R@50", "MdR", "MnR")
WITH_BANK = {"qb_norm": qb_norm, "inverted_softmax": inverted_softmax, "csls": csls, "nnn": nnn, "sinkhorn": sinkhorn}


def sample(seed=0, Q=7, G=5, N=11):
    r = np.random.RandomState(seed)
    return r.uniform(-1, 1, (Q, G)), r.uniform(-1, 1, (N, G))


def rows_over_their_maximum(scores):
    return scores / scores.max(1, keepdims=True)


# ---- slow references: the formulas entry by entry --------------------------------------------------------------------


def slow_inverted_softmax(S, B, beta):
    return np.array([
        [math.exp(beta * S[q, g]) / sum(math.exp(beta * B[n, g]) for n in range(len(B))) for g in range(S.shape[1])]
        for q in range(len(S))
    ])  # fmt: skip


def slow_qb_norm(S, B, k, beta, theta):
    hits = [0] * S.shape[1]
    for row in B:
        for g in np.argsort(-row)[:k]:
            hits[g] += 1
    replaced, out = slow_inverted_softmax(S, B, beta), S.copy()
    for q in range(len(S)):
        if hits[np.argmax(S[q])] >= theta:
            out[q] = replaced[q]
    return out


def slow_csls(S, B, k):
    best = [np.mean(sorted(row)[-k:]) for row in S], [np.mean(sorted(column)[-k:]) for column in B.T]
    return np.array([[2 * S[q, g] - best[0][q] - best[1][g] for g in range(S.shape[1])] for q in range(len(S))])


def slow_sinkhorn(S, B, beta, iterations):
    kernel = np.exp(beta * B)
    u, v = np.ones(len(B)), np.ones(B.shape[1])
    for _ in range(iterations):
        u = 1 / (kernel @ v)
        v = 1 / (kernel.T @ u)
    return np.exp(beta * S) * v


@given(st.integers(0, 500), st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.5, 5.0, 20.0]))
@settings(max_examples=40, deadline=None)
def test_qb_norm_equals_the_slow_reference(seed, k, theta, beta):
    S, B = sample(seed)
    found, expected = qb_norm(S, B, k=k, beta=beta, theta=theta), slow_qb_norm(S, B, k, beta, theta)
    same = (expected == S).all(1)
    assert (found[same] == S[same]).all()
    np.testing.assert_allclose(found[~same], rows_over_their_maximum(expected[~same]), rtol=1e-9)


@given(st.integers(0, 500), st.sampled_from([0.5, 5.0, 20.0]), st.integers(1, 15))
@settings(max_examples=30, deadline=None)
def test_the_other_normalisations_equal_their_slow_references(seed, beta, k):
    S, B = sample(seed)
    A = sample(seed + 1000)[1]
    expected = rows_over_their_maximum(slow_inverted_softmax(S, B, beta))
    np.testing.assert_allclose(inverted_softmax(S, B, beta=beta), expected, rtol=1e-9)
    np.testing.assert_allclose(csls(S, B, k=k), slow_csls(S, B, k), rtol=1e-9)
    np.testing.assert_allclose(csls(S, k=k), slow_csls(S, S, k), rtol=1e-9)
    biases = [np.mean(sorted(column)[-k:]) for column in B.T]
    np.testing.assert_allclose(nnn(S, B, k=k, alpha=0.3), S - 0.3 * np.array(biases), rtol=1e-9)
    softmax = np.exp(beta * S) / np.exp(beta * S).sum(0)
    np.testing.assert_allclose(dual_softmax(S, beta=beta), S * softmax, rtol=1e-9)
    product = slow_inverted_softmax(S, B, beta) * slow_inverted_softmax(S, A, 2.5)
    found = dual_inverted_softmax(S, B, A, beta1=beta, beta2=2.5)
    np.testing.assert_allclose(found, rows_over_their_maximum(product), rtol=1e-9)
    for bank, other in ((B, B), (None, S)):
        slow = slow_sinkhorn(S, other, beta, 4)
        np.testing.assert_allclose(sinkhorn(S, bank, beta=beta), rows_over_their_maximum(slow), rtol=1e-7)


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_qb_norm_equals_the_public_program(direction):
    k, beta, theta = GOLDEN[f"qbnorm_params_{direction}"].tolist()
    S, B = GOLDEN["similarity"], GOLDEN["bank_texts_by_videos"]
    if direction == "v2t":
        S, B = S.T, GOLDEN["bank_texts_by_bankvideos"].T
    expected = GOLDEN[f"qbnorm_{direction}_similarity"]
    found = qb_norm(S, B, k=k, beta=beta, theta=theta)
    changed = ~np.isclose(expected, S).all(1)
    # The stored video-to-text case has no hub at θ=5; text to video has both kinds of rows.
    assert 0 < changed.sum() < len(S) if direction == "t2v" else not changed.any()
    assert (found[~changed] == S[~changed]).all()
    np.testing.assert_allclose(found[changed], rows_over_their_maximum(expected[changed]), rtol=2e-4, atol=1e-7)
    for log in (False, True):
        metrics = retrieval_metrics(qb_norm(S, B, k=k, beta=beta, theta=theta, log=log))["text_to_video"]
        np.testing.assert_allclose([metrics[name] for name in NAMES], GOLDEN[f"qbnorm_{direction}"], rtol=1e-9)


def test_normalised_ranks_equal_the_public_program_in_both_directions():
    ranks = normalised_ranks(
        "qb-norm",
        GOLDEN["similarity"],
        text_to_video={"bank": GOLDEN["bank_texts_by_videos"]},
        video_to_text={"bank": GOLDEN["bank_texts_by_bankvideos"].T},
    )
    for key, direction in [("t2v", "text_to_video"), ("v2t", "video_to_text"), ("v2t", "video_to_text_caption")]:
        assert np.mean(ranks[direction]) == pytest.approx(GOLDEN[f"qbnorm_{key}"][-1], rel=1e-9)
        assert np.mean(ranks[direction] == 1) * 100 == pytest.approx(GOLDEN[f"qbnorm_{key}"][0], rel=1e-9)


# ---- what the definitions promise ------------------------------------------------------------------------------------


def test_qb_norm_without_hubs_changes_nothing_and_with_all_hubs_is_the_inverted_softmax():
    S, B = sample(1)
    assert (qb_norm(S, B, theta=len(B) + 1) == S).all()
    np.testing.assert_array_equal(qb_norm(S, B, k=S.shape[1]), inverted_softmax(S, B))


def test_a_hub_is_pushed_below_the_item_it_hid():
    S = np.array([[0.50, 0.48, 0.10]])
    B = np.array([[0.9, 0.1, 0.2], [0.8, 0.2, 0.1], [0.7, 0.1, 0.3]])
    for name, function in WITH_BANK.items():
        assert function(S, B).argmax() == 1, name


@pytest.mark.parametrize("log", [True, False])
def test_no_temperature_overflows(log):
    S, B = sample(2)
    for scale in (1, 100):
        for beta in (70.0, 1e4):
            results = [
                qb_norm(scale * S, scale * B, beta=beta, log=log),
                inverted_softmax(scale * S, scale * B, beta=beta, log=log),
                dual_inverted_softmax(scale * S, scale * B, scale * B, beta1=beta, beta2=beta, log=log),
                sinkhorn(scale * S, scale * B, beta=beta, log=log),
                dual_softmax(scale * S, beta=beta),
            ]
            assert all(np.isfinite(result).all() for result in results)


@given(st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_logarithms_order_rows_like_the_scores_themselves(seed):
    S, B = sample(seed)
    for function in (qb_norm, inverted_softmax, sinkhorn):
        orders = [function(S, B, beta=30.0, log=log).argsort(1) for log in (True, False)]
        assert (orders[0] == orders[1]).all()


def test_logarithms_keep_an_order_that_underflow_would_lose():
    S = np.array([[1.0, -0.9, -1.0]])
    B = np.zeros((2, 3))
    assert inverted_softmax(S, B, beta=1000.0)[0, 1:].tolist() == [0, 0]
    row = inverted_softmax(S, B, beta=1000.0, log=True)[0]
    assert row[1] > row[2]


@given(st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_the_order_of_the_gallery_and_of_the_bank_does_not_matter(seed):
    S, B = sample(seed)
    r = np.random.RandomState(seed)
    columns, rows = r.permutation(S.shape[1]), r.permutation(len(B))
    for function in WITH_BANK.values():
        np.testing.assert_allclose(function(S[:, columns], B[rows][:, columns]), function(S, B)[:, columns], rtol=1e-9)


@given(st.integers(0, 500))
@settings(max_examples=20, deadline=None)
def test_only_transductive_normalisations_depend_on_the_other_queries(seed):
    S, B = sample(seed)
    for name, entry in NORMALISATIONS.items():
        banks = dict.fromkeys(entry.banks, B)
        together = entry.apply(S, direction="text_to_video", banks=banks)
        alone = [entry.apply(row[None], direction="text_to_video", banks=banks)[0] for row in S]
        assert np.allclose(together, alone, rtol=1e-9) != entry.transductive, name


@given(st.integers(0, 500), st.integers(1, 4), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_online_forms_equal_the_batch_forms_row_by_row(seed, k, theta):
    S, B = sample(seed)
    online = OnlineQBNorm(B, k=k, beta=70.0, theta=theta)
    batch = qb_norm(S, B, k=k, beta=70.0, theta=theta, log=True)
    assert (np.stack([online(row, log=True) for row in S]) == batch).all()
    online = OnlineNNN(B, k=k, alpha=0.5)
    assert (np.stack([online(row) for row in S]) == nnn(S, B, k=k, alpha=0.5)).all()
    assert online(torch.from_numpy(S[0])).shape == (5,)


def test_equal_scores_stay_equal_where_the_bank_treats_them_alike():
    S = np.array([[0.5, 0.5, 0.4], [0.1, 0.1, 0.7]])
    B = np.array([[0.9, 0.9, 0.1], [0.3, 0.3, 0.2]])
    for name, function in WITH_BANK.items():
        scores = function(S, B)
        assert (scores[:, 0] == scores[:, 1]).all(), name


def test_several_captions_a_video_are_ranked_after_normalisation():
    r = np.random.RandomState(5)
    S, video_of_text = r.uniform(-1, 1, (12, 4)), np.array([3, 0, 0, 1, 1, 1, 3, 0, 2, 2, 2, 2])
    captions, videos = r.uniform(-1, 1, (9, 4)), r.uniform(-1, 1, (9, 12))
    found = normalised_ranks("nnn", S, video_of_text, text_to_video={"bank": captions}, video_to_text={"bank": videos})
    expected = retrieval_ranks(nnn(S, captions), video_of_text, conventions=())
    columns = retrieval_ranks(nnn(S.T, videos).T, video_of_text)
    assert (found["text_to_video"] == expected["text_to_video"]).all()
    for direction in ("video_to_text", "video_to_text_caption"):
        assert (found[direction] == columns[direction]).all()
    only = normalised_ranks("nnn", S, video_of_text, text_to_video={"bank": captions}, conventions=())
    assert list(only) == ["text_to_video"]


# ---- kinds and refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(NORMALISATIONS))
def test_results_are_new_of_the_kind_given_and_float64(name):
    entry = NORMALISATIONS[name]
    S, B = (x.astype(np.float32) for x in sample(3))
    before = S.copy(), B.copy()
    banks = dict.fromkeys(entry.banks, B)
    array = entry.apply(S, direction="video_to_text", banks=banks)
    tensor_banks = {key: torch.from_numpy(bank) for key, bank in banks.items()}
    tensor = entry.apply(torch.from_numpy(S), direction="video_to_text", banks=tensor_banks)
    assert isinstance(array, np.ndarray) and array.dtype == np.float64
    assert isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64
    np.testing.assert_array_equal(array, tensor.numpy())
    assert (before[0] == S).all() and (before[1] == B).all()
    S64 = S.astype(np.float64)
    assert not np.shares_memory(entry.apply(S64, direction="text_to_video", banks=banks), S64)
    assert (S64 == S).all()


def test_every_normalisation_says_what_it_needs_and_a_missing_bank_is_refused():
    S, _ = sample()
    for name, entry in NORMALISATIONS.items():
        assert entry.summary and set(entry.options) == {"text_to_video", "video_to_text"}
        assert entry.transductive != entry.needs_bank, name
        if entry.needs_bank:
            with pytest.raises(UsageError, match="needs .*bank"):
                normalised_ranks(name, S[:5])
    with pytest.raises(UsageError, match="there are qb-norm"):
        normalised_ranks("softmax", S)


@pytest.mark.parametrize("name", list(WITH_BANK))
def test_a_bank_of_another_gallery_or_without_rows_is_refused(name):
    S, B = sample()
    with pytest.raises(InputError, match=r"similarity has 5 gallery columns, the bank has 4"):
        WITH_BANK[name](S, B[:, :4])
    with pytest.raises(InputError, match="bank is empty"):
        WITH_BANK[name](S, B[:0])


@pytest.mark.parametrize("name", list(WITH_BANK))
def test_scores_that_are_not_finite_are_refused(name):
    S, B = sample()
    S[2, 3] = np.nan
    with pytest.raises(NonFiniteError, match="similarity row 2 with gallery item 3"):
        WITH_BANK[name](S, B)
    S, B = sample()
    B[4, 1] = np.inf
    with pytest.raises(NonFiniteError, match="bank row 4 with gallery item 1"):
        WITH_BANK[name](S, B)


def test_senseless_options_are_refused():
    S, B = sample()
    for call in (
        lambda: qb_norm(S, B, k=0),
        lambda: qb_norm(S, B, theta=0),
        lambda: qb_norm(S, B, beta=0.0),
        lambda: inverted_softmax(S, B, beta=-1.0),
        lambda: csls(S, k=0),
        lambda: nnn(S, B, k=0),
        lambda: sinkhorn(S, B, iterations=0),
        lambda: dual_softmax(S, beta=math.nan),
    ):
        with pytest.raises(UsageError, match="must be"):
            call()


def test_beta_of_qb_norm_is_another_one_where_it_is_told():
    random = np.random.default_rng(0)
    scores, bank = random.random((6, 8)), random.random((5, 8))
    found = NORMALISATIONS["qb-norm"].apply(
        scores, direction="text_to_video", banks={"bank": bank}, options={"beta": 50.0}
    )
    assert np.array_equal(found, qb_norm(scores, bank, k=1, beta=50.0, theta=3, log=True))
