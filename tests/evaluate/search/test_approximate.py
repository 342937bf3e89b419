"""An approximate index finds what looking at every frame finds, grows with its cache, and is left where it does not fit."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import sys

import numpy as np
import pytest
import torch

from glscl.cache.library import open_library
from glscl.cache.store import open_store
from glscl.common.errors import CacheCorruptError, CacheError, StorageError, UsageError
from glscl.common.ray_cluster import RayCluster
from glscl.evaluate.exporting.frame_vectors import export_frames
from glscl.evaluate.search import approximate
from glscl.evaluate.search.answers import Where
from glscl.evaluate.search.approximate import index_of, make_index
from glscl.evaluate.search.frame_index import FrameIndex
from glscl.evaluate.search.model import Query, zero_shot

faiss = pytest.importorskip("faiss", reason="pip install 'glscl[index]'")
DIM = 16


@pytest.fixture
def made(small_cache):
    def make(videos=160, **options):
        found = small_cache(videos=videos, captions=1, dim=DIM, **options)
        found.shard_items = {"video": 64, "text": 64}
        return found

    return make


def indexed(path, recall=0.9):
    return make_index(open_library(path), recall=recall, encode=no_sentences)


def no_sentences(sentences):
    raise AssertionError("there are captions")


def queries(count=20):
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(5))


def recall(index: FrameIndex, exact: FrameIndex, top: int = 10) -> float:
    found = [
        len({each.video for each in index.search(q, top=top)} & {each.video for each in exact.search(q, top=top)}) / top
        for q in queries()
    ]
    return float(np.mean(found))


@pytest.mark.parametrize(("dtype", "format"), [("float16", "zarr"), ("bfloat16", "hdf5")])
def test_it_finds_what_looking_at_every_frame_finds(made, dtype, format):
    store = made(dtype=dtype, format=format).fill()
    about = indexed(store.path)
    index, exact = index_of(store), FrameIndex.load(store)
    assert about.frames == exact.num_frames and index.num_videos == exact.num_videos and not index.is_exact
    assert about.queries.endswith("other captions") and about.recall > 0.6 and about.probes <= about.count
    assert recall(index, exact) >= 0.9
    for query in queries(3):
        for found in index.search(query, top=5):  # scores are exact, and so are their frames
            np.testing.assert_allclose(found.cosines, exact.cosines(query, np.array([found.video]))[0], atol=1e-6)
            assert found.score == found.cosines.max()
    assert torch.equal(index.features_of(7), exact.features_of(7))
    np.testing.assert_array_equal(index.times, exact.times)


def test_every_cell_gives_the_exact_answer(made):
    store = made().fill()
    about = indexed(store.path, recall=1.0)
    assert about.probes <= about.count and recall(index_of(store), FrameIndex.load(store)) >= 0.98
    assert {each.video for each in index_of(store).search(queries()[0], top=1000)} == set(range(159))  # one gave none


def test_choices_are_kept_and_widen_the_search(made):
    store = made().fill()
    indexed(store.path, recall=0.5)
    model = zero_shot(store)
    few = Where(shortest=3, longest=3)
    for query in queries(5):
        hits = model.find(Query(query), where=few, top=5)
        assert [hit.video for hit in hits] == [
            hit.video for hit in model.find(Query(query), where=few, top=5, exact=True)
        ]
    assert model.index(few).num_videos == model.index(few, exact=True).num_videos < model.index().num_videos
    assert model.index(few).num_frames == model.index(few, exact=True).num_frames
    assert not model.index(few).is_exact and model.index(few, exact=True).is_exact and model.indexes.problem is None
    moments = model.find_moments(Query(queries()[0]), top=7)
    assert [each.score for each in moments] == sorted((each.score for each in moments), reverse=True)


def test_it_grows_with_the_cache_and_learns_nothing_anew(made):
    before = made()
    store = before.fill()
    first = indexed(store.path)
    files = {path.name: path.stat().st_mtime_ns for path in (store.path / "index").iterdir()}
    assert indexed(store.path) == first  # nothing to do
    grown = made(videos=200)
    store = grown.fill()
    with pytest.raises(CacheError, match="lacks 40 of 199 videos") as lacking:
        index_of(store)
    assert lacking.value.hint.command == "index"
    model = zero_shot(store)
    assert model.index().is_exact and model.indexes.problem is not None
    second = indexed(store.path)
    assert second.cells == first.cells and second.segments[0] == first.segments[0] and len(second.segments) == 2
    assert second.segments[1].items == 40 and second.tuned_for == second.frames > first.frames
    now = {path.name: path.stat().st_mtime_ns for path in (store.path / "index").iterdir()}
    assert {name: now[name] for name in files if name != "index.json"} == {
        n: t for n, t in files.items() if n != "index.json"
    }
    assert recall(index_of(store), FrameIndex.load(store)) >= 0.85


def test_cells_are_learned_anew_where_the_cache_has_become_another(made, monkeypatch):
    store = made(videos=60).fill()
    first = indexed(store.path)
    monkeypatch.setattr(approximate, "AGAIN", 1.5)
    store = made(videos=160).fill()
    second = indexed(store.path)
    assert second.cells != first.cells and len(second.segments) == 1
    left = {path.stem for path in (store.path / "index").iterdir()} - {"index"}
    assert left == {second.cells, second.segments[0].name}


def test_one_item_under_two_ids_is_two_answers(made):
    one = made()
    one.fill()
    ids = one.list.video_ids
    one.add_list("twice", {id: "test" for id in ids[:40]})
    indexed(one.path)
    store = open_store(one.path, "twice")  # a part of the cache
    exact = FrameIndex.load(store)
    assert {each.video for each in index_of(store).search(queries()[0], top=99)} == set(range(exact.num_videos))


def test_what_was_killed_half_way_is_finished_and_what_is_damaged_is_said(made, monkeypatch):
    store = made().fill()
    monkeypatch.setattr(approximate, "SEGMENT", 300)
    add, calls = approximate._segment, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return add(*arguments)

    monkeypatch.setattr(approximate, "_segment", killed)
    with pytest.raises(KeyboardInterrupt):
        indexed(store.path)
    with pytest.raises(CacheError, match="lacks"):
        index_of(store)
    about = indexed(store.path)
    assert len(about.segments) > 2 and index_of(store) is not None
    folder = store.path / "index"
    shutil.copytree(folder, store.path.parent / "kept")
    for name, data in (
        ("index.json", b"{"),
        ("index.json", (folder / "index.json").read_bytes().replace(b"glscl.index/1", b"glscl.index/9")),
        ("index.json", (folder / "index.json").read_bytes().replace(about.cells.encode(), b"../../x")),
        (f"{about.segments[0].name}.npz", b"nothing"),
        (f"{about.segments[1].name}.faiss", b"nothing"),
    ):
        (folder / name).write_bytes(data)
        if about.cells not in name:
            with pytest.raises(CacheCorruptError, match="cannot be read"):
                index_of(store)
            assert zero_shot(store).index().is_exact
            assert indexed(store.path).frames == about.frames  # makes it again
            assert index_of(store) is not None
        shutil.rmtree(folder)
        shutil.copytree(store.path.parent / "kept", folder)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UsageError, match="needs faiss"):
        index_of(store)
    model = zero_shot(store)
    assert model.index().is_exact and "faiss" in model.indexes.problem.message


@contextlib.contextmanager
def largest_file(limit):
    """No file grows beyond so many bytes within the block; the last bytes are lost as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("missing", [100, pytest.param(5000, marks=pytest.mark.exhaustive)])
