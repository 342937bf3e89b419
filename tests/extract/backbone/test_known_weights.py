"""Captions are encoded without reading the pictures' tower, once the file of weights is known; to the last bit as ever."""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from stand_ins import VISION, folder_of

from glscl.common.errors import FingerprintError
from glscl.common.state_dicts import weights_hash
from glscl.extract.backbone import encoder, known_weights
from glscl.extract.backbone.encoder import Backbone, backbone_of_cache, load_backbone
from glscl.extract.backbone.fitting import NotRead
from glscl.extract.backbone.known_weights import WeightsFile

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
TEXTS = ["a man is cooking", "two dogs run"]


@pytest.fixture(autouse=True)
def remembering(monkeypatch, tmp_path):
    """Small files that were just written are remembered too, in a place of the test's own."""
    monkeypatch.setattr(known_weights, "SETTLED", -1)
    monkeypatch.setattr(known_weights, "WORTH", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def tiny(architecture):
    return architecture("tiny-known", CONFIG)


@pytest.fixture(scope="module")
def weights(tiny):
    torch.manual_seed(0)
    return {**open_clip.create_model(tiny).state_dict()}


def of_texts(whole: Backbone, weights: str | None, where) -> Backbone:
    """The backbone of a cache that was made with another, for captions alone."""
    made = dataclasses.asdict(whole.description)
    return backbone_of_cache({"backbone": made}, where, weights, precision="fp32", texts_only=True)


def check(whole: Backbone, found: Backbone) -> None:
    assert isinstance(found.model.visual, NotRead) and found.weights == whole.weights
    for words in (["a"], TEXTS):
        for one, other in zip(found.encode_texts(words), whole.encode_texts(words)):
            assert torch.equal(one, other)
    assert found.embed_dim == whole.embed_dim and found.doubts("日本語") == whole.doubts("日本語")
    with pytest.raises(RuntimeError, match="pictures was not loaded"):
        found.model.encode_image(torch.zeros(1, 3, 32, 32))


FILES = {
    "w.pt": torch.save,
    "half.pt": lambda weights, path: torch.save({key: value.half() for key, value in weights.items()}, path),
    "old.pt": lambda weights, path: torch.save(weights, path, _use_new_zipfile_serialization=False),
    "w.safetensors": lambda weights, path: save_file(weights, path),
}


@pytest.mark.parametrize("file", FILES)
def test_captions_are_encoded_alike_from_half_a_file(tmp_path, tiny, weights, file):
    FILES[file](weights, tmp_path / file)
    whole = load_backbone(tiny, str(tmp_path / file))
    check(whole, of_texts(whole, str(tmp_path / file), tmp_path))


@pytest.mark.parametrize("kind", ["siglip", "bert", "causal-last"])
def test_captions_are_encoded_alike_by_towers_of_other_kinds(tmp_path, kind):
    whole = load_backbone(f"local-dir:{folder_of(tmp_path / kind, kind)}")
    check(whole, of_texts(whole, None, tmp_path))


def test_weights_that_changed_are_read_whole_whatever_their_times_say(tmp_path, tiny, weights):
    path = tmp_path / "w.pt"
    torch.save(weights, path)
    whole, about = load_backbone(tiny, str(path)), path.stat()
    torch.save({**weights, "visual.proj": weights["visual.proj"] + 1}, path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size
    with pytest.raises(FingerprintError, match="made with other weights"):
        of_texts(whole, str(path), tmp_path)


def test_a_known_file_is_not_hashed_again_and_one_that_changed_is(tmp_path, tiny, weights, monkeypatch):
    hashed, hash_of = [], encoder.weights_hash
    monkeypatch.setattr(encoder, "weights_hash", lambda found: hashed.append(hash_of(found)) or hashed[-1])
    save_file(weights, tmp_path / "w.safetensors")
    found = [load_backbone(tiny, str(tmp_path / "w.safetensors"), precision=each) for each in ("fp32", "fp32", "bf16")]
    assert len(hashed) == 1 and {each.weights for each in found} == {*hashed}
    save_file({**weights, "visual.proj": weights["visual.proj"] + 1}, tmp_path / "w.safetensors")
    assert load_backbone(tiny, str(tmp_path / "w.safetensors")).weights == hashed[1] != hashed[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("file", FILES)
def test_a_backbone_holds_nothing_of_the_file_that_it_was_read_from(tmp_path, tiny, weights, file, precision):
    FILES[file](weights, tmp_path / file)
    found = load_backbone(tiny, str(tmp_path / file), precision=precision)
    before, pieces = found.encode_texts(TEXTS), found.tensors_for_heads()
    with open(tmp_path / file, "r+b") as opened:
        opened.write(bytes(os.path.getsize(tmp_path / file)))
    assert all(map(torch.equal, before, found.encode_texts(TEXTS)))
    again = found.tensors_for_heads()
    assert all(np.array_equal(pieces[name], again[name]) for name in pieces) and again.keys() == pieces.keys()
    assert found.weights == hash_in(weights, file)


def hash_in(weights, file: str) -> str:
    """The hash of weights as a file holds them."""
    return weights_hash({key: value.half() if file == "half.pt" else value for key, value in weights.items()})


def test_what_cannot_be_told_is_not_remembered(tmp_path, tiny, weights, monkeypatch):
    path = tmp_path / "w.pt"
    torch.save(weights, path)
    seen = WeightsFile.of(tiny, path)
    path.touch()
    seen.remember("0123456789abcdef")
    assert seen.known_hash() is None, "it was written to while it was read"
    monkeypatch.setattr(known_weights, "SETTLED", 60)
    assert WeightsFile.of(tiny, path) is None, "another change might leave its times as they are"
    assert WeightsFile.of(tiny, tmp_path / "none.pt") is WeightsFile.of(tiny, None) is None


@pytest.mark.parametrize("note", ["", "{", "[]", '{"hash": 1}', "[" * 99999], ids=range(5))
def test_what_is_no_note_is_as_none(tmp_path, tiny, weights, note):
    path = tmp_path / "w.pt"
    torch.save(weights, path)
    load_backbone(tiny, str(path))
    (kept,) = (tmp_path / "home/glscl/weights").iterdir()
    assert WeightsFile.of(tiny, path).known_hash()
    kept.write_text(note)
    assert WeightsFile.of(tiny, path).known_hash() is None
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").write_text("no folder")
    assert load_backbone(tiny, str(path)).weights, "that it cannot be kept is no failure"


def test_a_note_with_another_hash_than_was_kept_is_as_none(tmp_path, tiny, weights):
    path = tmp_path / "w.pt"
    torch.save(weights, path)
    right = load_backbone(tiny, str(path)).weights
    (kept,) = (tmp_path / "home/glscl/weights").iterdir()
    kept.write_text(kept.read_text().replace(right, right[::-1]))
    assert WeightsFile.of(tiny, path).known_hash() is None and load_backbone(tiny, str(path)).weights == right
    assert WeightsFile.of(tiny, path).known_hash() == right, "kept anew"
