"""The gradient of a large batch in the memory of a small one, exactly.

B captions and as many videos a batch, cut in chunks of at most N.

All chunks are encoded without a graph; the loss of the whole batch gives the gradient of every feature; then each chunk is
encoded again, with a graph and the same random numbers, and its features' gradients go back through it. That is the chain
rule cut at the features, so nothing is approximated; it costs one more forward pass of the backbone.

Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (gradient caching).
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.distributed import average_gradients
from glscl.train_head.finetuning.backbone_and_head import Captions, Clips, EndToEnd

Features = TypeVar("Features", TextFeatures, VideoFeatures)


def backward_in_chunks(
    model: EndToEnd,
    captions: Captions,
    clips: Clips | VideoFeatures,
    exclude: Tensor | None = None,
    *,
    micro_batch: int,
    accelerator: Any,
) -> Tensor:
    """Add the gradients of a batch to the parameters; its loss.

    Args:
        captions, clips, exclude: what `model` takes.
        micro_batch: N, captions and videos encoded at once.
        accelerator: gives autocast, and scales the loss where fp16 needs it.
    """
    device = captions.ids.device
    bounds = [
        (start, min(start + micro_batch, len(captions.ids))) for start in range(0, len(captions.ids), micro_batch)
    ]
    chunks = [(captions.part(*bound), _part(clips, *bound)) for bound in bounds]

    def encode(chunk: tuple[Captions, Clips | VideoFeatures]) -> tuple[TextFeatures, VideoFeatures]:
        with accelerator.autocast():
            return model.text_features(chunk[0]), model.video_features(chunk[1])

    states, encoded = [], []
    with torch.no_grad():
        for chunk in chunks:
            states.append(_random_state(device))
            encoded.append(encode(chunk))
    text, video = _joined([text for text, _ in encoded]), _joined([video for _, video in encoded])
    with accelerator.autocast():
        loss = model.loss(text, video, exclude)
    accelerator.backward(loss)
    after = _random_state(device)
    for bound, chunk, state in zip(bounds, chunks, states):
        _set_random_state(state, device)
        again = encode(chunk)
        pairs = [
            (features, whole.grad[slice(*bound)])
            for side, joined in zip(again, (text, video))
            for features, whole in zip(side, joined)
            if features is not None and features.requires_grad and whole is not None and whole.grad is not None
        ]
        if pairs:
            torch.autograd.backward([features for features, _ in pairs], [gradient for _, gradient in pairs])
    _set_random_state(after, device)
    average_gradients(model.parameters())
    return loss.detach()


def _part(clips: Clips | VideoFeatures, start: int, stop: int) -> Clips | VideoFeatures:
    if isinstance(clips, Clips):
        return clips.part(start, stop)
    return VideoFeatures(*(field[start:stop] for field in clips))


def _joined(sides: list[Features]) -> Features:
    """The features of all chunks as tensors that gather gradients; masks as they are."""
    return type(sides[0])._make(_leaf([field for field in fields if field is not None]) for fields in zip(*sides))


def _leaf(fields: list[Tensor]) -> Tensor | None:
    if not fields:
        return None
    joined = torch.cat(fields)
    return joined.requires_grad_() if joined.is_floating_point() else joined


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
