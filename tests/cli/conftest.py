"""Fixture: a fake server."""

from collections.abc import Iterator

import pytest
from isogloss.testing import FakeServer

from tests.support.fake import fake_server


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """Provides a running FakeServer."""
    with fake_server() as running:
        yield running
