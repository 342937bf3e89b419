"""Run folders: what goes in comes out, and what does not belong is refused in one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from glscl.cache.lists import make_current, write_list
from glscl.common.errors import CheckpointError, FingerprintError, NotFoundError, UsageError
from glscl.train_head.checkpoint import (
    Resume,
    load_resume,
    load_run,
    load_weights,
    read_run,
    save_resume,
    save_weights,
    write_run,
)
from glscl.train_head.heads import build_head
from glscl.train_head.run_cache import check_cache, open_recorded


class Folder:
    """A run folder with a small glscl head."""

    def __init__(self, path: Path) -> None:
        torch.manual_seed(0)
        self.path = path
        self.head = build_head("glscl", embed_dim=8, queries=2, decoder_layers=1, aggregator_layers=1)
        self.run = {
            "head": "glscl",
            "options": self.head.options,
            "embed_dim": 8,
            "settings": {},
            "cache": "caches/made",
            "cache_fingerprint": "abc",
            "cache_configuration": {"embed_dim": 8, "backbone": {"name": "ViT-B-16", "pretrained": "openai"}},
            "history": [{"epoch": 1, "loss": 0.5}],
        }
        write_run(path, self.run)
        save_weights(path / "best.safetensors", self.head)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "run")


def one_line(error: pytest.ExceptionInfo) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_a_run_comes_back_with_its_options_and_weights(folder):
    head, run = load_run(folder.path)
    assert not head.training and head.options == folder.head.options
    assert run["history"] == folder.run["history"]
    for name, value in folder.head.state_dict().items():
        assert torch.equal(head.state_dict()[name], value)
    assert [json.loads(line) for line in (folder.path / "history.jsonl").read_text().splitlines()] == run["history"]


def test_nothing_but_safetensors_and_json_is_written(folder):
    assert sorted(p.name for p in folder.path.iterdir()) == ["best.safetensors", "history.jsonl", "run.json"]


def test_a_missing_run_says_how_to_make_one(tmp_path, folder):
    with pytest.raises(NotFoundError, match=r"Train one: train-head \(out=.*nothing"):
        load_run(tmp_path / "nothing")
    with pytest.raises(NotFoundError, match=r"last\.safetensors"):
        load_run(folder.path, "last")
    with pytest.raises(ValueError, match="best, last"):
        load_run(folder.path, "worst")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "schema 'list'"),
        (b'{"schema": "glscl.run/9"}', "glscl.run/9"),
        (b'{"schema": "glscl.run/1"}', "missing required field head"),
    ],
)
def test_a_run_json_that_is_none_is_refused(folder, content, message):
    (folder.path / "run.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as error:
        read_run(folder.path)
    assert "run.json" in one_line(error)


@pytest.mark.parametrize(
    "change", [{"head": "clip"}, {"options": {"speed": 3}}, {"options": {"queries": "many"}}, {"embed_dim": -1}]
)
def test_a_run_that_describes_no_head_is_refused(folder, change):
    write_run(folder.path, {**folder.run, **change})
    with pytest.raises(CheckpointError, match="describes no head of this version"):
        load_run(folder.path)


def test_truncated_and_overwritten_weights_are_refused(folder):
    path = folder.path / "best.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:6], b"", b"PK\x03\x04" + whole[4:], b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"best\.safetensors cannot be read") as error:
            load_run(folder.path)
        one_line(error)


def test_weights_of_another_head_name_what_is_missing_unknown_or_misshapen(folder, tmp_path):
    other = build_head("glscl", embed_dim=8, queries=2, decoder_layers=2, aggregator_layers=1)
    with pytest.raises(CheckpointError, match=r"lacks decoder\.layers\.1.* and 15 more"):
        load_weights(folder.path / "best.safetensors", other)
    save_weights(tmp_path / "two.safetensors", other)
    with pytest.raises(CheckpointError, match=r"has unknown decoder\.layers\.1"):
        load_weights(tmp_path / "two.safetensors", folder.head)
    wider = build_head("glscl", embed_dim=8, queries=3, decoder_layers=1, aggregator_layers=1)
    with pytest.raises(CheckpointError, match=r"queries has shape \(2, 8\), expected \(3, 8\)"):
        load_weights(folder.path / "best.safetensors", wider)


def test_where_a_run_stands_comes_back_exactly(tmp_path):
    assert load_resume(tmp_path) is None
    tensors = {"exp_avg.queries": torch.randn(3, 4), "step.queries": torch.tensor(7.0)}
    save_resume(tmp_path, Resume(tensors, {"epoch": 2, "losses": [0.1, 1 / 3]}))
    found = load_resume(tmp_path)
    assert found.state == {"epoch": 2, "losses": [0.1, 1 / 3]}
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.tensors[k], v) for k, v in tensors.items())
    (tmp_path / "resume.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match=r"resume\.safetensors cannot be read"):
        load_resume(tmp_path)


def test_weights_that_do_not_say_how_far_a_run_was_cannot_be_resumed(folder):
    (folder.path / "best.safetensors").rename(folder.path / "resume.safetensors")
    with pytest.raises(CheckpointError, match="does not say where the run stands"):
        load_resume(folder.path)


def test_a_cache_of_another_backbone_is_refused_with_a_hint_how_to_extract_again(small_cache, folder):
    store = small_cache().fill()
    with pytest.raises(FingerprintError) as error:
        check_cache(folder.path, folder.run, store)
    assert one_line(error) == (
        f"{store.path} was extracted with made/seed (8-d); {folder.path} expects ViT-B-16/openai (8-d). "
        "Extract again: extract (dataset=made, backbone=ViT-B-16)"
    )


def test_other_weights_under_the_same_name_are_refused_too(small_cache, folder):
    store = small_cache().fill()
    backbone = {"name": "made", "pretrained": "seed", "weights": "f00"}
    run = {**folder.run, "cache_configuration": {"embed_dim": 8, "backbone": backbone}}
    with pytest.raises(FingerprintError, match="weights: found None, expected 'f00'"):
        check_cache(folder.path, run, store)


def test_another_corpus_through_the_same_backbone_is_allowed_and_told(small_cache, folder):
    store = small_cache().fill()
    run = {**folder.run, "cache_configuration": {**store.configuration, "dtype": "bfloat16"}}
    assert check_cache(folder.path, run, store) == ["dtype: found 'float16', expected 'bfloat16'"]
    run |= {"cache_fingerprint": store.fingerprint, "list": "other", "list_hash": "0" * 16, "annotations": "1" * 16}
    other = f"list: found made@{store.list_hash}, expected other@{'0' * 16}"
    assert check_cache(folder.path, run, store) == [other]
    run |= {"list": "made", "annotations": store.list.annotations}
    assert check_cache(folder.path, run, store) == [
        other.replace("other", "made") + ", the same annotations with other files"
    ]
    assert check_cache(folder.path, {**run, "list_hash": store.list_hash}, store) == []


def with_list(cache, made):
    """A version of a list that counts from now on."""
    write_list(cache.path, made, cache.format)
    make_current(cache.path, made)
    return made


def shorter(cache, *, name="made"):
    """The list of a cache without its last video."""
    videos = cache.annotations.videos[:-1]
    texts = [text for text in cache.annotations.texts if text.video != cache.annotations.videos[-1].id]
    cache.annotations = replace(cache.annotations, videos=videos, texts=texts)
    return replace(cache.list, name=name)


def test_a_run_is_seen_at_the_version_of_its_list_whatever_was_added_since(small_cache, tmp_path):
    cache = small_cache()
    store = cache.fill()
    run = {"cache": str(cache.path), "list": "made", "list_hash": store.list_hash}
    newer = with_list(cache, shorter(cache))
    with_list(cache, shorter(cache, name="other"))
    assert open_recorded(run).list_hash == store.list_hash != newer.hash
    assert open_recorded(run, list="made").list_hash == newer.hash
    assert open_recorded({**run, "list": "renamed"}).list_hash == store.list_hash
    with pytest.raises(UsageError, match="has several lists: made, other"):
        open_recorded({"cache": str(cache.path)})

    gone = cache.path / "lists" / "made" / f"{store.list_hash}.json"
    gone.unlink()
    with pytest.raises(NotFoundError) as error:
        open_recorded(run)
    assert one_line(error).startswith(
        f"{cache.path} does not have the list made@{store.list_hash} any more; it has made@"
    )
    assert "Choose one with `list`" in one_line(error)


def test_another_cache_than_the_recorded_one_is_seen_at_its_only_list(small_cache, tmp_path):
    cache = small_cache()
    store = cache.fill()
    run = {"cache": str(cache.path), "list": "made", "list_hash": store.list_hash}
    copy = shutil.copytree(cache.path, tmp_path / "copy")
    assert open_recorded(run, copy).list_hash == store.list_hash
    other = small_cache(videos=7, name="elsewhere")
    assert open_recorded(run, other.fill().path).list_hash == other.list.hash
    with_list(other, shorter(other, name="second"))
    with pytest.raises(UsageError, match="several lists: made, second"):
        open_recorded(run, other.path)


def test_heads_are_sized_without_loading_the_compiler():
    """It takes torch longer to import its compiler than to evaluate a small head."""
    program = (
        "import sys, torch\n"
        "from glscl.train_head.checkpoint import _Unfilled\n"
        "from glscl.train_head.heads import HEADS, build_head\n"
        "with torch.device('meta'), _Unfilled():\n"
        "    built = [build_head(name, embed_dim=64) for name in HEADS]\n"
        "print(all(p.is_meta for head in built for p in head.parameters()), 'torch._dynamo' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False"]
