"""What the tests of backbones share, besides what they import (`stand_ins`)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def architecture(tmp_path_factory) -> Callable[[str, dict[str, Any]], str]:
    """Makes an architecture known to open_clip; returns its name."""

    def register(name: str, config: dict[str, Any]) -> str:
        import open_clip

        path = tmp_path_factory.mktemp("architectures") / f"{name}.json"
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)
        return name

    return register
