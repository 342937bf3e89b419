"""The tiny CLIP of the demo: trains it on single rendered frames and writes a folder that open_clip loads.

    python -m glscl.demo.train_backbone --out backbone --frames 80000 --steps 2000

made `demo/backbone/` (4.6 MB): 2,000 steps of 128 frames in 25.8 minutes, of which 2 went into rendering, with
two threads on two cores of an AMD EPYC that other work was using as well. On 1,000 held-out frames asking for their
caption among 1,000: R@1 56.1, R@5 88.2 (many captions fit several frames: they leave attributes out). On the way, after
400, 800, 1,200 and 1,600 steps, R@1 was 31.4, 36.6, 47.4 and 55.2.

A ModifiedResNet of width 16 and a text transformer of width 128; open_clip's contrastive loss, AdamW with weight decay
0.1, betas 0.9 and 0.98, peak learning rate 1.2e-3, 5 % warm-up and a cosine, bfloat16 autocast. The last projections
are scaled afterwards so that raw features are 10 long on average: GLSCL's pooling reads raw dot products.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from glscl.demo.grammar import caption_frame, vocabulary
from glscl.demo.render import draw_frame
from glscl.demo.world import Scene, draw_scene
from glscl.extract.backbone.clip_model import is_clip
from glscl.extract.backbone.loading import load_model

if TYPE_CHECKING:
    from glscl.extract.backbone.clip_model import ClipModel

IMAGE = 96  # pixels the model sees
CONTEXT = 32  # tokens a caption
LOG_EVERY = 50  # steps
NORM = 10.0  # mean length of raw image and text features, as in OpenAI's CLIP
MODEL: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": IMAGE, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 0, "width": 128, "heads": 2, "layers": 4},
}


# ------------------------------------------------------------------------------------------------------ tokenizer


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges that make one piece of every word: always the commonest neighbours, ties as they are spelled."""
    from open_clip.tokenizer import bytes_to_unicode

    code = bytes_to_unicode()
    pieces = []
    for word in words:
        letters = [code[b] for b in word.encode()]
        pieces.append([*letters[:-1], letters[-1] + "</w>"])
    merges: list[tuple[str, str]] = []
    while True:
        counts = Counter(pair for word in pieces for pair in zip(word, word[1:]))
        if not counts:
            return merges
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1


def write_merges(path: Path) -> int:
    """Write the merges of the corpus's words in open_clip's file format; the size of the vocabulary they give."""
    merges = learn_merges(vocabulary())
    text = "\n".join(["#version: glscl demo", *(" ".join(pair) for pair in merges)])
    with path.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as file:
        file.write(text.encode())
    return 2 * 256 + len(merges) + 2


# ----------------------------------------------------------------------------------------------------------- data


def draw_moment(seed: int, split: str, number: int) -> tuple[Scene, float]:
    """A scene and a moment of it. The seed string differs from every story's, so no frame is from the video corpus."""
    rng = random.Random(f"glscl-demo-backbone/{seed}/{split}/{number}")
    return draw_scene(rng), rng.random()


def _render(job: tuple[int, str, int, int]) -> np.ndarray:
    seed, split, start, stop = job
    frames = np.empty((stop - start, IMAGE, IMAGE, 3), np.uint8)
    for number in range(start, stop):
        scene, u = draw_moment(seed, split, number)
        frames[number - start] = np.asarray(draw_frame(scene, u).resize((IMAGE, IMAGE), Image.Resampling.BICUBIC))
    return frames


def render_moments(seed: int, split: str, count: int, *, workers: int) -> torch.Tensor:
    """(count, 3, IMAGE, IMAGE) uint8, rendered in `workers` processes."""
    step = 500
    jobs = [(seed, split, start, min(start + step, count)) for start in range(0, count, step)]
    frames = torch.empty((count, 3, IMAGE, IMAGE), dtype=torch.uint8)
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        for job, part in zip(jobs, pool.imap(_render, jobs)):
            frames[job[2] : job[3]] = torch.from_numpy(part).permute(0, 3, 1, 2)
    return frames


