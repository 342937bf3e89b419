"""The second pass on a vision transformer: low-rank additions, a 3d patch embedding, layers that stay, less memory."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from tuning import Stop, extracted, frames_of, load, tune, weights_in

from glscl.cache.schema import Annotations
from glscl.cache.store import Store
from glscl.common.errors import BackboneError, FingerprintError, UsageError
from glscl.evaluate.evaluation import evaluate_run
from glscl.evaluate.second_pass.from_pixels import evaluate_from_pixels
from glscl.evaluate.settings import EvaluateSettings
from glscl.extract.backbone.encoder import load_backbone
from glscl.train_head.distributed import make_accelerator
from glscl.train_head.finetuning.backbone_and_head import EndToEnd
from glscl.train_head.finetuning.gradients import backward_in_chunks
from glscl.train_head.finetuning.pixel_learner import PixelLearner, encode_table
from glscl.train_head.finetuning.settings import FinetuneSettings
from glscl.train_head.finetuning.towers import export_backbone, unfreeze
from glscl.train_head.heads import build_head
from glscl.train_head.settings import resolve
from glscl.train_head.train import train

WITHOUT_PEFT = importlib.util.find_spec("peft") is None
needs_peft = pytest.mark.skipif(WITHOUT_PEFT, reason="the peft package is not installed: pip install 'glscl[lora]'")
LORA = pytest.param({"lora_rank": 2}, marks=needs_peft, id="lora")


@pytest.fixture(scope="module")
def name(tiny_clip) -> str:
    return f"local-dir:{tiny_clip('clip_vit')}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, painted_corpus) -> Annotations:
    return painted_corpus(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def store(corpus, name, tmp_path_factory) -> Store:
    return extracted(corpus, tmp_path_factory.mktemp("made") / "cache", name, store_frames="uint8")


@pytest.fixture(scope="module")
def trained_head(store, tmp_path_factory) -> Path:
    """A run of train-head on that cache."""
    out = tmp_path_factory.mktemp("runs") / "head"
    train(store, out, resolve({"head": "projection", "epochs": 1, "batch_size": 8, "max_frames": 3}, dataset="made"))
    return out


def tuned_model(name: str, **options) -> EndToEnd:
    torch.manual_seed(0)
    backbone = load_backbone(name, precision="fp32", across_frames=True)
    unfreeze(backbone, FinetuneSettings(**options))
    return EndToEnd(backbone, build_head("projection", embed_dim=64))


def batch_of(store: Store, model: EndToEnd):
    """The first batch of eight, one caption of each video."""
    table = load(store)
    rows = np.arange(16).reshape(8, 2).T.copy()  # (S, B)
    with frames_of(store, table, model) as frames:
        learner = PixelLearner(model, table, store, frames, FinetuneSettings())
        return learner.batches(rows, start=0, share=slice(0, 8), mask=False).on(torch.device("cpu"), 0)


def gradients_of(model: EndToEnd, batch) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad(set_to_none=True)
    model(*batch).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# --- low-rank additions ------------------------------------------------------------------------------------------------


@needs_peft
def test_low_rank_additions_train_alone_and_leave_merged(name, tmp_path):
    torch.manual_seed(0)
    frames = torch.randint(0, 255, (2, 32, 32, 3), dtype=torch.uint8)
    before = load_backbone(name, precision="fp32").encode_frames(frames)
    model = tuned_model(name, lora_rank=2)
    backbone = model.backbone
    np.testing.assert_allclose(backbone.encode_frames(frames), before, atol=1e-5)
    trained = [n for n, p in model.towers.named_parameters() if p.requires_grad]
    assert all("lora_" in n for n in trained)
    assert {n.split(".")[0] for n in trained} == {"visual", "transformer"}
    with torch.no_grad():
        for parameter_name, parameter in model.towers.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(std=0.1)
    said = export_backbone(tmp_path, "best", backbone)
    loaded = load_backbone(name, str(tmp_path / "backbone.safetensors"), precision="fp32")
    assert loaded.description.weights == said["weights"] and not np.allclose(loaded.encode_frames(frames), before)
    np.testing.assert_allclose(loaded.encode_frames(frames), backbone.encode_frames(frames), atol=1e-4)


@pytest.mark.parametrize("options", [LORA, {"patch_embedding": "3d"}])
def test_before_the_first_step_features_are_those_of_the_cache(store, name, options):
    model, table = tuned_model(name, **options), load(store, "val")
    with frames_of(store, table, model) as frames:
        now = encode_table(model, table, store, frames, device="cpu", batch=2)
    torch.testing.assert_close(now.frame_features, table.frame_features, rtol=0, atol=1e-3)
    torch.testing.assert_close(now.text_features, table.text_features, rtol=0, atol=1e-3)


@needs_peft
def test_low_rank_additions_are_trained_saved_resumed_and_extracted_with(store, corpus, name, tmp_path):
    tuning = {"lora_rank": 2, "micro_batch": 3}
    tune(store, tmp_path / "straight", None, asked=tuning)
    before, after = load_backbone(name).model.state_dict(), weights_in(tmp_path / "straight")
    for key, value in before.items():
        has_addition = ".resblocks." in key and key.endswith((".weight", "in_proj_weight")) and ".ln_" not in key
        assert torch.equal(value, after[f"backbone-last/{key}"]) != has_addition, key
    assert {key.partition("/")[2] for key in after if key.startswith("backbone")} == before.keys()

    with pytest.raises(KeyboardInterrupt):
        tune(store, tmp_path / "stopped", None, asked=tuning, reporter=Stop(3))
    tune(store, tmp_path / "stopped", None, asked=tuning, resume=True)
    assert all(torch.equal(value, after[key]) for key, value in weights_in(tmp_path / "stopped").items())

    again = extracted(corpus, tmp_path / "again", name, str(tmp_path / "straight" / "backbone.safetensors"))
    by_features = evaluate_run(again, tmp_path / "straight", EvaluateSettings(confidence=False)).result
    by_pixels = evaluate_from_pixels(store, tmp_path / "straight", videos=None).result
    for direction in ("text_to_video", "video_to_text"):
        assert by_features[direction] == by_pixels[direction]


@needs_peft
def test_a_frozen_tower_gets_no_low_rank_additions(name):
    model = tuned_model(name, lora_rank=2, freeze="vision")
    assert {n.split(".")[0] for n, p in model.towers.named_parameters() if p.requires_grad} == {"transformer"}


@needs_peft
def test_low_rank_additions_begin_with_the_seed_whatever_was_drawn_before(store, trained_head, tmp_path):
    for i, run in enumerate(("one", "two")):
        torch.manual_seed(i)
        tune(store, tmp_path / run, trained_head, asked={"epochs": 1, "lora_rank": 1})
    one, two = weights_in(tmp_path / "one"), weights_in(tmp_path / "two")
    assert all(torch.equal(value, two[key]) for key, value in one.items())


def test_without_the_peft_package_it_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match="`lora_rank` needs the peft package") as missing:
        tuned_model(name, lora_rank=2)
    assert str(missing.value.hint) == "pip install 'glscl[lora]'"


# --- a 3d patch embedding ----------------------------------------------------------------------------------------------


def test_a_3d_patch_embedding_starts_as_the_plain_one_and_sees_neighbours(name):
    backbone = load_backbone(name, precision="fp32")
    torch.manual_seed(0)
    frames = torch.randint(0, 255, (5, 32, 32, 3), dtype=torch.uint8)
    before = backbone.encode_frames(frames)
    unfreeze(backbone, FinetuneSettings(patch_embedding="3d"))
    embedding = backbone.model.visual.conv1
    embedding.lengths = (3, 2)
    np.testing.assert_allclose(backbone.encode_frames(frames), before, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        embedding.weight[:, :, 0].normal_()
    moved = backbone.encode_frames(frames)
    same = [np.allclose(a, b, atol=1e-5) for a, b in zip(moved, before)]
    assert same == [True, False, False, True, False]  # the first frame of each video has no frame before it
    with pytest.raises(BackboneError, match="needs an open_clip vision transformer"):
        unfreeze(load_backbone("demo"), FinetuneSettings(patch_embedding="3d"))


def test_a_3d_patch_embedding_is_trained_and_judged_from_pixels_but_not_extracted_with(store, name, tmp_path):
    run = tmp_path / "run"
    tune(store, run, None, asked={"patch_embedding": "3d", "backbone_lr_scale": 1.0})
    taps = weights_in(run)["backbone-last/visual.conv1.weight"]  # (D, 3, 3, P, P)
    assert taps.ndim == 5 and all(taps[:, :, i].any() for i in range(3))
    assert json.loads((run / "run.json").read_text())["weights"]["best"]["patch_embedding"] == "3d"
    judged = evaluate_from_pixels(store, run, EvaluateSettings(split="val"), videos=None).result
    best = json.loads((run / "run.json").read_text())["best"]["validation"]
    assert all(judged[direction]["R@1"] == best[direction]["R@1"] for direction in best)
    with pytest.raises(BackboneError, match="3d patch embedding: it sees each frame with its neighbours") as refused:
        load_backbone(name, str(run / "backbone.safetensors"))
    assert str(refused.value.hint).startswith("Judge it from pixels: ")
    with pytest.raises(FingerprintError) as refused:
        evaluate_run(store, run=run)
    assert refused.value.hint[:2] == ("Judge it from pixels", "eval") and refused.value.hint.settings["run"] == run


# --- what stays, and memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "frozen"),
    [
        (
            {"freeze": "text"},
            ("token_embedding", "positional_embedding", "transformer.", "ln_final", "text_projection"),
        ),
        ({"freeze": "vision"}, ("visual.",)),
        (
            {"freeze_layers": 1},
            (
                *("visual.conv1", "visual.class_embedding", "visual.positional_embedding", "visual.ln_pre"),
                *("visual.transformer.resblocks.0.", "transformer.resblocks.0."),
                *("token_embedding", "positional_embedding"),
            ),
        ),
    ],
)
def test_what_is_frozen_is_bit_equal_after_training_and_all_else_has_moved(store, name, tmp_path, options, frozen):
    tune(store, tmp_path / "run", None, asked={"epochs": 1, **options, "backbone_lr_scale": 1.0})
    before, after = load_backbone(name).model.state_dict(), weights_in(tmp_path / "run")
    for key, value in before.items():
        stays = key.startswith(frozen) or key == "logit_scale"
        assert torch.equal(value, after[f"backbone-last/{key}"]) == stays, key


@pytest.mark.parametrize("options", [{}, LORA])
def test_checkpointing_computes_blocks_twice_and_gives_the_same_gradient(store, name, options):
    plain, thrifty = tuned_model(name, **options), tuned_model(name, **options, gradient_checkpointing=True)
    calls = []
    for block in (thrifty.towers.visual.transformer.resblocks[0], thrifty.towers.transformer.resblocks[0]):
        block.ln_1.register_forward_hook(lambda *_: calls.append(1))
    batch = batch_of(store, plain)
    expected, found = gradients_of(plain, batch), gradients_of(thrifty, batch)
    assert len(calls) == 4 and found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.parametrize("options", [LORA, {"patch_embedding": "3d"}, {"gradient_checkpointing": True}])
def test_in_pieces_the_gradient_is_the_plain_one_with_every_option(store, name, options):
    model = tuned_model(name, **options)
    batch = batch_of(store, model)
    expected = gradients_of(model, batch)
    model.zero_grad(set_to_none=True)
    backward_in_chunks(model, *batch, micro_batch=3, accelerator=make_accelerator("cpu", "fp32"))
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        largest = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(
            found[key] / largest, gradient / largest, rtol=0, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}"
        )
