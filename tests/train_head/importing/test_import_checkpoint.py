"""Checkpoints of public programs become runs that are judged like any other; nothing but tensors is unpickled."""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file as save_pieces
from safetensors.torch import save_file

from glscl.cache.table import FeatureTable
from glscl.common.errors import CheckpointError, InputError, NonFiniteError, NotFoundError, UsageError
from glscl.evaluate.evaluation import evaluate_run
from glscl.evaluate.similarity import similarity_matrix
from glscl.train_head.checkpoint import load_run, read_run
from glscl.train_head.importing.foreign_weights import head_from_state_dict
from glscl.train_head.importing.import_checkpoint import import_checkpoint, read_state_dict

_spec = importlib.util.spec_from_file_location("golden_files", Path(__file__).with_name("test_foreign_weights.py"))
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)

PARITY = {"mask_padding": "false", "consistency_scale": "queries"}


def weights_of(name="glscl_ragged"):
    return golden.read(name)[2]


@pytest.fixture
def store(small_cache):
    """A cache of the golden weights' size."""
    return small_cache(dim=64, videos=14).fill()


@pytest.fixture
def file(tmp_path):
    """A golden GLSCL state dict as its program would have saved it."""
    torch.save(weights_of(), tmp_path / "pytorch_model.bin.4")
    return tmp_path / "pytorch_model.bin.4"


def with_backbone(store, pieces):
    (store.path / "backbone").mkdir(exist_ok=True)
    save_pieces(pieces, store.path / "backbone" / "pieces.safetensors")


@pytest.mark.parametrize("name", golden.GLSCL)
def test_an_imported_glscl_gives_the_scores_of_its_program(tmp_path, store, name):
    torch.save(weights_of(name), tmp_path / "file.bin")
    done = import_checkpoint(tmp_path / "file.bin", store, tmp_path / "run", source="glscl", options=PARITY)
    assert done.head == "glscl" and done.options["mask_padding"] is False
    head, record = load_run(done.run)
    arrays, _, _, text, video = golden.read(name)
    with torch.no_grad():
        np.testing.assert_allclose(head(text, video).similarity.numpy(), arrays["similarity"], rtol=0, atol=1e-5)
    assert record["options"] == head.options and record["complete"]


@pytest.mark.parametrize(("header", "expected"), golden.CLIP4CLIP.items())
def test_an_imported_clip4clip_gives_the_scores_of_its_program(tmp_path, store, header, expected):
    temperature = {"clip.logit_scale": torch.tensor(np.log(100.0))}
    save_file({**weights_of(f"clip4clip_{header}"), **temperature}, tmp_path / "file.safetensors")
    done = import_checkpoint(tmp_path / "file.safetensors", store, tmp_path / "run", source="clip4clip")
    assert done.head == expected
    head, _ = load_run(done.run, "last")
    arrays, _, _, text, video = golden.read(f"clip4clip_{header}")
    scale = head.logit_scale.exp().item()
    with torch.no_grad():
        found = head(text, video).similarity.numpy() * scale
    np.testing.assert_allclose(found, arrays["similarity"], rtol=0, atol=1e-5 * scale)


def test_eval_accepts_the_run_and_says_how_it_was_chosen(tmp_path, store, file):
    done = import_checkpoint(file, store, tmp_path / "run", source="glscl", command="glscl import-checkpoint")
    notes = []
    judged = evaluate_run(store, done.run, note=notes.append)
    assert judged.result["selection"] == "last" and judged.result["head"] == "glscl"
    assert judged.result["frozen_backbone"] is True
    assert any("holds no backbone" in note for note in notes)
    head = head_from_state_dict(weights_of(), "glscl", embed_dim=64)
    table = FeatureTable.load(store, "test", max_frames=12)
    expected = similarity_matrix(head, table)
    assert similarity_matrix(load_run(done.run)[0], table).equal(expected)


