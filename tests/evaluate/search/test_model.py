"""Answers as users get them: every stored frame counts, heads re-order, filters filter, and files are found by content."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glscl.cache.keys import content_of
from glscl.cache.known_files import KnownFiles
from glscl.cache.schema import TextFeatures
from glscl.common.errors import InputError, NotFoundError, UsageError
from glscl.evaluate.search import model as models
from glscl.evaluate.search.answers import Where
from glscl.evaluate.search.frame_index import FrameIndex
from glscl.evaluate.search.model import Model, Query, zero_shot
from glscl.evaluate.search.settings import SearchSettings
from glscl.train_head.heads import build_head


class Words:
    """A backbone whose sentences are vectors: "3" is the third unit vector, "3 5" their sum."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def encode_texts(self, texts, padded=False):
        rows = [torch.eye(self.dim)[[int(word) for word in text.split()]].sum(0) for text in texts]
        return TextFeatures(torch.stack(rows))


@pytest.fixture
def store(small_cache):
    return small_cache("hdf5", videos=12, dim=16, dtype="float32").fill()


@pytest.fixture
def model(store, monkeypatch):
    made = zero_shot(store)
    made.__dict__["backbone"] = Words(16)
    return made


def cosines(store, vector) -> dict[str, np.ndarray]:
    """id → cosines of all stored frames with a vector."""
    found = store.arrays("video")
    each = np.split(found["values"], found["offsets"][1:-1])
    unit = vector / np.linalg.norm(vector)
    rows = {
        id: (f / np.linalg.norm(f, axis=1, keepdims=True)) @ unit for id, f in zip(store.ids("video"), each) if len(f)
    }
    return rows


def test_a_sentence_is_answered_by_the_best_of_all_stored_frames(model, store):
    expected = cosines(store, np.eye(16, dtype=np.float32)[3])
    hits = model.search("3", top=4)
    score = {id: c.max() for id, c in expected.items()}
    assert [hit.video for hit in hits] == sorted(score, key=lambda id: -score[id])[:4]
    for hit in hits:
        assert hit.score == pytest.approx(score[hit.video], abs=1e-6)
        assert hit.time == expected[hit.video].argmax() and hit.moments[0].score == pytest.approx(
            expected[hit.video].max()
        )
        assert hit.moments[0].start <= hit.time < hit.moments[0].end


def test_moments_of_all_videos_come_best_first(model, store):
    expected = sorted((-c.max(), id) for id, c in cosines(store, np.eye(16, dtype=np.float32)[3]).items())
    hits = model.find_moments(model.sentence("3"), top=30)
    best = {}
    for hit in hits:
        best.setdefault(hit.video, hit.score)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert hits[0].video == expected[0][1] and best[expected[1][1]] == pytest.approx(-expected[1][0], abs=1e-6)
    assert all(hit.score >= 0.2 for hit in model.find_moments(model.sentence("3"), minimum=0.2))


def test_sentences_add_up_and_take_away(model, store):
    query = model.sentence("1", also=["2"], without=["3"])
    expected = np.eye(16, dtype=np.float32)[1] + np.eye(16, dtype=np.float32)[2] - 0.5 * np.eye(16, dtype=np.float32)[3]
    np.testing.assert_allclose(query.vector, expected)
    with pytest.raises(UsageError, match="empty"):
        model.sentence("1", also=[" "])


def test_a_head_orders_the_videos_that_frames_find_each_on_the_frames_around_its_moment(store, monkeypatch):
    monkeypatch.setattr(models, "REORDERED", 6)
    head = build_head("query_scoring", embed_dim=16, temperature=0.5)
    model = Model(head, store, record={"head": "query_scoring"}, frames=2)
    model.__dict__["backbone"] = Words(16)
    found = model.index().search(torch.eye(16)[3], top=6)
    scores = {}
    for each in found:
        at = int(np.clip(each.cosines.argmax() - 1, 0, max(0, len(each.cosines) - 2)))
        frames = F.normalize(model.index().features_of(each.video)[at : at + 2], dim=-1)
        weights = (frames @ torch.eye(16)[3] / 0.5).softmax(0)
        scores[each.video] = float(F.normalize(weights @ frames, dim=0) @ torch.eye(16)[3])
    hits = model.search("3", top=5)
    expected = sorted(scores, key=lambda video: -scores[video])[:5]
    assert [hit.video for hit in hits] == [store.ids("video")[model.index().entries[video]] for video in expected]
    assert [hit.score for hit in hits] == pytest.approx([scores[video] for video in expected], abs=1e-6)


