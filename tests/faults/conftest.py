"""Options of the fault tests: short by default, as long as one likes by hand."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption(
        "--fuzz-cases", type=int, default=None, metavar="N", help="Hostile files a reader (default: a few)."
    )
    group.addoption("--fuzz-start", type=int, default=0, metavar="K", help="Number of the first hostile file.")
