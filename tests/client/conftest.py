"""Fixtures: a fake server and clients connected to it."""

from collections.abc import Iterator

import pytest
from isogloss import Client
from isogloss.testing import FakeServer

from tests.support.bulk import Many, asynchronous, blocking
from tests.support.fake import fake_server


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """Provides a running FakeServer whose limits are high unless the test sets some."""
    with fake_server() as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    """Provides a client connected to the server."""
    with Client(server.target) as opened:
        yield opened


@pytest.fixture(params=[blocking, asynchronous])
def many(request: pytest.FixtureRequest, server: FakeServer) -> Many:
    """Provides embed_many of the blocking or the asyncio client, connected to the server."""
    return lambda texts, **arguments: request.param(server.target, texts, **arguments)