def test_the_frames_that_are_looked_at_are_kept(tmp_path, store, file):
    done = import_checkpoint(file, store, tmp_path / "run", source="glscl", max_frames=2, frame_position="last")
    settings = read_run(done.run)["settings"]
    assert (settings["max_frames"], settings["frame_position"]) == (2, "last")
    with pytest.raises(UsageError, match="`frame_position` is 'middle'"):
        import_checkpoint(file, store, tmp_path / "other", source="glscl", frame_position="middle")


def test_what_was_dropped_is_listed_and_kept(tmp_path, store):
    weights = {**weights_of(), "weight_fc.0.weight": torch.ones(2, 2), "clip.visual.proj": torch.ones(3, 3)}
    torch.save({f"module.{key}": value for key, value in weights.items()}, tmp_path / "file.pt")
    done = import_checkpoint(tmp_path / "file.pt", store, tmp_path / "run", source="glscl")
    assert set(done.dropped_keys) == {"weight_fc.0.weight", "clip.visual.proj"}
    (dropped,) = [note for note in done.notes if "dropped" in note]
    assert "1 of weight_fc" in dropped and "1 of its backbone clip" in dropped
    assert set(read_run(done.run)["imported"]["dropped_keys"]) == set(done.dropped_keys)


@pytest.mark.parametrize(
    ("change", "expected"),
    [(lambda w: w.half(), "same"), (lambda w: w + 0.03 * w.roll(1, 0), "different"), (None, "unknown")],
)
def test_a_fine_tuned_backbone_is_told_from_the_one_of_the_cache(tmp_path, store, change, expected):
    piece = torch.randn(77, 64, generator=torch.Generator().manual_seed(0))
    if change is not None:
        with_backbone(store, {"positional_embedding": piece.numpy(), "logit_scale": np.float32([4.0])})
    inside = piece if change is None else change(piece)
    backbone = {"clip.positional_embedding": inside, "clip.logit_scale": torch.tensor(4.2)}
    torch.save({**weights_of(), **backbone}, tmp_path / "f")
    done = import_checkpoint(tmp_path / "f", store, tmp_path / "run", source="glscl")
    assert done.backbone == expected
    notes = []
    evaluate_run(store, done.run, note=notes.append)
    warned = [note for note in (*done.notes, *notes) if "trained on other features" in note]
    assert len(warned) == (0 if expected == "same" else 2)
    assert read_run(done.run)["frozen_backbone"] is True


@pytest.mark.parametrize(("pretrained", "frozen"), [("openai", True), ("tuned.pt", False)])
def test_features_of_its_own_tuned_backbone_are_not_called_frozen(tmp_path, small_cache, pretrained, frozen):
    made = small_cache(dim=64)
    made.spec.configuration["backbone"]["pretrained"] = pretrained
    store = made.fill()
    piece = torch.randn(77, 64)
    with_backbone(store, {"positional_embedding": piece.numpy()})
    torch.save({**weights_of(), "clip.positional_embedding": piece}, tmp_path / "f")
    done = import_checkpoint(tmp_path / "f", store, tmp_path / "run", source="glscl")
    assert done.backbone == "same" and read_run(done.run)["frozen_backbone"] is frozen


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"quick_gelu": True, "preprocessing": {"mean": [0.48145466, 0.4578275, 0.40821073], "size": 224}}, None),
        ({"quick_gelu": False, "preprocessing": {"resize_mode": "shortest"}}, "quick_gelu False instead of True"),
        ({"quick_gelu": True, "preprocessing": {"mean": [0.5] * 3}}, "mean 0.5,0.5,0.5 instead of 0.481,0.458,0.408"),
        ({"preprocessing": {"interpolation": "bilinear"}}, "interpolation bilinear instead of bicubic"),
        ({"name": "ViT-B-16-SigLIP", "quick_gelu": False, "preprocessing": {"mean": [0.5] * 3}}, None),
    ],
)
def test_the_same_weights_used_otherwise_are_another_backbone(tmp_path, small_cache, made, told):
    cache = small_cache(dim=64)
    cache.spec.configuration["backbone"] |= {"name": "ViT-B-32", **made}
    store = cache.fill()
    piece = torch.randn(77, 64)
    with_backbone(store, {"positional_embedding": piece.numpy()})
    torch.save({**weights_of(), "clip.positional_embedding": piece}, tmp_path / "f")
    done = import_checkpoint(tmp_path / "f", store, tmp_path / "run", source="glscl")
    assert done.backbone == ("different" if told else "same")
    assert (told in done.notes[0]) if told else "trained on other features" not in "".join(done.notes)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_a_state_dict_inside_a_training_checkpoint_is_found(tmp_path, key):
    weights = weights_of()
    torch.save({key: weights, "epoch": 4, "optimizer": {"lr": 1.0}}, tmp_path / "f")
    assert read_state_dict(tmp_path / "f").keys() == weights.keys()


