"""Circuit breaker: stops calls to a dependency that fails, and probes it in the background until it recovers.

The pattern: Nygard, Release It!; https://martinfowler.com/bliki/CircuitBreaker.html. Instead of a half-open state, in
which calls of users are the probes, a background task makes one small call at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable

from isogloss_server import logs
from isogloss_server.clock import Clock


class CircuitBreaker:
    """Permits calls while it is closed. While it is open, probes run instead; the first successful one closes it.

    Use it on one event loop.
    """

    def __init__(
        self,
        clock: Clock,
        probe: Callable[[], Awaitable[str]],
        on_change: Callable[[str], None],
        *,
        failures_to_open: int,
        first_pause_s: float,
        max_pause_s: float,
    ) -> None:
        """Creates a closed breaker.

        Args:
            clock: Measures the pauses between probes.
            probe: Makes one small call; returns why it failed, or an empty string if it succeeded.
            on_change: Called with the reason when the breaker opens and when the reason changes, and with an empty
                string when the breaker closes.
            failures_to_open: Consecutive failures that open the breaker.
            first_pause_s: Seconds from opening to the first probe; doubled after each failed probe.
            max_pause_s: Limit of the pause between probes, in seconds.
        """
        self._clock = clock
        self._probe = probe
        self._on_change = on_change
        self._failures_to_open = failures_to_open
        self._first_pause_s = first_pause_s
        self._max_pause_s = max_pause_s
        self._failures = 0  # since the last success
        self._probing: asyncio.Task[None] | None = None
        self._next_probe_s = 0.0
        self._detail = ""

    @property
    def is_open(self) -> bool:
        """True if callers must not call the dependency."""
        return self._probing is not None

    @property
    def detail(self) -> str:
        """The reason that the breaker is open; empty if it is closed, or open before its first probe."""
        return self._detail

    @property
    def next_probe_in_s(self) -> float:
        """Seconds until the next probe starts; 0 if it has started."""
        return max(0.0, self._next_probe_s - self._clock.monotonic_s())

    def start(self) -> None:
        """Opens the breaker until an immediate first probe succeeds."""
        if self._probing is None:
            self._start_probing(0.0)

    def succeeded(self) -> None:
        """Records that a call succeeded: the count of consecutive failures restarts."""
        self._failures = 0

    def failed(self, detail: str) -> None:
        """Records that a call failed, and opens the breaker after `failures_to_open` consecutive failures."""
        self._failures += 1
        if self._failures >= self._failures_to_open:
            self.open(detail)

    def open(self, detail: str) -> None:
        """Opens the breaker if it is closed."""
        if self._probing is None:
            self._set_detail(detail)
            self._start_probing(self._first_pause_s)

    def stop(self) -> None:
        """Cancels the probes."""
        if self._probing is not None:
            self._probing.cancel()

    def _start_probing(self, pause_s: float) -> None:
        self._next_probe_s = self._clock.monotonic_s() + pause_s
        self._probing = asyncio.get_running_loop().create_task(self._probe_until_success(pause_s))

    async def _probe_until_success(self, pause_s: float) -> None:
        if pause_s:
            await self._clock.sleep(pause_s)
        while detail := await self._failure_of_probe():
            self._set_detail(detail)
            pause_s = min(2 * pause_s, self._max_pause_s) or self._first_pause_s
            self._next_probe_s = self._clock.monotonic_s() + pause_s
            await self._clock.sleep(pause_s)
        self._failures = 0
        self._probing = None
        self._set_detail("")

    async def _failure_of_probe(self) -> str:
        """Returns why the probe failed; a bug in the probe must not end the probing, and with it all calls."""
        try:
            return await self._probe()
        except Exception as error:  # noqa: BLE001
            logs.internal_error(error)
            return "internal error in a probe; see the server log"

    def _set_detail(self, detail: str) -> None:
        if detail != self._detail:
            self._detail = detail
            self._on_change(detail)
