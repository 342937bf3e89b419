"""The fingerprint: a hash of everything that decides the values in a cache, and of nothing else.

In: backbone and weights, preprocessing, tokenizer, sampling, dtype. Out: lists, host, time, GPU, paths, workers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal configurations give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(configuration: Mapping[str, Any]) -> str:
    """First 16 hex digits of the SHA-256 of the canonical configuration."""
    return hashlib.sha256(canonical(configuration)).hexdigest()[:16]


def differences(found: Mapping[str, Any], expected: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line a leaf that differs, as `backbone.name: found 'ViT-B-32', expected 'ViT-B-16'`."""
    lines = []
    for key in sorted({*found, *expected}):
        ours, theirs = found.get(key), expected.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            lines += differences(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            lines.append(f"{prefix}{key}: found {ours!r}, expected {theirs!r}")
    return lines