class Payload:
    """What a malicious checkpoint looks like: unpickling it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_arbitrary_objects_are_never_unpickled(tmp_path, write):
    write({"spatial_queries": Payload(tmp_path / "hacked")}, tmp_path / "f")
    with pytest.raises(InputError, match=r"other Python objects.*torch.save\(model.state_dict\(\)") as caught:
        read_state_dict(tmp_path / "f")
    assert not (tmp_path / "hacked").exists() and "\n" not in str(caught.value)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path, file):
    whole = file.read_bytes()
    cases = {
        "empty": b"",
        "text": b"hello",
        "zip": b"PK\x03\x04 but no archive",
        "pickle": b"\x80\x02garbage",
        "cut": whole[: len(whole) // 2],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=str(tmp_path / name)):
            read_state_dict(tmp_path / name)
    with pytest.raises(NotFoundError, match="nothing"):
        read_state_dict(tmp_path / "nothing")
    torch.save([torch.ones(2)], tmp_path / "list")
    with pytest.raises(InputError, match="holds a list"):
        read_state_dict(tmp_path / "list")
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "odd")
    with pytest.raises(InputError, match="'epoch' is a int"):
        read_state_dict(tmp_path / "odd")
    torch.save({}, tmp_path / "none")
    with pytest.raises(InputError, match="no tensors"):
        read_state_dict(tmp_path / "none")


def test_a_checkpoint_that_does_not_fit_leaves_no_run(tmp_path, store, small_cache, file):
    narrow = small_cache(name="narrow", dim=8).fill()
    with pytest.raises(CheckpointError, match="expects"):
        import_checkpoint(file, narrow, tmp_path / "run", source="glscl")
    with pytest.raises(CheckpointError, match="unknown keys"):
        import_checkpoint(file, store, tmp_path / "run", source="clip4clip")
    with pytest.raises(UsageError, match="`source` is 'nothing'"):
        import_checkpoint(file, store, tmp_path / "run", source="nothing")
    with pytest.raises(UsageError, match="no option 'tau'"):
        import_checkpoint(file, store, tmp_path / "run", source="glscl", options={"tau": "3"})
    broken = weights_of()
    broken["spatial_queries"][0, 0] = torch.nan
    torch.save(broken, tmp_path / "nan")
    with pytest.raises(NonFiniteError, match="queries"):
        import_checkpoint(tmp_path / "nan", store, tmp_path / "run", source="glscl")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_left_alone(tmp_path, store, file):
    done = import_checkpoint(file, store, lambda head: tmp_path / head, source="glscl")
    assert done.run == tmp_path / "glscl"
    before = (done.run / "run.json").read_bytes()
    with pytest.raises(UsageError, match="holds a run already"):
        import_checkpoint(file, store, done.run, source="glscl", options=PARITY)
    assert (done.run / "run.json").read_bytes() == before
