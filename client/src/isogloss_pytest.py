"""Fixtures of pytest for programs that call an Isogloss server. pytest finds them by itself, by an entry point.

A module of its own, which imports nothing before a test asks for a fixture: pytest loads it in every run.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from isogloss.client import Client
    from isogloss.testing import FakeServer


@pytest.fixture
def isogloss_server() -> "Iterator[FakeServer]":
    """A FakeServer of default settings, which the test may change; see isogloss.testing."""
    from isogloss.testing import FakeServer  # noqa: PLC0415 - see above

    with FakeServer() as server:
        yield server


@pytest.fixture
def isogloss_client(isogloss_server: "FakeServer") -> "Iterator[Client]":
    """A Client on `isogloss_server`."""
    from isogloss.client import Client  # noqa: PLC0415

    with Client(isogloss_server.target) as client:
        yield client
