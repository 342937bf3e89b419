"""Benchmarks are scripts that import what lies beside them; a test imports them the same way."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark_script() -> Callable[[str], ModuleType]:
    """`benchmark_script("scoring")` is benchmarks/scoring.py as a module; forgotten after the test module."""
    before = set(sys.modules)

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield load
    finally:
        sys.path.remove(str(BENCHMARKS))
        here = {name for path in BENCHMARKS.glob("*.py") for name in (path.stem, f"benchmark_{path.stem}")}
        for name in here & (set(sys.modules) - before):
            del sys.modules[name]
