"""A training says what cannot work, and goes on with the run and the cache that it was."""

from __future__ import annotations

import os

import pytest

from glscl.commands.default_paths import newest_run
from glscl.train_head.checkpoint import write_run

QUICK = ("--head", "projection", "--epochs", 1, "--device", "cpu", "--validation", 0)


def line_of(answer):
    status, _, err = answer
    assert status
    return " ".join(line for line in err.splitlines() if line.startswith("glscl: "))


@pytest.mark.parametrize("size", [1, 8])
def test_a_batch_of_one_has_nothing_to_learn_from(glscl, small_cache, tmp_path, size):
    cache = small_cache(videos=24 if size == 1 else 1).fill()
    answer = glscl("train-head", *QUICK, "--cache", cache.path, "--out", tmp_path / "run", "--batch-size", size)
    assert "Nothing can be learnt from batches of 1" in line_of(answer)
    assert "--batch-size" in line_of(answer)


def test_there_must_be_a_run_to_go_on_with(glscl, small_cache, tmp_path):
    cache = small_cache(videos=24).fill()
    arguments = ("train-head", *QUICK, "--cache", cache.path, "--out", tmp_path / "typo", "--resume")
    assert "typo holds no run to go on with. Begin one: leave out --resume" in line_of(glscl(*arguments))
    (tmp_path / "typo").mkdir()
    assert "holds no run to go on with" in line_of(glscl(*arguments))
    assert glscl(*arguments[:-1])[0] == 0
    assert glscl(*arguments)[0] == 0


@pytest.mark.parametrize(
    "foreign",
    ["[]", '{"run": 1}', '{"head": "projection", "settings": {}, "history": []}', '{"model": "resnet", "epoch": 3}'],
)
def test_a_folder_of_another_program_is_not_gone_on_with(glscl, small_cache, tmp_path, foreign):
    cache = small_cache(videos=24).fill()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text(foreign)
    said = line_of(glscl("train-head", *QUICK, "--cache", cache.path, "--out", tmp_path / "other", "--resume"))
    assert str(tmp_path / "other") in said and "Unexpected" not in said, said
    assert (tmp_path / "other" / "run.json").read_text() == foreign and len(list((tmp_path / "other").iterdir())) == 1


def test_a_run_on_other_videos_is_not_gone_on_with(glscl, small_cache, tmp_path):
    own, other = small_cache(name="own", videos=24).fill(), small_cache(name="other", videos=30).fill()
    assert glscl("train-head", *QUICK, "--cache", own.path, "--out", tmp_path / "run")[0] == 0
    before = (tmp_path / "run" / "run.json").read_bytes()
    said = line_of(glscl("train-head", "--resume", "--cache", other.path, "--out", tmp_path / "run"))
    assert str(tmp_path / "run") in said, said
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_run_goes_on_with_its_own_cache_though_there_are_others(glscl, small_cache, tmp_path, monkeypatch):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    caches = [small_cache(name=f"home/caches/{name}", videos=24).fill() for name in ("a", "b")]
    assert glscl("train-head", *QUICK, "--cache", caches[1].path, "--out", tmp_path / "run")[0] == 0
    status, out, err = glscl("train-head", "--resume", "--out", tmp_path / "run")
    assert status == 0 and "is finished already" in out, err


def test_the_newest_run_may_be_one_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path))
    for second, name in enumerate(("a", "sweep-x/lr=0.1", "sweep-x/lr=0.2", "b")):
        write_run(tmp_path / "runs" / name, {"history": []})
        os.utime(tmp_path / "runs" / name / "run.json", (second, second))
        assert newest_run() == tmp_path / "runs" / name
