"""A backbone as a folder that holds all it needs, for a machine without a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from glscl.cache.files import dump_json, listed, refuse_links, write_atomically
from glscl.cache.lock import FOLDER as LOCKS
from glscl.cache.lock import hold_folder
from glscl.common.errors import BackboneError, UsageError
from glscl.extract.backbone.catalog import config_of
from glscl.extract.backbone.encoder import Backbone, load_backbone
from glscl.extract.backbone.loading import as_backbone_error
from glscl.extract.settings import ActivationSettings

TEXT_FOLDER = "text"  # configuration of a text tower of transformers
_FOLDER_CONFIG = "open_clip_config.json"


class Fetched(NamedTuple):
    """What `fetch` wrote.

    Attributes:
        folder: for `backbone=local-dir:FOLDER`, or `pretrained` beside the architecture's name.
        name, pretrained, weights: as a cache keeps them, whichever of the two is used.
        files, bytes: what is in it.
    """

    folder: Path
    name: str
    pretrained: str
    weights: str
    files: tuple[str, ...]
    bytes: int


def fetch(name: str, pretrained: str | None, out: Path, *, asked: ActivationSettings | None = None) -> Fetched:
    """Write weights, configuration, preprocessing and tokenizer of a backbone into a folder, and load it from there.

    The same call again goes over what a killed one has left.

    Args:
        name, pretrained, asked: as in `load_backbone`. What is not on this machine is downloaded.

    Raises:
        BackboneError: it cannot be had, or the folder does not give the same again.
        BusyError: another process writes the folder.
        UsageError: the folder holds something else.
        StorageError: it cannot be written, or a link stands in the folder.
    """
    if name == "demo":
        raise UsageError("demo is built in: there is nothing to fetch")
    _require_ours(out)
    with hold_folder(out, what="fetch"):
        _require_ours(out)
        backbone = load_backbone(name, pretrained, precision="fp32", asked=asked)
        _write(backbone, name, out)
        again = load_backbone(f"local-dir:{out}", None, precision="fp32")
    if again.description != backbone.description:
        raise BackboneError(
            f"{out} does not give the same backbone again: {again.description}, not {backbone.description}"
        )
    files = sorted(path for path in out.rglob("*") if path.is_file())
    about = backbone.description
    size = sum(path.stat().st_size for path in files)
    names = tuple(str(path.relative_to(out)) for path in files)
    return Fetched(out, about.name, about.pretrained, about.weights, names, size)


def _require_ours(out: Path) -> None:
    if any(path.name != LOCKS for path in listed(out)) and not _is_fetched(out):
        raise UsageError(f"{out} holds other files", hint="Choose another folder with `out`")
    refuse_links(out)


def _write(backbone: Backbone, name: str, out: Path) -> None:
    from safetensors.torch import save

    config = _config(backbone, name)  # may be read from this very folder
    write_atomically(out / _FOLDER_CONFIG, dump_json({"glscl": {}}))  # ours from now on, and no backbone yet
    weights = {key: value.detach().cpu().contiguous().clone() for key, value in backbone.model.state_dict().items()}
    write_atomically(out / "open_clip_model.safetensors", save(weights, {"format": "pt"}))
    _save_tokenizer(backbone, out)
    if "hf_model_name" in config["model_cfg"]["text_cfg"]:
        backbone.text_tower.tower.config.save_pretrained(out / TEXT_FOLDER)
    write_atomically(out / _FOLDER_CONFIG, dump_json(config))


def _config(backbone: Backbone, name: str) -> dict[str, Any]:
    """`open_clip_config.json`, with what a cache keeps of the backbone beside what open_clip reads."""
    import open_clip

    is_its_own = ":" in name and (not name.startswith("local-dir:") or config_of(name))  # else a folder of transformers
    config = open_clip.get_model_config(name if is_its_own else backbone.name)
    assert config is not None, "it was loaded by this name"
    config["quick_gelu"] = backbone.description.quick_gelu
    text = config["text_cfg"]
    if "hf_model_name" in text:
        text["hf_model_name"] = TEXT_FOLDER
    about = {key: value for key, value in backbone.description.preprocessing.items() if key != "method"}
    return {
        "model_cfg": config,
        "preprocess_cfg": about,
        "glscl": {"name": backbone.name, "pretrained": backbone.pretrained},
    }


def _save_tokenizer(backbone: Backbone, out: Path) -> None:
    """Files of a tokenizer of transformers; open_clip's own needs none."""
    inner = getattr(backbone.tokenizer, "tokenizer", None)
    if inner is not None and hasattr(inner, "save_pretrained"):
        with as_backbone_error(f"Cannot write the tokenizer of {backbone.name}"):
            inner.save_pretrained(out)


def _is_fetched(folder: Path) -> bool:
    try:
        return "glscl" in json.loads((folder / _FOLDER_CONFIG).read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False
