"""Second passes decode in the test's own process, but where a test asks for the pool."""

import pytest


@pytest.fixture
def pool():
    """Decoding by its processes, as a user has it; they take seconds to start."""


@pytest.fixture(autouse=True)
def no_pool(request):
    if "pool" not in request.fixturenames:
        request.getfixturevalue("decoded_here")
