"""The clock. Components that need the time receive one, so that tests control time."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Protocol


class Clock(Protocol):
    """Monotonic time in seconds since an arbitrary moment."""

    def monotonic_s(self) -> float:
        """Returns the seconds since the moment that the clock counts from."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` seconds."""
        ...


class SystemClock:
    """The monotonic clock of the operating system."""

    monotonic_s = staticmethod(time.monotonic)  # the C function itself: it is called many times a request

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
