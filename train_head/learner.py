"""What the training loop trains, and the batches that it is given.

B captions and as many videos a batch, L tokens, F frames, S steps an epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from glscl.cache.schema import TextFeatures, VideoFeatures
from glscl.cache.table import FeatureTable
from glscl.common.compiling import compiled
from glscl.common.errors import UsageError
from glscl.common.launch import launch
from glscl.train_head.distributed import gather_items
from glscl.train_head.doubts import sampled_scores, score_doubts
from glscl.train_head.encode_chunks import chunk_that_fits, encode_in_chunks
from glscl.train_head.heads.base import Head
from glscl.train_head.losses import LOSSES, distillation_loss
from glscl.train_head.optim import parameter_groups
from glscl.train_head.teaching import Teacher

WIDTHS = 8  # on a GPU captions are padded to a multiple of it: a new shape costs plans, memory and recordings
_RESIDENT_SHARE = 0.6  # of a GPU's free memory that features may take


class ContrastiveStep(nn.Module):
    """The loss of one batch. A module, so that Accelerate can wrap it for several processes.

    Args:
        head: what is trained.
        loss: key of `LOSSES`; None is the head's own.
        teacher: what is learnt from; None is nothing.
        chunk: texts and videos encoded at once, see `glscl.train_head.encode_chunks`; None is the whole batch.

    Attributes:
        compute: what `forward` calls, `losses` or a compiled version of it.
        latest: the losses of the latest batch, without graph; the next one may overwrite them.
    """

    def __init__(
        self, head: Head, *, loss: str | None = None, teacher: Teacher | None = None, chunk: int | None = None
    ) -> None:
        super().__init__()
        self.head = head
        self.chunk = chunk
        self.contrast = LOSSES[loss or head.loss]
        self._teacher = [] if teacher is None else [teacher]  # in a list: no module of this one
        self.compute: Callable[..., dict[str, Tensor]] = self.losses
        self.latest: dict[str, Tensor] = {}

    def forward(self, text: TextFeatures, video: VideoFeatures, exclude: Tensor | None = None) -> Tensor:
        """Scalar loss of this process' share of a batch against the whole batch; `exclude` as in `contrastive_loss`."""
        losses = self.compute(text, video, exclude)
        self.latest = {name: loss.detach() for name, loss in losses.items()}
        return reduce(torch.add, losses.values())

    def losses(self, text: TextFeatures, video: VideoFeatures, exclude: Tensor | None = None) -> dict[str, Tensor]:
        """What `forward` is the sum of, never compiled: "contrastive", "distillation", the head's auxiliary losses by name."""
        encoded_text, encoded_video = map(gather_items, self._encoded(text, video))
        logits = [self._logits(each) for each in self.head.contrasts(encoded_text, encoded_video)]  # (B, B) each
        first, *others = (self.contrast(each, exclude=exclude) for each in logits)
        losses = {"contrastive": sum(others, first)}
        for teacher in self._teacher:
            whole = logits[0] if len(logits) == 1 else self._logits(self.head.score(encoded_text, encoded_video))
            distilled = distillation_loss(whole, teacher.logits(text, video), exclude=exclude)
            losses["distillation"] = teacher.weight * distilled
        return {**losses, **self.head.auxiliary_losses(encoded_text, encoded_video)}

    def _encoded(self, text: TextFeatures, video: VideoFeatures) -> tuple[Any, Any]:
        if self.chunk is None or len(text.text_features) <= self.chunk:
            return self.head.encode_both(text, video)
        return (
            encode_in_chunks(self.head.encode_text, text, self.chunk),
            encode_in_chunks(self.head.encode_video, video, self.chunk),
        )

    def _logits(self, similarity: Tensor) -> Tensor:
        scaled = similarity * self.head.logit_scale.exp()
        return scaled if self.head.logit_bias is None else scaled + self.head.logit_bias


