"""A split as tensors: views, padding, gathers and losses of videos."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from glscl import cache
from glscl.cache.frames import StoredFrames
from glscl.cache.known_files import KnownFiles
from glscl.cache.library import open_library
from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.store import open_store
from glscl.cache.table import FeatureTable, frame_positions
from glscl.common.errors import CacheIncompleteError, InputError, UsageError


@pytest.mark.parametrize("format", ["zarr", "hdf5"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_table_holds_the_usable_videos_and_their_captions(small_cache, format, dtype):
    made = small_cache(format, dtype)
    made.fill()
    table = FeatureTable.load(open_store(made.path), "train")
    kept = [i for i in range(7) if i != 2]
    assert table.video_ids == [made.annotations.videos[i].id for i in kept]
    assert table.counts.videos_failed == 1 and table.counts.texts_without_video == 3
    assert table.captions[6].startswith("caption 0 of vidéo3")
    assert table.video_of_text.tolist() == [row for row in range(6) for _ in range(3)]
    tolerance = {"float16": 1e-3, "bfloat16": 8e-3, "float32": 0}[dtype]
    batch = table.videos(torch.tensor([3, 0]))
    for row, video in zip((0, 1), (kept[3], kept[0])):
        frames = made.videos[video].frame_features
        assert batch.frame_mask[row].sum() == len(frames)
        np.testing.assert_allclose(batch.frame_features[row][: len(frames)], frames, rtol=tolerance)
        assert not batch.frame_features[row][len(frames) :].any()
    texts = table.texts(torch.tensor([7, 2]))
    for row, text in zip((0, 1), (10, 2)):
        tokens = made.texts[text].token_features
        np.testing.assert_allclose(texts.token_features[row][: len(tokens)], tokens, rtol=tolerance)
        assert not texts.token_features[row][len(tokens) :].any()
        assert texts.token_mask[row].sum() == len(tokens)
        np.testing.assert_allclose(texts.text_features[row], made.texts[text].text_features, rtol=tolerance)
    assert texts.text_features.dtype == texts.token_features.dtype == batch.frame_features.dtype == torch.float32


def test_published_sizes_travel_with_the_table(small_cache):
    counts = FeatureTable.load(small_cache().fill(), "test").counts
    assert (counts.videos, counts.expected_videos, counts.expected_texts) == (4, 50, 100)


@given(st.integers(1, 300), st.integers(1, 40))
def test_uniform_positions_follow_the_public_rule(count, width):
    chosen = frame_positions(count, width, "uniform")
    expected = np.arange(count) if count <= width else np.linspace(0, count - 1, width, dtype=int)
    np.testing.assert_array_equal(chosen, expected)
    assert ((np.diff(chosen) > 0).all() and chosen[0] == 0 and chosen[-1] == count - 1) or width == 1


def test_first_last_and_uniform_views_pick_their_frames(small_cache):
    store = small_cache().fill()
    whole = FeatureTable.load(store, "train", max_frames=None)
    for position, pick in (("first", lambda n: range(3)), ("last", lambda n: range(n - 3, n))):
        view = FeatureTable.load(store, "train", max_frames=3, frame_position=position)
        for row in range(view.num_videos):
            n = int(whole.frame_mask[row].sum())
            rows = list(pick(n)) if n > 3 else list(range(n))
            assert torch.equal(view.frame_features[row][: len(rows)], whole.frame_features[row][rows])
            assert view.frame_times[row][: len(rows)].tolist() == [float(r) for r in rows]
    with pytest.raises(UsageError, match="uniform, first, last"):
        FeatureTable.load(store, "train", max_frames=3, frame_position="middle")


def test_a_subset_keeps_its_videos_and_renumbers_their_captions(small_cache):
    table = FeatureTable.load(small_cache().fill(), "train")
    part = table.subset(torch.tensor([4, 1]))
    assert part.video_ids == [table.video_ids[4], table.video_ids[1]]
    assert part.video_of_text.tolist() == [1, 1, 1, 0, 0, 0]
    assert part.captions == table.captions[3:6] + table.captions[12:15]
    a, b = part.texts(slice(0, 6)), table.texts(torch.tensor([3, 4, 5, 12, 13, 14]))
    assert torch.equal(a.token_features, b.token_features) and torch.equal(a.token_mask, b.token_mask)
    assert torch.equal(part.videos(slice(None)).frame_features, table.videos(torch.tensor([4, 1])).frame_features)


def test_a_table_without_a_cache_gives_the_same_batches():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(5, 4, 6, generator=generator)
    mask = torch.arange(4) < torch.tensor([[4], [1], [2], [3], [4]])
    frames = torch.randn(2, 3, 6, generator=generator)
    table = FeatureTable.from_features(
        text := TextFeatures(torch.randn(5, 6, generator=generator), tokens, mask),
        video := VideoFeatures(frames, torch.tensor([[True, True, False], [True, True, True]])),
        torch.tensor([0, 0, 1, 1, 1]),
    )
    batch = table.texts(torch.tensor([2, 1]))
    assert torch.equal(batch.token_features, (tokens * mask[..., None])[[2, 1], :2])
    assert not table.videos(slice(0, 1)).frame_features[0, 2].any()
    with pytest.raises(ValueError, match="5 texts and 2 videos"):
        FeatureTable.from_features(text, video)


def test_no_captions_and_captions_without_tokens_are_batches_too():
    D, mask = 3, torch.zeros(2, 4, dtype=torch.bool)
    table = FeatureTable.from_features(
        TextFeatures(torch.ones(2, D), torch.ones(2, 4, D), mask),
        VideoFeatures(torch.ones(2, 1, D), torch.ones(2, 1, dtype=torch.bool)),
    )
    assert table.texts(slice(None)).token_features.tolist() == torch.zeros(2, 1, D).tolist()
    none = table.subset(torch.zeros(0, dtype=torch.int64))
    assert none.texts(slice(None)).token_features.shape == (0, 1, D)
    assert none.videos(slice(None)).frame_features.shape == (0, 1, D)


def test_an_unknown_split_and_missing_tokens_are_named(small_cache):
    store = small_cache().fill()
    with pytest.raises(InputError, match="no split 'dev'; it has train, test"):
        FeatureTable.load(store, "dev")
    store.library.has_tokens = False
    with pytest.raises(UsageError, match="without token features"):
        FeatureTable.load(store, "test")
    assert FeatureTable.load(store, "test", tokens=False).texts(slice(0, 2)).token_features is None


def test_the_whole_cache_is_the_splits_one_after_another(small_cache):
    store = small_cache().fill()
    whole = FeatureTable.load(store, None)
    parts = [FeatureTable.load(store, split) for split in store.splits]
    assert whole.video_ids == [v for part in parts for v in part.video_ids]
    assert whole.captions == [c for part in parts for c in part.captions]
    assert whole.video_of_text.tolist() == parts[0].video_of_text.tolist() + [
        6 + i for i in parts[1].video_of_text.tolist()
    ]


# --- batches, and a dataset for a loader of one's own ------------------------------------------------------------------


def test_a_store_gives_a_split_as_a_table(small_cache):
    store = small_cache().fill()
    table, loaded = store.table("train", frames=3), FeatureTable.load(store, "train", max_frames=3)
    assert torch.equal(table.frame_features, loaded.frame_features) and torch.equal(
        table.token_values, loaded.token_values
    )
    assert (
        store.table("test").frame_features.shape[1]
        == FeatureTable.load(store, "test", max_frames=None).frame_mask.shape[1]
    )
    assert store.table(None, tokens=False).token_values is None
    without = small_cache(name="without")
    without.spec = dataclasses.replace(without.spec, tokens=False)
    without.create()
    store = open_store(without.path, without.list.hash)
    assert FeatureTable.load.__kwdefaults__["tokens"] and not store.has_tokens
    with pytest.raises(CacheIncompleteError):  # not that the cache holds no tokens
        store.table("train")
    with pytest.raises(UsageError, match="without token features"):
        store.table("train", tokens=True)


@pytest.mark.parametrize("same_video", ["separate", "mask"])
def test_batches_of_an_epoch_show_every_caption_with_its_own_video(small_cache, same_video):
    table = small_cache().fill().table("train", frames=4)
    seen = []
    for texts, videos in table.batches(6, seed=3, same_video=same_video):
        rows = [int((table.text_features.float() == text).all(1).nonzero()) for text in texts.text_features]
        owners = table.video_of_text[rows]
        assert torch.equal(videos.frame_features, table.videos(owners).frame_features)
        assert torch.equal(videos.frame_mask, table.frame_mask[owners])
        assert len(set(owners.tolist())) == len(rows) or same_video == "mask"
        seen += rows
    assert sorted(seen) == list(range(table.num_texts))


def test_an_epoch_of_batches_follows_from_seed_and_number(small_cache):
    table = small_cache().fill().table("train")

    def epoch(**choice):
        return [texts.text_features for texts, _ in table.batches(3, **choice)]

    assert all(map(torch.equal, epoch(), epoch(seed=0, epoch=0)))
    assert not all(map(torch.equal, epoch(), epoch(epoch=1))) and not all(map(torch.equal, epoch(), epoch(seed=1)))


@pytest.mark.parametrize("tokens", [True, False])
def test_a_loader_over_the_dataset_gives_the_batches_of_the_table(small_cache, tokens):
    table = small_cache().fill().table("train", tokens=tokens)
    data = table.dataset()
    assert len(data) == table.num_texts
    text, video = data[-1]
    assert text.text_features.ndim == 1 and video.frame_features.ndim == 2 and video.frame_mask.ndim == 1
    with pytest.raises(IndexError):
        data[len(data)]
    start = 0
    for texts, videos in DataLoader(data, batch_size=4, collate_fn=data.collate):
        rows = slice(start, start + len(texts.text_features))
        for found, expected in zip((*texts, *videos), (*table.texts(rows), *table.videos(table.video_of_text[rows]))):
            assert found is expected is None or torch.equal(found, expected)
        start = rows.stop
    assert start == table.num_texts


def test_what_a_cache_gives_shows_itself_in_one_line(small_cache):
    made = small_cache()
    store = made.fill()
    table = store.table("test", frames=3)
    shown = [store, open_library(store.path), store.plan, store.splits["test"], made.spec, table, table.dataset()]
    shown += [StoredFrames(store), table.texts(slice(2)), table.videos(slice(2)), table.counts, store.list]
    about = store.library.stream("video")
    shown += [about, about.additions[0], store.library.shard("video", about.places[0]), KnownFiles.read(store.path)]
    for value in shown:
        assert "\n" not in repr(value) and len(repr(value)) < 200 and type(value).__name__ in repr(value)
    assert repr(table) == "FeatureTable(12 texts, 4 videos, 3 frames, 72 tokens, 8-d float16 on cpu)"
    assert repr(table.texts(slice(2))).startswith("TextFeatures(text_features=(2, 8), token_features=(2, ")


def test_every_name_of_the_room_is_there():
    assert all(getattr(cache, name) for name in cache.__all__)
