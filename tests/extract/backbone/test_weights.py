"""Weights from files of every kind, used as they were trained; what does not fit is refused with what it looks like."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections import Counter

import numpy as np
import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from safetensors.torch import save_file
from stand_ins import VISION
from torch import nn

from glscl.common.clip_names import OPENAI_SETTINGS, ClipWeights
from glscl.common.errors import BackboneError, UsageError
from glscl.common.state_dicts import weights_hash
from glscl.extract.backbone.encoder import backbone_of_cache, expected, load_backbone
from glscl.extract.backbone.fetching import fetch
from glscl.extract.backbone.fitting import _MOST_BUILT, architecture_of, architectures_of
from glscl.extract.backbone.loading import NotInitialised, load_model
from glscl.extract.backbone.weight_settings import PREPROCESSING, decide, published, recorded, said
from glscl.extract.settings import WeightSettings

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
CONFIG = {"embed_dim": 48, "vision_cfg": VISION, "text_cfg": TEXT}
TEXTS = ["a man is cooking", "two dogs run"]
PLAIN = ClipWeights({}, "open_clip", "", (), None)


@pytest.fixture(scope="module")
def tiny(architecture):
    """The name of a small architecture, as open_clip knows its own."""
    return architecture("tiny-weights", CONFIG)


@pytest.fixture(scope="module")
def weights(tiny):
    torch.manual_seed(0)
    return open_clip.create_model(tiny).state_dict()


def frames_of(backbone) -> np.ndarray:
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    return backbone.encode_frames(frames)


FORMS = {
    "model": lambda w: {"model": w},
    "model_state_dict": lambda w: {"model_state_dict": w},
    "compiled": lambda w: {f"_orig_mod.{key}": value for key, value in w.items()},
    "of a whole model": lambda w: (
        {f"clip.{key}": value for key, value in w.items()} | {"spatial_queries": torch.ones(8, 48)}
    ),
    "half": lambda w: {key: value.half() for key, value in w.items()},
    "with OpenAI's numbers": lambda w: w | {"attn_mask": torch.zeros(77, 77)},
    "as a custom text model": lambda w: {
        key if key.startswith(("visual.", "logit")) else f"text.{key}": value for key, value in w.items()
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_the_same_whatever_they_come_in(tmp_path, tiny, weights, form):
    torch.save(FORMS[form](weights), tmp_path / "best.pth")
    found = load_model(tiny, str(tmp_path / "best.pth")).model.state_dict()
    for name, value in weights.items():
        expected = value.half().float() if form == "half" else value
        assert torch.equal(found[name], expected), name


def test_a_whole_model_of_a_public_program_is_used_as_openai_uses_its_weights(tmp_path, tiny, weights):
    torch.save(
        {f"module.clip.{k}": v for k, v in weights.items()} | {"global_mat_weight": torch.eye(48)}, tmp_path / "f"
    )
    torch.save(weights, tmp_path / "bare")
    whole, bare = (load_backbone(tiny, str(tmp_path / name)) for name in ("f", "bare"))
    assert whole.description.quick_gelu and not whole.notes
    assert not bare.description.quick_gelu
    (note,) = bare.notes
    assert (
        "does not say its mean, deviation, interpolation, resizing and activation" in note
        and "quick_gelu=False" in note
    )
    assert not np.allclose(frames_of(whole), frames_of(bare), atol=1e-3)


def test_random_numbers_that_weights_replace_are_not_drawn():
    weight, ones = torch.zeros(3, 3), torch.zeros(3)
    with NotInitialised():
        for draw in (nn.init.normal_, nn.init.kaiming_uniform_, nn.init.trunc_normal_, torch.Tensor.uniform_):
            assert draw(weight) is weight
        nn.init.ones_(ones)
        assert nn.Linear(3, 3).weight.shape == (3, 3)
    assert not weight.any() and ones.all()


class Script(nn.Module):
    """What OpenAI published: a TorchScript archive with three numbers beside the weights."""

    def __init__(self, model) -> None:
        super().__init__()
        self.visual, self.transformer, self.token_embedding = model.visual, model.transformer, model.token_embedding
        self.ln_final, self.positional_embedding = model.ln_final, model.positional_embedding
        self.text_projection, self.logit_scale = model.text_projection, model.logit_scale
        self.register_buffer("input_resolution", torch.tensor(32))

    def forward(self, pixels):
        return self.visual(pixels) * self.logit_scale + self.input_resolution + self.positional_embedding.sum()


def test_openais_archive_is_loaded_exactly_and_with_quickgelu(tmp_path, tiny, weights):
    model = open_clip.create_model(tiny)
    model.load_state_dict(weights)
    traced = torch.jit.trace(Script(model).eval(), torch.zeros(1, 3, 32, 32), check_trace=False)
    torch.jit.save(traced, tmp_path / "ViT.pt")
    backbone = load_backbone(tiny, str(tmp_path / "ViT.pt"))
    for name, value in weights.items():
        assert torch.equal(backbone.model.state_dict()[name], value), name
    assert backbone.description.quick_gelu and backbone.notes == ()


def test_weights_are_not_those_of_a_file_that_changes_later_nor_of_each_other(tmp_path, tiny, weights):
    file = tmp_path / "w.safetensors"  # which is mapped
    save_file(weights, file)
    backbone = load_backbone(tiny, str(file))
    file.write_bytes(bytes(file.stat().st_size))
    assert backbone.description.weights == weights_hash(backbone.model.state_dict()) == weights_hash(weights)
    tied = {**weights, "ln_final.bias": weights["ln_final.weight"]}
    torch.save(tied, tmp_path / "tied.pt")
    model = load_backbone(tiny, str(tmp_path / "tied.pt")).model
    model.ln_final.bias.data.zero_()
    assert torch.equal(model.ln_final.weight, weights["ln_final.weight"])


# --- Hugging Face ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory, tiny):
    """A folder as transformers saves a CLIPModel with its preprocessing, and the model."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=tower | {"vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407},
        vision_config=tower | {"image_size": 32, "patch_size": 8},
        projection_dim=48,
    )
    torch.manual_seed(1)
    model = transformers.CLIPModel(config).eval()
    folder = tmp_path_factory.mktemp("hugging") / "clip-tiny"
    model.save_pretrained(folder)
    pictures = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.25, 0.25, 0.25],
        "resample": 2,
        "size": {"shortest_edge": 32},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    return folder, model


