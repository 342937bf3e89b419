"""Where `benchmarks/gpu.py` touches the product: features, heads, encoders and commands as the sections want them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpu_bench import FRAMES, WORDS, Bench, NotMeasured
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.extract.backbone.encoder import Backbone, load_backbone
from glscl.extract.backbone.feeding import Feed
from glscl.extract.backbone.loading import Loaded
from glscl.train_head.finetuning.backbone_and_head import Captions, Clips, EndToEnd
from glscl.train_head.finetuning.gradients import backward_in_chunks
from glscl.train_head.finetuning.settings import FinetuneSettings
from glscl.train_head.finetuning.towers import unfreeze
from glscl.train_head.heads import build_head
from glscl.train_head.loop import fit
from glscl.train_head.reports import Reporter
from glscl.train_head.settings import TrainSettings


def made_up_table(captions: int, videos: int, *, dim: int, device: torch.device) -> FeatureTable:
    """Float16 features as a cache holds them, on the device: 13 of 32 words on average, 10 to 12 frames."""
    torch.manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.float16)

    lengths = torch.randn(captions, device=device).mul(4).add(13).round().clamp(4, WORDS).long()
    lengths[0] = WORDS  # so that every table's longest is as long, and code compiled for one serves the other
    counts = torch.randint(10, FRAMES + 1, (videos, 1), device=device)
    mask = torch.arange(FRAMES, device=device) < counts
    pattern = FeatureTable.from_features(
        TextFeatures(torch.zeros(1, dim)), VideoFeatures(torch.zeros(1, 1, dim), torch.ones(1, 1, dtype=torch.bool))
    )
    return dataclasses.replace(
        pattern,
        text_features=normal(captions, dim),
        token_values=normal(int(lengths.sum()), dim),
        token_first=lengths.cumsum(0) - lengths,
        token_count=lengths,
        frame_features=normal(videos, FRAMES, dim) * mask[..., None],
        frame_mask=mask,
        frame_times=torch.arange(FRAMES, dtype=torch.float32, device=device).expand(videos, -1).contiguous(),
        video_of_text=torch.arange(captions, device=device) % videos,
        text_ids=[str(i) for i in range(captions)],
        video_ids=[str(i) for i in range(videos)],
        captions=[""] * captions,
        counts=dataclasses.replace(pattern.counts, texts=captions, videos=videos),
    )


def fit_head(
    bench: Bench,
    name: str,
    table: FeatureTable,
    *,
    epochs: int,
    arithmetic: str,
    by: str,
    reporter: Reporter,
    log_every: int,
) -> None:
    """The real loop on a fresh head; `arithmetic` is fp32, TF32 or bf16, `by` "loop", "compiled loop" or "recorded loop"."""
    torch.manual_seed(0)
    head = new_head(bench, name)
    settings = TrainSettings(
        epochs=epochs,
        batch_size=bench.sizes.batch,
        precision=arithmetic.lower() if bench.cuda or arithmetic != "TF32" else "fp32",
        compile=by == "compiled loop",
        cuda_graphs=by == "recorded loop",
        log_every=log_every,
    )
    fit(head, table, settings, device=bench.device, reporter=reporter)


def new_head(bench: Bench, name: str) -> Any:
    options = bench.sizes.head_options if name == "glscl" else {}
    return build_head(name, embed_dim=bench.sizes.dim, **options)


# --- encoders ----------------------------------------------------------------------------------------------------------


_FEEDS: dict[str, Feed] = {}
_MODELS: dict[tuple[str, str], Backbone] = {}


def backbone_of(name: str, device: torch.device, precision: str) -> Backbone:
    """An open_clip model of random weights as extraction uses it; "demo" is the built-in one. Kept for later."""
    key = name, f"{device} {precision}"
    if key not in _MODELS:
        if name == "demo":
            _MODELS[key] = load_backbone("demo", device=device, precision=precision)
        else:
            import open_clip

            torch.manual_seed(0)
            with contextlib.redirect_stdout(sys.stderr):
                model = open_clip.create_model(name)
            _MODELS[key] = Backbone(
                Loaded(model, open_clip.get_tokenizer(name), name, "random"),
                words=WORDS,
                device=device,
                precision=precision,
            )
    return _MODELS[key]


def half(bench: Bench) -> str:
    return "fp16" if bench.cuda else "bf16"


def pictures(backbone: Backbone, count: int, *, seed: int = 0) -> np.ndarray:
    """(n, S, S, 3) uint8: colours that change smoothly, with noise."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 7, generator=random)
    size = tuple(backbone.transform.size)
    fine = F.interpolate(coarse, size, mode="bilinear") + 0.05 * torch.randn(count, 3, *size, generator=random)
    return fine.clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def noise(backbone: Backbone, count: int) -> np.ndarray:
    """(n, S, S, 3) uint8, quickly made."""
    size = tuple(backbone.transform.size)
    return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)


