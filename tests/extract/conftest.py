"""A tiny open_clip model of each kind, with random weights, as a local folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

KINDS = ("clip_vit", "clip_resnet", "custom_text", "coca")


def _config(kind: str) -> dict:
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    if kind == "clip_resnet":
        vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 5}
    config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    if kind == "custom_text":
        config["custom_text"] = True
    if kind == "coca":
        config["custom_text"] = True
        text |= {"context_length": 76, "embed_cls": True, "output_tokens": True}
        vision |= {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True}
        config["multimodal_cfg"] = {
            "context_length": 76, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1, "attn_pooler_heads": 2
        }
    return config


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """`tiny_clip(kind)` → folder that `--backbone local-dir:FOLDER` loads."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    made: dict[str, Path] = {}

    def make(kind: str = "clip_vit") -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": _config(kind), "preprocess_cfg": {}}))
            torch.manual_seed(KINDS.index(kind))
            model = open_clip.create_model(f"local-dir:{folder}")
            state = {k: v.contiguous() for k, v in model.state_dict().items()}
            save_file(state, folder / "open_clip_model.safetensors")
            made[kind] = folder
        return made[kind]

    return make
