"""The former names of ManualClock and its methods."""

import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tests.support.manual_clock import ManualClock

T = TypeVar("T")


class OwnTime(ManualClock):
    """A ManualClock whose methods have their former names as well."""

    @property
    def slept_s(self) -> list[float]:
        """The same as `requested_sleeps_s`."""
        return self.requested_sleeps_s

    async def asleep(self, sleeps: int) -> None:
        """The same as `wait_for_sleeps`."""
        await self.wait_for_sleeps(sleeps)

    def pass_s(self, seconds: float) -> None:
        """The same as `advance`."""
        self.advance(seconds)

    async def fly(
        self, work: Awaitable[T], *, at_most_s: float = math.inf, busy: Callable[[], bool] = lambda: False
    ) -> T:
        """The same as `run_until_done`."""
        return await self.run_until_done(work, limit_s=at_most_s, busy=busy)
