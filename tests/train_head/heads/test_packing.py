"""Packing leaves out the padding and nothing else: the way there and back, gradients, heads, and when it stays away."""

import pytest
import torch

from glscl.train_head.heads import build_head
from glscl.train_head.heads.layers import Decoder
from glscl.train_head.heads.packing import Packing

D = 16


def ragged(items=6, length=9, *, seed=0):
    """(N, S, D) random entries, real and padded, and a mask under which about half is padding."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) < torch.randint(1, length + 1, (items, 1), generator=draw)
    mask[0, 0], mask[0, 1] = False, True  # padding may come first, too
    return torch.randn(items, length, D, generator=draw), mask


def test_what_is_packed_is_what_is_real_and_the_way_back_leaves_zeros():
    padded, mask = ragged()
    packing = Packing.from_mask(mask)
    assert torch.equal(packing.pack(padded), padded[mask])
    assert torch.equal(packing.unpack(padded[mask]), padded * mask.unsqueeze(-1))


def test_gradients_go_to_real_entries_alone():
    padded, mask = ragged()
    padded.requires_grad_()
    packing = Packing.from_mask(mask)
    packing.unpack(packing.pack(padded).square()).sum().backward()
    assert torch.equal(padded.grad, (2 * padded * mask.unsqueeze(-1)).detach())


@pytest.mark.parametrize("mask", [None, torch.ones(3, 4, dtype=torch.bool), torch.arange(40) < torch.full((3, 1), 39)])
def test_nothing_is_moved_where_little_or_nothing_is_padding(mask):
    padded = torch.randn(3, 40, D)
    packing = Packing.from_mask(mask)
    assert packing.pack(padded) is padded and packing.unpack(padded) is padded


def test_a_decoder_projects_only_what_is_real(monkeypatch):
    memory, mask = ragged()
    decoder, rows = Decoder(D, 2, feedforward=32, dropout=0.0), []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda x, *rest: rows.append(x.shape) or linear(x, *rest))
    packed = decoder(torch.randn(3, D, generator=torch.Generator().manual_seed(1)), memory, mask)
    assert (int(mask.sum()), D) in rows and memory.shape not in rows
    monkeypatch.undo()
    monkeypatch.setattr(Packing, "of", lambda mask: Packing.NONE)
    padded = decoder(torch.randn(3, D, generator=torch.Generator().manual_seed(1)), memory, mask)
    torch.testing.assert_close(packed, padded, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head", ["glscl", "seq_transf"])
def test_packing_changes_neither_score_nor_gradients(head, monkeypatch, planted):
    torch.manual_seed(0)
    options = {"queries": 2, "decoder_layers": 2, "dropout": 0.0} if head == "glscl" else {}
    head = build_head(head, embed_dim=D, aggregator_layers=2, **options).train()
    table, found = planted(videos=8, captions=1), []
    for of in (Packing.from_mask, lambda mask: Packing.NONE):
        monkeypatch.setattr(Packing, "of", of)
        head.zero_grad()
        output = head(table.texts(slice(None)), table.videos(slice(None)))
        (output.similarity.square().sum() + sum(output.auxiliary.values())).backward()
        found.append([output.similarity.detach(), *(p.grad for p in head.parameters() if p.grad is not None)])
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed, padded, atol=1e-6, rtol=1e-4)
