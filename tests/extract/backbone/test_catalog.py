"""Which backbones there are, what of them is on this machine, and folders for machines without a network."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import open_clip
import pytest
import torch
from stand_ins import TEXTS, VISION, folder_of

from glscl.cache.lock import hold_folder
from glscl.common.errors import BackboneError, BusyError, UsageError
from glscl.extract.backbone import fetching, loading
from glscl.extract.backbone.catalog import config_of, context_of, defaults_for, entries, needed_files
from glscl.extract.backbone.encoder import load_backbone
from glscl.extract.backbone.fetching import fetch
from glscl.extract.backbone.fitting import empty_model
from glscl.extract.backbone.parameters import MILLIONS
from glscl.extract.backbone.weight_settings import published
from glscl.extract.settings import WeightSettings


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub; `hub(repository, file)` puts a file into it."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)

    def put(repository: str, file: str) -> None:
        folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / "main").write_text("abc")
        (folder / "snapshots" / "abc").mkdir(parents=True, exist_ok=True)
        (folder / "snapshots" / "abc" / file).write_text("{}")

    return put


def test_every_published_weight_is_listed_with_what_it_needs(hub):
    found = {(entry.backbone, entry.pretrained): entry for entry in entries()}
    assert found.keys() == set(open_clip.list_pretrained())
    siglip = found["ViT-SO400M-14-SigLIP", "webli"]
    assert (siglip.embed_dim, siglip.pixels, siglip.words) == (1152, 224, 16)
    assert siglip.missing == ("weights", "tokenizer") and not siglip.at_hand
    assert found["nllb-clip-base", "v1"].missing == ("weights", "tokenizer", "config")
    assert found["ViT-B-32", "openai"].quick_gelu and not found["ViT-B-32", "laion2b_s34b_b79k"].quick_gelu


def test_what_is_in_the_cache_of_the_hub_is_at_hand(hub):
    assert list(entries("SigLIP", offline=True)) == []
    hub("timm/ViT-B-16-SigLIP", "open_clip_model.safetensors")
    assert [file.what for file in needed_files("ViT-B-16-SigLIP", "webli") if file.path] == ["weights"]
    hub("timm/ViT-B-16-SigLIP", "tokenizer.json")
    assert [entry.backbone for entry in entries("siglip", offline=True)] == ["ViT-B-16-SigLIP"]


def test_words_are_not_more_than_a_backbone_reads_by_default():
    assert {name: context_of(name) for name in ("ViT-B-32", "PE-Core-B-16", "ViT-SO400M-14-SigLIP", "demo", "no/such")} == {
        "ViT-B-32": 77, "PE-Core-B-16": 32, "ViT-SO400M-14-SigLIP": 16, "demo": 32, "no/such": None,
    }  # fmt: skip
    assert defaults_for({"max_words": 64, "fps": 1.0}, "PE-Core-B-16") == {"max_words": 32, "fps": 1.0}
    assert defaults_for({"max_words": 64}, "ViT-B-32") == {"max_words": 64}
    assert defaults_for({"max_words": 64}, "hf-hub:org/repo") == {"max_words": 64}


def test_the_configurations_are_those_of_open_clip():
    for name in ("ViT-B-32", "coca_ViT-B-32", "nllb-clip-base"):
        assert config_of(name) == open_clip.get_model_config(name)


def test_parameters_are_counted():
    assert MILLIONS.keys() >= set(open_clip.list_models()) - {
        name for name in open_clip.list_models() if "tiny" in name
    }
    for name in ("ViT-S-32-alt", "RN50"):
        assert MILLIONS[name] == pytest.approx(sum(p.numel() for p in empty_model(name).parameters()) / 1e6, abs=0.06)


def test_offline_each_missing_file_is_named_with_the_ways_that_work(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub("timm/ViT-B-16-SigLIP", "tokenizer.json")
    with pytest.raises(BackboneError) as caught:
        load_backbone("ViT-B-16-SigLIP", "webli")
    assert caught.value.message == (
        "Cannot load the weights of ViT-B-16-SigLIP/webli: its weights (open_clip_model.safetensors of "
        "timm/ViT-B-16-SigLIP) are not on this machine, and the hub cannot be reached"
    )
    hint = caught.value.hint
    assert (hint.command, hint.settings) == ("fetch", {"": "ViT-B-16-SigLIP", "pretrained": "webli"})
    assert (
        "local-dir:FOLDER" in hint.text
        and "pretrained=FILE" in hint.otherwise.text
        and "HF_HOME" in hint.otherwise.text
    )


def test_a_missing_tokenizer_is_told_from_missing_weights(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = {
        "context_length": 24,
        "vocab_size": 100,
        "width": 64,
        "heads": 2,
        "layers": 1,
        "hf_tokenizer_name": "org/tokens",
    }
    (tmp_path / "tiny-hub.json").write_text(json.dumps({"embed_dim": 64, "vision_cfg": VISION, "text_cfg": text}))
    open_clip.add_model_config(tmp_path / "tiny-hub.json")
    (tmp_path / "weights").mkdir()
    torch.save(open_clip.create_model("tiny-hub").state_dict(), tmp_path / "weights" / "w.pt")
    with pytest.raises(BackboneError, match="Cannot load the tokenizer of tiny-hub") as caught:
        load_backbone("tiny-hub", str(tmp_path / "weights" / "w.pt"))
    assert "\x1b" not in str(caught.value)
    folder_of(tmp_path / "siglip", "siglip")
    (tmp_path / "siglip" / "open_clip_config.json").unlink()
    torch.save(open_clip.create_model("tiny-hub").state_dict(), tmp_path / "siglip" / "w.pt")
    backbone = load_backbone("tiny-hub", str(tmp_path / "siglip" / "w.pt"))
    assert backbone.tokenize(["ab"]).ids[0, :3].tolist() == [70, 71, 1], "the tokenizer beside the weights is taken"


@pytest.mark.parametrize("kind", ["siglip", "mt5", "m2m_100"])
def test_a_fetched_folder_gives_the_same_wherever_it_lies(tmp_path, kind):
    origin = load_backbone(f"local-dir:{folder_of(tmp_path / kind, kind)}")
    done = fetch(f"local-dir:{tmp_path / kind}", None, tmp_path / "fetched")
    assert "open_clip_model.safetensors" in done.files and done.weights == origin.description.weights
    os.rename(tmp_path / kind, tmp_path / "gone")
    os.rename(tmp_path / "fetched", tmp_path / "elsewhere")
    moved = load_backbone(f"local-dir:{tmp_path / 'elsewhere'}")
    assert moved.description == origin.description
    np.testing.assert_array_equal(moved.encode_texts(TEXTS).text_features, origin.encode_texts(TEXTS).text_features)


def test_a_fetched_file_of_weights_keeps_how_it_is_used_and_what_it_is_called(tmp_path):
    (tmp_path / "tiny-fetched.json").write_text(
        json.dumps({"embed_dim": 64, "vision_cfg": VISION, "text_cfg": {"width": 64, "heads": 2, "layers": 1}})
    )
    open_clip.add_model_config(tmp_path / "tiny-fetched.json")
    torch.save(open_clip.create_model("tiny-fetched").state_dict(), tmp_path / "w.pt")
    asked = WeightSettings(quick_gelu=True, mean="0.5")
    origin = load_backbone("tiny-fetched", str(tmp_path / "w.pt"), asked=asked)
    done = fetch("tiny-fetched", str(tmp_path / "w.pt"), tmp_path / "out", asked=asked)
    assert (done.name, done.pretrained) == ("tiny-fetched", "w.pt")
    for name, weights in ((f"local-dir:{done.folder}", None), ("tiny-fetched", str(done.folder))):
        again = load_backbone(name, weights)
        assert again.description == origin.description and again.notes == ()
    assert fetch("tiny-fetched", str(tmp_path / "w.pt"), tmp_path / "out", asked=asked) == done, (
        "over its own it writes again"
    )
    with hold_folder(done.folder, what="fetch"), pytest.raises(BusyError, match="out is being written by glscl fetch"):
        fetch("tiny-fetched", str(tmp_path / "w.pt"), tmp_path / "out", asked=asked)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="mine holds other files"):
        fetch("tiny-fetched", str(tmp_path / "w.pt"), tmp_path / "mine")
    with pytest.raises(UsageError, match="built in"):
        fetch("demo", None, tmp_path / "demo")


def test_a_folder_whose_fetching_was_killed_is_no_backbone_and_is_fetched_again(tmp_path, monkeypatch):
    source = f"local-dir:{folder_of(tmp_path / 'siglip', 'siglip')}"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fetching, "_save_tokenizer", Mock(side_effect=KeyboardInterrupt))
        fetch(source, None, tmp_path / "out")
    (tmp_path / "out" / ".open_clip_model.safetensors.0a0a0a0a.tmp").write_text("half")
    with pytest.raises(BackboneError):
        load_backbone(f"local-dir:{tmp_path / 'out'}")
    done = fetch(source, None, tmp_path / "out")
    assert load_backbone(f"local-dir:{done.folder}").description == load_backbone(source).description
    assert not [name for name in done.files if name.startswith((".", "locks"))]


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    error = loading.unavailable("ViT-B-16-SigLIP", None, "Cannot load the tokenizer", ImportError("No module named x"))
    assert "pip install 'glscl[siglip]'" in error.hint.text


def test_the_page_of_backbones_says_what_the_catalog_says():
    page = (Path(__file__).parents[3] / "docs" / "backbones.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", page, re.M)
    known = {(entry.backbone, entry.pretrained): entry for entry in entries()}
    assert len(rows) > 15
    for backbone, pretrained, *numbers in rows:
        entry = known[backbone, pretrained]
        assert list(map(int, numbers)) == [round(entry.millions), entry.embed_dim, entry.pixels, entry.words], backbone
    unsure = {name for name in open_clip.list_models() if len({str(used) for used in published(name).values()}) > 1}
    listed = page.partition("a note names it: for ")[2].partition(", whose")[0]
    assert unsure == set(re.findall(r"`([\w-]+)`", listed))
