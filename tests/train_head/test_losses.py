"""The contrastive loss against a hand-written loop."""

from __future__ import annotations

import math

import pytest
import torch

from glscl.train_head import losses
from glscl.train_head.losses import LOSSES, contrastive_loss, distillation_loss, hard_negative_loss, sigmoid_loss
from glscl.train_head.settings import LOSS_NAMES


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


def test_the_settings_name_the_losses_that_there_are():
    assert tuple(LOSSES) == LOSS_NAMES


def excluded(size):
    exclude = torch.zeros(size, size, dtype=torch.bool)
    exclude[0, 2] = exclude[2, 0] = exclude[1, 1] = True
    return exclude


@pytest.mark.parametrize("masked", [False, True])
def test_the_sigmoid_loss_judges_each_pair_by_itself(masked):
    torch.manual_seed(2)
    logits = torch.randn(4, 4, dtype=torch.float64) * 3 - 2
    exclude = excluded(4) if masked else None
    total = 0.0
    for i in range(4):
        for j in range(4):
            if not masked or i == j or not exclude[i, j]:
                total += math.log(1 + math.exp(-logits[i, j] if i == j else logits[i, j]))
    assert sigmoid_loss(logits, exclude=exclude).item() == pytest.approx(total / 4, rel=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_hard_negatives_weigh_more_and_all_together_as_many(masked):
    torch.manual_seed(3)
    logits = torch.randn(5, 5, dtype=torch.float64) * 4
    exclude = excluded(5) if masked else None

    def one_way(rows):
        total = 0.0
        for i in range(5):
            others = [j for j in range(5) if j != i and not (masked and exclude[i, j])]
            hard = [math.exp(losses.HARDNESS * rows[i][j]) for j in others]
            weights = [len(others) * each / sum(hard) for each in hard]
            negatives = sum(w * math.exp(rows[i][j]) for w, j in zip(weights, others))
            total += math.log(1 + negatives / math.exp(rows[i][i]))
        return total / 5

    expected = (one_way(logits.tolist()) + one_way(logits.T.tolist())) / 2
    assert hard_negative_loss(logits, exclude=exclude).item() == pytest.approx(expected, rel=1e-10)


def test_without_hardness_hard_negatives_are_infonce(monkeypatch):
    monkeypatch.setattr(losses, "HARDNESS", 0.0)
    logits = torch.randn(6, 6, dtype=torch.float64)
    assert hard_negative_loss(logits).item() == pytest.approx(contrastive_loss(logits).item(), rel=1e-12)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_every_loss_has_finite_gradients_that_pull_pairs_together(name):
    for exclude in (None, ~torch.eye(3, dtype=torch.bool)):  # the latter leaves no negative at all
        logits = (torch.randn(3, 3) * 50).requires_grad_()
        LOSSES[name](logits, exclude=exclude).backward()
        assert logits.grad.isfinite().all() and (logits.grad.diagonal() <= 0).all()
        if exclude is not None:
            assert (logits.grad[exclude] == 0).all()
    with pytest.raises(ValueError, match="as many texts as videos"):
        LOSSES[name](torch.zeros(2, 3))


@pytest.mark.parametrize("masked", [False, True])
def test_distillation_is_the_divergence_from_the_teacher_both_ways(masked):
    torch.manual_seed(4)
    student, teacher = torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    exclude = excluded(4) if masked else None

    def softmax(row, kept):
        exponents = [math.exp(x) if keep else 0.0 for x, keep in zip(row, kept)]
        return [each / sum(exponents) for each in exponents]

    def one_way(ours, theirs, hidden):
        total = 0.0
        for i in range(4):
            kept = [i == j or hidden is None or not hidden[i][j] for j in range(4)]
            p, q = softmax(theirs[i], kept), softmax(ours[i], kept)
            total += sum(a * math.log(a / b) for a, b in zip(p, q) if a)
        return total / 4

    hidden = exclude.tolist() if masked else None
    turned = exclude.T.tolist() if masked else None
    rows = one_way(student.tolist(), teacher.tolist(), hidden)
    columns = one_way(student.T.tolist(), teacher.T.tolist(), turned)
    assert distillation_loss(student, teacher, exclude=exclude).item() == pytest.approx((rows + columns) / 2, rel=1e-9)
    assert distillation_loss(student, student.clone()).item() == pytest.approx(0, abs=1e-12)
    ours, theirs = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    distillation_loss(ours, theirs, exclude=exclude).backward()
    assert theirs.grad is None and ours.grad.isfinite().all()
