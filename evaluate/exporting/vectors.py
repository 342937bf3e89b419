"""Vectors for an index: of heads that make one vector a video, whatever the caption.

T texts, V videos, D embed_dim.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from glscl.cache.files import dump_json, write_atomically
from glscl.cache.lock import hold_folder
from glscl.cache.table import FeatureTable
from glscl.common.devices import arithmetic
from glscl.common.errors import NonFiniteError, UsageError
from glscl.common.versions import versions
from glscl.train_head.heads import HEADS
from glscl.train_head.heads.base import Head, VectorHead

FORMATS = ("npy", "safetensors")
_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written: the files, and the numbers of vectors and their size."""

    out: Path
    files: tuple[str, ...]
    texts: int
    videos: int
    dim: int

    def __repr__(self) -> str:
        return f"Exported({str(self.out)!r}, {self.texts} texts, {self.videos} videos)"

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "out": str(self.out), "files": list(self.files)}


def export_vectors(
    head: Head, table: FeatureTable, out: Path, *, to: str = "npy", about: dict[str, Any] | None = None
) -> Exported:
    """Write one L2-normalised vector a video and one a text; their dot products are the head's similarities.

        npy            video_vectors.npy (V, D) and text_vectors.npy (T, D), float32
        safetensors    vectors.safetensors with both under these names
        ids.json       video_ids, text_ids, captions and video_of_text in the order of the rows, and `about`

    Args:
        head: one that is query independent; used where it is, and left as it was.
        table: what to make vectors of.
        out: a folder; files of the same name are replaced.
        to: "npy" or "safetensors".
        about: for ids.json: where the vectors come from.

    Raises:
        UsageError: a head whose video vector depends on the caption, or no such format.
        BusyError: another process writes `out`.
        NonFiniteError: a vector has NaN or infinity; names the item.
        StorageError: the disk is full or failing.
    """
    if to not in FORMATS:
        raise UsageError(f"`to` is {to!r}; expected one of {', '.join(FORMATS)}")
    out = Path(out)
    with hold_folder(out, what="export"):
        arrays = vectors_of(check_indexable(head), table)
        if to == "npy":
            for name, values in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, values.numpy())
                write_atomically(out / f"{name}.npy", buffer.getvalue())
            files = [f"{name}.npy" for name in arrays]
        else:
            from safetensors.torch import save

            write_atomically(out / "vectors.safetensors", save(arrays, {"format": "pt"}))
            files = ["vectors.safetensors"]
        ids = {
            **(about or {}),
            "vectors": {name: list(values.shape) for name, values in arrays.items()},
            "versions": versions(),
            "video_ids": list(table.video_ids),
            "text_ids": list(table.text_ids),
            "captions": list(table.captions),
            "video_of_text": table.video_of_text.tolist(),
        }
        write_atomically(out / "ids.json", dump_json(ids))
    return Exported(
        out=out, files=(*files, "ids.json"), texts=table.num_texts, videos=table.num_videos, dim=table.embed_dim
    )


def check_indexable(head: Head) -> VectorHead:
    """The same head. Raises UsageError, naming the heads that can, for one that makes no vector of a video by itself."""
    if isinstance(head, VectorHead) and head.query_independent:
        return head
    name = next((name for name, kind in HEADS.items() if kind is type(head)), type(head).__name__)
    able = [name for name, kind in HEADS.items() if kind.query_independent]
    raise UsageError(
        f"{name} scores a video anew for every caption, so it has no vector to export; heads that have one: "
        f"{', '.join(able)}"
    )


@torch.no_grad()
def vectors_of(head: VectorHead, table: FeatureTable) -> dict[str, Tensor]:
    """`video_vectors` (V, D) and `text_vectors` (T, D), L2-normalised float32 on the CPU.

    Raises:
        NonFiniteError: NaN or infinity; names the item.
    """
    device, was_training = head.logit_scale.device, head.training
    head.eval()

    def on(features: Any) -> Any:
        return type(features)(*(None if field is None else field.to(device) for field in features))

    def rows(count: int, encode: Callable[[slice], Tensor], ids: list[str], what: str) -> Tensor:
        values = torch.empty((count, table.embed_dim), dtype=torch.float32)
        for start in range(0, count, _BATCH):
            span = slice(start, min(start + _BATCH, count))
            values[span] = encode(span).float().cpu()
        bad = torch.nonzero(~values.isfinite().all(1))
        if len(bad):
            raise NonFiniteError(f"the vector of {what} {ids[int(bad[0, 0])]} has NaN or infinity")
        return values

    try:
        with torch.autocast(device.type, enabled=False), arithmetic(device):
            return {
                "video_vectors": rows(
                    table.num_videos,
                    lambda span: head.video_vectors(head.encode_video(on(table.videos(span)))),
                    table.video_ids,
                    "video",
                ),
                "text_vectors": rows(
                    table.num_texts,
                    lambda span: head.text_vectors(head.encode_text(on(table.texts(span)))),
                    table.text_ids,
                    "text",
                ),
            }
    finally:
        head.train(was_training)
