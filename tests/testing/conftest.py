"""Fixtures: a FakeServer and a client connected to it."""

from collections.abc import Iterator

import pytest
from isogloss import Client
from isogloss.testing import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """Provides a running server."""
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    """Provides a client with default options connected to the server."""
    with Client(server.target) as opened:
        yield opened
