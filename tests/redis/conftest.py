"""Fixtures: a real Redis."""

import os
from collections.abc import Iterator

import pytest

from tests.support.redis_server import RedisServer, binary


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    if binary() is None:
        missing = "redis-server is neither on PATH nor under .redis; `make test-redis` installs it"
        if os.environ.get("CI") == "true" or os.environ.get("NEED_REDIS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    """A Redis for one test."""
    with RedisServer() as server:
        yield server
