"""Every stored frame is searched, exactly: the index against a loop over all frames, whatever is rounded on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.cache.schema import Status
from glscl.cache.store import open_store
from glscl.common.errors import InputError, NonFiniteError
from glscl.evaluate.search import frame_index
from glscl.evaluate.search.frame_index import FrameIndex, HeldRows, Scan, best_frames


def index_of(counts: list[int], dim: int, seed: int, dtype: torch.dtype = torch.float16) -> FrameIndex:
    offsets = np.concatenate([[0], np.cumsum(counts)])
    features = torch.randn(int(offsets[-1]), dim, generator=torch.Generator().manual_seed(seed)).to(dtype)
    nothing = np.zeros(len(features), np.float32)
    rows = HeldRows(features, offsets)
    return FrameIndex(np.arange(len(counts)), offsets, nothing, np.zeros(len(counts), np.float32), rows, Scan(rows))


def slowly(index: FrameIndex, query: torch.Tensor, best: int) -> list[tuple[float, int]]:
    """(score, video), best first, frame by frame."""
    found = []
    for video in range(index.num_videos):
        rows = [F.normalize(row.double(), dim=0) for row in index.features_of(video)]
        cosines = sorted((float(row @ F.normalize(query.double(), dim=0)) for row in rows), reverse=True)[:best]
        found.append((-sum(cosines) / len(cosines), video))
    return [(-score, video) for score, video in sorted(found)]


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    best=st.integers(1, 4),
    top=st.integers(1, 12),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
)
def test_the_answer_is_that_of_a_loop_over_all_frames(counts, best, top, seed, dtype):
    index, query = index_of(counts, 16, seed, dtype), torch.randn(16, generator=torch.Generator().manual_seed(seed + 1))
    expected = slowly(index, query, best)[:top]
    found = index.search(query, top=top, best=best)
    np.testing.assert_allclose([each.score for each in found], [score for score, _ in expected], atol=1e-6)
    assert len({each.video for each in found}) == len(found) == min(top, len(counts))
    middle = expected[len(expected) // 2][0]
    assert all(each.score >= middle for each in index.search(query, top=top, best=best, minimum=middle))


def test_few_videos_are_scored_exactly_and_none_is_lost_by_it(monkeypatch):
    monkeypatch.setattr(frame_index, "CHUNK", 8)
    index, query = index_of([3] * 2000, 64, 0), torch.randn(64, generator=torch.Generator().manual_seed(9))
    asked, cosines = [], FrameIndex.cosines
    monkeypatch.setattr(FrameIndex, "cosines", lambda self, q, v: asked.extend(v) or cosines(self, q, v))
    found = index.search(query, top=5)
    assert [each.video for each in found] == [video for _, video in slowly(index, query, 1)[:5]]
    assert len(asked) < 400


def test_the_scan_is_within_its_bound_of_the_exact_cosine():
    index, query = index_of([50] * 40, 512, 3), torch.randn(512, generator=torch.Generator().manual_seed(4))
    exact = F.normalize(index.rows.features.double(), dim=1) @ F.normalize(query.double(), dim=0)
    assert np.abs(index.finder.cosines(query) - exact.numpy()).max() < frame_index.ROUNDING


def test_best_frames_of_fewer_frames_is_their_mean():
    assert best_frames(np.array([0.1, 0.5, 0.3], np.float32), 2) == pytest.approx(0.4)
    assert best_frames(np.array([0.1, 0.5], np.float32), 3) == pytest.approx(0.3)
    expected = [best_frames(np.array(c, np.float32), 3) for c in ([0.5, 0.5, 0.1, 0.0], [0.2], [0.9, 0.9])]
    nearly = frame_index._best_of_each(
        np.array([0.5, 0.5, 0.1, 0.0, 0.2, 0.9, 0.9], np.float32), np.array([0, 4, 5, 7]), 3
    )
    np.testing.assert_allclose(nearly, expected, atol=1e-6)


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_all_frames_of_a_cache_are_read_once_and_for_each_entry(small_cache, format, dtype):
    store = small_cache(format, dtype=dtype).fill()
    rows = np.arange(store.num_items["video"])[1::2]
    index, found = FrameIndex.load(store, rows), store.arrays("video")
    usable = [row for row in rows.tolist() if Status(int(found["status"][row])).usable]
    assert index.entries.tolist() == usable
    for video, row in enumerate(usable):
        stored = slice(int(found["offsets"][row]), int(found["offsets"][row + 1]))
        np.testing.assert_array_equal(index.features_of(video).float(), found["values"][stored])
        np.testing.assert_array_equal(index.times_of(video), found["times"][stored])
    assert index.durations.tolist() == found["duration"][usable].tolist()


def test_nothing_to_search_and_broken_queries_are_said(small_cache):
    store = small_cache("hdf5").fill()
    with pytest.raises(InputError, match="no videos"):
        FrameIndex.load(store, np.array([2]))  # it gave no frames
    with pytest.raises(NonFiniteError):
        FrameIndex.load(open_store(store.path)).search(torch.full((store.embed_dim,), torch.nan), top=3)


def test_few_frames_are_looked_at_by_one_thread_and_many_by_all(monkeypatch):
    index, query, seen = index_of([5] * 8, 16, 0), torch.ones(16), []
    isfinite = torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda found: seen.append(torch.get_num_threads()) or isfinite(found))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        index.search(query, top=3)
        monkeypatch.setattr(frame_index, "WORTH_THREADS", 1)
        index.search(query, top=3)
        assert seen == [1, 2] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
