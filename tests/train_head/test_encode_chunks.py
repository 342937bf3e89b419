"""Large batches: encoded in chunks they give the same loss and gradients, and keep no more than a chunk does."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.encode_chunks import _Kept, chunk_that_fits, encode_in_chunks
from glscl.train_head.heads import HEAD_NAMES, build_head
from glscl.train_head.learner import ContrastiveStep
from glscl.train_head.losses import contrastive_loss

D = 16


def new_head(name, **options):
    torch.manual_seed(0)
    return build_head(name, embed_dim=D, **options).train()


def gradients(step, table, dtype=torch.float32):
    step.zero_grad()
    torch.manual_seed(7)
    sides = table.texts(slice(None)), table.videos(slice(None))
    loss = step(*(type(side)(*(f.to(dtype) if f.is_floating_point() else f for f in side)) for side in sides))
    loss.backward()
    return [loss.detach(), *(p.grad for p in step.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_chunks_change_neither_loss_nor_gradients(name, planted):
    options = {"dropout": 0.0} if name in ("glscl", "xpool", "tight_transf") else {}
    table, head = planted(videos=10, captions=1), new_head(name, **options).double()  # leaves rounding no room
    whole, cut = (gradients(ContrastiveStep(head, chunk=chunk), table, torch.float64) for chunk in (None, 4))
    for expected, found in zip(whole, cut, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_recomputed_piece_draws_the_random_numbers_it_drew_before(planted):
    table, head = planted(videos=10, captions=1), new_head("glscl", dropout=0.5)
    one, two = (gradients(ContrastiveStep(head, chunk=3), table) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    moved = head.decoder.layers[0].norm1.bias
    analytic = one[1 + [p is moved for p in head.parameters() if p.grad is not None].index(True)]
    losses = []  # a derivative by differences: it fits only gradients of the very same dropout
    for change in (1e-3, -1e-3):
        with torch.no_grad():
            moved[3] += change
        losses.append(gradients(ContrastiveStep(head, chunk=3), table)[0])
        with torch.no_grad():
            moved[3] -= change
    assert analytic[3].item() == pytest.approx(((losses[0] - losses[1]) / 2e-3).item(), rel=0.05, abs=1e-3)


def test_chunks_are_even_in_size_and_only_with_gradients():
    head, seen = new_head("mean_pool"), []
    video = VideoFeatures(torch.randn(10, 3, D, requires_grad=True), torch.ones(10, 3, dtype=torch.bool))

    def encode(part):
        seen.append(len(part.frame_features))
        return head.encode_video(part)

    encode_in_chunks(encode, video, 4)
    assert seen == [4, 3, 3]
    with torch.no_grad():
        encode_in_chunks(encode, video, 4)
    encode_in_chunks(encode, video, 10)
    assert seen[3:] == [10, 10]


def test_what_autograd_keeps_grows_with_the_piece_and_not_with_the_batch():
    head = new_head("glscl", queries=2, decoder_layers=1, aggregator_layers=1)

    def kept(items, chunk):
        text = TextFeatures(torch.randn(items, D), torch.randn(items, 4, D), torch.ones(items, 4, dtype=torch.bool))
        video = VideoFeatures(torch.randn(items, 3, D), torch.ones(items, 3, dtype=torch.bool))
        with _Kept() as keeping:
            ContrastiveStep(head, chunk=chunk)(text, video)
        return keeping.bytes

    whole, cut = kept(64, None), kept(64, 8)
    assert cut < whole / 3


def test_the_piece_follows_from_head_and_sizes_and_leaves_the_random_numbers_alone():
    head = new_head("glscl")
    before = torch.get_rng_state()
    chunk = chunk_that_fits(head, words=8, frames=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert chunk == chunk_that_fits(head, words=8, frames=4)
    assert chunk > chunk_that_fits(head, words=32, frames=12) > 128
    assert chunk_that_fits(new_head("mean_pool"), words=8, frames=4) > 100 * chunk
    text = TextFeatures(torch.zeros(1, D), torch.zeros(1, 8, D), torch.ones(1, 8, dtype=torch.bool))
    with _Kept() as keeping:
        head.encode_text(text)
    assert keeping.bytes > (4 << 30) / chunk / 2 - sum(4 * p.numel() for p in head.parameters())


class LargestTensor(TorchDispatchMode):
    """Remembers the largest storage that any operation gave, in the backward pass too."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("tile_bytes", [None, 1 << 18])
@pytest.mark.parametrize("name", ["glscl", "query_scoring"])
def test_the_loss_of_a_large_batch_makes_no_vector_for_any_pair_forward_or_backward(name, tile_bytes):
    torch.manual_seed(0)
    pairs, dim, frames = 128, 64, 5
    head = build_head(name, embed_dim=dim).eval()
    head.tile_bytes = tile_bytes
    real = torch.ones(pairs, frames, dtype=torch.bool)
    entries = torch.randn(pairs, frames, dim)
    with torch.no_grad():
        sides = (
            head.encode_text(TextFeatures(entries[:, 0], entries, real)),
            head.encode_video(VideoFeatures(entries, real)),
        )
    sides = [type(s)(*(f.requires_grad_() if f.is_floating_point() else f for f in s)) for s in sides]
    with LargestTensor() as largest:
        contrastive_loss(head.score(*sides) * 100).backward()
    assert all(field.grad is not None for side in sides for field in side if field.is_floating_point())
    a_pair = 4 * (frames if tile_bytes is None else 1)
    inputs = max(field.untyped_storage().nbytes() for side in sides for field in side)
    assert largest.bytes <= max(a_pair * pairs**2, tile_bytes or 0, inputs) < 4 * pairs**2 * dim