@pytest.mark.parametrize("how", ["folder", "file", "local-dir"])
def test_a_clip_model_of_hugging_face_is_encoded_as_transformers_does(hugging_face, tiny, tmp_path, how):
    folder, model = hugging_face
    sources = {
        "folder": (tiny, folder),
        "file": (tiny, folder / "model.safetensors"),
        "local-dir": (f"local-dir:{folder}", "-"),
    }
    name, source = sources[how]
    backbone = load_backbone(name, str(source))
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=pixels)
        expected = getattr(expected, "pooler_output", expected)
        np.testing.assert_allclose(backbone.encode_frames(frames), expected, atol=2e-6)
        ids = open_clip.get_tokenizer(tiny)(TEXTS)
        expected = model.get_text_features(input_ids=ids)
        expected = getattr(expected, "pooler_output", expected)
        np.testing.assert_allclose(backbone.encode_texts(TEXTS).text_features, expected, atol=2e-6)
    about = backbone.description
    assert about.quick_gelu and about.name == tiny and backbone.notes == ()
    kept = {key: about.preprocessing[key] for key in ("mean", "interpolation", "resize_mode")}
    assert kept == {"mean": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "shortest"}
    done = fetch(name, str(source) if how != "local-dir" else None, tmp_path / "fetched")
    assert (done.name, done.weights) == (tiny, about.weights)


def test_a_folder_of_two_towers_without_a_temperature_has_the_usual_one(hugging_face, tiny, tmp_path):
    """As Searchium published its CLIP4Clip."""
    from safetensors.torch import load_file, save_file

    folder, _ = hugging_face
    shutil.copytree(folder, tmp_path / "towers")
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if name != "logit_scale"},
        tmp_path / "towers" / "model.safetensors",
    )
    whole, towers = load_backbone(tiny, str(folder)), load_backbone(tiny, str(tmp_path / "towers"))
    np.testing.assert_array_equal(frames_of(towers), frames_of(whole))
    assert towers.logit_scale == pytest.approx(np.log(100)) and towers.notes == ()


CLIP_DEFAULTS = {
    "model_type": "clip",
    "vision_config": {"num_attention_heads": 2},
    "text_config": {"num_attention_heads": 2},
}


