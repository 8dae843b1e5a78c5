"""The clock. Every component that needs the time is given one, so that tests control time."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock."""

    def monotonic_s(self) -> float:
        """Returns the time in seconds since an arbitrary, fixed moment."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` seconds of this clock."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def monotonic_s(self) -> float:
        """Returns the time in seconds since an arbitrary, fixed moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` seconds of this clock."""
        await asyncio.sleep(seconds)


def covered_s(spans: Sequence[tuple[float, float]]) -> float:
    """Returns the total length of the union of spans.

    Args:
        spans: Start and end of each, in seconds; they may overlap.
    """
    covered, covered_until_s = 0.0, -math.inf
    for start_s, end_s in sorted(spans):
        if end_s > covered_until_s:
            covered += end_s - max(start_s, covered_until_s)
            covered_until_s = end_s
    return covered
