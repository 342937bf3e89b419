"""Answers to single queries: the right ones, the same as in an evaluation, and the same whatever the batches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.common.errors import InputError, NonFiniteError, UsageError
from glscl.evaluate.hubness import NORMALISATIONS, ONLINE
from glscl.evaluate.query_banks import Banks
from glscl.evaluate.search import search
from glscl.evaluate.similarity import similarity_matrix
from glscl.train_head.heads import build_head


@pytest.fixture
def table():
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(30, 5, 16, generator=generator)
    mask = torch.arange(5) < torch.randint(1, 6, (30, 1), generator=generator)
    return FeatureTable.from_features(
        TextFeatures(frames[:, 0].clone()), VideoFeatures(frames, mask), captions=[f"caption {i}" for i in range(30)]
    )


def test_a_sentence_finds_its_video(table):
    head = build_head("mean_pool", embed_dim=16)
    for row in (4, 17):
        sentence = F.normalize(table.frame_features[row][table.frame_mask[row]], dim=-1).mean(0)
        ranked = search.Search(head, table).videos(TextFeatures(sentence[None]), top=3)
        assert ranked.rows[0] == row and ranked.normalised == [None] * 3
        assert ranked.scores[0] > ranked.scores[1] >= ranked.scores[2]


def test_batches_do_not_change_the_answer(table, monkeypatch):
    head = build_head("mean_pool", embed_dim=16)
    query = table.texts(slice(7, 8))
    whole = search.Search(head, table).videos(query)
    captions = search.Search(head, table).captions(table.videos(slice(7, 8)))
    monkeypatch.setattr(search, "BATCH", 7)
    assert search.Search(head, table).videos(query).rows == whole.rows
    assert [c.caption for c in search.Search(head, table).captions(table.videos(slice(7, 8)))] == [
        c.caption for c in captions
    ]


def test_a_video_finds_the_caption_written_for_it(table):
    head = build_head("mean_pool", embed_dim=16)
    single = table.videos(slice(3, 4))
    single = single._replace(frame_mask=torch.tensor([[True] + [False] * 4]))
    assert search.Search(head, table).captions(single, top=1)[0].caption == "caption 3"


def test_nothing_to_search_and_broken_scores_are_said(table):
    head = build_head("mean_pool", embed_dim=16)
    with pytest.raises(NonFiniteError):
        search.Search(head, table).videos(TextFeatures(torch.full((1, 16), torch.nan)))
    none = table.subset(torch.zeros(0, dtype=torch.int64))
    with pytest.raises(InputError, match="no videos"):
        search.Search(head, none).videos(TextFeatures(torch.ones(1, 16)))
    with pytest.raises(InputError, match="no captions"):
        search.Search(head, none).captions(table.videos(slice(0, 1)))


@pytest.fixture
def train():
    """Training captions that lie near the first gallery videos, two a video."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randn(40, 5, 16, generator=generator)
    texts = frames[:, :2].flatten(0, 1)
    videos = VideoFeatures(frames, torch.ones(40, 5, dtype=torch.bool))
    return FeatureTable.from_features(TextFeatures(texts), videos, torch.arange(40).repeat_interleave(2))


@pytest.mark.parametrize("name", ONLINE)
@pytest.mark.parametrize("head", ["mean_pool", "query_scoring"])
def test_one_query_at_a_time_is_normalised_as_in_an_evaluation(table, train, name, head):
    head = build_head(head, embed_dim=16).eval()
    similarity = similarity_matrix(head, table)
    banks = Banks(head, table, train)
    searched = search.Search(head, table, normalise=name, train=lambda: train)
    moved = 0
    for direction, scores in (("text_to_video", similarity), ("video_to_text", similarity.T)):
        expected = NORMALISATIONS[name].apply(scores, direction=direction, banks=banks.scores(direction, ["bank"]))
        for row in range(30):
            query = slice(row, row + 1)
            if direction == "text_to_video":
                found, *numbers = searched.videos(table.texts(query), top=30)
            else:
                hits = searched.captions(table.videos(query), top=30)
                found = [int(hit.caption.split()[1]) for hit in hits]
                numbers = [hit.score for hit in hits], [hit.normalised for hit in hits]
            assert numbers[1] == pytest.approx(expected[row][found].tolist(), abs=2e-4)
            assert numbers[0] == pytest.approx(scores[row][found].tolist(), abs=1e-6)
            assert found == expected[row].argsort(descending=True, stable=True).tolist()
            moved += found != scores[row].argsort(descending=True, stable=True).tolist()
    assert moved  # the normalisation did something
    assert searched.bank == "first caption of 40 training videos; those videos for video to text"


def test_the_gallery_is_encoded_and_the_bank_read_once(table, train, monkeypatch):
    head = build_head("mean_pool", embed_dim=16)
    encoded, read = [], []
    original = head.encode_video
    monkeypatch.setattr(head, "encode_video", lambda video: encoded.append(len(video.frame_mask)) or original(video))
    searched = search.Search(head, table, normalise="nnn", train=lambda: read.append(1) or train)
    assert searched.bank == "none"
    first = searched.videos(table.texts(slice(0, 1)))
    once = list(encoded)
    assert searched.videos(table.texts(slice(0, 1))) == first
    assert encoded == once and read == [1]


def test_what_cannot_be_normalised_alone_is_refused(table, train):
    head = build_head("mean_pool", embed_dim=16)
    with pytest.raises(UsageError, match="nnn, qb-norm"):
        search.Search(head, table, normalise="dsl", train=lambda: train)
    with pytest.raises(UsageError, match="bank"):
        search.Search(head, table, normalise="nnn")
