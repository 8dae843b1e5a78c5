"""Fixtures: a scripted server and clients connected to it."""

from collections.abc import Iterator

import pytest
from isogloss import Client

from tests.support.bulk import Many, asynchronous, blocking
from tests.support.scripted_server import Running, Script, running


@pytest.fixture
def scripted() -> Iterator[Running]:
    """Provides a server that reports no limits unless the test sets some."""
    with running() as server:
        yield server


@pytest.fixture
def script(scripted: Running) -> Script:
    """Provides the script of the server: its responses, and the requests it received."""
    return scripted.script


@pytest.fixture
def client(scripted: Running) -> Iterator[Client]:
    """Provides a client connected to the scripted server."""
    with Client(scripted.address) as opened:
        yield opened


@pytest.fixture(params=[blocking, asynchronous])
def many(request: pytest.FixtureRequest, scripted: Running) -> Many:
    """Provides embed_many of the blocking or the asyncio client, connected to the scripted server."""
    return lambda texts, **arguments: request.param(scripted.address, texts, **arguments)
