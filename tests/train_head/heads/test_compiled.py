"""Every head computes the same when compiled, on a GPU, and with its pairs recomputed: scores, losses and gradients.

T texts, V videos, L tokens, F frames, D embed_dim.
"""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads import HEADS, build_head, head_options
from glscl.train_head.losses import contrastive_loss

D = 32
NAMES = list(HEADS)
TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])
SMALL = {"aggregator_layers": 1, "aggregator_heads": 2, "decoder_layers": 1, "layers": 1, "heads": 2, "dropout": 0.0}


def make_head(name, **options):
    """A shallow head without dropout, off its start, in training mode."""
    torch.manual_seed(0)
    small = {key: value for key, value in SMALL.items() if key in head_options(name)}
    head = build_head(name, embed_dim=D, **{**small, **options})
    with torch.no_grad():
        for key, parameter in head.named_parameters():
            if key != "logit_scale":
                parameter.add_(0.05 * torch.randn_like(parameter))
    return head.train()


def make_batch(pairs=4, tokens=5, frames=3, device="cpu"):
    """Random features with ragged lengths."""
    draw = torch.Generator().manual_seed(1)
    token_mask = torch.arange(tokens) < torch.randint(1, tokens + 1, (pairs, 1), generator=draw)
    frame_mask = torch.arange(frames) < torch.randint(1, frames + 1, (pairs, 1), generator=draw)
    pooled = torch.randn(pairs, D, generator=draw)
    words = torch.randn(pairs, tokens, D, generator=draw)
    images = torch.randn(pairs, frames, D, generator=draw)
    text = TextFeatures(pooled.to(device), words.to(device), token_mask.to(device))
    return text, VideoFeatures(images.to(device), frame_mask.to(device))


def learn(head, forward, batch):
    """Similarity, auxiliary losses and gradients of one training step, on the CPU."""
    head.zero_grad()
    output = forward(*batch)
    scale = head.logit_scale.exp().clamp(max=20)  # at 100 a softmax over a few cosines is nearly a maximum
    loss = contrastive_loss(output.similarity * scale) + sum(output.auxiliary.values())
    loss.backward()
    gradients = {key: p.grad.cpu() for key, p in head.named_parameters() if p.grad is not None}
    return output.similarity.detach().cpu(), {k: v.item() for k, v in output.auxiliary.items()}, gradients


@pytest.fixture
def same_noise(monkeypatch):
    """Noise that is no chance, so that it is the same on every device and in compiled code."""
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.linspace(-1, 1, x.numel(), device=x.device).view_as(x))


def assert_alike(found, expected, *, tolerance):
    (similarity, losses, gradients), (wanted, wanted_losses, wanted_gradients) = found, expected
    assert torch.allclose(similarity, wanted, atol=tolerance, rtol=0)
    assert losses == pytest.approx(wanted_losses, rel=10 * tolerance, abs=tolerance)
    assert gradients.keys() == wanted_gradients.keys()
    for key, gradient in gradients.items():
        largest = max(1.0, wanted_gradients[key].abs().max().item())
        assert torch.allclose(gradient, wanted_gradients[key], atol=10 * tolerance * largest, rtol=0), key


TRACED = ("glscl",)  # in `make test`; each of the others takes two to four seconds more


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in TRACED else pytest.mark.exhaustive) for n in NAMES])
def test_a_compiled_head_learns_what_it_learns_uncompiled(name, fresh_compiler, same_noise):
    head, batch = make_head(name), make_batch()
    expected = learn(head, head, batch)
    compiled = torch.compile(head, backend="aot_eager", fullgraph=name != "seq_lstm")  # torch traces around an LSTM
    assert_alike(learn(head, compiled, batch), expected, tolerance=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.exhaustive  # the first of them takes a C++ compiler half a minute
@pytest.mark.parametrize("name", NAMES)
def test_a_head_compiled_to_machine_code_scores_alike(name, fresh_compiler):
    """The default backend, which on a CPU writes C++."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        pytest.skip(f"no C++ compiler: {error}")
    head, batch = make_head(name).eval(), make_batch()
    with torch.no_grad():
        expected = head(*batch).similarity
        with torch._inductor.config.patch(compile_threads=1):
            found = torch.compile(head)(*batch).similarity
    assert torch.allclose(found, expected, atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_learns_what_the_cpu_learns(name, same_noise):
    head = make_head(name)
    there = copy.deepcopy(head).cuda()
    found = learn(there, there, make_batch(device="cuda"))
    assert_alike(found, learn(head, head, make_batch()), tolerance=1e-5)


class LiveBytes(TorchDispatchMode):
    """Bytes that tensors made while it is on held at the same time, at most; and the shapes of these tensors."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.shapes = []
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.shapes.append(tuple(tensor.shape))
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage):
        if storage not in self.seen:
            size = storage.nbytes()
            self.seen.add(storage)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, size)

    def forget(self, size):
        self.now -= size


@pytest.mark.parametrize("name", NAMES)
def test_memory_of_the_backward_pass_is_bounded_by_the_tile(name):
    """Beside the tile there is only what is one-sided, gradients, and a few numbers a pair."""
    head = make_head(name)
    head.tile_bytes = 1 << 17
    pairs = 16 if name == "tight_transf" else 40
    text, video = make_batch(pairs, tokens=8, frames=6)
    sides = [
        type(side)(*(field.detach().requires_grad_(field.is_floating_point()) for field in side))
        for side in (head.encode_text(text), head.encode_video(video))
    ]
    with LiveBytes() as live:
        contrastive_loss(head.score(*sides)).backward()
    one_sided = sum(field.numel() * field.element_size() for side in sides for field in side)
    learned = sum(4 * p.numel() for p in head.parameters() if p.grad is not None)
    assert all(field.grad is not None for side in sides for field in side if field.is_floating_point())
    assert live.peak <= 1.5 * head.tile_bytes + 3 * one_sided + 2 * learned + 20 * pairs**2


@pytest.mark.skipif(TORCH < (2, 10), reason="torch before 2.10 adds out of place")
@pytest.mark.parametrize("name", ["glscl", "wti", "mean_pool"])
def test_gradients_of_a_tile_are_of_its_own_size(name):
    """They are put together once, however many tiles there are."""
    head = make_head(name)
    text, video = make_batch(25, tokens=8, frames=6)
    head.tile_bytes = 1 << (9 if name == "mean_pool" else 14)
    sides = [
        type(side)(*(field.detach().requires_grad_(field.is_floating_point()) for field in side))
        for side in (head.encode_text(text), head.encode_video(video))
    ]
    with LiveBytes() as live:
        head.score(*sides).sum().backward()
    for field in (field for side in sides for field in side if field.is_floating_point()):
        alike = sum(tuple(field.shape) == tuple(other.shape) for side in sides for other in side)
        assert live.shapes.count(tuple(field.shape)) <= 2 * alike
