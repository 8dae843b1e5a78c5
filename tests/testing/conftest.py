"""A FakeServer, and a client on it."""

from collections.abc import Iterator

import pytest
from isogloss import Client
from isogloss.testing import FakeServer


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A running server."""
    with FakeServer() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    """A client on it, which tries four times as by default."""
    with Client(server.target) as opened:
        yield opened
