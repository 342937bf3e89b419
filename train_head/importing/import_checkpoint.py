"""A checkpoint of a public program becomes a run folder, as if it had been trained here.

D embed_dim.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch
from torch import Tensor

from glscl.cache.files import refuse_links
from glscl.cache.schema import FramePosition
from glscl.cache.store import Store
from glscl.common.archive_limits import check_torch_file
from glscl.common.errors import InputError, NonFiniteError, NotFoundError, UsageError
from glscl.common.versions import versions
from glscl.train_head.checkpoint import save_weights, write_run
from glscl.train_head.heads import HEADS
from glscl.train_head.heads.base import Head
from glscl.train_head.importing.foreign_weights import SOURCES, head_from_state_dict
from glscl.train_head.recipes import RECIPES
from glscl.train_head.run_cache import backbone_of, cache_record
from glscl.train_head.run_record import short
from glscl.train_head.settings import typed_options

# Where programs put the state dict when they save more than it.
_NESTED = ("state_dict", "model_state_dict", "model")
_WEIGHT_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

# Two copies of one backbone differ by the rounding of half precision at most, 3e-4 of their norm. A few epochs of
# fine-tuning change the first blocks of the text transformer by more than ten times that.
_SAME_BACKBONE = 1e-3

ABSENT, SAME, DIFFERENT, UNKNOWN = "absent", "same", "different", "unknown"


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What `import_checkpoint` made.

    Attributes:
        run: the folder.
        head, options: what the weights turned out to be.
        dropped_keys: of the checkpoint, used by no part of the head.
        backbone: whether the checkpoint holds one ("absent"), and whether it is the one the cache was made with:
            "same", "different", or "unknown" where the cache keeps nothing to compare with.
        notes: what people should know before they read a number of it.
    """

    run: Path
    head: str
    options: Mapping[str, Any]
    dropped_keys: tuple[str, ...]
    backbone: str
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "run": str(self.run)}


def check_options(source: str, options: Mapping[str, Any]) -> None:
    """Raise UsageError for options that no checkpoint of `source` could take, before any file is read."""
    if source == "glscl":  # which head of CLIP4Clip it is, and so what its options are, the weights tell
        typed_options("glscl", options)


def import_checkpoint(
    file: Path,
    store: Store,
    out: Path | Callable[[str], Path],
    *,
    source: str,
    options: Mapping[str, Any] = MappingProxyType({}),
    max_frames: int | None = None,
    frame_position: str = "uniform",
    command: str = "",
) -> Imported:
    """Write a run folder from the state dict of a public program.

    Args:
        file: what `torch.save(model.state_dict(), file)` wrote, or safetensors.
        store: the cache the run will be judged on; gives D, and says whose features they are.
        out: the run folder, or what chooses it by the head's name. It must hold no run.
        source: "glscl" or "clip4clip"; see `glscl.train_head.importing.foreign_weights`.
        options: for what the keys cannot tell, such as `{"temperature": 5.0, "mask_padding": False}`; texts are read too.
        max_frames, frame_position: frames a video to look at; None is as the recipe of the cache's dataset says.
        command: for run.json.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no checkpoint, or holds more than tensors.
        CheckpointError: names or shapes that do not fit a head of that program on features of this size.
        UsageError: an unknown source or option, or `out` holds a run.
        NonFiniteError: NaN or infinity among the weights.
        StorageError: `out` cannot be written, or a link stands in it.
    """
    if source not in SOURCES:
        raise UsageError(f"`source` is {source!r}; expected one of {', '.join(SOURCES)}")
    if frame_position not in get_args(FramePosition):
        expected = ", ".join(get_args(FramePosition))
        raise UsageError(f"`frame_position` is {frame_position!r}; expected one of {expected}")
    weights = {key.removeprefix("module."): value for key, value in read_state_dict(file).items()}
    head = _build(weights, source, store.embed_dim, options)
    name = _name(head)
    for key, value in head.state_dict().items():
        if not value.isfinite().all():
            raise NonFiniteError(f"{file} has NaN or infinity in what becomes {key} of head {name}")
    folder = Path(out(name) if callable(out) else out)
    refuse_links(folder, depth=1)
    if (folder / "run.json").exists():
        raise UsageError(f"{folder} holds a run already", hint="Choose another folder with `out`")

    backbone = compare_backbone(weights, store)
    cautions = _backbone_notes(backbone, store)
    _, pretrained = backbone_of(store.configuration)
    recipe = store.recipe if store.recipe in RECIPES else "default"
    save_weights(folder / "last.safetensors", head)
    save_weights(folder / "best.safetensors", head)
    write_run(
        folder,
        {
            "head": name,
            "options": head.options,
            "embed_dim": head.embed_dim,
            "parameters": sum(p.numel() for p in head.parameters()),
            "settings": {
                "head": name,
                "options": head.options,
                "recipe": recipe,
                "max_frames": max_frames or RECIPES[recipe].frames,
                "frame_position": frame_position,
            },
            **cache_record(store),
            "selection": "last",
            "frozen_backbone": not (backbone == SAME and _from_a_file(pretrained)),
            "training": None,
            "validation": None,
            "imported": {
                "source": source,
                "file": str(file),
                "sha256": _sha256(file),
                "backbone": backbone,
                "dropped_keys": list(head.dropped_keys),
                "notes": cautions,
            },
            "history": [],
            "best": None,
            "complete": True,
            "versions": versions(),
            "command": command,
        },
    )
    return Imported(
        run=folder,
        head=name,
        options=head.options,
        dropped_keys=head.dropped_keys,
        backbone=backbone,
        notes=(*cautions, *_dropped_notes(head.dropped_keys)),
    )


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """Names and tensors of a checkpoint, on the CPU. Nothing but tensors is ever unpickled.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no checkpoint, is damaged, or holds more than tensors.
    """
    file = Path(file)
    if not file.is_file():
        raise NotFoundError(f"There is no checkpoint {file}")
    found = _read_pickle(file) if _is_pickle(file) else _read_safetensors(file)
    if isinstance(found, Mapping):
        nested = [key for key in _NESTED if isinstance(found.get(key), Mapping)]
        if len(nested) == 1:
            found = found[nested[0]]
    if not isinstance(found, Mapping):
        raise InputError(f"{file} holds a {type(found).__name__}, expected a state dict: names and tensors")
    odd = next((key for key, value in found.items() if not (isinstance(key, str) and isinstance(value, Tensor))), None)
    if odd is not None:
        raise InputError(
            f"{file} is not a state dict: {short(odd)} is a {type(found[odd]).__name__}, expected a tensor"
        )
    if not found:
        raise InputError(f"{file} holds no tensors")
    return dict(found)


