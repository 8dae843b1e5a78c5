"""Fixture: a scripted server."""

from collections.abc import Iterator

import pytest

from tests.support.scripted_server import Running, running


@pytest.fixture
def scripted() -> Iterator[Running]:
    """Provides a server with responses set by the test."""
    with running() as server:
        yield server
