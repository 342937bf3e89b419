"""Tensors of the backbone that heads start from, as one safetensors file with a checksum of each."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np

from glscl.cache.files import put_if_absent, refuse_unread, utf8_name, written
from glscl.cache.shard_arrays import checksum
from glscl.common.errors import CacheCorruptError, first_line

_CHECKSUMS = "crc32"  # key of the file's metadata: JSON, name of each tensor → CRC-32 of its bytes


def tensors_file(cache: Path) -> Path:
    """Where they lie in a cache folder."""
    return cache / "backbone" / "pieces.safetensors"


def write_tensors(cache: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write them down; once, the first writer's stay."""
    from safetensors.numpy import save

    path = tensors_file(cache)
    if tensors and not written(path):
        checksums = {name: checksum(tensor) for name, tensor in tensors.items()}
        put_if_absent(path, save(dict(tensors), {_CHECKSUMS: json.dumps(checksums)}))


def read_tensors(cache: Path, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """The tensors by name, or those of some names; none where none were written. Raises CacheCorruptError: unreadable."""
    from safetensors import safe_open

    path = tensors_file(cache)
    if not written(path):
        return {}
    try:
        with utf8_name(path) as name, safe_open(name, framework="np") as file:
            wanted = [key for key in file.keys() if names is None or key in names]  # noqa: SIM118
            return {key: file.get_tensor(key) for key in wanted}
    except Exception as error:  # safetensors raises its own, undocumented type
        refuse_unread(error, path)
        raise CacheCorruptError(f"{path} cannot be read: {first_line(error)}") from error


def damage(cache: Path) -> str | None:
    """What is wrong with the file; None where nothing is. Files of earlier versions lack the checksums."""
    from safetensors import safe_open

    path = tensors_file(cache)
    if not written(path):
        return None
    try:
        with utf8_name(path) as name, safe_open(name, framework="np") as file:
            expected = json.loads((file.metadata() or {}).get(_CHECKSUMS, "null"))
            given = {key: checksum(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own, undocumented type
        refuse_unread(error, path)
        return f"it cannot be read: {str(error)[:200]}"
    return None if expected is None or expected == given else "it does not have the checksums it was written with"
