"""How long a plan that outlives its server goes on, and how long it waits between one attempt and the next."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from isogloss.errors import IsoglossError, UnavailableError

# What gRPC's core and proxies end a call with when a connection goes; the service itself would give a reason.
OF_THE_CONNECTION = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The clock, and the pace of what is done over and over.

    Attributes:
        clock: Seconds from any moment on, never backwards.
        jitter: From 0 to 1, so that clients that lost one server do not come back at one moment.
        stream_s: Seconds after which a stream is replaced. A stream stays with one server, whatever others there are.
        first_delay_s: Seconds between the first failure and the next attempt; each further delay is twice as long.
        longest_delay_s: The longest of these delays.
    """

    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    stream_s: float = 30.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0

    def delay_s(self, failures: int) -> float:
        """Returns the seconds to wait after so many failures in a row."""
        longest = min(self.first_delay_s * 2.0 ** min(failures - 1, 30), self.longest_delay_s)
        return longest * (1 + self.jitter()) / 2


class Patience:
    """Seconds of waiting without an answer. Time that the caller takes is not waiting."""

    def __init__(self, patience_s: float, pace: Pace) -> None:
        self.patience_s = patience_s
        self._pace = pace
        self._waited_s = 0.0
        self._failures = 0
        self._last: IsoglossError | None = None

    def restore(self) -> None:
        """Begins anew, for there was an answer."""
        self._waited_s, self._failures, self._last = 0.0, 0, None

    def spend(self, seconds: float) -> None:
        """Takes note of seconds that passed in waiting."""
        self._waited_s += seconds

    def left_s(self) -> float:
        """Returns the seconds that are left; raises what went wrong last where there are none."""
        if self._waited_s >= self.patience_s:
            raise self._given_up()
        return self.patience_s - self._waited_s

    def delay_s(self, error: IsoglossError, failures: int | None = None) -> float:
        """Returns the seconds to wait after `error`, the server's own where it names them.

        Args:
            error: What went wrong.
            failures: How often it did; None = as often as this was asked since there was an answer.

        Raises:
            IsoglossError: `error` itself, where it says to wait longer than the patience that is left.
        """
        self._last = error
        if error.retry_after_s is None:
            self._failures += failures is None
            return self._pace.delay_s(failures or self._failures)
        if error.retry_after_s > self.patience_s - self._waited_s:
            raise error
        return error.retry_after_s

    def _given_up(self) -> IsoglossError:
        message = f"no answer for {self.patience_s:g} s"
        if self._last is None:
            return UnavailableError(message)
        message = f"{message}; the last failure: {self._last.message}"
        return self._last.replaced(message) if self._last.retryable else UnavailableError(message)


def passes(error: IsoglossError) -> bool:
    """Says whether what ended a call or a stream may pass by itself."""
    return error.retryable or (not error.reason and error.code in OF_THE_CONNECTION)
