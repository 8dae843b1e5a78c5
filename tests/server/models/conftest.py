"""A fake provider, and the clock of the provider and the server."""

from collections.abc import Iterator

import pytest

from tests.support.fake_provider import FakeProvider
from tests.support.manual_clock import ManualClock
from tests.support.provider import KEY


@pytest.fixture
def clock() -> ManualClock:
    """A clock that the test advances."""
    return ManualClock()


@pytest.fixture
def fake(clock: ManualClock) -> Iterator[FakeProvider]:
    """A provider that accepts one key, and stamps its requests with the test's clock."""
    with FakeProvider(key=KEY, now_s=clock.monotonic_s) as provider:
        yield provider