def test_a_disk_without_room_for_the_last_bytes_is_said(made, tmp_path, missing):
    """faiss's own writer gives a file that is cut short, and no error, where what it had buffered does not fit."""
    store = made(videos=400).fill()
    folder, out = store.path / "index", tmp_path / "frames"
    for write, file in (
        (
            lambda: indexed(store.path),
            lambda: folder / f"{json.loads((folder / 'index.json').read_bytes())['segments'][0]['name']}.faiss",
        ),
        (lambda: export_frames(store, out), lambda: out / "frames.faiss"),
    ):
        write()
        target = file()
        size = target.stat().st_size
        shutil.rmtree(target.parent)
        with largest_file(size - missing), pytest.raises(StorageError, match="File too large"):
            write()
        assert not target.exists() and not [*target.parent.glob(".*")]
        write()
        assert target.stat().st_size == size


class InReverse:
    """Workers elsewhere, of which the last is done first."""

    gpus = 0

    def map(self, function, calls, *shared):
        for number, call in reversed([*enumerate(calls)]):
            yield number, function(call, *shared)


def segments_are_those_made_here(made, monkeypatch, workers):
    monkeypatch.setattr(approximate, "SEGMENT", 200)
    store, told = made().fill(), []
    here = indexed(store.path)
    files = {path.name: path.read_bytes() for path in (store.path / "index").iterdir() if path.suffix != ".json"}
    shutil.rmtree(store.path / "index")
    about = make_index(open_library(store.path), recall=0.9, encode=no_sentences, added=told.append, workers=workers)
    assert len(about.segments) == len(told) > 2 and about.segments == here.segments and sum(told) == about.frames
    for name, content in files.items():
        if name.endswith(".faiss"):
            assert (store.path / "index" / name).read_bytes() == content, name


def test_segments_that_others_make_are_those_made_here(made, monkeypatch):
    segments_are_those_made_here(made, monkeypatch, InReverse())


@pytest.mark.exhaustive  # a cluster takes half a minute to start
def test_segments_that_a_cluster_of_two_nodes_makes_are_those_made_here(made, monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'glscl[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        segments_are_those_made_here(made, monkeypatch, RayCluster())
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_without_captions_sentences_choose(small_cache):
    made = small_cache(videos=20, captions=1, dim=DIM)  # too few captions
    store = made.fill()
    asked = []

    def encode(sentences):
        asked.extend(sentences)
        return queries(len(sentences))

    about = make_index(open_library(store.path), recall=0.9, encode=encode)
    assert len(asked) == 96 and about.queries == "48 other sentences"
