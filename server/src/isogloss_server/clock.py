"""The clock. Components that need the time receive one, so that tests control time."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Protocol


class Clock(Protocol):
    """Monotonic time in seconds since an arbitrary moment, and the date."""

    def monotonic_s(self) -> float:
        """Returns the seconds since the moment that the clock counts from."""
        ...

    def unix_s(self) -> float:
        """Returns the seconds since the beginning of 1970, UTC, which may jump when the machine's clock is set."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` seconds."""
        ...


class SystemClock:
    """The clocks of the operating system."""

    monotonic_s = staticmethod(time.monotonic)  # the C function itself: it is called many times a request
    unix_s = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` seconds."""
        await asyncio.sleep(seconds)


def covered_s(spans: Sequence[tuple[float, float]]) -> float:
    """Returns the length in seconds of the union of spans (begin, end), which may overlap."""
    covered, until_s = 0.0, -math.inf
    for began_s, ended_s in sorted(spans):
        if ended_s > until_s:
            covered += ended_s - max(began_s, until_s)
            until_s = ended_s
    return covered
