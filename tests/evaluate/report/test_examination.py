"""Neighbours, frame weights and examples agree with the head that made them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.evaluate.evaluated_run import open_cache_of, read_evaluated
from glscl.evaluate.neighbours import nearest_neighbours, occurrences, skewness
from glscl.evaluate.report.attention import ATTENTION, COSINE, FIXED, frame_weights
from glscl.evaluate.report.examination import examine
from glscl.evaluate.similarity import similarity_matrix
from glscl.train_head.heads import HEAD_NAMES, build_head

D = 16


def features(seed=0, V=5, F_=4, L=3):
    torch.manual_seed(seed)
    mask = torch.ones(V, F_, dtype=torch.bool)
    mask[1, 2:] = mask[3, 1:] = False
    text = TextFeatures(torch.randn(1, D), torch.randn(1, L, D), torch.ones(1, L, dtype=torch.bool))
    return text, VideoFeatures(torch.randn(V, F_, D) * mask[..., None], mask)


def head_of(name):
    torch.manual_seed(1)
    return build_head(name, embed_dim=D).eval()


# ---- neighbours ------------------------------------------------------------------------------------------------------


def table_of(seed=0, T=37, V=23):
    torch.manual_seed(seed)
    texts, videos = (
        TextFeatures(torch.randn(T, D)),
        VideoFeatures(torch.randn(V, 3, D), torch.ones(V, 3, dtype=torch.bool)),
    )
    return FeatureTable.from_features(texts, videos, torch.randint(0, V, (T,)))


@pytest.mark.parametrize("max_bytes", [None, 2000])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_neighbours_are_those_of_the_whole_matrix_whatever_the_tiles(k, max_bytes):
    table, head = table_of(), head_of("mean_pool")
    found = nearest_neighbours(head, table, k, max_bytes=max_bytes)
    matrix = similarity_matrix(head, table).numpy()
    for scores, names, values in (
        (matrix, found.videos, found.video_scores),
        (matrix.T, found.texts, found.text_scores),
    ):
        kept = min(k, scores.shape[1])
        assert names.shape == (len(scores), kept)
        np.testing.assert_array_equal(names, np.argsort(-scores, 1, kind="stable")[:, :kept])
        np.testing.assert_allclose(values, np.take_along_axis(scores, names, 1), atol=1e-6)


def test_occurrences_count_every_neighbour():
    counts = occurrences(np.array([[0, 2], [0, 1], [0, 2]]), 5)
    assert counts.tolist() == [3, 1, 2, 0, 0]


def test_skewness_is_zero_without_hubs_and_grows_with_them():
    assert skewness(np.full(9, 3)) == 0 and skewness(np.array([1, 2, 3])) == pytest.approx(0)
    assert skewness(np.array([0] * 99 + [100])) > 5
    assert skewness(np.array([0, 0, 3])) == pytest.approx(2**-0.5)


# ---- frame weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEAD_NAMES)
def test_every_head_gives_weights_that_ignore_padding(name):
    text, video = features()
    weights = frame_weights(head_of(name), text, video)
    assert weights.values.shape == video.frame_mask.shape and torch.isfinite(weights.values).all()
    assert (weights.values[~video.frame_mask] == 0).all()
    if weights.meaning != COSINE:
        torch.testing.assert_close(weights.values.sum(1), torch.ones(5))
    else:
        assert weights.values.abs().max() <= 1.0001
    louder = video._replace(frame_features=video.frame_features + 9 * ~video.frame_mask[..., None])
    torch.testing.assert_close(frame_weights(head_of(name), text, louder).values, weights.values)


def test_the_kinds_of_weights():
    text, video = features()
    kinds = {name: frame_weights(head_of(name), text, video).meaning for name in HEAD_NAMES}
    assert {name for name, kind in kinds.items() if kind == ATTENTION} == {"glscl", "dicosa", "query_scoring", "xpool"}
    assert {name for name, kind in kinds.items() if kind == FIXED} == {"wti", "attention_pool"}


def test_the_weights_of_glscl_pool_the_frames_it_scores():
    text, video = features()
    head = head_of("glscl")
    weights = frame_weights(head, text, video).values
    with torch.no_grad():
        encoded_text, encoded_video = head.encode_text(text), head.encode_video(video)
        pooled = torch.einsum("vf,vfd->vd", weights, encoded_video.frame_features)
        expected = head.global_scores(encoded_text, encoded_video)[0]
    torch.testing.assert_close(F.cosine_similarity(pooled, text.text_features), expected)


def test_the_weights_of_attention_pool_pool_the_frames_it_scores():
    text, video = features()
    head = head_of("attention_pool")
    weights = frame_weights(head, text, video).values
    pooled = torch.einsum("vf,vfd->vd", weights, F.normalize(video.frame_features, dim=-1))
    with torch.no_grad():
        expected = head(text, video).similarity[0]
    torch.testing.assert_close(F.cosine_similarity(pooled, text.text_features), expected)


def test_cosines_are_those_of_the_frames_with_the_caption():
    text, video = features()
    values = frame_weights(head_of("mean_pool"), text, video).values
    torch.testing.assert_close(
        values[0, 2], F.cosine_similarity(video.frame_features[0, 2], text.text_features[0], dim=0)
    )


# ---- examples --------------------------------------------------------------------------------------------------------


def look(judged, folder, **options):
    store, run = open_cache_of(read_evaluated(folder))
    assert store is not None
    return examine(run, store, **options)


@pytest.mark.parametrize("name", ["zero_shot", "run"])
def test_examples_are_the_clearest_hits_and_the_worst_misses(judged, name):
    run = look(judged, getattr(judged, name), examples=2)
    examination, ranks = run.examination, run.ranks["text_to_video"]
    assert run.notes == ()
    assert [example.rank for example in examination.best] == [1.0] * min(2, len(examination.best))
    assert examination.worst[0].rank == ranks.max()
    for example in (*examination.best, *examination.worst):
        row = list(run.text_ids).index(example.text_id)
        assert example.rank == ranks[row] and example.caption == run.captions[example.text_id]
        correct = [video for video in example.retrieved if video.correct]
        assert [video.id for video in correct] == [run.video_ids[run.video_of_text[row]]]
        assert correct[0].rank == example.rank
        first = [video for video in example.retrieved if video.rank <= 3]
        assert sorted((video.score for video in first), reverse=True) == [video.score for video in first]
        for video in example.retrieved:
            assert video.id in examination.sources and len(video.times) == len(video.weights) > 0
            if examination.weights_meaning == ATTENTION:
                assert sum(video.weights) == pytest.approx(1, abs=1e-5)
    videos = [example.retrieved[-1 if example.rank > 3 else int(example.rank) - 1].id for example in examination.worst]
    assert len(set(videos)) == len(videos)


def test_hub_counts_add_up(judged):
    examination = look(judged, judged.run).examination
    counts = judged.evaluations["run"].result["counts"]
    assert (
        len(examination.video_occurrences) == counts["videos"] and len(examination.text_occurrences) == counts["texts"]
    )
    assert examination.video_occurrences.sum() == counts["texts"] * min(10, counts["videos"])
    assert examination.text_occurrences.sum() == counts["videos"] * min(10, counts["texts"])


def test_other_weights_than_those_judged_are_noticed(judged, tmp_path):
    import shutil

    folder = shutil.copytree(judged.run, tmp_path / "run")
    shutil.copy(judged.other / "best.safetensors", folder / "best.safetensors")
    run = look(judged, folder)
    assert run.examination is None and "ranks otherwise than when it was judged" in run.notes[-1]


def test_a_run_without_weights_is_shown_without_examples(judged, tmp_path):
    import shutil

    folder = shutil.copytree(judged.run, tmp_path / "run")
    (folder / "best.safetensors").unlink()
    run = look(judged, folder)
    assert run.examination is None and "cannot be had again" in run.notes[-1] and "best.safetensors" in run.notes[-1]


def test_without_ranks_there_are_hubs_but_no_examples(judged):
    store, run = open_cache_of(read_evaluated(judged.run))
    run = examine(replace(run, ranks=None), store)
    assert run.examination.best == run.examination.worst == () and run.examination.video_occurrences.sum() > 0
