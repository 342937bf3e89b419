"""Dropout with cheap masks: the shares and expectations of torch's, gradients through what stayed, one seed one mask."""

import pytest
import torch

from glscl.train_head.heads.dropout import Dropout, dropout
from glscl.train_head.heads.layers import Attention, Decoder

D = 16


@pytest.mark.parametrize("p", [0.0, 1e-6, 0.1, 0.5, 0.9])
def test_the_right_share_is_dropped_and_the_mean_stays(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 999)  # no multiple of four
    result = dropout(x, p)
    assert (result == 0).float().mean().item() == pytest.approx(p, abs=5e-3 * (p > 1e-3) + 2e-5)
    assert result.mean().item() == pytest.approx(1, abs=0.01)
    assert result.unique().numel() <= 2


def test_neighbours_and_places_are_dropped_independently():
    torch.manual_seed(0)
    dropped = dropout(torch.ones(4000, 400), 0.1) == 0
    for shift in (1, 2, 3, 4, 8, 400):
        together = (dropped.flatten()[shift:] & dropped.flatten()[:-shift]).float().mean()
        assert together.item() == pytest.approx(0.01, abs=5e-4)
    assert dropped.float().mean(0).sub(0.1).abs().max() < 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_pass_where_an_entry_stayed(dtype):
    x = torch.randn(64, 33).to(dtype).requires_grad_()
    result = dropout(x, 0.25)
    (gradient,) = torch.autograd.grad(result, x, torch.ones_like(result))
    stayed = gradient != 0
    assert result.dtype == gradient.dtype == dtype and 0.5 < stayed.float().mean() < 0.95
    torch.testing.assert_close(result, gradient * x)
    torch.testing.assert_close(gradient[stayed], torch.full_like(gradient[stayed], 4 / 3))


def test_a_seed_gives_the_same_zeros_and_evaluation_none():
    layer, x = Dropout(0.5), torch.randn(50, 7)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(layer(x))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
    assert torch.equal(layer.eval()(x), x)


def test_shared_entries_attend_as_copies_of_them_would():
    torch.manual_seed(0)
    queries = torch.randn(5, D, requires_grad=True)
    attention = Attention(D, 4, dropout=1e-9)  # drops nothing, but goes the way that could
    found, expected = attention.repeated(queries, 3), attention.eval()(queries.expand(3, -1, -1))
    torch.testing.assert_close(found, expected)
    parameters = [queries, *attention.parameters()]
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((result * weights).sum(), parameters) for result in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_every_item_draws_its_own_dropout_from_the_first_layer_on():
    torch.manual_seed(0)
    decoder = Decoder(D, 1, feedforward=32, dropout=0.5)
    memory = torch.randn(1, 3, D).expand(6, -1, -1)
    assert not torch.isclose(*decoder(torch.randn(2, D), memory, None)[:2]).all()
    attended = decoder.layers[0].self_attn.repeated(torch.randn(2, D), 6)
    assert len({tuple(row) for row in attended.flatten(1).tolist()}) == 6
