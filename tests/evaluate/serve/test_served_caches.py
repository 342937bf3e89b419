"""What a server searches: every finished list of several caches, with the runs that understand them."""

from __future__ import annotations

import shutil

import pytest

import glscl
from glscl.cache.library import open_library
from glscl.common.errors import CacheIncompleteError, FingerprintError, NotFoundError, UsageError
from glscl.evaluate.serve.answering import Answers, strip_of
from glscl.evaluate.serve.asking import Asked, read_parameters
from glscl.evaluate.serve.served_caches import open_catalog, unique_names


@pytest.fixture
def filled(small_cache):
    """`filled(name, **options)`: a cache of made-up features whose backbone nobody has."""

    def make(name="cache", **options):
        made = small_cache(name=name, **options)
        made.fill()
        return made

    return make


def test_lists_and_caches_are_found_by_name(filled, tmp_path):
    one, two = filled("one"), filled("there/one", seed=1)
    first = one.list.video_ids[0]
    one.add_list("few", {first: "test"})
    catalog = open_catalog([one.path, two.path])
    assert [(each.cache, each.name) for each in catalog.collections] == [
        ("one", "made"),
        ("one", "few"),
        ("one-2", "made"),
    ]
    assert catalog.find(None, None) is catalog.first and catalog.find("one-2", None).store.path == two.path
    assert catalog.find(None, "few").rows == {first: 0}
    with pytest.raises(NotFoundError, match="one/few"):
        catalog.find("one-2", "few")
    assert [each.name for each in open_catalog([one.path], list="few").collections] == ["few"]
    with pytest.raises(NotFoundError, match="nope"):
        open_catalog([one.path], list="nope")
    assert unique_names(["a", "b", "a", "a-2", "x\udc80"]) == ["a", "b", "a-2", "a-2-2", "x?"]


def test_a_list_that_was_never_finished_is_said_and_left_out(filled):
    made, notes = filled(), []
    lists = made.path / "lists"
    shutil.copytree(lists / "made", lists / "half")
    (lists / "half" / "current").unlink()
    catalog = open_catalog([made.path], note=notes.append)
    assert [each.name for each in catalog.collections] == ["made"]
    assert any("half" in note and "never finished" in note for note in notes)
    (lists / "made" / "current").unlink()
    with pytest.raises((CacheIncompleteError, UsageError)):
        open_catalog([made.path])


def test_a_cache_without_its_backbone_is_searched_by_its_own_videos(filled):
    made, notes = filled(), []
    catalog = open_catalog([made.path], note=notes.append)
    answers = Answers(catalog, paths=True)
    answers.warm()
    assert len(notes) == 1 and "by its own videos alone" in notes[0]
    with pytest.raises(UsageError, match="cannot be asked in words"):
        answers.of_sentence(Asked(q="a dog"))
    id = made.list.video_ids[0]
    assert id not in [hit["video"] for hit in answers.of_listed(id, Asked())["hits"]]
    told = catalog.about(paths=True)["caches"][0]
    assert not told["sentences"] and not told["pictures"] and told["problem"]
    assert told["lists"][0]["failed"] == 2  # one broken, one partial


def test_runs_come_with_the_caches_that_they_understand(filled, untrained_run):
    one, two = filled("one", dim=16), filled("two", dim=16, seed=1)
    two_store = glscl.open_cache(two.path)
    run = untrained_run(glscl.open_cache(one.path), "mine")
    catalog = open_catalog([one.path], [run])
    assert catalog.first.heads[0] == "mine" and catalog.first.model("mine").name == "mean_pool"
    assert catalog.first.model("mine").index() is catalog.first.model("best_frames").index()  # read once
    with pytest.raises(NotFoundError, match="no head 'nope'"):
        catalog.first.model("nope")
    other = untrained_run(
        two_store,
        "other",
        cache_fingerprint="0" * 16,
        cache_configuration={"backbone": {"name": "x", "pretrained": "y"}},
    )
    with pytest.raises(FingerprintError, match="other"):
        open_catalog([one.path], [run, other])


def test_flat_files_are_searched_too(filled):
    from glscl.cache.upkeep.convert import convert

    made = filled()
    flat = made.path.parent / "flat.h5"
    convert(open_library(made.path), flat)
    assert [(each.cache, len(each.rows)) for each in open_catalog([flat]).collections] == [("flat", 11)]


def test_parameters_are_read_as_settings():
    asked = read_parameters([("q", "a dog"), ("top", "3"), ("min", "0.5"), ("split", ""), ("not", "a cat"), ("t", "2")], "q", "top", "min", "split", "not", "t")  # fmt: skip
    assert (asked.q, asked.settings.top, asked.settings.minimum, asked.settings.split) == ("a dog", 3, 0.5, None)
    assert asked.without == ("a cat",) and asked.t == 2.0
    for name, value in (("t", "-1"), ("t", "1e12"), ("top", "1.5"), ("min", "x"), ("q", "a" * 3000)):
        with pytest.raises(UsageError, match=name):
            read_parameters([(name, value)], "q", "top", "min", "t")


def test_long_videos_show_the_best_of_each_part():
    import numpy as np

    times, scores = np.arange(1000, dtype=np.float32), np.zeros(1000, np.float32)
    scores[777] = 0.5
    strip = strip_of(times, scores, 50)
    assert len(strip["times"]) == len(strip["scores"]) == 50 and strip["times"][0] == 0
    assert max(strip["scores"]) == 0.5 and strip["times"][int(np.argmax(strip["scores"]))] == 760
    assert strip_of(times[:3], scores[:3], 50) == {"times": [0, 1, 2], "scores": [0, 0, 0]}


def test_an_approximate_index_is_used_unless_every_frame_is_asked_for(filled):
    pytest.importorskip("faiss", reason="pip install 'glscl[index]'")
    from glscl.evaluate.search.approximate import make_index

    made = filled(videos=60)
    make_index(open_library(made.path), recall=0.9, encode=lambda sentences: pytest.fail("there are captions"))
    answers = Answers(open_catalog([made.path]), paths=True)
    id = made.list.video_ids[7]
    plain = [("t", "0"), ("top", "5")]
    found = answers.of_listed(id, read_parameters(plain, "t", "top"))
    exact = answers.of_listed(id, read_parameters([*plain, ("exact", "true")], "t", "top", "exact"))
    assert not found["searched"]["exact"] and exact["searched"]["exact"]
    assert found["hits"][0] == exact["hits"][0] and found["hits"][0]["video"] == id
    assert found["searched"]["frames"] == exact["searched"]["frames"]
    with pytest.raises(UsageError, match="exact is 'yes'"):
        read_parameters([("exact", "yes")], "exact")
