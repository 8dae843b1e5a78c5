"""The one clock: everything that needs the time is handed one, so that tests own time."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Protocol


class Clock(Protocol):
    """Time that only goes forward, in seconds since an arbitrary moment."""

    def monotonic_s(self) -> float:
        """Returns the seconds passed since the clock's own beginning."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns once so many seconds have passed."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def monotonic_s(self) -> float:
        """Returns the seconds passed since the machine's own beginning of time."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns once so many seconds have passed."""
        await asyncio.sleep(seconds)


def covered_s(spans: Sequence[tuple[float, float]]) -> float:
    """Returns the seconds that lie in at least one of the spans, which may overlap."""
    covered, until_s = 0.0, -math.inf
    for began_s, ended_s in sorted(spans):
        if ended_s > until_s:
            covered += ended_s - max(began_s, until_s)
            until_s = ended_s
    return covered
