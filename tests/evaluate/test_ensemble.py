"""Several runs judged as one: the average of what each gives alone, whatever the heads and the frames they look at."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.common.errors import FingerprintError, UsageError
from glscl.evaluate.ensemble import Ensemble, evaluate_ensemble
from glscl.evaluate.evaluation import evaluate_run
from glscl.evaluate.hubness import normalised_ranks
from glscl.evaluate.metrics import retrieval_metrics, summarise
from glscl.evaluate.settings import EvaluateSettings
from glscl.evaluate.similarity import ranks, similarity_matrix
from glscl.train_head.checkpoint import load_run, read_run, write_run
from glscl.train_head.heads import HEADS, build_head
from glscl.train_head.settings import resolve
from glscl.train_head.train import train

SMALL = {"queries": 2, "decoder_layers": 1, "aggregator_layers": 1, "layers": 1}


@pytest.fixture
def store(small_cache):
    return small_cache(videos=14).fill()


@pytest.fixture
def runs(store, tmp_path):
    """A glscl run that looks at every frame, and a projection run that looks at the last two."""

    def make(name, **config):
        settings = resolve(
            {"epochs": 1, "batch_size": 4, "select": "last", **config, "seed": len(name)}, dataset="made"
        )
        return train(store, tmp_path / name, settings).run

    options = {key: SMALL[key] for key in ("queries", "decoder_layers", "aggregator_layers")}
    one = make("one", head="glscl", options=options)
    return one, make("other", head="projection", max_frames=2, frame_position="last")


def alone(store, run):
    head, record = load_run(run)
    settings = record["settings"]
    view = {"max_frames": settings["max_frames"], "frame_position": settings["frame_position"]}
    table = FeatureTable.load(store, "test", tokens=head.needs_tokens, **view)
    return similarity_matrix(head, table), head.logit_scale.exp().item(), table


@pytest.mark.parametrize("combine", ["mean", "scaled"])
def test_the_similarity_is_the_average_of_the_runs_own(store, runs, tmp_path, combine):
    judged = evaluate_ensemble(store, runs, EvaluateSettings(combine=combine, save_similarity=tmp_path / "s.npy"))
    (one, scale_one, table), (other, scale_other, _) = (alone(store, run) for run in runs)
    weight = scale_one / (scale_one + scale_other) if combine == "scaled" else 0.5
    expected = weight * one + (1 - weight) * other
    np.testing.assert_allclose(np.load(tmp_path / "s.npy"), expected.numpy(), atol=1e-6)
    metrics = retrieval_metrics(expected, table.video_of_text)
    for direction, values in metrics.items():
        assert judged.result[direction] == values


def test_the_result_says_which_runs_and_how(store, runs):
    result = evaluate_ensemble(store, runs, command="glscl eval").result
    assert result["runs"] == [str(run) for run in runs] and result["run"] is None
    assert result["combine"] == "mean" and result["head"] == "glscl + projection"
    assert result["cache_fingerprint"] == store.fingerprint and result["selection"] == "last"
    assert set(evaluate_run(store, runs[0]).result) == set(result) - {"runs", "combine"}
    json.dumps(result, allow_nan=False)


def test_the_loosest_selection_and_an_unfrozen_member_are_told(store, runs):
    record = read_run(runs[0])
    write_run(runs[0], {**record, "selection": "test", "frozen_backbone": False})
    notes = []
    result = evaluate_ensemble(store, runs, note=notes.append).result
    assert result["selection"] == "test" and result["frozen_backbone"] is False
    assert any("selected on the test split" in note for note in notes)


def test_ranks_without_the_matrix_equal_those_with_it(store, runs, tmp_path):
    without = evaluate_ensemble(store, runs, EvaluateSettings(confidence=False))
    matrix = evaluate_ensemble(store, runs, EvaluateSettings(confidence=False, save_similarity=tmp_path / "s.npy"))
    for direction, of in without.ranks.items():
        np.testing.assert_array_equal(of, matrix.ranks[direction])


def test_normalisation_takes_its_bank_through_all_heads(store, runs):
    found = evaluate_ensemble(store, runs, EvaluateSettings(normalise=("inverted-softmax",))).result["normalised"][
        "inverted-softmax"
    ]
    similarity, bank = 0.0, 0.0
    for run in runs:
        alone_similarity, _, table = alone(store, run)
        head, record = load_run(run)
        view = {"max_frames": record["settings"]["max_frames"], "frame_position": record["settings"]["frame_position"]}
        train_part = FeatureTable.load(store, "train", tokens=head.needs_tokens, **view)
        first = torch.from_numpy(np.unique(train_part.video_of_text.numpy(), return_index=True)[1])
        with torch.no_grad():
            texts, videos = head.encode_text(train_part.texts(first)), head.encode_video(table.videos(slice(None)))
            bank = bank + head.score(texts, videos) / len(runs)
        similarity = similarity + alone_similarity / len(runs)
    direction = "text_to_video"
    ranked = normalised_ranks(
        "inverted-softmax", similarity, table.video_of_text, text_to_video={"bank": bank}, conventions=()
    )
    assert found[direction] == summarise(ranked[direction])
    with pytest.raises(UsageError, match="one vector"):
        evaluate_ensemble(store, runs, EvaluateSettings(normalise=("dual-is",)))


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_joins_an_ensemble(planted_table, name):
    torch.manual_seed(0)
    options = {key: value for key, value in SMALL.items() if key in build_head(name, embed_dim=16).options}
    heads = [build_head(name, embed_dim=16, **options), build_head("query_scoring", embed_dim=16)]
    each = [similarity_matrix(head, planted_table) for head in heads]
    together = similarity_matrix(Ensemble(heads), planted_table, batches=(7, 5))
    torch.testing.assert_close(together, (each[0] + each[1]) / 2, atol=2e-5, rtol=1e-5)
    assert set(ranks(Ensemble(heads), planted_table)) == {"text_to_video", "video_to_text", "video_to_text_caption"}


@pytest.fixture
def planted_table():
    random = torch.Generator().manual_seed(0)
    mask = torch.arange(5) < torch.randint(2, 6, (20, 1), generator=random)
    pooled, frames = torch.randn(20, 16, generator=random), torch.randn(10, 4, 16, generator=random)
    return FeatureTable.from_features(
        TextFeatures(pooled, torch.randn(20, 5, 16, generator=random), mask),
        VideoFeatures(frames, torch.ones(10, 4, dtype=torch.bool)),
        torch.arange(20) % 10,
    )


def test_runs_of_different_caches_are_refused(store, runs, small_cache, tmp_path):
    elsewhere = small_cache(name="elsewhere", videos=15)
    elsewhere.spec = replace(elsewhere.spec, configuration={"backbone": {"name": "another", "pretrained": "seed"}})
    settings = resolve({"head": "projection", "epochs": 1, "batch_size": 4, "select": "last"}, dataset="made")
    stranger = train(elsewhere.fill(), tmp_path / "stranger", settings).run
    with pytest.raises(FingerprintError, match="stranger.*cannot be averaged"):
        evaluate_ensemble(store, [*runs, stranger])


def test_what_is_no_ensemble_is_refused(store, runs):
    with pytest.raises(UsageError, match="no ensemble"):
        evaluate_ensemble(store, runs[:1])
    with pytest.raises(UsageError, match="named twice"):
        evaluate_ensemble(store, [runs[0], runs[1], runs[0]])
    with pytest.raises(UsageError, match="expected one of mean, scaled"):
        evaluate_ensemble(store, runs, EvaluateSettings(combine="product"))
