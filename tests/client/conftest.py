"""A scripted server and a client on it."""

from collections.abc import Iterator

import pytest
from isogloss import Client

from tests.support.bulk import Many, asynchronous, blocking
from tests.support.scripted_server import Running, Script, running


@pytest.fixture
def scripted() -> Iterator[Running]:
    """A server without limits, until the test scripts some."""
    with running() as server:
        yield server


@pytest.fixture
def script(scripted: Running) -> Script:
    """What the server answers, and what it was asked."""
    return scripted.script


@pytest.fixture
def client(scripted: Running) -> Iterator[Client]:
    """A client on the scripted server."""
    with Client(scripted.address) as opened:
        yield opened


@pytest.fixture(params=[blocking, asynchronous])
def many(request: pytest.FixtureRequest, scripted: Running) -> Many:
    """embed_many of one of the clients, on the scripted server."""
    return lambda texts, **arguments: request.param(scripted.address, texts, **arguments)
