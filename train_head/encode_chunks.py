"""Large batches in bounded memory: sides are encoded in chunks whose intermediates are made again in the backward pass.

N items, B captions and as many videos a batch, F frames, L tokens, D embed_dim.

The score of a batch is tiled by `Head.score`; what else grows with the batch is what autograd keeps of the encoders, some
megabytes a pair. A chunk costs one forward pass more, so a batch that fits is never cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.train_head.heads.base import Head


def encode_in_chunks(encode: Callable[[Any], Any], features: Any, chunk: int | None) -> Any:
    """`encode(features)`; with gradients and more than `chunk` items, chunk by chunk, each recomputed in the backward pass.

    Args:
        encode: `encode_text` or `encode_video` of a head.
        features: `TextFeatures` or `VideoFeatures` of N items.
        chunk: most items at once, about; None encodes all at once.
    """
    count = len(features[0])
    if chunk is None or count <= chunk or not torch.is_grad_enabled():
        return encode(features)
    parts = [
        checkpoint(encode, type(features)(*part), use_reentrant=False)
        for part in zip(*(_split(field, -(-count // chunk)) for field in features))
    ]
    return type(parts[0])(*(torch.cat(fields) for fields in zip(*parts)))


def chunk_that_fits(head: Head, *, words: int, frames: int) -> int:
    """Pairs whose encoders may be kept whole for the backward pass, from what autograd keeps of a few made-up ones.

    It follows from the head, the sizes and the memory that a device has, not from what of it is free: the same training
    takes the same chunks, and with them the same random numbers, on every run.

    Args:
        head: where it will train, in training mode.
        words: longest caption, in tokens.
        frames: longest video.
    """
    device, dim = head.logit_scale.device, head.embed_dim
    budget = torch.cuda.get_device_properties(device).total_memory // 4 if device.type == "cuda" else 4 << 30

    def kept(items: int) -> int:
        real = torch.ones(items, max(words, frames), dtype=torch.bool, device=device)
        entries = torch.zeros(items, max(words, frames), dim, device=device)
        text = TextFeatures(entries[:, 0], entries[:, :words], real[:, :words])
        video = VideoFeatures(entries[:, :frames], real[:, :frames])
        with _Kept() as keeping:
            sides = head.encode_text(text), head.encode_video(video)
        del sides
        return keeping.bytes

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        a_pair = (kept(4) - kept(2)) / 2  # the difference leaves out what does not grow: weights and their copies
    return max(1, int(budget / max(a_pair, 1)))


class _Kept:
    """Counts the bytes autograd keeps while it is open, storages that several tensors share once."""

    def __init__(self) -> None:
        self._storages: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice
        self._hooks = saved_tensors_hooks(self._note, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())

    def __enter__(self) -> _Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._storages[storage.data_ptr()] = storage
        return tensor


def _split(field: Tensor | None, parts: int) -> list[Tensor | None]:
    return [None] * parts if field is None else list(field.tensor_split(parts))
