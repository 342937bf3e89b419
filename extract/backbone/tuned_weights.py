"""Weights of a backbone that was trained on, in one file that says itself what it needs beside the architecture.

The file is an ordinary safetensors state dict under open_clip's names; its metadata holds what a file of weights alone
cannot say: the activation, the preprocessing, and whether the patch embedding looks at neighbouring frames.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from glscl.cache.files import utf8_name, write_atomically
from glscl.common.errors import BackboneError

_KEY = "glscl.backbone"


class TunedWeights(NamedTuple):
    """What the metadata says.

    Attributes:
        name: of the architecture, as `load_backbone` takes it.
        quick_gelu: whether the model uses QuickGELU whatever its name says.
        preprocessing: open_clip's preprocessing settings.
        patch_embedding: "2d", or "3d" where frames are embedded with their neighbours.
    """

    name: str
    quick_gelu: bool
    preprocessing: dict[str, Any]
    patch_embedding: str


def write_tuned(path: Path, model: nn.Module, about: TunedWeights) -> None:
    """Write the state dict of a model in one step. Raises StorageError."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_atomically(path, save(tensors, {"format": "pt", _KEY: json.dumps(about._asdict())}))


def read_tuned(path: Path) -> TunedWeights | None:
    """What `write_tuned` said of the weights in a file; None for any other file.

    Raises:
        BackboneError: the file is ours and its metadata is not as this version writes it.
    """
    if path.suffix != ".safetensors":
        return None
    from safetensors import safe_open

    try:
        with utf8_name(path) as name, safe_open(name, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception:  # no safetensors file: whoever loads it says so
        return None
    if _KEY not in metadata:
        return None
    try:
        return TunedWeights(**json.loads(metadata[_KEY]))
    except (TypeError, ValueError) as error:
        raise BackboneError(f"{path} does not say what backbone it is of: {error}") from error
