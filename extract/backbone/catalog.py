"""What backbones there are: architectures and published weights of open_clip, their sizes, and what of them is at hand."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from glscl.extract.backbone.parameters import MILLIONS

CONTEXT = 77  # where a configuration does not say it
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # of a repository that names no file
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")


class NeededFile(NamedTuple):
    """A file that published weights need.

    Attributes:
        what: "weights", "tokenizer" or "config" (of a text tower of transformers).
        source: repository of the hub, or a web address.
        names: any of these will do.
        path: where it is on this machine, None where it is not.
    """

    what: str
    source: str
    names: tuple[str, ...]
    path: str | None


@dataclass(frozen=True)
class Entry:
    """An architecture with published weights.

    Attributes:
        millions: parameters; None where nobody counted them.
        embed_dim, pixels, words: size of features, side of a picture, tokens a caption that it reads.
        mean, interpolation, resize_mode, quick_gelu: as open_clip has them.
        missing: what is not on this machine: "weights", "tokenizer", "config".
    """

    backbone: str
    pretrained: str
    millions: float | None
    embed_dim: int
    pixels: int
    words: int
    mean: tuple[float, ...]
    interpolation: str
    resize_mode: str
    quick_gelu: bool
    missing: tuple[str, ...]

    @property
    def at_hand(self) -> bool:
        return not self.missing


@cache
def _config_folder() -> Path:
    found = importlib.util.find_spec("open_clip")
    assert found is not None and found.origin, "the package needs it"
    return Path(found.origin).parent / "model_configs"


def config_names() -> list[str]:
    """Architectures that open_clip has a configuration of, by name. Imports nothing."""
    return sorted(path.stem for path in _config_folder().glob("*.json"))


def description_of(name: str) -> dict[str, Any]:
    """What `config_of` is read from; of a folder what else stands there, such as `preprocess_cfg`, too."""
    path = _config_folder() / f"{name}.json"
    if name == "demo":
        path = Path(__file__).parents[2] / "demo" / "backbone" / "open_clip_config.json"
    elif name.startswith("local-dir:"):
        path = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        if ":" in name:
            return {}
        import open_clip  # which may have been told of more

        found = open_clip.get_model_config(name)
    return found if isinstance(found, dict) else {}


def config_of(name: str) -> dict[str, Any]:
    """`model_cfg` of an architecture or of `local-dir:FOLDER`; empty where nothing on this machine says it.

    It is read from open_clip's own files: a command that only asks for it does not wait for torch.
    """
    described = description_of(name)
    found = described.get("model_cfg", described)
    return found if isinstance(found, dict) else {}


def context_of(name: str) -> int | None:
    """Tokens a caption that a backbone reads; None where nothing on this machine says it."""
    config = config_of(name)
    return int(config.get("text_cfg", {}).get("context_length", CONTEXT)) if config else None


def defaults_for(defaults: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Defaults of a data set as a backbone can have them: not more `max_words` than it reads."""
    context = context_of(name)
    words = defaults.get("max_words")
    return {**defaults, "max_words": min(words, context)} if words and context else dict(defaults)


def entries(part: str = "", *, offline: bool = False) -> Iterator[Entry]:
    """All published weights, by architecture.

    Args:
        part: only architectures whose name holds this, in any case.
        offline: only those of which everything is on this machine.
    """
    import open_clip

    from glscl.extract.backbone.weight_settings import published

    for name in open_clip.list_models():
        if part.lower() not in name.lower():
            continue
        config = config_of(name) or open_clip.get_model_config(name) or {}
        pixels = config["vision_cfg"].get("image_size", 224)
        for tag, used in published(name).items():
            entry = Entry(
                backbone=name,
                pretrained=tag,
                millions=MILLIONS.get(name),
                embed_dim=config["embed_dim"],
                pixels=pixels if isinstance(pixels, int) else pixels[0],
                words=int(config["text_cfg"].get("context_length", CONTEXT)),
                missing=tuple(file.what for file in needed_files(name, tag) if file.path is None),
                **{key: used[key] for key in ("mean", "interpolation", "resize_mode", "quick_gelu")},
            )
            if entry.at_hand or not offline:
                yield entry


def needed_files(name: str, pretrained: str | None) -> list[NeededFile]:
    """What weights by a tag, or a repository of the hub (`hf-hub:org/repo`), need, and where it is on this machine."""
    import open_clip

    text: dict[str, Any] = config_of(name).get("text_cfg", {})
    files = []
    if name.startswith("hf-hub:"):
        repository = name.removeprefix("hf-hub:")
        files = [_on_hub("config", repository, ("open_clip_config.json",)), _on_hub("weights", repository, _WEIGHTS)]
    elif pretrained:
        about = open_clip.get_pretrained_cfg(name, pretrained)
        repository, _, file = (about.get("hf_hub") or "").rpartition("/")
        if repository:
            files = [_on_hub("weights", repository, _alternatives(file) if file else _WEIGHTS)]
        elif about.get("url"):
            path = Path("~/.cache/clip").expanduser() / about["url"].rpartition("/")[2]
            files = [NeededFile("weights", about["url"], (path.name,), str(path) if path.is_file() else None)]
    if text.get("hf_tokenizer_name"):
        files.append(_on_hub("tokenizer", text["hf_tokenizer_name"], _TOKENIZERS))
    if text.get("hf_model_name"):
        files.append(_on_hub("config", text["hf_model_name"], ("config.json",)))
    return files


def _alternatives(file: str) -> tuple[str, ...]:
    stem, dot, kind = file.rpartition(".")
    return (f"{stem}.safetensors", file) if dot and kind in ("bin", "pth") else (file,)


def _on_hub(what: str, repository: str, names: tuple[str, ...]) -> NeededFile:
    found = None
    with contextlib.suppress(Exception):  # names that are no repository of the hub
        from huggingface_hub import try_to_load_from_cache

        cached = (try_to_load_from_cache(repository, name) for name in names)
        found = next((path for path in cached if isinstance(path, str) and os.path.isfile(path)), None)
    return NeededFile(what, repository, names, found)