@pytest.mark.parametrize(
    ("tower", "said"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads 4 of its vision tower, which open_clip computes with 2"),
        ({"layer_norm_eps": 1e-3}, "layer_norm_eps 0.001 of its vision tower, which open_clip computes with 1e-05"),
        ({"hidden_act": "relu"}, "activation quick_gelu and relu; open_clip's towers have quick_gelu or gelu"),
    ],
)
def test_what_shapes_hide_is_compared_with_the_configuration_of_transformers(hugging_face, tiny, tmp_path, tower, said):
    shutil.copy(hugging_face[0] / "model.safetensors", tmp_path)
    config = json.loads(json.dumps(CLIP_DEFAULTS))
    config["vision_config"] |= tower
    (tmp_path / "config.json").write_text(json.dumps(config))
    for source in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(BackboneError, match=re.escape(said)):
            load_backbone(tiny, str(source))


def test_a_picture_that_transformers_cuts_out_of_a_larger_one_is_noted(hugging_face, tiny, tmp_path):
    for name in ("model.safetensors", "config.json"):
        shutil.copy(hugging_face[0] / name, tmp_path)
    pictures = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pictures))
    backbone = load_backbone(tiny, str(tmp_path))
    assert "resizes to 40 pixels and cuts 32 out of them" in backbone.notes[-1]
    assert (
        backbone.description.preprocessing["mean"] == [0.0] * 3
        and backbone.description.preprocessing["std"] == [1.0] * 3
    )


# --- what does not fit -------------------------------------------------------------------------------------------------


def test_weights_of_another_architecture_are_refused_with_the_one_they_fit(tmp_path, tiny, weights, hugging_face):
    other = json.loads(json.dumps(CONFIG)) | {"embed_dim": 40}
    (tmp_path / "tiny-other.json").write_text(json.dumps(other))
    open_clip.add_model_config(tmp_path / "tiny-other.json")
    torch.save(weights, tmp_path / "w.pt")
    with pytest.raises(BackboneError) as caught:
        load_backbone("tiny-other", str(tmp_path / "w.pt"))
    assert re.search(r"do not fit tiny-other: \S+ has shape \(\d+, 48\), expected \(\d+, 40\)", caught.value.message)
    assert f"look like open_clip weights of {tiny}" in caught.value.message
    assert caught.value.hint.text == f"Use `backbone={tiny}`"
    with pytest.raises(BackboneError, match=f"a Hugging Face CLIPModel of {tiny}"):
        load_backbone("tiny-other", str(hugging_face[0]))


def test_missing_and_unknown_names_are_told_without_torchs_own_words(tmp_path, tiny, weights):
    odd = {key: value for key, value in weights.items() if not key.startswith("visual.")} | {"surprise": torch.ones(1)}
    torch.save({"model": odd}, tmp_path / "w.pt")
    with pytest.raises(BackboneError, match=r"it lacks visual\.class_embedding and \d+ more and it has the unknown surprise; "
                                            "they look like the tower for captions alone") as caught:  # fmt: skip
        load_backbone(tiny, str(tmp_path / "w.pt"))
    assert "\n" not in str(caught.value) and "state_dict" not in str(caught.value)


TAMPERED = {
    "of two models": (
        lambda w: {f"{who}.{key}": value for who in ("student", "teacher") for key, value in w.items()},
        "several backbones: one below 'student.' and one below 'teacher.'",
    ),
    "quantised": (
        lambda w: w | {"visual.proj": (100 * w["visual.proj"]).to(torch.int8)},
        "visual.proj in torch.int8: quantised weights are not read",
    ),
    "diverged": (lambda w: w | {"visual.proj": w["visual.proj"] * torch.nan}, "NaN or infinite numbers in visual.proj"),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_what_would_give_wrong_numbers_without_a_word_is_refused(tmp_path, tiny, weights, how):
    tampered, said = TAMPERED[how]
    torch.save(tampered(weights), tmp_path / "w.pt")
    with pytest.raises(BackboneError, match=re.escape(said)):
        load_backbone(tiny, str(tmp_path / "w.pt"))


def test_what_writes_captions_may_hold_anything(tiny_clip, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_clip("coca"), tmp_path / "coca")
    found = load_file(folder / "open_clip_model.safetensors")
    found["text_decoder.text_projection"] = torch.full_like(found["text_decoder.text_projection"], torch.nan)
    save_file(found, folder / "open_clip_model.safetensors")
    assert load_backbone(f"local-dir:{folder}").encode_texts(TEXTS).text_features.isfinite().all()


def test_a_folder_of_another_model_is_not_called_by_the_name_that_was_given(tmp_path, tiny, weights):
    torch.save(weights, tmp_path / "open_clip_pytorch_model.bin")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG}))
    assert load_model(tiny, str(tmp_path)).name == tiny
    with pytest.raises(BackboneError, match="holds a model of other towers, not ViT-B-32") as error:
        load_model("ViT-B-32", str(tmp_path))
    assert f"local-dir:{tmp_path}" in str(error.value.hint)