class Learner:
    """What the loop trains and where its batches come from: here a head, and the features of a table.

    Args:
        head: where to start.
        table: what to train on.
        loss: key of `LOSSES`; None is the head's own.
        teacher: what is learnt from beside the pairs; None is nothing.
        compile: make compiled code of the step, with captions padded to the table's longest, so that shapes stay.

    Attributes:
        head: scores; its logit scale is clamped after every step.
        module: everything that is trained and taken up again; the head is part of it.
        table: captions, videos and which belong together.
        step: gives the losses of a batch.
        large: whether the products of a step are so large that their arithmetic, not their number, is what it costs.
    """

    def __init__(
        self,
        head: Head,
        table: FeatureTable,
        *,
        loss: str | None = None,
        teacher: Teacher | None = None,
        compile: bool = False,
    ) -> None:
        self.head, self.table, self.large = head, table, head.autocast_pairs
        self.module: nn.Module = head
        self.step = ContrastiveStep(head, loss=loss, teacher=teacher)
        self._compile = compile

    def begin(self, device: torch.device) -> nn.Module:
        """Move to the device; what gives the loss of a batch, for Accelerate to wrap."""
        lengths = self.table.token_count
        self._lengths = None if lengths is None else lengths.cpu().numpy()
        longest = 1 if self._lengths is None else max(1, int(self._lengths.max(initial=1)))
        self.table = resident(self.table, device)
        chunk = chunk_that_fits(self.head, words=longest, frames=self.table.frame_features.shape[1])
        step = self.step
        step.chunk = chunk
        if self._compile:
            if launch().world > 1:
                raise UsageError(f"`compile` is for one process, found {launch().world}", hint="Leave it out")
            step.compute = compiled(step.losses, device, replayed=True)
        if self._lengths is not None and (self._compile or device.type == "cuda"):
            few = longest if self._compile else -(-self._lengths // WIDTHS) * WIDTHS
            self._lengths = np.minimum(np.broadcast_to(few, self._lengths.shape), longest)
        return step

    def why_not_recorded(self) -> str | None:
        """Why the steps cannot be recorded, as far as the batches tell; None where they can."""
        return "the features do not fit the device" if self.table.device.type == "cpu" else None

    def groups(self, **decay: Any) -> list[dict[str, Any]]:
        """Groups of parameters, see `parameter_groups`; one with an `lr_scale` has that many times the learning rate."""
        return parameter_groups(self.module, **decay)

    def batches(self, rows: np.ndarray, *, start: int, share: slice, mask: bool) -> Any:
        """The batches of an epoch, taken from step `start` on by `.on(device, step)`; rows (S, B) of captions."""
        return _Batches(self.table, rows, self._lengths, share=share, mask=mask)

    def backward(self, accelerator: Any, step_module: nn.Module, batch: tuple[Any, ...]) -> Tensor:
        """Add the gradients of a batch; its loss."""
        loss = step_module(*batch)
        accelerator.backward(loss)
        return loss.detach()

    def smaller(self) -> str:
        """What takes less memory."""
        return "Lower `batch_size` or `max_frames`"

    def doubts(self, size: int) -> list[str]:
        """What there is to doubt in the scores of some captions of the table, `size` at most, with numbers that show it."""
        found = sampled_scores(self.head, self.table, size)
        return score_doubts(found, self.table.video_ids[found.hub])

    def save_backbone(self, folder: Path, which: str) -> dict[str, Any]:
        """Write the backbone as "best" or "last" where it is trained too; what run.json is to say of it."""
        return {}


def resident(table: FeatureTable, device: torch.device) -> FeatureTable:
    """The table on the device, or as it is where a GPU has no room for it beside the training."""
    if device.type == "cuda":
        needed = sum(t.numel() * t.element_size() for t in vars(table).values() if isinstance(t, Tensor))
        free, _ = torch.cuda.mem_get_info(device)
        if needed > _RESIDENT_SHARE * free:
            return table
    return table.to(device)


class _Batches:
    """The batches of one epoch, with their row numbers beside the features already.

    Attributes:
        gather: makes a batch of what `picked` gives; the same in every epoch.
    """

    def __init__(
        self, table: FeatureTable, rows: np.ndarray, lengths: np.ndarray | None, *, share: slice, mask: bool
    ) -> None:
        self.gather = _Gather(table, share, mask)
        self._share = share
        self._texts = torch.from_numpy(rows).to(table.device)
        self._videos = table.video_of_text[self._texts]  # (S, B)
        self._widths = [None] * len(rows) if lengths is None else lengths[rows].max(1).tolist()

    def picked(self, step: int) -> tuple[int | None, tuple[Tensor, Tensor]]:
        """Width of the captions of a step; rows of this process' share of them, and of the videos of the whole batch (B,)."""
        return self._widths[step], (self._texts[step, self._share], self._videos[step])

    def on(self, device: torch.device, step: int) -> tuple[TextFeatures, VideoFeatures, Tensor | None]:
        """What `ContrastiveStep` takes; all processes pad their share to the longest caption of the whole batch."""
        width, rows = self.picked(step)
        return self.gather(device, width, *rows)


class _Gather:
    """Rows of a table → the features of a batch.

    Args:
        table: what they are rows of.
        share: this process' part of the videos of a batch.
        mask: whether pairs of one video are told.
    """

    def __init__(self, table: FeatureTable, share: slice, mask: bool) -> None:
        self._table, self._share, self._mask = table, share, mask

    def __call__(
        self, device: torch.device, width: int | None, texts: Tensor, videos: Tensor
    ) -> tuple[TextFeatures, VideoFeatures, Tensor | None]:
        exclude = moved(videos[:, None] == videos, device) if self._mask else None  # (B, B)
        text = _to(self._table.texts(texts, width=width), device)
        return text, _to(self._table.videos(videos[self._share]), device), exclude


def moved(field: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device; from the host to a GPU through pinned memory, beside the step that it is at."""
    if device.type == "cuda" and field.device.type == "cpu":
        field = field.pin_memory()
    return field.to(device, non_blocking=True)


def _to(features: Any, device: torch.device) -> Any:
    return type(features)(*(field if field is None else moved(field, device) for field in features))
