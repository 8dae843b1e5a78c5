"""pytest plugin with fixtures for programs that call an Isogloss server, registered by an entry point.

pytest imports this module in every run, so it imports the client only when a test uses a fixture.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from isogloss.client import Client
    from isogloss.testing import FakeServer


@pytest.fixture
def isogloss_server() -> "Iterator[FakeServer]":
    """Provides a running FakeServer with default settings, which the test may change; see isogloss.testing."""
    from isogloss.testing import FakeServer  # noqa: PLC0415 - see the module's docstring

    with FakeServer() as server:
        yield server


@pytest.fixture
def isogloss_client(isogloss_server: "FakeServer") -> "Iterator[Client]":
    """Provides a Client connected to `isogloss_server`."""
    from isogloss.client import Client  # noqa: PLC0415

    with Client(isogloss_server.target) as client:
        yield client
