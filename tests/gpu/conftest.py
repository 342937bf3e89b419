"""The GPU benchmark imports what lies beside it; a test imports it the same way."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark_module() -> Iterator[object]:
    """`benchmark_module("gpu")` is benchmarks/gpu.py; forgotten after the test module."""
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield load
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in {path.stem for path in BENCHMARKS.glob("*.py")} & (set(sys.modules) - before):
            del sys.modules[name]
