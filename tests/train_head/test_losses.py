"""The contrastive loss against a hand-written loop."""

from __future__ import annotations

import math

import pytest
import torch

from glscl.train_head.losses import contrastive_loss


def by_hand(logits, excluded=frozenset()):
    size, total = len(logits), 0.0
    for i in range(size):
        row = [logits[i][j] for j in range(size) if (i, j) not in excluded]
        column = [logits[j][i] for j in range(size) if (j, i) not in excluded]
        for scores in (row, column):
            total += math.log(sum(math.exp(s) for s in scores)) - logits[i][i]
    return total / (2 * size)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_it_is_the_mean_of_both_cross_entropies(size):
    torch.manual_seed(0)
    logits = torch.randn(size, size, dtype=torch.float64) * 3
    assert contrastive_loss(logits).item() == pytest.approx(by_hand(logits.tolist()), rel=1e-10)


def test_a_hand_worked_matrix():
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    rows = (math.log(4 / 3) + math.log(2)) / 2
    assert contrastive_loss(logits).item() == pytest.approx(rows, rel=1e-6), "symmetric, so columns give the same"


def test_excluded_pairs_are_no_negatives():
    torch.manual_seed(1)
    logits = torch.randn(5, 5, dtype=torch.float64)
    exclude = torch.zeros(5, 5, dtype=torch.bool)
    exclude[0, 3] = exclude[3, 0] = exclude[2, 2] = True  # the diagonal stays, whatever is asked
    expected = by_hand(logits.tolist(), {(0, 3), (3, 0)})
    assert contrastive_loss(logits, exclude=exclude).item() == pytest.approx(expected, rel=1e-10)


def test_excluded_pairs_get_no_gradient():
    logits = torch.zeros(3, 3, requires_grad=True)
    exclude = torch.tensor([[0, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    contrastive_loss(logits, exclude=exclude).backward()
    assert logits.grad[0, 1] == 0 and logits.grad[1, 0] > 0
    assert logits.grad.isfinite().all()


def test_a_perfect_batch_costs_nothing_and_an_even_one_log_of_its_size():
    assert contrastive_loss(100 * torch.eye(8)).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(torch.zeros(8, 8)).item() == pytest.approx(math.log(8), rel=1e-6)


def test_half_precision_is_computed_in_float32():
    logits = (torch.randn(6, 6) * 20).bfloat16()
    loss = contrastive_loss(logits)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(logits.float()))


@pytest.mark.parametrize("shape", [(3, 4), (5, 2)])
def test_a_rectangle_is_refused_with_both_numbers(shape):
    with pytest.raises(ValueError, match=f"as many texts as videos.*{shape[0]} x {shape[1]}"):
        contrastive_loss(torch.zeros(shape))


def test_an_empty_batch_and_a_wrong_mask_are_refused():
    with pytest.raises(ValueError, match="at least one: found 0 x 0"):
        contrastive_loss(torch.zeros(0, 0))
    with pytest.raises(ValueError, match=r"exclude has shape \(2, 2\), the similarity \(3, 3\)"):
        contrastive_loss(torch.zeros(3, 3), exclude=torch.zeros(2, 2, dtype=torch.bool))
