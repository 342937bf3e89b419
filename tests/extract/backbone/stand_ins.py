"""Tokenizers and text towers of the hub in small: of the kind of the real ones, with made-up vocabularies and random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
TEXTS = ["a man is cooking", "", "two dogs run", "Ein Hund"]

# kind → (padding, beginning, end) of its tokenizer, as the real one has them
SPECIAL = {
    "siglip": (1, None, 1),
    "gemma": (0, None, 1),
    "bert": (0, 2, 3),
    "roberta": (1, 0, 2),
    "xlm-roberta": (1, 0, 2),
    "mt5": (0, None, 1),
    "m2m_100": (1, 3, 2),
    "xlm-v": (1, 0, 2),
    "causal-last": (1, 0, 2),
    "custom-last": (1, 0, 2),
}
OF_OPEN_CLIP = (
    "siglip",
    "gemma",
    "bert",
    "xlm-v",
    "causal-last",
    "custom-last",
)  # kinds whose tower is open_clip's own


def tokenizer_of(kind: str) -> Any:
    """A fast tokenizer of letters, of transformers, with the special tokens where a real one of the kind has them."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    padding, beginning, end = SPECIAL[kind]
    names = {padding: "<pad>"} | ({beginning: "<s>"} if beginning is not None else {}) | {end: "</s>"}
    vocabulary = {names.get(i, f"<{i}>"): i for i in range(4)}
    vocabulary |= {chr(32 + i): 5 + i for i in range(95)} | {"<unk>": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    single = "$A </s>" if beginning is None else "<s> $A </s>"
    special = [(name, i) for i, name in names.items() if name in single]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=names[padding], eos_token="</s>", sep_token="</s>", unk_token="<unk>"
    )


def text_config(kind: str) -> Any:
    """A small configuration of transformers for a text tower."""
    from transformers import M2M100Config, MT5Config, RobertaConfig, XLMRobertaConfig

    shared = {"vocab_size": 100, "pad_token_id": SPECIAL[kind][0]}
    small = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "roberta":
        return RobertaConfig(**shared, **small, max_position_embeddings=90)
    if kind == "xlm-roberta":
        return XLMRobertaConfig(**shared, **small, max_position_embeddings=90)
    if kind == "mt5":
        return MT5Config(**shared, d_model=48, d_kv=24, d_ff=64, num_layers=2, num_heads=2)
    sizes = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in
             {"layers": 2, "attention_heads": 2, "ffn_dim": 64}.items()}  # fmt: skip
    return M2M100Config(**shared, **sizes, d_model=48, max_position_embeddings=90)


def model_config(folder: Path, kind: str) -> dict[str, Any]:
    """`model_cfg` of a small model with a text tower of the kind."""
    text: dict[str, Any] = {"hf_tokenizer_name": str(folder)}
    if kind in OF_OPEN_CLIP:
        text |= {"context_length": 24, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2}
        if kind == "xlm-v":  # MetaCLIP 2
            text |= {"pool_type": "eos", "eos_id": 2}
        elif kind.endswith(
            "-last"
        ):  # of nobody yet: nothing sees what stands behind it, but the last position is pooled
            text |= {"pool_type": "last"}
        else:  # SigLIP, SigLIP 2, CLIPA: they attend both ways and pool the last position
            text |= {"no_causal_mask": True, "pool_type": "last"}
        custom = kind in ("siglip", "gemma", "custom-last")
        return {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": text, "custom_text": custom}
    pooler = "cls_pooler" if kind == "m2m_100" else "mean_pooler"
    text |= {"hf_model_name": str(folder / "text"), "hf_pooler_type": pooler, "context_length": 77}
    return {"embed_dim": 64, "vision_cfg": VISION, "text_cfg": text}


def folder_of(folder: Path, kind: str) -> Path:
    """A folder that `local-dir:` reads: config, tokenizer and random weights."""
    import open_clip

    folder.mkdir(parents=True)
    tokenizer_of(kind).save_pretrained(folder)
    config = model_config(folder, kind)
    if "hf_model_name" in config["text_cfg"]:
        text_config(kind).save_pretrained(folder / "text")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return folder
