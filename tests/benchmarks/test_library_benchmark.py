"""The benchmark of a cache that many lists share measures what it says, on sizes that take a moment."""

from __future__ import annotations

import numpy as np
import pytest

from glscl.cache.library import open_library
from glscl.cache.store import open_store
from glscl.cache.table import FeatureTable
from glscl.cache.upkeep.verification import verify


@pytest.fixture(scope="module")
def library(benchmark_script):
    return benchmark_script("library")


@pytest.mark.exhaustive
def test_every_promise_has_its_row(library, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["library.py", "--quick", "--repeats", "1", "--folder", str(tmp_path)])
    library.main()
    told = capsys.readouterr().out
    rows = [line.split(" | ") for line in told.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 4 * 2 + 1 + 2 + 2 * 2 * 2 and all(row[-1].strip(" |") in ("yes", "NO") for row in rows)
    for what in ("open 2,000 captions in 400 additions", "nothing to do, 100 known files", "hash 100 files of 0.7 MB"):
        assert what in told
    assert list(tmp_path.iterdir()) == []


def test_captions_stand_twice_as_often_as_asked_for(library):
    texts = [text.text for text in library.made_up(400).texts]
    assert 0.12 < 1 - len(set(texts)) / len(texts) < 0.2
    plain = [text.text for text in library.made_up(20, twice=0.0).texts]
    assert len(set(plain)) == len(plain) == 20 * library.CAPTIONS


def test_a_cache_without_shards_opens_as_one_with_them(library, tmp_path):
    made = library.listed(library.made_up(30), "made")
    library.committed_only(tmp_path / "cache", made, additions=7, format="hdf5")
    store = open_store(tmp_path / "cache")
    assert store.complete and store.captions() == made.captions
    for stream in ("video", "text"):
        assert len(open_library(tmp_path / "cache").stream(stream).additions) == 7


def test_what_is_loaded_is_a_cache_of_two_lists(library, tmp_path):
    asked = library.lists_to_load(None, 20)
    made = library.new_library(tmp_path / "cache", 8, "hdf5")
    for name, found in asked.items():
        library.extend(made, found, name)
    assert verify(made) == []
    first, second = (open_store(tmp_path / "cache", name) for name in asked)
    assert (first.numbers["video"] >= 0).all() and not np.array_equal(
        first.numbers["video"], second.numbers["video"][:18]
    )
    whole = FeatureTable.load(second, None)
    assert (whole.num_videos, whole.num_texts) == (20, 400) and len(whole.token_values) < int(whole.token_count.sum())


def test_real_lists_are_counted_where_they_are_at_hand(library, real_data):
    msrvtt, msvd = library.repeated(real_data / "annotations")
    assert "200,000 captions, 166,847 texts" in msrvtt.found and "80,827 captions, 61,846 texts" in msvd.found
    assert msrvtt.met and msvd.met