class Pixels:
    """uint8 (B, 3, H, W) → normalised float32, with the mean and spread of OpenAI's CLIP."""

    def __init__(self) -> None:
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

        self.mean = torch.tensor(OPENAI_DATASET_MEAN).view(1, 3, 1, 1) * 255
        self.std = torch.tensor(OPENAI_DATASET_STD).view(1, 3, 1, 1) * 255

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        return ((frames.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------------------- training


def build_model(vocab_size: int) -> ClipModel:
    """The untrained tiny CLIP of `MODEL` with that many tokens."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    text = CLIPTextCfg(**{**MODEL["text_cfg"], "vocab_size": vocab_size})
    model = CLIP(MODEL["embed_dim"], CLIPVisionCfg(**MODEL["vision_cfg"]), text)
    model = model.to(memory_format=torch.channels_last)
    assert is_clip(model)
    return model


def encode_captions(model: ClipModel, ids: torch.Tensor) -> torch.Tensor:
    """(B, D) normalised text features, as `model.encode_text` without the columns that only pad (B, L) `ids`.

    The tower is causal, so what stands behind the end of a caption never reaches it.
    """
    longest = int((ids != 0).sum(1).max())
    ids = ids[:, :longest]
    states = model.token_embedding(ids) + model.positional_embedding[:longest]
    states = model.ln_final(model.transformer(states, attn_mask=model.attn_mask[:longest, :longest]))
    ends = states[torch.arange(len(ids)), ids.argmax(1)]  # the end token has the largest id
    return torch.nn.functional.normalize(ends @ model.text_projection, dim=-1)


@torch.no_grad()
def frame_to_caption(
    model: ClipModel,
    tokenizer: Callable[..., torch.Tensor],
    pixels: Pixels,
    frames: torch.Tensor,
    captions: list[str],
) -> dict[str, float]:
    """R@1 and R@5 (percent) of frames asking for their caption among all captions (equal captions count as right), and
    the mean lengths of the raw features."""
    model.eval()
    images = torch.cat([model.encode_image(pixels(part)) for part in frames.split(128)])
    texts = torch.cat([model.encode_text(tokenizer(captions[k : k + 128])) for k in range(0, len(captions), 128)])
    model.train()
    scores = torch.nn.functional.normalize(images, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
    better = (scores > scores.diagonal()[:, None]).sum(1)
    return {
        "R@1": 100 * (better < 1).float().mean().item(),
        "R@5": 100 * (better < 5).float().mean().item(),
        "image_norm": images.norm(dim=-1).mean().item(),
        "text_norm": texts.norm(dim=-1).mean().item(),
    }


def train(
    out: Path,
    *,
    seed: int = 7,
    frames: int = 80_000,
    steps: int = 2000,
    batch_size: int = 128,
    lr: float = 1.2e-3,
    workers: int = 2,
    held_out: int = 1000,
) -> dict[str, float]:
    """Train and write the folder; returns R@1 and R@5 on held-out frames as loaded back from it."""
    from open_clip.loss import ClipLoss
    from open_clip.tokenizer import SimpleTokenizer
    from safetensors.torch import save_file

    began = time.monotonic()
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    vocab_size = write_merges(out / "bpe_merges.txt.gz")
    tokenizer = SimpleTokenizer(str(out / "bpe_merges.txt.gz"), context_length=CONTEXT)
    if tokenizer.vocab_size != vocab_size:
        raise RuntimeError(f"the merges give {tokenizer.vocab_size} tokens, expected {vocab_size}")
    store = render_moments(seed, "train", frames, workers=workers)
    moments = [draw_moment(seed, "train", k) for k in range(frames)]
    test_frames = render_moments(seed, "held-out", held_out, workers=workers)
    words = random.Random(f"captions/{seed}")
    test_captions = [caption_frame(words, *draw_moment(seed, "held-out", k)) for k in range(held_out)]
    print(f"{frames} frames rendered in {time.monotonic() - began:.0f} s, {vocab_size} tokens", flush=True)

    model, pixels, loss_of = build_model(vocab_size), Pixels(), ClipLoss()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=lr, betas=(0.9, 0.98)
    )
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: min((k + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0, k - warmup) / max(1, steps - warmup)))),
    )
    order: list[int] = []
    for step in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(frames).tolist()
        batch, order = order[:batch_size], order[batch_size:]
        captions = [caption_frame(words, *moments[k]) for k in batch]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images = model.encode_image(pixels(store[batch]), normalize=True)
            texts = encode_captions(model, tokenizer(captions))
        loss = loss_of(images.float(), texts.float(), model.logit_scale.exp())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        if (step + 1) % LOG_EVERY == 0:
            print(
                f"step {step + 1} loss {loss.item():.3f} scale {model.logit_scale.exp().item():.1f} "
                f"{(time.monotonic() - began) / 60:.1f} min",
                flush=True,
            )
        if (step + 1) % (LOG_EVERY * 8) == 0:
            print(frame_to_caption(model, tokenizer, pixels, test_frames, test_captions), flush=True)

    lengths = frame_to_caption(model, tokenizer, pixels, test_frames, test_captions)
    with torch.no_grad():  # only lengths change: cosines stay
        pool = model.visual.attnpool.c_proj
        pool.weight.mul_(NORM / lengths["image_norm"])
        pool.bias.mul_(NORM / lengths["image_norm"])
        model.text_projection.mul_(NORM / lengths["text_norm"])
    state = {
        name: tensor.to(torch.float16).contiguous() if tensor.is_floating_point() else tensor.contiguous()
        for name, tensor in model.state_dict().items()
        if name != "attn_mask"
    }
    save_file(state, out / "open_clip_model.safetensors")
    config = {"model_cfg": {**MODEL, "text_cfg": {**MODEL["text_cfg"], "vocab_size": vocab_size}}}
    (out / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")

    loaded, tokenizer, *_ = load_model(f"local-dir:{out}", None)
    result = frame_to_caption(loaded, tokenizer, pixels, test_frames, test_captions)
    result["minutes"] = (time.monotonic() - began) / 60
    print(json.dumps(result), flush=True)
    return result


def main() -> None:
    """Train with the options of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--frames", type=int, default=80_000, help="rendered training frames")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1.2e-3)
    parser.add_argument("--workers", type=int, default=2, help="rendering processes and torch threads")
    options = parser.parse_args()
    torch.set_num_threads(options.workers)
    train(**vars(options))


if __name__ == "__main__":
    main()
