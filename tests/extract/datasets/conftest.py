"""Makes small folders of annotations and of (empty) video files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """`files("annotations", {"a.txt": "…", "b.json": [...]})` → the folder; values that are not text become JSON."""

    def make(folder: str, content: dict[str, object] | list[str]) -> Path:
        root = tmp_path / folder
        root.mkdir(parents=True, exist_ok=True)
        for name, value in (content if isinstance(content, dict) else dict.fromkeys(content, b"")).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = value if isinstance(value, (bytes, str)) else json.dumps(value)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return root

    return make
