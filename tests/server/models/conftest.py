"""A provider, and the time that it and the server go by."""

from collections.abc import Iterator

import pytest

from tests.support.fake_provider import FakeProvider
from tests.support.own_time import OwnTime
from tests.support.provider import KEY


@pytest.fixture
def clock() -> OwnTime:
    """Time that the test lets pass."""
    return OwnTime()


@pytest.fixture
def fake(clock: OwnTime) -> Iterator[FakeProvider]:
    """A provider that knows one key, and tells the moments of its requests by the test's own time."""
    with FakeProvider(key=KEY, now_s=clock.monotonic_s) as provider:
        yield provider
