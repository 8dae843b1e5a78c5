"""A scripted server."""

from collections.abc import Iterator

import pytest

from tests.support.scripted_server import Running, running


@pytest.fixture
def scripted() -> Iterator[Running]:
    """A server whose answers the test scripts."""
    with running() as server:
        yield server
