"""A checkpoint of a public program becomes a run folder, as if it had been trained here.

D embed_dim.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch
from torch import Tensor

from glscl.cache.files import refuse_links
from glscl.cache.lock import hold_folder
from glscl.cache.schema import FramePosition
from glscl.cache.store import Store
from glscl.common.clip_names import OPENAI_MODELS, OPENAI_SETTINGS, clip_weights
from glscl.common.errors import CheckpointError, NonFiniteError, UsageError
from glscl.common.state_dicts import read_state_dict, weights_file, weights_hash
from glscl.common.tables import amount
from glscl.common.versions import versions
from glscl.train_head.checkpoint import WHICH, run_id, save_weights, write_run
from glscl.train_head.heads.base import Head
from glscl.train_head.importing.foreign_weights import SOURCES, head_from_state_dict, head_of, source_of
from glscl.train_head.recipes import RECIPES
from glscl.train_head.run_cache import backbone_of, cache_record
from glscl.train_head.settings import typed_options

_WEIGHT_FILES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")

# Two copies of one backbone differ by the rounding of half precision at most, 3e-4 of their norm. A few epochs of
# fine-tuning change the first blocks of the text transformer by more than ten times that.
_SAME_BACKBONE = 1e-3

AUTO = "auto"
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
    if source not in (
        AUTO,
        "clip4clip",
        "drl",
    ):  # which head of these it is, and so what its options are, the weights tell
        typed_options(source, options)


def import_checkpoint(
    file: Path,
    store: Store,
    out: Path | Callable[[str], Path],
    *,
    source: str = AUTO,
    options: Mapping[str, Any] = MappingProxyType({}),
    max_frames: int | None = None,
    frame_position: str = "uniform",
    command: str = "",
) -> Imported:
    """Write a run folder from the state dict of a public program.

    Args:
        file: with the state dict, see `glscl.common.state_dicts`.
        store: the cache the run will be judged on; gives D, and says whose features they are.
        out: the run folder, or what chooses it by the head's name. It must hold no run.
        source: the program, see `glscl.train_head.importing.foreign_weights.SOURCES`; "auto" tells it by the keys.
        options: for what the keys cannot tell, such as `{"temperature": 5.0, "mask_padding": False}`; texts are read too.
        max_frames, frame_position: frames a video to look at; None is as the recipe of the cache's dataset says.
        command: for run.json.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no checkpoint, or holds more than tensors.
        CheckpointError, NonFiniteError: see `head_in`.
        UsageError: an unknown source or option, or `out` holds a run.
        BusyError: another process writes `out`.
        StorageError: `out` cannot be written, or a link stands in it.
    """
    if source not in (AUTO, *SOURCES):
        raise UsageError(f"`source` is {source!r}; expected one of {', '.join((AUTO, *SOURCES))}")
    if frame_position not in get_args(FramePosition):
        expected = ", ".join(get_args(FramePosition))
        raise UsageError(f"`frame_position` is {frame_position!r}; expected one of {expected}")
    weights = read_state_dict(file)
    source, name, head = head_in(weights, file, source=source, options=options, embed_dim=store.embed_dim)
    folder = Path(out(name) if callable(out) else out)
    refuse_links(folder, depth=1)
    backbone = compare_backbone(weights, store)
    cautions = _backbone_notes(backbone, store)
    if not (head.mask_padding or store.library.has_padding):
        cautions.append(
            f"{store.place} does not hold the padding that this head reads: extract with `pad_tokens` to judge it"
        )
    _, pretrained = backbone_of(store.configuration)
    recipe = store.recipe if store.recipe in RECIPES else "default"
    record = {
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
        "frozen_backbone": not (backbone == SAME and _from_a_file(pretrained, file)),
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
    }
    record["run_id"] = run_id(record)
    with hold_folder(folder, what="import-checkpoint"):
        if (folder / "run.json").exists():
            raise UsageError(f"{folder} holds a run already", hint="Choose another folder with `out`")
        checkpoints = {
            which: save_weights(folder / f"{which}.safetensors", head, run=record["run_id"]) for which in WHICH
        }
        write_run(folder, record | {"checkpoints": checkpoints})
    return Imported(
        run=folder,
        head=name,
        options=head.options,
        dropped_keys=head.dropped_keys,
        backbone=backbone,
        notes=(*cautions, *_dropped_notes(head.dropped_keys)),
    )


def head_in(
    weights: Mapping[str, Tensor], file: Path, *, source: str, options: Mapping[str, Any], embed_dim: int
) -> tuple[str, str, Head]:
    """The program, the name of the head and the head in a checkpoint.

    Raises:
        CheckpointError: names or shapes that do not fit a head of that program on features of this size.
        UsageError: an unknown option.
        NonFiniteError: NaN or infinity among the weights.
    """
    try:
        source = source_of(weights) if source == AUTO else source
        name = head_of(weights, source)
        head = head_from_state_dict(weights, source, embed_dim=embed_dim, **typed_options(name, options))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error.message}", hint=error.hint) from error
    for key, value in head.state_dict().items():
        if not value.isfinite().all():
            raise NonFiniteError(f"{file} has NaN or infinity in what becomes {key} of head {name}")
    return source, name, head


def compare_backbone(weights: Mapping[str, Tensor], store: Store) -> str:
    """Whether the backbone inside a checkpoint is the one that made the cache, by the parts of it the cache keeps.

    Args:
        weights: a public program's state dict with its backbone, by open_clip's names or those of Hugging Face.
        store: an open cache; it keeps the first blocks of the text transformer and its positions, and the hash of all weights,
            which tells of the rest where these are equal to the last bit.

    Returns:
        `ABSENT`, `SAME`, `DIFFERENT` or `UNKNOWN`.
    """
    found = clip_weights(weights).weights
    if not found.keys() - {"logit_scale"}:
        return ABSENT
    theirs = {name.removeprefix("text."): value for name, value in found.items()}
    tensors = store.backbone_tensors()
    names = [name for name in tensors if name != "logit_scale" and name in theirs]
    if not names:
        return UNKNOWN
    off = size = 0.0
    for name in names:
        ours = torch.from_numpy(tensors[name].astype("float64"))
        if theirs[name].shape != ours.shape:
            return DIFFERENT
        off += (theirs[name].double() - ours).square().sum().item()
        size += ours.square().sum().item()
    if off > _SAME_BACKBONE**2 * size or used_otherwise(store.configuration):
        return DIFFERENT
    made_with = store.configuration["backbone"].get("weights")
    if not off and made_with and any(name.startswith("visual.") for name in found):  # a cache keeps none of that tower
        ours = {"logit_scale": torch.from_numpy(tensors["logit_scale"]).reshape(())} if "logit_scale" in tensors else {}
        return SAME if weights_hash({**found, **ours}) == made_with else UNKNOWN
    return SAME


def used_otherwise(configuration: Mapping[str, Any]) -> list[str]:
    """What a cache did to its backbone's pictures and activations that no public program does, in words.

    All of them start from OpenAI's weights, and use them as OpenAI does. Nothing is said of what a cache does not tell, nor
    of other architectures, on which somebody built with a program of theirs.
    """
    if backbone_of(configuration)[0].removesuffix("-quickgelu") not in OPENAI_MODELS:
        return []
    told = dict(configuration["backbone"])
    told |= told.get("preprocessing") or {}
    found = []
    for key, expected in OPENAI_SETTINGS.items():
        value = tuple(told[key]) if isinstance(told.get(key), list) else told.get(key)
        if value is not None and value != expected:
            found.append(f"{key} {_plain(value)} instead of {_plain(expected)}")
    return found


def _plain(value: Any) -> str:
    return ",".join(f"{number:.3g}" for number in value) if isinstance(value, tuple) else str(value)


def _backbone_notes(backbone: str, store: Store) -> list[str]:
    """What makes numbers of the run differ from published ones; evaluation repeats it."""
    clip, pretrained = backbone_of(store.configuration)
    if backbone == ABSENT:
        return ["the checkpoint holds no backbone, so whose features its head was trained on is not known"]
    if backbone == SAME:
        return []
    is_it = "is not" if backbone == DIFFERENT else "may not be"
    otherwise = used_otherwise(store.configuration)
    how = f", which used it with {', '.join(otherwise)}" if otherwise else ""
    return [
        f"the checkpoint holds a backbone that {is_it} the one the cache's features come from ({clip}/{pretrained}{how}): "
        "its head was trained on other features, so numbers on this cache differ from its published ones"
    ]


def _dropped_notes(keys: Sequence[str]) -> list[str]:
    if not keys:
        return []
    modules = Counter("its backbone clip" if key.startswith("clip.") else key.split(".")[0] for key in keys)
    parts = ", ".join(f"{count} of {module}" for module, count in modules.items())
    return [f"{amount(len(keys), 'key')} were dropped, which the head does not use: {parts}"]


def _from_a_file(pretrained: str | None, file: Path) -> bool:
    """Whether the cache's backbone came from this file, or from one of weights, and not from a published tag."""
    endings = {ending.lower() for ending in Path(pretrained or "").suffixes}  # `pytorch_model.bin.4` has two
    return pretrained == file.name or not endings.isdisjoint(_WEIGHT_FILES)


def _sha256(file: Path) -> str:
    file = weights_file(file) or file if file.is_dir() else file
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
