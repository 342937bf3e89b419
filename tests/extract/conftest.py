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


@pytest.fixture
def make_video():
    """`make_video(path, frames=12, fps=4)` writes a small H.264 clip whose brightness and hue tell its frames apart."""
    import av
    import numpy as np

    def make(path: Path, frames: int = 12, fps: int = 4, seed: int = 0, size: tuple[int, int] = (64, 48)) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        base = rng.integers(0, 200, (6, 8, 3))
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=fps)
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p"
            for i in range(frames):
                coarse = np.roll((base + 5 * i) % 256, i, axis=1).astype(np.uint8)
                picture = coarse.repeat(size[1] // 6, 0).repeat(size[0] // 8, 1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
        return path

    return make
