"""What backbones there are: architectures and published weights of open_clip, their sizes, and what of them is at hand.

Architectures are read from open_clip's own files; nothing here imports torch before it must.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

CONTEXT = 77  # where a configuration does not say it


@cache
def _config_folder() -> Path:
    found = importlib.util.find_spec("open_clip")
    assert found is not None and found.origin, "the package needs it"
    return Path(found.origin).parent / "model_configs"


def config_of(name: str) -> dict[str, Any]:
    """`model_cfg` of an architecture or of `local-dir:FOLDER`; empty where nothing on this machine says it."""
    path = _config_folder() / f"{name}.json"
    if name == "demo":
        path = Path(__file__).parents[2] / "demo" / "backbone" / "open_clip_config.json"
    elif name.startswith("local-dir:"):
        path = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    found = found.get("model_cfg", found) if isinstance(found, dict) else {}
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
