"""A fake provider, and the clock of the provider and the server."""

from collections.abc import Iterator

import pytest

from tests.support.fake_provider import FakeProvider
from tests.support.own_time import OwnTime
from tests.support.provider import KEY


@pytest.fixture
def clock() -> OwnTime:
    """A clock that the test advances."""
    return OwnTime()


@pytest.fixture
def fake(clock: OwnTime) -> Iterator[FakeProvider]:
    """A provider that accepts one key, and stamps its requests with the test's clock."""
    with FakeProvider(key=KEY, now_s=clock.monotonic_s) as provider:
        yield provider
