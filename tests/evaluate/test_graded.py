"""Several right videos a caption: files of judgements, measures against a slow reference and ir_measures, TREC's run files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from glscl.common.errors import InputError
from glscl.evaluate.evaluation import evaluate_head
from glscl.evaluate.graded import MEASURES, graded_metrics, grades, read_qrels, write_trec_run
from glscl.evaluate.settings import EvaluateSettings
from glscl.train_head.heads import build_head

T, V = 12, 30


@pytest.fixture
def judged():
    random = np.random.default_rng(3)
    grade = random.choice([0, 0, 0, 0, 1, 2, 3], (T, V)).astype(float)
    grade[4] = 0
    scores = torch.from_numpy(random.permutation(T * V).reshape(T, V) / (T * V))
    return scores, grade


def slow(scores, grade):
    """The definitions, a query at a time."""
    found = {name: [] for name in MEASURES}
    for row, graded in zip(scores.tolist(), grade.tolist()):
        right = {j for j, g in enumerate(graded) if g > 0}
        if not right:
            continue
        ranked = sorted(range(len(row)), key=lambda j: -row[j])
        ideal = sorted(graded, reverse=True)

        def dcg(values):
            return sum((2**g - 1) / math.log2(rank + 1) for rank, g in enumerate(values[:10], 1))

        found["nDCG@10"].append(dcg([graded[j] for j in ranked]) / dcg(ideal))
        hits = [rank for rank, j in enumerate(ranked, 1) if j in right]
        found["mAP"].append(sum(n / rank for n, rank in enumerate(hits, 1)) / len(right))
        found["R-precision"].append(len(right & {*ranked[: len(right)]}) / len(right))
        for k in (1, 5, 10):
            found[f"recall@{k}"].append(len(right & {*ranked[:k]}) / len(right))
            found[f"any@{k}"].append(float(bool(right & {*ranked[:k]})))
    return {name: 100 * sum(values) / len(values) for name, values in found.items()} | {"queries": len(found["mAP"])}


def test_measures_are_their_definitions_in_both_directions(judged):
    scores, grade = judged
    found = graded_metrics(scores, grade)
    assert found["text_to_video"] == pytest.approx(slow(scores, grade)) and found["text_to_video"]["queries"] == T - 1
    assert found["video_to_text"] == pytest.approx(slow(scores.T, grade.T))


def test_a_hand_worked_ranking():
    """Grades 2 0 1 in the order of the ranking, and one right video that is last of five."""
    scores = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]])
    found = graded_metrics(scores, np.array([[2.0, 0, 1, 0, 1]]))["text_to_video"]
    assert found["nDCG@10"] == pytest.approx(
        100 * (3 + 1 / 2 + 1 / math.log2(6)) / (3 + 1 / math.log2(3) + 1 / 2), rel=1e-9
    )
    assert found["mAP"] == pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 3)
    assert (found["R-precision"], found["recall@5"], found["any@1"]) == pytest.approx((200 / 3, 100, 100))


def test_ir_measures_agrees_on_the_files_that_we_write(judged, tmp_path):
    ir = pytest.importorskip("ir_measures")
    scores, grade = judged
    texts, videos = [f"q{i}" for i in range(T)], [f"v{j:02}" for j in range(V)]
    write_trec_run(tmp_path / "run.txt", scores, texts, videos, tag="a head")
    qrels = [ir.Qrel(texts[i], videos[j], int(grade[i, j])) for i in range(T) for j in range(V) if i != 4]
    run = [*ir.read_trec_run(str(tmp_path / "run.txt"))]
    measures = {
        "mAP": ir.AP, "R-precision": ir.Rprec, "recall@5": ir.R @ 5, "any@5": ir.Success @ 5,
        "nDCG@10": ir.nDCG(gains={1: 1, 2: 3, 3: 7}) @ 10,
    }  # fmt: skip
    theirs = ir.calc_aggregate([*measures.values()], qrels, run)
    ours = graded_metrics(scores, grade)["text_to_video"]
    for name, measure in measures.items():
        assert ours[name] == pytest.approx(100 * theirs[measure], abs=1e-9), name


def test_both_kinds_of_files_are_read_and_own_videos_are_right(tmp_path):
    (tmp_path / "a.qrels").write_text("t0 0 v1 2\nt0 0 v9 1\n\nt1 0 v1 3\n")
    (tmp_path / "a.csv").write_text("caption,video,grade\nthe first,v1,2\nt0,v9,1\nt1,v1,3\n")
    for name in ("a.qrels", "a.csv"):
        made = grades(read_qrels(tmp_path / name), ["t0", "t1", "t2"], ["the first", "", ""], ["v0", "v1"], [0, 1, 0])
        assert made.tolist() == [[2, 2], [0, 3], [1, 0]], "own videos: the best grade of t0, the file's, 1"


def test_fires_judgements_are_read_as_published_and_never_take_the_own_video_away(tmp_path):
    """fire_msrvtt_dataset.json: captions by their words, a label a pair; pairs without a majority stand apart."""
    about = {"annotator_ids": [3], "annotator_labels": ["relevant"], "models": ["SSB"], "dataset": "MSRVTT"}
    said = [
        ("a man is  cooking", "video1", "relevant"),
        ("a man is  cooking", "video0", "irrelevant"),
        ("a dog", "video1", "irrelevant"),
    ]
    found = [{"query": query, "video_id": video, "label": label, **about} for query, video, label in said]
    disagreed = [{"query": "a dog", "video_id": "video0", **about}]
    path = tmp_path / "fire_msrvtt_dataset.json"
    path.write_text(json.dumps({"annotations": found, "disagreements": disagreed, "license": "CC BY-NC 2.0"}))
    made = grades(read_qrels(path), ["r0", "r1"], ["a man is cooking", "a dog"], ["video0", "video1"], [0, 1])
    assert made.tolist() == [[1, 1], [0, 1]]
    path.write_text(json.dumps({"annotations": [{**found[0], "label": "perhaps"}]}))
    with pytest.raises(InputError, match="entry 1: the label is 'perhaps', expected relevant or irrelevant"):
        read_qrels(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.qrels", "t0 v1 1\n", "line 1: 3 words; expected `caption 0 video grade`"),
        ("a.qrels", "t0 0 v1 x\n", "line 1: the grade is 'x'"),
        ("a.qrels", "t0 0 v1 -1\n", "expected a number from 0"),
        ("a.qrels", "t0 0 v1 1\nt0 0 v1 2\n", "line 2: t0 and v1 have two grades"),
        ("a.qrels", "\n", "holds no judgement"),
        ("a.csv", "query,video\n1,2\n", "columns query, video; expected caption, video"),
        ("a.csv", "caption,video\nt0,\n", "line 2: a judgement needs"),
    ],
)
def test_files_that_are_none_say_where(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_qrels(tmp_path / name)


def test_judgements_of_other_captions_and_ids_with_blanks_are_refused(tmp_path):
    with pytest.raises(InputError, match="none of the judgements of 1 captions .* like t0 and v0, in the file x"):
        grades({"x": {"v0": 1.0}}, ["t0"], [""], ["v0"], [0])
    with pytest.raises(InputError, match="'a b' has a blank"):
        write_trec_run(tmp_path / "run", torch.zeros(1, 1), ["a b"], ["v"], tag="x")


def test_an_evaluation_takes_judgements_and_writes_a_run(small_cache, tmp_path):
    from glscl.cache.table import FeatureTable

    store = small_cache(videos=12).fill()
    table = FeatureTable.load(store, "test")
    (tmp_path / "q.txt").write_text("".join(f"{text} 0 {table.video_ids[0]} 1\n" for text in table.text_ids))
    settings = EvaluateSettings(qrels=tmp_path / "q.txt", trec_run=tmp_path / "run.txt", confidence=False)
    result = evaluate_head(build_head("mean_pool", embed_dim=8).eval(), table, settings).result
    graded = result["graded"]["text_to_video"]
    assert graded["queries"] == table.num_texts and graded["any@1"] >= result["text_to_video"]["R@1"]
    lines = (tmp_path / "run.txt").read_text().splitlines()
    assert len(lines) == table.num_texts * table.num_videos and lines[0].split()[1::2][0] == "Q0"
