"""A run for mteb: what it indexes and answers are the head's scores, in both directions, and mteb's numbers are ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from glscl.cache.schema import TextFeatures
from glscl.common.errors import InputError, UsageError
from glscl.evaluate.exporting.mteb_model import MtebModel
from glscl.evaluate.graded import graded_metrics
from glscl.evaluate.search.model import Model
from glscl.train_head.heads import build_head

DIM, COUNT = 16, 70  # more than a batch


def drawn(name: str, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(rows, DIM, generator=generator)


class Backbone:
    """One whose features of a sentence, and of a file, are drawn from its name."""

    words = 8

    def encode_texts(self, texts, padded=False):
        tokens = torch.stack([drawn(text, 3) for text in texts])
        return TextFeatures(tokens[:, -1], tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))


class Rows(list):
    """As much of a data set of Hugging Face as is needed."""

    @property
    def column_names(self):
        return [*self[0]]


VIDEOS = Rows({"id": f"v{i}", "video": {"path": f"/videos/{i}.mp4", "bytes": None}} for i in range(COUNT))
CAPTIONS = Rows({"id": f"t{i}", "text": f"sentence {i}"} for i in range(COUNT))


@pytest.fixture(params=["glscl", "mean_pool"])
def made(request, small_cache, monkeypatch):
    """A head that makes no vector a video, and one that does; and the similarity of all sentences with all videos."""
    torch.manual_seed(0)
    options = {"decoder_layers": 1, "aggregator_layers": 1} if request.param == "glscl" else {}
    head = build_head(request.param, embed_dim=DIM, **options).eval()
    model = Model(head, small_cache("hdf5", videos=4, dim=DIM).fill(), record={"head": request.param}, frames=4)
    model.__dict__["backbone"] = Backbone()
    frames = {f"/videos/{i}.mp4": drawn(f"video {i}", 2 + i % 5).numpy() for i in range(COUNT)}
    monkeypatch.setattr(model, "_encode_clip", lambda path, start, end: (frames[str(path)], None))
    with torch.inference_mode():
        texts = model.encode_texts([row["text"] for row in CAPTIONS])
        videos = model.encode_videos([row["video"]["path"] for row in VIDEOS])
        similarity = head.score(head.encode_text(texts), head.encode_video(videos))
    return MtebModel(model), similarity


def answers(scores, queries, gallery, top):
    best = torch.topk(scores, top, dim=1)
    rows = zip(queries, best.indices.tolist(), best.values.tolist())
    return {
        query: {gallery[column]: pytest.approx(value, abs=1e-5) for column, value in zip(columns, values)}
        for query, columns, values in rows
    }


def test_answers_are_the_heads_scores_in_both_directions(made):
    run, similarity = made
    texts, videos = ([row["id"] for row in rows] for rows in (CAPTIONS, VIDEOS))
    run.index(VIDEOS, task_metadata=None)
    assert run.search(CAPTIONS, top_k=5) == answers(similarity, texts, videos, 5)
    run.index(CAPTIONS)
    assert run.search(VIDEOS, top_k=COUNT + 9) == answers(similarity.T, videos, texts, COUNT)
    chosen = {video: texts[:2] for video in videos}
    assert {len(found) for found in run.search(VIDEOS, top_k=5, top_ranked=chosen).values()} == {2}


def test_what_a_run_cannot_score_is_refused_in_one_line(made, tmp_path):
    run, _ = made
    with pytest.raises(UsageError, match="`index` comes first"):
        run.search(CAPTIONS, top_k=5)
    run.index(CAPTIONS)
    with pytest.raises(UsageError, match="are both text"):
        run.search(CAPTIONS, top_k=5)
    with pytest.raises(UsageError, match="rows hold audio, video beside"):
        run.index(Rows([{"id": "1", "video": "a.mp4", "audio": "a.wav"}]))
    with pytest.raises(InputError, match="a video is int, expected a path"):
        run.index(Rows([{"id": "1", "video": 3}]))


def test_bytes_of_a_video_are_read_like_its_file(made, monkeypatch):
    run, _ = made
    seen = []

    def encoded(path, start, end):
        seen.append(Path(path).read_bytes())
        return drawn("video", 3).numpy(), None

    monkeypatch.setattr(run.model, "_encode_clip", encoded)
    run.index(Rows({"id": str(i), "video": {"path": "a.mp4", "bytes": bytes([i])}} for i in range(3)))
    assert seen == [b"\0", b"\1", b"\2"]


@pytest.mark.exhaustive  # mteb alone takes half a minute to import
def test_mteb_judges_a_run_and_its_numbers_are_ours(made, tmp_path):
    mteb = pytest.importorskip("mteb", reason="the extra: pip install 'glscl[mteb]'")
    datasets = pytest.importorskip("datasets")
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
    from mteb.abstasks.task_metadata import TaskMetadata

    run, similarity = made

    class Local(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="LocalT2V",
            description="Made-up videos and sentences.",
            dataset={"path": "local/t2v", "revision": "1"},
            type="Any2AnyRetrieval",
            category="t2v",
            modalities=["text", "video"],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
            reference=None,
            date=None,
            domains=None,
            task_subtypes=[],
            license=None,
            annotations_creators=None,
            dialect=[],
            sample_creation=None,
            bibtex_citation="",
        )

        def load_data(self, **options):
            videos = datasets.Dataset.from_list(VIDEOS).cast_column("video", datasets.Video(decode=False))
            relevant = {f"t{i}": {f"v{i}": 1} for i in range(COUNT)}
            split = RetrievalSplitData(
                queries=datasets.Dataset.from_list(CAPTIONS), corpus=videos, relevant_docs=relevant, top_ranked=None
            )
            self.dataset, self.data_loaded = {"default": {"test": split}}, True

    cache = mteb.ResultCache(tmp_path)
    done = mteb.evaluate(run, Local(), cache=cache, prediction_folder=None, show_progress_bar=False)
    score = done.task_results[0].scores["test"][0]["ndcg_at_10"]
    ours = graded_metrics(similarity, np.eye(COUNT))["text_to_video"]["nDCG@10"]
    assert 100 * score == pytest.approx(ours, abs=1e-2), "mteb rounds to five digits"
