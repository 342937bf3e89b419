"""What importing open_clip leaves out, and that each model which needs it gets it."""

import json
import subprocess
import sys
import textwrap

import pytest

ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "max_position_embeddings": 40,
}


LIGHT = """
        import sys
        import glscl.extract.backbone
        import open_clip, torch, torchvision

        heavy = {"transformers", "timm", "torch._dynamo", "torch._dynamo.utils", "sympy"}
        if torch.__version__ < "2.7":
            heavy.discard("sympy")  # which comes with torchvision there, however little of it is imported
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """


def run(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_open_clip_comes_light():
    run(textwrap.dedent(LIGHT))


@pytest.mark.exhaustive
def test_whole_towers_come_when_they_are_asked_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ROBERTA))
    towers = f"""
        vision = open_clip.model._build_vision_tower(
            8, dict(timm_model_name="vit_tiny_patch16_224", timm_model_pretrained=False, image_size=224)
        )
        assert "timm" in sys.modules and isinstance(vision, open_clip.timm_model.TimmModel)
        assert isinstance(vision, open_clip.model.TimmModel)
        assert vision(torch.zeros(1, 3, 224, 224)).shape == (1, 8)
        text = open_clip.model._build_text_tower(
            8, dict(hf_model_name={str(tmp_path)!r}, hf_model_pretrained=False, hf_proj_type="linear",
                    hf_pooler_type="mean_pooler")
        )
        assert isinstance(text, open_clip.hf_model.HFTextEncoder)
        assert text(torch.tensor([[0, 5, 2]])).shape == (1, 8)
        assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0.0, 0, 2, 2]])], 1).item() == 1
        import torch._dynamo.utils
        assert torch._dynamo.utils.__file__
        """
    run(textwrap.dedent(LIGHT) + textwrap.dedent(towers))
