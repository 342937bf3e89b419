"""Whole evaluations: what a result says, and that it is the truth."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.common.errors import FingerprintError, InputError, NonFiniteError, UsageError
from glscl.evaluate import evaluation
from glscl.evaluate.evaluation import (
    ZERO_SHOT_HEADS,
    evaluate_head,
    evaluate_run,
    validation_metrics,
    write_result,
)
from glscl.evaluate.hubness import NORMALISATIONS, normalised_ranks
from glscl.evaluate.metrics import retrieval_metrics, summarise
from glscl.evaluate.settings import EvaluateSettings
from glscl.evaluate.similarity import similarity_matrix
from glscl.train_head.heads import build_head
from glscl.train_head.settings import resolve
from glscl.train_head.train import train

CONTRACT = {
    "dataset", "split", "head", "run", "backbone", "pretrained", "cache", "cache_fingerprint", "list", "list_hash",
    "annotations", "split_annotations", "selection", "frozen_backbone", "counts", "text_to_video", "video_to_text", "video_to_text_caption", "confidence_95", "seconds",
    "settings", "versions", "command",
}  # fmt: skip
METRICS = {"R@1", "R@5", "R@10", "R@50", "MdR", "MnR", "queries"}


@pytest.fixture
def store(small_cache):
    return small_cache(videos=14).fill()


@pytest.fixture
def run(store, tmp_path):
    settings = resolve({"head": "projection", "epochs": 1, "batch_size": 4, "max_frames": 3}, dataset="made")
    return train(store, tmp_path / "run", settings, command="glscl train-head").run


def table(texts=30, videos=10, dim=8, seed=0, **ids):
    random = torch.Generator().manual_seed(seed)
    return FeatureTable.from_features(
        TextFeatures(torch.randn(texts, dim, generator=random)),
        VideoFeatures(torch.randn(videos, 4, dim, generator=random), torch.ones(videos, 4, dtype=torch.bool)),
        torch.arange(texts) % videos,
        **ids,
    )


def test_a_zero_shot_result_holds_everything_the_contract_names(store):
    done = evaluate_run(store, command="glscl eval --zero-shot")
    result = done.result
    assert result.keys() == CONTRACT
    assert (result["dataset"], result["split"], result["head"], result["run"]) == ("made", "test", "mean_pool", None)
    assert (result["backbone"], result["pretrained"], result["frozen_backbone"]) == ("made", "seed", True)
    assert result["cache_fingerprint"] == store.fingerprint and result["command"] == "glscl eval --zero-shot"
    for direction in ("text_to_video", "video_to_text", "video_to_text_caption"):
        assert result[direction].keys() == METRICS
        low, high = result["confidence_95"][direction]["R@1"]
        assert low <= result[direction]["R@1"] <= high
    assert result["counts"].keys() == {
        "texts", "videos", "texts_without_video", "videos_failed", "expected_texts", "expected_videos",
        "videos_seen_in_training",
    }  # fmt: skip
    assert (result["list"], result["list_hash"]) == ("made", store.list_hash)
    assert result["annotations"] == store.list.annotations and result["counts"]["videos_seen_in_training"] == 0
    assert result["counts"]["expected_texts"] == 100 and result["text_to_video"]["queries"] == result["counts"]["texts"]
    assert result["seconds"].keys() == {"load", "encode", "score", "metrics"}
    json.dumps(result, allow_nan=False)


def test_a_trained_run_is_judged_with_its_own_weights_and_frames(store, run):
    done = evaluate_run(store, run)
    assert (done.result["head"], done.result["run"], done.result["selection"]) == ("projection", str(run), "last")
    from glscl.train_head.checkpoint import load_run

    head, _ = load_run(run)
    expected = retrieval_metrics(
        similarity_matrix(head, held := FeatureTable.load(store, "test", max_frames=3)), held.video_of_text
    )
    assert {k: done.result[k] for k in expected} == expected
    other = evaluate_run(store, run, EvaluateSettings(max_frames=1))
    assert not np.array_equal(other.ranks["text_to_video"], done.ranks["text_to_video"])


def test_zero_shot_heads_start_as_the_backbone_and_others_are_refused(store):
    results = {
        name: evaluate_run(store, settings=EvaluateSettings(head=name)).ranks["text_to_video"]
        for name in ZERO_SHOT_HEADS
    }
    assert np.array_equal(results["mean_pool"], results["projection"])
    with pytest.raises(UsageError, match=r"glscl starts with random weights.*train-head \(head=glscl\)"):
        evaluate_run(store, settings=EvaluateSettings(head="glscl"))
    with pytest.raises(UsageError, match="there is no head 'clip'"):
        evaluate_run(store, settings=EvaluateSettings(head="clip"))


def test_ranks_without_the_matrix_are_those_of_the_matrix(tmp_path):
    held = table()
    head = build_head("mean_pool", embed_dim=8)
    plain = evaluate_head(head, held)
    saved = evaluate_head(head, held, EvaluateSettings(save_similarity=tmp_path / "s.npy"))
    for direction, values in plain.ranks.items():
        assert np.array_equal(values, saved.ranks[direction])
    matrix = np.load(tmp_path / "s.npy")
    assert matrix.shape == (30, 10) and matrix.dtype == np.float32
    ids = json.loads((tmp_path / "s.json").read_text())
    assert ids["text_ids"] == held.text_ids and ids["video_of_text"] == held.video_of_text.tolist()
    assert retrieval_metrics(matrix, ids["video_of_text"])["text_to_video"] == plain.result["text_to_video"]


def test_captions_with_a_tag_are_also_judged_by_themselves():
    names = [f"v{i % 10}#{i}" + (":order" if i % 3 == 0 else ":pair" if i % 3 == 1 else "") for i in range(30)]
    done = evaluate_head(build_head("mean_pool", embed_dim=8), table(text_ids=names))
    of = done.ranks["text_to_video"]
    assert done.result["tags"] == {"order": summarise(of[0::3]), "pair": summarise(of[1::3])}
    assert done.result["tags"]["order"]["queries"] == 10


def test_ids_that_only_end_in_a_number_have_no_tag():
    done = evaluate_head(build_head("mean_pool", embed_dim=8), table(text_ids=[f"v:{i}" for i in range(30)]))
    assert "tags" not in done.result


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_every_normalisation_is_reported_with_the_data_it_used(name):
    head = build_head("mean_pool", embed_dim=8)
    done = evaluate_head(
        head, table(), EvaluateSettings(normalise=(name,)), train=lambda: table(texts=40, videos=20, seed=1)
    )
    found = done.result["normalised"][name]
    assert found["text_to_video"].keys() == METRICS and found["video_to_text"]["queries"] == 10
    if NORMALISATIONS[name].needs_bank:
        assert found["bank"].startswith("first caption of 20 training videos") and not found["transductive"]
    else:
        assert found["bank"] == "none" and found["transductive"]
    raw = evaluate_head(head, table()).result
    assert done.result["text_to_video"] == raw["text_to_video"]


def test_the_bank_is_the_first_caption_of_each_training_video():
    head, held, bank = build_head("mean_pool", embed_dim=8), table(), table(texts=40, videos=20, seed=1)
    done = evaluate_head(head, held, EvaluateSettings(normalise=("qb-norm", "dual-is")), train=lambda: bank)

    def unit(x):
        return torch.nn.functional.normalize(x, dim=-1)

    def vectors(of):
        return unit(of.text_features), unit(unit(of.frame_features).mean(1))

    (texts, videos), (bank_texts, bank_videos) = vectors(held), vectors(bank)
    first = bank_texts[:20]
    expected = {
        "qb-norm": normalised_ranks(
            "qb-norm",
            texts @ videos.T,
            held.video_of_text,
            text_to_video={"bank": first @ videos.T},
            video_to_text={"bank": bank_videos @ texts.T},
        ),
        "dual-is": normalised_ranks(
            "dual-is",
            texts @ videos.T,
            held.video_of_text,
            text_to_video={"query_bank": first @ videos.T, "gallery_bank": bank_videos @ videos.T},
            video_to_text={"query_bank": bank_videos @ texts.T, "gallery_bank": first @ texts.T},
        ),
    }
    for name, of in expected.items():
        for direction, values in of.items():
            assert done.result["normalised"][name][direction] == summarise(values), (name, direction)


def test_best_frames_are_added_to_the_scores_of_any_head():
    held, weight = table(), 0.4
    head = build_head("seq_lstm", embed_dim=8).eval()
    done = evaluate_head(head, held, EvaluateSettings(best_frames=2, best_frames_weight=weight))
    similarity = similarity_matrix(head, held)
    for t in range(30):
        for v in range(10):
            cosines = torch.cosine_similarity(held.text_features[t], held.frame_features[v], dim=-1)
            similarity[t, v] += weight * cosines.sort().values[-2:].mean()
    found = done.result["normalised"]["best-frames"]
    expected = retrieval_metrics(similarity, held.video_of_text)
    assert {name: found[name] for name in expected} == expected and found["bank"] == "none"
    assert done.result["text_to_video"] == evaluate_head(head, held).result["text_to_video"], "beside the raw numbers"


def test_normalisations_that_cannot_be_had_are_refused_before_any_work(store, small_cache):
    with pytest.raises(UsageError, match="there is no normalisation 'qbnorm'; choose from qb-norm"):
        evaluate_run(store, settings=EvaluateSettings(normalise=("qbnorm",)))
    held = table()
    with pytest.raises(UsageError, match="needs a head that makes one vector of each"):
        evaluate_head(
            build_head("query_scoring", embed_dim=8), held, EvaluateSettings(normalise=("dual-is",)), train=table
        )
    with pytest.raises(UsageError, match="a bank of training queries is needed"):
        evaluate_head(build_head("mean_pool", embed_dim=8), held, EvaluateSettings(normalise=("qb-norm",)))


def test_normalisation_on_a_cache_takes_its_bank_from_the_split_train(store, run):
    done = evaluate_run(store, run, EvaluateSettings(normalise=("qb-norm", "dsl")))
    assert done.result["normalised"]["qb-norm"]["bank"].startswith("first caption of 8 training videos")
    assert done.result["settings"]["qb_norm_beta"] == 70.0, "the dataset's"


def test_a_cache_of_another_backbone_is_refused(small_cache, run, tmp_path):
    other = small_cache(name="other")
    other.spec = dataclasses.replace(other.spec, configuration={"backbone": {"name": "ViT-B-16", "pretrained": "x"}})
    with pytest.raises(FingerprintError, match=r"extracted with ViT-B-16/x \(8-d\); .* expects made/seed \(8-d\)"):
        evaluate_run(other.fill(), run)


def test_another_corpus_through_the_same_backbone_is_judged_and_told(small_cache, store, run):
    notes, other = [], small_cache(name="other", videos=10).fill()
    done = evaluate_run(other, run, note=notes.append)
    assert done.result["run"] == str(run) and done.result["list_hash"] == other.list_hash
    said = f"not what {run} was trained on: list: found made@{other.list_hash}, expected made@{store.list_hash}"
    assert notes[0] == said


def test_scores_that_are_not_finite_are_an_error():
    held = table()
    held.frame_features[3] = torch.nan
    with pytest.raises(NonFiniteError, match="video 3"):
        evaluate_head(build_head("mean_pool", embed_dim=8), held)


def test_results_and_ranks_are_written_and_read_back(store, tmp_path):
    done = evaluate_run(store)
    write_result(tmp_path / "out" / "result.json", done)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == done.result
    with np.load(tmp_path / "out" / "result.ranks.npz") as saved:
        assert saved["text_ids"].tolist() == done.text_ids and saved["video_ids"].tolist() == done.video_ids
        assert np.array_equal(saved["text_to_video"], done.ranks["text_to_video"])
        assert [done.video_ids[i] for i in saved["video_of_text"]][:1] == [done.text_ids[0].split("#")[0]]


def test_validation_gives_what_a_full_evaluation_gives():
    held, head = table(), build_head("mean_pool", embed_dim=8)
    full = evaluate_head(head, held).result
    assert validation_metrics(head, held) == {k: full[k] for k in ("text_to_video", "video_to_text")}


def test_a_single_pair_is_always_found():
    done = evaluate_head(build_head("mean_pool", embed_dim=8), table(texts=1, videos=1))
    assert done.result["text_to_video"]["R@1"] == 100 and done.result["video_to_text"]["MnR"] == 1


def test_a_matrix_beyond_the_memory_is_refused_and_ranks_are_not(small_cache, tmp_path, monkeypatch):
    store = small_cache().fill()
    table = FeatureTable.load(store, "train", tokens=False)
    monkeypatch.setattr(evaluation, "_physical_memory", lambda: 4 * table.num_texts * table.num_videos)
    result = evaluate_run(
        store, settings=EvaluateSettings(split="train", confidence=False, save_similarity=tmp_path / "s.npy")
    ).result
    with pytest.raises(InputError, match=r"similarities of \d+ texts with \d+ videos .* ranks need no matrix"):
        evaluate_run(store, settings=EvaluateSettings(split="train", normalise=("dsl",)))
    monkeypatch.setattr(evaluation, "_physical_memory", lambda: 1)
    with pytest.raises(InputError, match="`save_similarity`"):
        evaluate_run(store, settings=EvaluateSettings(split="train", save_similarity=tmp_path / "s.npy"))
    assert (
        evaluate_run(store, settings=EvaluateSettings(split="train", confidence=False)).result["text_to_video"]
        == result["text_to_video"]
    )
