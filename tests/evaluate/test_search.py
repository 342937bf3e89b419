from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glscl.cache.feature_table import FeatureTable
from glscl.cache.schema import TextFeatures
from glscl.errors import InputError, NonFiniteError
from glscl.evaluate import search
from glscl.train_head.heads import build_head


@pytest.fixture
def table():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(30, 5, 16, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (30, 1), generator=generator)
    return FeatureTable.from_arrays(
        frames[:, 0].clone(), frames, frame_mask=mask, captions=[f"caption {i}" for i in range(30)]
    )


def test_a_sentence_finds_its_video_at_the_frame_it_equals(table):
    head = build_head("mean_pool", embed_dim=16)
    for row in (4, 17):
        frame = int(table.frame_mask[row].sum()) - 1
        sentence = F.normalize(F.normalize(table.frame_features[row][table.frame_mask[row]], dim=-1).mean(0), dim=0)
        sentence = sentence + F.normalize(table.frame_features[row, frame], dim=0)
        hits = search.search_videos(head, table, TextFeatures(sentence[None]), top=3)
        assert hits[0].video == table.video_ids[row] and hits[0].time == frame
        assert [h.rank for h in hits] == [1, 2, 3]
        assert hits[0].score > hits[1].score >= hits[2].score


def test_batches_do_not_change_the_answer(table, monkeypatch):
    head = build_head("mean_pool", embed_dim=16)
    query = table.texts(slice(7, 8))
    whole = search.search_videos(head, table, query)
    captions = search.search_captions(head, table, table.videos(slice(7, 8)))
    monkeypatch.setattr(search, "BATCH", 7)
    assert [h.video for h in search.search_videos(head, table, query)] == [h.video for h in whole]
    assert [c.caption for c in search.search_captions(head, table, table.videos(slice(7, 8)))] == [
        c.caption for c in captions
    ]


def test_a_video_finds_the_caption_written_for_it(table):
    head = build_head("mean_pool", embed_dim=16)
    single = table.videos(slice(3, 4))
    single = single._replace(frame_mask=torch.tensor([[True] + [False] * 4]))
    assert search.search_captions(head, table, single, top=1)[0].caption == "caption 3"


def test_nothing_to_search_and_broken_scores_are_said(table):
    head = build_head("mean_pool", embed_dim=16)
    with pytest.raises(NonFiniteError):
        search.search_videos(head, table, TextFeatures(torch.full((1, 16), torch.nan)))
    none = table.subset(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="no videos"):
        search.search_videos(head, none, TextFeatures(torch.ones(1, 16)))
    with pytest.raises(InputError, match="no captions"):
        search.search_captions(head, none, table.videos(slice(0, 1)))
