"""What a state dict is of, and Hugging Face's names as open_clip's, checked against transformers itself."""

from __future__ import annotations

import pytest
import torch

from glscl.common.clip_names import ClipWeights, clip_weights, program_of

transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
open_clip = pytest.importorskip("open_clip")

TOWER = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_(0, 0.05)
    return model.eval()


def features(found: object) -> torch.Tensor:
    """transformers returns a tensor, from version 5 on an object that holds it."""
    return getattr(found, "pooler_output", found)


@pytest.fixture(scope="module")
def hugging_face_clip():
    text = {**TOWER, "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407}
    picture = {**TOWER, "image_size": 32, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=picture, projection_dim=48)
    return randomised(transformers.CLIPModel(config))


def test_a_clip_model_of_hugging_face_gives_the_same_features_under_open_clips_names(hugging_face_clip):
    found = clip_weights(hugging_face_clip.state_dict())
    assert (found.form, found.root, found.others, found.program) == ("clip", "", (), None)
    picture = {"layers": 2, "width": 64, "patch_size": 8, "image_size": 32, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    model = open_clip.model.CLIP(48, picture, text, quick_gelu=True).eval()
    model.load_state_dict(found.weights)
    pixels, ids = torch.randn(2, 3, 32, 32), open_clip.SimpleTokenizer()(["a man", "two dogs run"])
    with torch.no_grad():
        expected = features(hugging_face_clip.get_image_features(pixel_values=pixels))
        torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-6)
        expected = features(hugging_face_clip.get_text_features(input_ids=ids))
        torch.testing.assert_close(model.encode_text(ids), expected, rtol=0, atol=1e-6)


def test_a_siglip_model_of_hugging_face_gives_the_same_features_under_open_clips_names():
    import timm

    text = {**TOWER, "vocab_size": 100, "max_position_embeddings": 16, "projection_size": 96}
    text |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    picture = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, "num_attention_heads": 4}
    picture |= {"image_size": 32, "patch_size": 16}
    theirs = randomised(transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=picture)))
    found = clip_weights(theirs.state_dict())
    assert found.form == "siglip"

    sizes = {"num_classes": 0, "depth": 2, "embed_dim": 96, "num_heads": 4, "img_size": 32}
    trunk = timm.create_model("vit_base_patch16_siglip_224", **sizes).eval()
    trunk.load_state_dict(part(found.weights, "visual.trunk."))
    pixels = torch.randn(2, 3, 32, 32)
    kind = open_clip.get_model_config("ViT-B-16-SigLIP")["text_cfg"]
    kind = {key: kind[key] for key in ("no_causal_mask", "proj_bias", "pool_type", "norm_kwargs")}
    sizes = {"context_length": 16, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2}
    tower = open_clip.model._build_text_tower(96, {**sizes, **kind}).eval()
    tower.load_state_dict(part(found.weights, "text."))
    ids = torch.randint(2, 100, (3, 16))
    with torch.no_grad():
        pictures = features(theirs.get_image_features(pixel_values=pixels))
        captions = features(theirs.get_text_features(input_ids=ids))
        # the base model of open_clip has the exact GELU, that of transformers its form with tanh
        torch.testing.assert_close(trunk(pixels), pictures, rtol=0, atol=1e-5)
        torch.testing.assert_close(tower(ids), captions, rtol=0, atol=1e-5)


def part(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def test_towers_with_projection_make_a_model_without_a_temperature(hugging_face_clip):
    """As Searchium published its CLIP4Clip: one folder that is read as a model of captions and as one of pictures."""
    weights = {name: value for name, value in hugging_face_clip.state_dict().items() if name != "logit_scale"}
    found = clip_weights(weights)
    assert found.form == "clip" and "visual.proj" in found.weights and "logit_scale" not in found.weights


@pytest.mark.parametrize("root", ["", "clip.", "model.backbone."])
def test_the_backbone_of_a_whole_model_is_found_wherever_it_hangs(root):
    inside = {"visual.proj": torch.zeros(2, 2), "transformer.x": torch.zeros(1), "attn_mask": torch.zeros(3)}
    outside = {"transformerClip.resblocks.0.ln_1.bias": torch.zeros(1), "lstm_visual.bias_ih_l0": torch.zeros(1)}
    found = clip_weights({f"{root}{name}": value for name, value in inside.items()} | outside)
    assert found.weights.keys() == {"visual.proj", "transformer.x"}, "a mask is no weight"
    assert set(found.others) == outside.keys() and found.program == "clip4clip"


def test_programs_are_told_by_names_that_only_they_have():
    assert program_of(["weight_fc.0.weight", "spatial_queries"]) == "glscl"
    assert program_of(["weight_fc.0.weight"]) == "dicosa"
    assert program_of(["text_weight_fc.0.weight", "transformerClip.resblocks.0.ln_1.bias"]) == "drl"
    assert program_of(["visual.proj", "frame_weight_fc"]) is None
    head = clip_weights({"spatial_queries": torch.zeros(1)})
    assert head._replace(others=()) == ClipWeights({}, "open_clip", "", (), "glscl")
