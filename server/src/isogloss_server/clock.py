"""The one clock: everything that needs the time is handed one, so that tests own time."""

import time
from typing import Protocol


class Clock(Protocol):
    """Time that only goes forward, in seconds since an arbitrary moment."""

    def monotonic_s(self) -> float:
        """Returns the seconds passed since the clock's own beginning."""
        ...


class SystemClock:
    """The machine's monotonic clock."""

    def monotonic_s(self) -> float:
        """Returns the seconds passed since the machine's own beginning of time."""
        return time.monotonic()
