"""Ranks by parts equal those of one machine to the last digit: of any cut, with ties, from a cache, and on two nodes of Ray."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glscl.cache.stored_table import StoredTable
from glscl.cache.table import FeatureTable
from glscl.common.errors import InputError, NonFiniteError, UsageError
from glscl.evaluate.evaluation import evaluate_run
from glscl.evaluate.parts import ByParts
from glscl.evaluate.ranks import Targets, counts, pair, pair_scores, ranks_of_counts, retrieval_ranks, spans
from glscl.evaluate.settings import EvaluateSettings
from glscl.evaluate.similarity import ranks
from glscl.evaluate.watched import Watched
from glscl.train_head.heads import build_head


class InTurn:
    """Workers of this process, done in reverse order."""

    gpus = 0

    def map(self, function, calls, *shared):
        calls = [*enumerate(calls)]
        for number, call in reversed(calls):
            yield number, function(call, *pickle.loads(pickle.dumps(shared)))


@settings(max_examples=40, deadline=None)
@given(V=st.integers(1, 9), T=st.integers(1, 24), steps=st.tuples(*[st.integers(1, 9)] * 3), seed=st.integers(0, 999))
def test_counts_of_parts_add_up_to_the_ranks_of_the_whole(V, T, steps, seed):
    """Scores of three values, so that ties abound; videos with no caption, with one, with many that span blocks."""
    random = np.random.default_rng(seed)
    video_of_text, scores = random.integers(0, V, T), torch.from_numpy(random.integers(0, 3, (T, V))).float()
    pairing = pair(video_of_text, num_texts=T, num_videos=V)
    sorted_scores = scores if pairing.order is None else scores[torch.from_numpy(pairing.order)]

    def tile(texts, videos):
        return sorted_scores[slice(*texts), slice(*videos)]

    text_step, video_step, gallery = steps
    text_spans, video_spans = spans(T, text_step), spans(V, video_step)
    galleries = [video_spans[at : at + gallery] for at in range(0, len(video_spans), gallery)]
    video = pairing.video_of_text
    cuts = [0, *(i for i, (_, e) in enumerate(text_spans, 1) if e == T or video[e - 1] != video[e])]
    own = [pair_scores(tile, pairing, text_spans=text_spans, video_spans=each) for each in galleries]
    targets = Targets.of(torch.cat([each for each in own if len(each)]), pairing)
    expected = retrieval_ranks(scores, video_of_text)
    total = {name: torch.zeros(2, T if name == "text_to_video" else V, dtype=torch.int64) for name in expected}
    for begin, end in zip(cuts, cuts[1:]):
        for part in galleries:
            found = counts(
                tile, pairing, targets, text_spans=text_spans[begin:end], video_spans=part, directions=[*expected]
            )
            for name, counted in found.items():
                of = text_spans[begin:end] if name == "text_to_video" else part
                total[name][:, of[0][0] : of[-1][1]] += counted
    for name, found in ranks_of_counts(total, targets, pairing).items():
        np.testing.assert_array_equal(found, expected[name], err_msg=name)


@pytest.fixture
def store(small_cache):
    return small_cache(videos=40, captions=3, dim=16).fill()


def assert_same_ranks(found, expected):
    assert list(found) == list(expected)
    for direction in expected:
        np.testing.assert_array_equal(found[direction], expected[direction])


@pytest.mark.parametrize(
    ("name", "cut"), [("mean_pool", {"spans": (1, 1)}), ("glscl", {"spans": (2, 3)}), ("xpool", {})]
)
def test_parts_read_from_a_cache_rank_as_one_machine_does(store, name, cut):
    torch.manual_seed(0)
    batches, head = (50, 9), build_head(name, embed_dim=16)
    table = FeatureTable.load(store, None, max_frames=4, tokens=head.needs_tokens)
    alone, parts, done = Watched(head), Watched(head), []
    expected = ranks(alone, table, batches=batches)
    stored = StoredTable(store, None, max_frames=4, tokens=head.needs_tokens)
    seconds: dict[str, float] = {}
    by_parts = ByParts(InTurn(), batches=batches, **cut)
    found = by_parts.ranks(parts, stored, seconds=seconds, progress=lambda *at: done.append(at))
    assert_same_ranks(found, expected)
    assert parts.summary(table.num_videos) == alone.summary(table.num_videos)
    assert done[-1] == (table.num_texts * table.num_videos,) * 2 and {*seconds} == {"encode", "score", "metrics"}


@pytest.mark.parametrize("options", [{"tokens": True}, {"tokens": False, "max_frames": None}, {"max_frames": 2}])
def test_a_stored_table_is_a_table_that_reads_when_it_is_asked(store, options):
    table, stored = FeatureTable.load(store, "test", **options), StoredTable(store, "test", **options)
    again = pickle.loads(pickle.dumps(stored))
    assert len(pickle.dumps(stored)) < 1000  # by where it is read from
    for other in (stored, again):
        assert (other.counts, other.text_ids, other.video_ids) == (table.counts, table.text_ids, table.video_ids)
        assert torch.equal(other.video_of_text, table.video_of_text) and other.captions == table.captions
        assert torch.equal(other.frame_count, table.frame_mask.sum(1))
        rows = torch.tensor([5, 0, 5, 2])
        for one, two in ((table.texts(rows), other.texts(rows)), (table.videos(rows), other.videos(rows))):
            for left, right in zip(one, two):
                assert (left is None and right is None) or torch.equal(left, right)


def test_an_evaluation_by_parts_gives_the_result_of_one_machine(store):
    alone = evaluate_run(store, None, EvaluateSettings(head="query_scoring"))
    parts = evaluate_run(store, None, EvaluateSettings(head="query_scoring"), device=ByParts(InTurn()))
    assert_same_ranks(parts.ranks, alone.ranks)
    for result in (alone.result, parts.result):
        del result["seconds"]
    assert parts.result == alone.result


def test_what_needs_the_matrix_is_refused(store):
    for asked in ({"normalise": ("dsl",)}, {"best_frames": 2}):
        with pytest.raises(UsageError, match=f"`{next(iter(asked))}` takes all similarities on one machine"):
            evaluate_run(store, None, EvaluateSettings(**asked), device=ByParts(InTurn()))
    with pytest.raises(InputError, match="no split 'none'"):
        evaluate_run(store, None, EvaluateSettings(split="none"), device=ByParts(InTurn()))


def test_a_score_that_is_not_finite_is_named_from_any_part(store):
    head = build_head("projection", embed_dim=16)
    with torch.no_grad():
        for weights in head.parameters():
            weights.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"text \d+ \(.*\) with video \d+ \(.*\) is nan"):
        ByParts(InTurn()).ranks(Watched(head), StoredTable(store, None, tokens=False))


@pytest.mark.exhaustive  # a cluster takes half a minute to start
def test_a_cluster_of_two_nodes_ranks_as_one_machine_does_also_where_one_is_lost(small_cache):
    """A third node goes with its processes while parts are scored."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'glscl[ray]'")
    from ray.cluster_utils import Cluster

    torch.manual_seed(0)
    store, head = small_cache(videos=160, captions=3, dim=32).fill(), build_head("glscl", embed_dim=32)
    before, batches = torch.get_num_threads(), (60, 20)
    torch.set_num_threads(1)  # as each worker has
    expected = ranks(Watched(head), FeatureTable.load(store, None, max_frames=4), batches=batches)
    whole = evaluate_run(store, None, EvaluateSettings(head="query_scoring"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        lost = cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        engine = ByParts.on_ray()
        assert engine.workers.cores == 3
        gone = []

        def lose(done: int, total: int) -> None:
            if not gone:
                gone.append(done < total)
                cluster.remove_node(lost, allow_graceful=False)

        by_parts = ByParts(engine.workers, spans=(1, 1), batches=batches)
        stored = StoredTable(store, None, max_frames=4)
        assert_same_ranks(by_parts.ranks(Watched(head), stored, progress=lose), expected)
        assert gone == [True]
        again = evaluate_run(store, None, EvaluateSettings(head="query_scoring"), device=engine)
        assert_same_ranks(again.ranks, whole.ranks)
    finally:
        torch.set_num_threads(before)
        ray.shutdown()
        cluster.shutdown()
