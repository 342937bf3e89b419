"""Addresses of other machines are refused by all but what reads and writes caches, and make no local folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from glscl import open_cache
from glscl.cache.creation import create_library
from glscl.common.addresses import local_path
from glscl.common.errors import NotFoundError, UsageError

ELSEWHERE = ["s3://bucket/cache", "gs://bucket/cache", "az://box/cache", "hf://datasets/me/it", "https://host/cache"]


@pytest.mark.parametrize("place", ["cache", "/data/cache", "/data/s3:/bucket", "c:/cache", "a b/c:d", "s3:", "é:x/y"])
def test_paths_are_paths(place):
    assert local_path(place, "out") == Path(place) == local_path(Path(place), "out")


@pytest.mark.parametrize("place", ["file:///data/my%20cache", Path("file:///data/my%20cache"), "FILE:/data/my%20cache"])
def test_addresses_of_files_are_paths(place):
    assert local_path(place, "out") == Path("/data/my cache")


@pytest.mark.parametrize("place", ELSEWHERE)
def test_other_addresses_are_refused_as_they_were_typed(place):
    for given in (place, Path(place)):
        with pytest.raises(UsageError, match=f"^`out` is {place}, which is not on this machine; expected a path"):
            local_path(given, "out")


@pytest.mark.parametrize(
    "words",
    [
        "extract --dataset demo --out ftp://host/cache",
        "extract --dataset folder --videos ftp://bucket/videos",
        "extract --dataset csv --annotations ftp://host/table.csv",
        "import-features --dataset csv --features s3://bucket/f.npz --text-features t.npy",
        "train-head --cache memory://bucket/cache",
        "train-head --out s3://bucket/run",
        "finetune --run hf://me/run",
        "eval --run s3://bucket/run",
        "eval --out s3://bucket/result.json",
        "search dog --cache memory://bucket/cache",
        "inspect memory://bucket/cache",
        "repair memory://bucket/cache",
        "convert here s3://bucket/there",
        "merge s3://bucket/all part",
        "report s3://bucket/run --out page",
        "export --out gs://bucket/vectors",
        "demo --out s3://bucket/demo",
    ],
)
def test_every_command_refuses_them_before_it_does_anything(glscl, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    status, out, err = glscl(*words.split())
    expected = (
        r"which is not on this machine|There is no cache at memory://bucket/cache|is ftp://.*; expected a path, or an"
    )
    assert status in (1, 2) and re.search(expected, err) and "Traceback" not in err, err
    assert os.listdir(tmp_path) == []


def test_from_python_and_from_files_they_are_refused_too(glscl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GLSCL_HOME", str(tmp_path / "home"))
    with pytest.raises(UsageError, match="`out` is ftp://host/cache; expected a path, or an address that begins with"):
        create_library("ftp://host/cache", None)
    with pytest.raises(UsageError, match="`cache` is ftp://host/cache; expected a path"):
        open_cache("ftp://host/cache")
    with pytest.raises(NotFoundError, match="There is no cache at memory://bucket/cache"):
        open_cache("memory://bucket/cache")
    (tmp_path / "settings.toml").write_text('videos = "s3://bucket/videos"\n')
    status, _, err = glscl("finetune", "--config", "settings.toml")
    assert status in (1, 2) and "--videos is" in err and "ot on this machine" in err, err
    monkeypatch.setenv("GLSCL_HOME", "s3://bucket/home")
    status, _, err = glscl("train-head")
    assert status in (1, 2) and "GLSCL_HOME` is s3://bucket/home" in err, err
    assert os.listdir(tmp_path) == ["settings.toml"]