def test_a_backbone_below_clip_alone_is_used_as_openais_with_a_note(tmp_path, tiny, weights):
    torch.save({f"clip.{key}": value for key, value in weights.items()}, tmp_path / "w.pt")
    loaded = load_model(tiny, str(tmp_path / "w.pt"))
    assert "looks like a whole CLIP4Clip" in loaded.notes[-1] and "`quick_gelu=False`" in loaded.notes[-1]
    assert load_model(tiny, str(tmp_path / "w.pt"), asked=WeightSettings(quick_gelu=True)).notes == ()


def test_a_head_alone_is_sent_to_where_heads_are_read(tmp_path, tiny):
    torch.save({"spatial_queries": torch.ones(8, 48), "transformerClip.x": torch.ones(1)}, tmp_path / "head.bin")
    with pytest.raises(BackboneError, match="looks like the head of GLSCL alone") as caught:
        load_backbone(tiny, str(tmp_path / "head.bin"))
    assert caught.value.hint.command == "import-checkpoint"


def test_an_architecture_is_known_by_its_shapes(weights, tiny):
    assert architectures_of(weights)[0] == tiny


def test_no_more_architectures_share_a_text_tower_than_are_compared():
    def tower(name: str) -> tuple:
        text = open_clip.get_model_config(name)["text_cfg"]
        sizes = (text.get("width"), text.get("vocab_size", 49408), text.get("context_length", 77) // 2)  # 76 is CoCa's
        return (*sizes, "timm_model_name" in open_clip.get_model_config(name)["vision_cfg"])

    ours = [name for name in open_clip.list_models() if "tiny" not in name]
    assert max(Counter(map(tower, ours)).values()) <= _MOST_BUILT


PARTS = {
    "an adapter": (
        lambda w: {"base_model.model.text_model.q_proj.lora_A.weight": torch.ones(8, 64)},
        r"look like an adapter \(LoRA\)",
    ),
    "the tower for pictures": (
        lambda w: {k.removeprefix("visual."): v for k, v in w.items() if k.startswith("visual.")},
        "look like the tower for pictures alone",
    ),
    "another network": (lambda w: {"layer1.0.conv.weight": torch.ones(3, 3)}, "look like no architecture of open_clip"),
}


@pytest.mark.parametrize("what", PARTS)
def test_what_is_no_backbone_is_told_by_what_it_looks_like(tmp_path, tiny, weights, what):
    made, said = PARTS[what]
    torch.save(made(weights), tmp_path / "w.pt")
    with pytest.raises(BackboneError, match=said) as caught:
        load_backbone(tiny, str(tmp_path / "w.pt"))
    assert (what == "an adapter") == ("merge_and_unload" in str(caught.value))
    with pytest.raises(BackboneError, match=f"shapes of no architecture of open_clip; they {said}"):
        architecture_of(tmp_path / "w.pt")


def test_a_folder_without_weights_and_arrays_of_numpy_are_told(tmp_path, tiny):
    np.save(tmp_path / "features.npy", np.ones(3))
    for source, words in (
        (tmp_path, "holds no weights"),
        (tmp_path / "features.npy", "holds arrays of NumPy, .* not as tiny"),
    ):
        with pytest.raises(BackboneError, match=words):
            load_backbone(tiny, str(source))


# --- how they are used -------------------------------------------------------------------------------------------------


def used(name: str, tmp_path, asked: WeightSettings | None = None, found: ClipWeights = PLAIN, script: bool = False):
    return decide(name, tmp_path / "w.pt", found, asked=asked, is_script=script)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ViT-B-16-SigLIP", {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_mode": "squash", "quick_gelu": False}),
        ("PE-Core-B-16", {"mean": (0.5,) * 3, "resize_mode": "squash", "interpolation": "bilinear"}),
        ("MobileCLIP-B", {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear"}),
        ("RN50x4", {"quick_gelu": True}),
    ],
)
def test_where_all_published_weights_agree_a_file_is_used_like_them(tmp_path, name, expected):
    decided = used(name, tmp_path)
    assert {key: decided.values[key] for key in expected} == expected
    assert decided.notes == []


