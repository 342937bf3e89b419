"""Every architecture of open_clip against open_clip itself: the same frames and captions, the largest difference.

    python benchmarks/zoo.py --from 200 --to 500            # architectures of so many million parameters
    python benchmarks/zoo.py ViT-L-14 --out zoo.jsonl       # or by name; a row each is added to a file
    python benchmarks/zoo.py --from 500 --to 9999 --blocks 2    # towers of two blocks, of full width: for little memory

Weights are random, so nothing is downloaded; tokenizers and text towers of transformers are small stand-ins with the special
tokens of the real ones. Compared are `Backbone.encode_frames` and `encode_texts` with open_clip's own transform, tokenizer,
`encode_image` and `encode_text`. A row takes seconds to minutes and four bytes a parameter.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "extract" / "backbone"))
from stand_ins import text_config, tokenizer_of

from glscl.common.clip_names import clip_weights
from glscl.extract.backbone.encoder import Backbone
from glscl.extract.backbone.fitting import fit
from glscl.extract.backbone.loading import Loaded, NotInitialised
from glscl.extract.backbone.parameters import MILLIONS
from glscl.extract.backbone.weight_settings import PREPROCESSING, published

TEXTS = ["a man is cooking", "", "two dogs run over the grass"]


def kind_of(repository: str) -> str:
    """Which stand-in has the special tokens of a tokenizer or text tower of the hub."""
    marks = {"SigLIP2": "gemma", "SigLIP": "siglip", "bert-base-uncased": "bert", "xlm": "xlm-roberta", "mt5": "mt5"}
    marks |= {"nllb": "m2m_100", "roberta": "roberta"}
    return next(kind for mark, kind in marks.items() if mark in repository)


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """No hub: what open_clip asks transformers for is made here."""
    with (
        patch("transformers.AutoTokenizer.from_pretrained", lambda name, **_: tokenizer_of(kind_of(name))),
        patch("transformers.AutoConfig.from_pretrained", lambda name: text_config(kind_of(name))),
    ):
        yield


def pictures() -> list[Image.Image]:
    """Two frames of different shapes, lying and standing."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), rng.integers(0, 256, (9, 5, 3), dtype=np.uint8)]
    sizes = [(320, 240), (180, 324)]
    return [Image.fromarray(c).resize(s, Image.Resampling.BICUBIC) for c, s in zip(coarse, sizes)]


@contextlib.contextmanager
def cut(blocks: int | None) -> Iterator[None]:
    """Architectures with so many blocks a tower or stage, and no more words than OpenAI's; all of them where None."""
    import open_clip.factory
    import timm

    whole, make = open_clip.factory.get_model_config, timm.create_model

    def config(name: str) -> Any:
        found = whole(name)
        for tower in (found["vision_cfg"], found["text_cfg"], found.get("multimodal_cfg", {})):
            layers = tower.get("layers", 12)
            tower["layers"] = [min(blocks, n) for n in layers] if isinstance(layers, list) else min(blocks, layers)
            tower |= {"vocab_size": min(tower["vocab_size"], 49408)} if "vocab_size" in tower else {}
        return found

    def shallow(name: str, **options: Any) -> Any:
        depths = {"depths": (blocks,) * 4} if name.startswith("convnext") else {"depth": blocks}
        return make(name, **options, **depths)

    if blocks is None:
        yield
        return
    with patch("open_clip.factory.get_model_config", config), patch("timm.create_model", shallow):
        yield


def random_weights(model: torch.nn.Module) -> None:
    """Uniform numbers that keep the scale of what passes through, gains near 1; drawn once, where towers draw theirs twice."""
    for name, parameter in model.named_parameters():
        bound = 0.05 if parameter.ndim < 2 else (3 / max(parameter[0].numel(), 1)) ** 0.5
        parameter.data.uniform_(-bound, bound)
        if parameter.ndim == 1 and name.endswith(("weight", "gamma")):
            parameter.data.add_(1.0)


def compare(name: str, blocks: int | None = None) -> dict[str, Any]:
    """Largest differences of frames and captions, relative to the largest value, and how the architecture is used."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2

    tags = published(name)
    used = next(iter(tags.values())) if tags else {}
    with stand_ins(), cut(blocks):
        torch.manual_seed(0)
        options = {"force_preprocess_cfg": {key: used[key] for key in PREPROCESSING}} if used else {}
        with NotInitialised():
            model: Any = open_clip.create_model(name, pretrained_text=False, **options).eval()
        random_weights(model)
        tokenizer = open_clip.get_tokenizer(name)
        fit(
            model, clip_weights(model.state_dict()), Path(name), name
        )  # names and shapes go through the reader of files
    backbone = Backbone(
        Loaded(model, tokenizer, name, "random"), words=None, device=torch.device("cpu"), precision="fp32"
    )
    transform: Any = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    with torch.no_grad():
        frames = model.encode_image(torch.stack([transform(picture) for picture in pictures()]), normalize=False)
        texts = model.encode_text(tokenizer(TEXTS), normalize=False)  # CoCa's would normalise by default
    ours = backbone.encode_frames(np.stack([backbone.transform(picture) for picture in pictures()]))
    encoded = backbone.encode_texts(TEXTS)
    return {
        "architecture": name,
        "millions": MILLIONS.get(name),
        "frames": difference(torch.from_numpy(ours), frames),
        "texts": difference(encoded.text_features, texts),
        "apart": [difference(features[:1], features[1:2]) for features in (frames, texts)],
        "tokens": encoded.token_features is not None,
        "words": backbone.words,
        "context": backbone.context_length,
        **({"blocks": blocks} if blocks else {}),
    }


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    import open_clip

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--from", dest="low", type=float, default=0.0)
    parser.add_argument("--to", dest="high", type=float, default=200.0)
    parser.add_argument("--blocks", type=int, help="blocks a tower; all of them by default")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    done = (
        {json.loads(line)["architecture"] for line in asked.out.read_text().splitlines()}
        if asked.out and asked.out.exists()
        else set()
    )
    for name in asked.names or open_clip.list_models():
        if name in done or not (asked.names or asked.low <= MILLIONS.get(name, 0) < asked.high):
            continue
        try:
            row = compare(name, asked.blocks)
        except Exception as error:
            row = {"architecture": name, "millions": MILLIONS.get(name), "error": str(error).splitlines()[0][:200]}
        print(json.dumps(row), flush=True)
        if asked.out:
            with asked.out.open("a") as out:
                out.write(json.dumps(row) + "\n")
        gc.collect()


if __name__ == "__main__":
    main()
