"""Options of the fault tests, short by default and as long as one likes by hand; and what several of them share."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption(
        "--fuzz-cases", type=int, default=None, metavar="N", help="Hostile files a reader (default: a few)."
    )
    group.addoption("--fuzz-start", type=int, default=0, metavar="K", help="Number of the first hostile file.")


@pytest.fixture
def one_thread():
    """As many as commands in processes of their own have here: sums come out the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