def compare_backbone(weights: Mapping[str, Tensor], store: Store) -> str:
    """Whether the backbone inside a checkpoint is the one that made the cache, by the parts of it the cache keeps.

    Args:
        weights: a public program's state dict; its backbone is under `clip.`, named as open_clip names it.
        store: an open cache; it keeps the first blocks of the text transformer and its positions.

    Returns:
        `ABSENT`, `SAME`, `DIFFERENT` or `UNKNOWN`.
    """
    if not any(key.startswith("clip.") and key != "clip.logit_scale" for key in weights):
        return ABSENT
    tensors = store.backbone_tensors()
    names = [name for name in tensors if name != "logit_scale" and f"clip.{name}" in weights]
    if not names:
        return UNKNOWN
    off = size = 0.0
    for name in names:
        theirs = weights[f"clip.{name}"].double()
        ours = torch.from_numpy(tensors[name].astype("float64"))
        if theirs.shape != ours.shape:
            return DIFFERENT
        off += (theirs - ours).square().sum().item()
        size += ours.square().sum().item()
    return SAME if off <= _SAME_BACKBONE**2 * size else DIFFERENT


def _build(weights: Mapping[str, Tensor], source: str, embed_dim: int, options: Mapping[str, Any]) -> Head:
    """The head; of CLIP4Clip's only the keys tell which it is, and so what its options are."""
    if source == "glscl":
        name = "glscl"
    else:
        head = head_from_state_dict(weights, source, embed_dim=embed_dim)
        if not options:
            return head
        name = _name(head)
    return head_from_state_dict(weights, source, embed_dim=embed_dim, **typed_options(name, options))


def _name(head: Head) -> str:
    return next(name for name, kind in HEADS.items() if kind is type(head))


def _backbone_notes(backbone: str, store: Store) -> list[str]:
    """What makes numbers of the run differ from published ones; evaluation repeats it."""
    clip, pretrained = backbone_of(store.configuration)
    if backbone == ABSENT:
        return ["the checkpoint holds no backbone, so whose features its head was trained on is not known"]
    if backbone == SAME:
        return []
    is_it = "is not" if backbone == DIFFERENT else "may not be"
    return [
        f"the checkpoint holds a backbone that {is_it} the one the cache's features come from ({clip}/{pretrained}): "
        "its head was trained on other features, so numbers on this cache differ from its published ones"
    ]


def _dropped_notes(keys: Sequence[str]) -> list[str]:
    if not keys:
        return []
    modules = Counter("its backbone clip" if key.startswith("clip.") else key.split(".")[0] for key in keys)
    parts = ", ".join(f"{count} of {module}" for module, count in modules.items())
    return [f"{len(keys)} keys were dropped, which the head does not use: {parts}"]


def _is_pickle(file: Path) -> bool:
    """Whether torch wrote it: a zip archive, or a bare pickle as before torch 1.6."""
    try:
        if zipfile.is_zipfile(file):
            return True
    except zipfile.BadZipFile:  # damaged, but nothing else
        return True
    with open(file, "rb") as opened:
        return opened.read(1) == b"\x80"


def _read_pickle(file: Path) -> Any:
    try:
        check_torch_file(file)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # it reads it or it raises
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = " ".join(str(error).split())
        name = text.partition("GLOBAL ")[2].split(" ")[0] or text.partition("global ")[2].split(" ")[0]
        what = f" ({name})" if name else ""
        raise InputError(
            f"{file} cannot be read as tensors alone: it is damaged or holds other Python objects{what}, and "
            "unpickling those can run any code",
            hint="Save its weights alone, where it was made: torch.save(model.state_dict(), FILE)",
        ) from error
    except Exception as error:  # torch raises whatever it likes on damaged archives
        raise InputError(f"{file} cannot be read as a checkpoint: {' '.join(str(error).split())[:200]}") from error


def _read_safetensors(file: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:  # safetensors raises its own, undocumented type
        raise InputError(f"{file} is neither a torch checkpoint nor safetensors: {str(error)[:200]}") from error


def _from_a_file(pretrained: str | None) -> bool:
    """Whether the cache's backbone came from a file of weights and not from a published tag."""
    return pretrained is not None and Path(pretrained).suffix.lower() in _WEIGHT_FILES


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