def caption_batch(backbone: Backbone, count: int, width: int) -> Any:
    """So many captions of exactly `width` tokens."""
    return backbone.tokenize([" ".join(["a"] * (width - 2))] * count)


def flop_a_frame(backbone: Backbone) -> float:
    """Two for every multiply-add of a vision transformer; 0 for another tower."""
    visual = backbone.model.visual
    if not hasattr(visual, "conv1") or not hasattr(getattr(visual, "transformer", None), "resblocks"):
        return 0.0
    width, patch = visual.conv1.out_channels, visual.conv1.kernel_size[0]
    patches = (backbone.transform.size[0] // patch) ** 2
    n, layers = patches + 1, len(visual.transformer.resblocks)
    return 2.0 * (layers * (12 * n * width**2 + 2 * n**2 * width) + patches * 3 * patch**2 * width)


def encode_tokens(backbone: Backbone, tokens: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pooled (T, D) and token features (T, L, D) of what `caption_batch` gives."""
    text = backbone.encode_tokens(tokens)
    assert text.token_features is not None  # a backbone gives them always
    return text.text_features.numpy(), text.token_features.numpy()


def forget_backbones() -> None:
    """Let go of all encoders, some of which are trained by now."""
    _MODELS.clear()
    _FEEDS.clear()


# --- the second pass ---------------------------------------------------------------------------------------------------


def model_of(bench: Bench, backbone: Backbone) -> EndToEnd:
    """A glscl head on a backbone that is trained whole, in training mode on the device."""
    unfreeze(backbone, FinetuneSettings())
    head = build_head("glscl", embed_dim=backbone.embed_dim, **bench.sizes.head_options)
    return EndToEnd(backbone, head).to(bench.device).train()


def token_batch(bench: Bench, backbone: Backbone, count: int, width: int) -> Captions:
    """So many captions of exactly `width` tokens, as the second pass takes them."""
    tokens = caption_batch(backbone, count, width)
    ids, lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
    return Captions(ids.to(bench.device), lengths.to(bench.device), width)


def video_batch(bench: Bench, videos: list[np.ndarray]) -> Clips:
    """Frames in host memory, brought to the device as the second pass does it."""
    if bench.cuda and "feed" not in _FEEDS:
        _FEEDS["feed"] = Feed(bench.device)
    return Clips.from_frames(videos, FRAMES, bench.device, _FEEDS.get("feed"))


@dataclass
class Arithmetic:
    """What gradients in pieces ask of Accelerate."""

    device: torch.device
    bf16: bool

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def backward(model: EndToEnd, captions: Captions, clips: Clips, piece: int | None, way: Arithmetic) -> None:
    """Gradients of a batch, encoded at once or in pieces of so many captions and videos."""
    if piece is not None:
        backward_in_chunks(model, captions, clips, micro_batch=piece, accelerator=way)
        return
    with way.autocast():
        loss = model(captions, clips)
    way.backward(loss)


# --- commands ----------------------------------------------------------------------------------------------------------


def launch(bench: Bench, *words: object) -> subprocess.Popen[str]:
    """A command of ours, in a process group of its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "2",
        "GLSCL_HOME": str(bench.folder / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "glscl", *map(str, words)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def command(bench: Bench, *words: object) -> str:
    """What a command of ours prints. Raises NotMeasured where it fails or takes too long."""
    process = launch(bench, *words)
    try:
        output, _ = process.communicate(timeout=max(1.0, bench.left - 5))
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        if isinstance(error, subprocess.TimeoutExpired):
            raise NotMeasured(f"glscl {words[0]} was not through in time") from error
        raise
    if process.returncode:
        raise NotMeasured(f"glscl {words[0]}: exit status {process.returncode}: {last_line(output)}")
    return output


def last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
