"""Parts of a batch are encoded on threads of their own: in order, in the same bits, with torch's settings left as they were."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from glscl.extract.backbone import encoder
from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.backbone.thread_map import thread_map


@pytest.fixture
def threads():
    """`threads(n)` sets torch's number of threads for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_every_batch_is_done_in_order_and_the_threads_share_what_torch_has(threads, count):
    threads(count)
    seen = {}

    def work(batch: int) -> int:
        seen.setdefault(threading.get_ident(), set()).add(torch.get_num_threads())
        return batch * batch

    assert thread_map(work, range(4)) == [0, 1, 4, 9] and thread_map(work, []) == []
    assert len(seen) <= min(count, 4) and set().union(*seen.values()) == {max(1, count // 4)}


def test_what_torch_uses_elsewhere_stays(threads):
    threads(3)

    def fail(batch: int) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        thread_map(fail, range(3))
    elsewhere = []
    other = threading.Thread(target=lambda: elsewhere.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert torch.get_num_threads() == 3 and elsewhere == [3]


def test_frames_have_the_same_features_for_any_number_of_threads(threads, monkeypatch):
    monkeypatch.setattr(encoder, "THREAD_FRAMES", 4)
    backbone = load_backbone("demo")
    frames = np.random.default_rng(0).integers(0, 256, (10, *backbone.transform.size, 3), dtype=np.uint8)
    found = []
    for count in (1, 2, 3):
        threads(count)
        found.append(backbone.encode_frames(frames))
        assert not torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    threads(1)
    one_by_one = np.concatenate([backbone.encode_frames(frame[None]) for frame in frames])
    np.testing.assert_allclose(found[0], one_by_one, atol=1e-5)