def test_a_video_of_the_list_finds_others_that_look_like_it_and_not_itself(model, store):
    video = store.ids("video")[4]
    frames = FrameIndex.load(store, np.array([4])).features_of(0)
    hits = model.find(model.listed(video), top=20)
    assert video not in [hit.video for hit in hits] and len(hits) == 10  # of 12 one gave no frames
    other = FrameIndex.load(store, np.array([store.ids("video").index(hits[0].video)])).features_of(0)
    expected = (F.normalize(frames, dim=-1) @ F.normalize(other, dim=-1).T).amax(1).mean()
    assert hits[0].score == pytest.approx(float(expected), abs=1e-6) and hits[0].score == max(hit.score for hit in hits)
    with pytest.raises(NotFoundError, match="nobody"):
        model.listed("nobody")


def test_one_frame_of_a_listed_video_finds_the_moment_it_comes_from(model, store):
    index = FrameIndex.load(store, np.array([4]))
    hit = model.find_moments(model.listed(store.ids("video")[4], time=float(index.times[-1])), top=1)[0]
    assert (
        hit.video == store.ids("video")[4] and hit.time == index.times[-1] and hit.score == pytest.approx(1, abs=1e-5)
    )


def test_what_is_searched_can_be_narrowed(model, store):
    in_split = {store.ids("video")[row] for row in store.splits["test"].videos}
    assert {hit.video for hit in model.find(model.sentence("1"), top=99, where=Where("test"))} <= in_split
    durations = dict(zip(store.ids("video"), store.arrays("video")["duration"].tolist()))
    hits = model.find(model.sentence("1"), top=99, where=Where(shortest=3, longest=6))
    assert {hit.video for hit in hits} == {id for id, seconds in durations.items() if 3 <= seconds <= 6}
    with pytest.raises(InputError, match="no split 'dev'"):
        model.find(model.sentence("1"), where=Where("dev"))
    with pytest.raises(UsageError, match="has no video"):
        model.find(model.sentence("1"), where=Where(folder="/nowhere"))


def test_answers_name_the_file_as_it_is_called_now(small_cache, tmp_path):
    made = small_cache("hdf5", videos=4, dim=16)
    store = made.fill()
    file = tmp_path / "renamed.mp4"
    file.write_text("content")
    known = KnownFiles()
    known._seen[str(file)] = content_of(file)[0], store.list.video_content[0].tobytes()
    known.save(store.path)
    model = zero_shot(store)
    model.__dict__["backbone"] = Words(16)
    paths = {hit.video: hit.path for hit in model.search("1", top=9)}
    assert paths.pop(store.ids("video")[0]) == str(file) and set(paths.values()) == {None}
    inside = model.find(model.sentence("1"), where=Where(folder=str(tmp_path)))
    assert [hit.video for hit in inside] == [store.ids("video")[0]]
    file.write_text("another content")
    model = zero_shot(store)
    assert model.files.path_of(0) is None


def test_as_judged_is_the_order_of_an_evaluation(store):
    model = zero_shot(store, "mean_pool")
    model.__dict__["backbone"] = Words(16)
    hits = model.answer(model.sentence("3"), SearchSettings(max_frames=4, top=20))
    scores = model.similarity(["3"])[0]
    table = model.table()
    order = scores.argsort(descending=True, stable=True).tolist()
    assert [hit.video for hit in hits] == [table.video_ids[row] for row in order]
    with pytest.raises(UsageError, match="one sentence"):
        model.answer(Query(torch.ones(16)), SearchSettings(max_frames=4))