def test_where_published_weights_differ_a_note_names_the_choice(tmp_path):
    decided = used("ViT-B-32", tmp_path)
    assert decided.values["mean"] == OPENAI_SETTINGS["mean"] and "quick_gelu" not in decided.values
    (note,) = decided.notes
    assert "its activation (QuickGELU or not)" in note and "`quick_gelu=False`" in note and "openai" in note


def test_what_the_user_says_wins_and_leaves_nothing_open(tmp_path):
    decided = used("ViT-B-32", tmp_path, WeightSettings(quick_gelu=True, mean="0.5", resize_mode="squash"))
    assert decided.values["quick_gelu"] and decided.values["mean"] == (0.5, 0.5, 0.5)
    assert decided.values["resize_mode"] == "squash" and decided.values["interpolation"] == "bicubic"
    assert decided.notes == []
    for text in ("a", "0.1,0.2", "2", ""):
        with pytest.raises(UsageError, match="no mean or deviation of pixels"):
            used("ViT-B-32", tmp_path, WeightSettings(std=text))
    with pytest.raises(UsageError, match="`std` is '0'; pixels are divided by it"):
        used("ViT-B-32", tmp_path, WeightSettings(std="0"))


def test_every_published_preprocessing_comes_back_from_a_cache():
    for name in ("MobileCLIP-B", "ViT-B-16-SigLIP", "ViT-H-14-CLIPA", "ViT-L-14"):
        for use in published(name).values():
            made = {key: list(use[key]) if key in ("mean", "std") else use[key] for key in PREPROCESSING}
            assert said(recorded({"quick_gelu": use["quick_gelu"], "preprocessing": made})) == use


def test_what_is_expected_of_published_weights_is_what_open_clip_does_with_them():
    for name in (
        "MobileCLIP-B",
        "ViT-B-16-SigLIP",
        "ViT-B-16-SigLIP2-512",
        "ViT-H-14-CLIPA-336",
        "ViT-L-14",
        "coca_ViT-B-32",
    ):
        size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
        for tag in open_clip.list_pretrained_tags_by_model(name):
            about = merge_preprocess_dict(
                PreprocessCfg(size), {**open_clip.get_pretrained_cfg(name, tag), "size": size}
            )
            assert expected(name, tag, None) == about, (name, tag)
        assert expected(name, "a file", WeightSettings(resize_mode="longest"))["resize_mode"] == "longest"


def test_a_configuration_beside_the_file_counts_where_it_is_of_the_same_model(tmp_path):
    towers = open_clip.get_model_config("ViT-B-32")
    config = {"model_cfg": towers | {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.4, 0.4, 0.4]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    decided = used("ViT-B-32", tmp_path)
    assert decided.values["quick_gelu"] and decided.values["mean"] == (0.4, 0.4, 0.4) and decided.notes == []
    for other in ("ViT-L-14", "ViT-B-16"):  # of other sizes, and of the same size of features
        assert not used(other, tmp_path).values.get("quick_gelu"), "of another model"
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(BackboneError, match="open_clip_config.json cannot be read"):
        used("ViT-B-32", tmp_path)


def test_openais_archives_and_whole_models_are_used_as_openai_does(tmp_path):
    assert used("ViT-B-32", tmp_path, script=True) == (OPENAI_SETTINGS, [])
    assert used("ViT-B-32", tmp_path, found=PLAIN._replace(program="xpool")) == (OPENAI_SETTINGS, [])
    built_on = used("ViT-B-16-SigLIP", tmp_path, found=PLAIN._replace(program="clip4clip"))
    assert built_on.values["mean"] == (0.5,) * 3, "a program of theirs on an architecture that is not OpenAI's"


def test_what_is_said_of_weights_is_in_the_fingerprint_and_comes_back_with_the_cache(tmp_path, tiny, weights):
    torch.save(weights, tmp_path / "w.pt")
    plain = load_backbone(tiny, str(tmp_path / "w.pt"))
    asked = WeightSettings(quick_gelu=True, std="0.3", resize_mode="squash", interpolation="bilinear")
    told = load_backbone(tiny, str(tmp_path / "w.pt"), asked=asked)
    assert told.notes == () or "quick_gelu" not in told.notes[0]
    assert told.description.weights == plain.description.weights and told.description != plain.description
    assert told.description.preprocessing["std"] == [0.3, 0.3, 0.3]
    again = backbone_of_cache(
        {"backbone": dataclasses.asdict(told.description)}, tmp_path, str(tmp_path / "w.pt"), precision="fp32"
    )
    assert again.description == told.description
    np.testing.assert_array_equal(frames_of(again), frames_of(told))
