"""Second passes decode in the test's own process; `test_parallel` has the pool."""

import pytest


@pytest.fixture(autouse=True)
def no_pool(decoded_here):
    """Its workers take seconds to start."""
