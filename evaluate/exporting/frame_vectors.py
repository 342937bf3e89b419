"""Every stored frame of a list as an index of faiss.

R frames, D embed_dim.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from glscl.cache.files import dump_json, refuse_link, storage_errors, sync_directory, sync_tree, write_atomically
from glscl.cache.lock import hold_folder
from glscl.cache.reading import in_pieces, read_entries
from glscl.cache.schema import Status
from glscl.cache.store import Store
from glscl.cache.table import stored_tensor
from glscl.common.errors import InputError, NonFiniteError, UsageError
from glscl.common.versions import versions

BLOCK = 1 << 15  # frames that are held at once, one video at least


class ExportedFrames(NamedTuple):
    """What was written."""

    out: Path
    files: tuple[str, ...]
    frames: int
    videos: int
    dim: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**self._asdict(), "out": str(self.out), "files": list(self.files)}


class Block(NamedTuple):
    """Frames of some videos.

    Attributes:
        rows: (n,) int64, rows of the list. counts: (n,) int64, frames of each.
        features: (r, D) float32 of length 1. times: (r,) float32 seconds from the start of the file.
    """

    rows: np.ndarray
    counts: np.ndarray
    features: np.ndarray
    times: np.ndarray


def export_frames(
    store: Store,
    out: Path,
    *,
    split: str | None = None,
    about: dict[str, Any] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> ExportedFrames:
    """Write the features of every stored frame, of length 1: their dot product with a sentence's, made alike, is the cosine.

        frames.faiss   float16, inner product
        rows.npz       `entry` (R,) of frames.json's videos, and `time` (R,)
        frames.json    video_ids in the list's order, D, and `about`

    Args:
        out: a folder; files of the same name are replaced.
        split: only its videos.

    Raises:
        UsageError: faiss is not installed.
        InputError: no such split, or there are no frames. NonFiniteError: a frame has NaN or infinity; names its video.
        BusyError: another process writes `out`. StorageError: the disk is full or failing.
    """
    try:
        faiss = importlib.import_module("faiss")
    except ImportError as error:
        raise UsageError("faiss is not installed", hint="pip install 'glscl[index]'") from error
    store.require_complete()
    if split is not None and split not in store.splits:
        raise InputError(f"{store.place} has no split {split!r}; it has {', '.join(store.splits) or 'none'}")
    run = (store.everything if split is None else store.splits[split]).videos
    written = _Count()
    with hold_folder(out, what="export"):
        files = _write_faiss(faiss, store, Path(out), written.count(_blocks(store, run, progress)))
        ids = {**(about or {}), "frames": written.frames, "embed_dim": store.embed_dim, "versions": versions()}
        ids |= {"video_ids": store.ids("video")}
        write_atomically(Path(out) / "frames.json", dump_json(ids))
    return ExportedFrames(Path(out), (*files, "frames.json"), written.frames, written.videos, store.embed_dim)


class _Count:
    frames = videos = 0

    def count(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            self.frames += len(block.times)
            self.videos += len(block.rows)
            yield block
        if not self.frames:
            raise InputError("there are no frames to export")


def _blocks(store: Store, run: range, progress: Callable[[int], None]) -> Iterator[Block]:
    """The frames of entries of a list, in its order."""
    rows = np.arange(run.start, run.stop)
    rows = rows[np.isin(store.status()[rows], [status for status in Status if status.usable])]
    numbers = store.numbers["video"][rows]
    counts = np.diff(read_entries(store.library, "video", ["offsets"], numbers)["offsets"])
    for chosen in in_pieces(rows, counts, BLOCK):
        found = read_entries(store.library, "video", ["values", "times"], store.numbers["video"][chosen])
        features = F.normalize(stored_tensor(found["values"], store.dtype).float(), dim=-1)
        bad = torch.nonzero(~torch.isfinite(features).all(1))
        if len(bad):
            at = int(np.searchsorted(found["offsets"], int(bad[0, 0]), side="right")) - 1
            raise NonFiniteError(f"a frame of {store.ids('video')[chosen[at]]} has NaN or infinity")
        yield Block(chosen, np.diff(found["offsets"]), features.numpy(), found["times"])
        progress(len(features))


def _write_faiss(faiss: Any, store: Store, out: Path, blocks: Iterator[Block]) -> list[str]:
    index = faiss.IndexScalarQuantizer(
        store.embed_dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )  # float16 keeps what most caches hold; nothing is learned
    entries, times = [], []
    for block in blocks:
        index.add(block.features)
        entries.append(np.repeat(block.rows, block.counts))
        times.append(block.times)

    def write(path: Path) -> None:
        with open(path, "wb") as file:  # faiss's own writer takes no notice of a disk that is full when it closes
            faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))

    def write_rows(path: Path) -> None:
        with open(path, "wb") as file:
            np.savez(file, entry=np.concatenate(entries), time=np.concatenate(times))

    put_aside(out / "frames.faiss", write)
    put_aside(out / "rows.npz", write_rows)
    return ["frames.faiss", "rows.npz"]


def put_aside(path: Path, write: Callable[[Path], None]) -> None:
    """A file, or a folder, made aside and then given its name; nothing half-written has it."""
    aside = path.with_name(f".{path.name}.part")
    with storage_errors(path):
        refuse_link(path)
        _remove(aside)
        try:
            write(aside)
            sync_tree(aside)
            _remove(path)
            os.replace(aside, path)
        finally:
            _remove(aside)
        sync_directory(path.parent)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
