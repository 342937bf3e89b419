"""Benchmarks are scripts that import what lies beside them; a test imports them the same way."""

from __future__ import annotations

import importlib
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
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(str(BENCHMARKS))
        here = {path.stem for path in BENCHMARKS.glob("*.py")}
        for name in here & (set(sys.modules) - before):
            del sys.modules[name]
