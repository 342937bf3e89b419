"""Makes small folders of annotations and of (never decoded) video files."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """`files("annotations", {"a.txt": "…", "b.json": [...]})` → the folder; values that are not text become JSON."""

    def make(folder: str, content: Mapping[str, object] | list[str]) -> Path:
        root = tmp_path / folder
        root.mkdir(parents=True, exist_ok=True)
        for name, value in (content if isinstance(content, Mapping) else {n: n for n in content}).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            data = value if isinstance(value, (bytes, str)) else json.dumps(value)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return root

    return make


@pytest.fixture
def shard(tmp_path: Path) -> Callable[..., Path]:
    """`shard("00000.tar", {"0.mp4": b"…", "0.txt": "a cat"})` → the tar file; a list of pairs may hold a name twice."""

    def make(name: str, members: Mapping[str, object] | list[tuple[str, object]]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as archive:
            for member, value in members.items() if isinstance(members, Mapping) else members:
                data = value if isinstance(value, (bytes, str)) else json.dumps(value)
                data = data if isinstance(data, bytes) else data.encode()
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return path

    return make
