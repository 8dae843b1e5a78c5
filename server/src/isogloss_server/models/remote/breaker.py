"""Stops calls to a provider that fails again and again, tells health so, and lets a probe find out when it is well."""

import asyncio
from collections.abc import Awaitable, Callable

from isogloss_server.clock import Clock
from isogloss_server.errors import ProviderUnavailableError
from isogloss_server.models.base import Report, State
from isogloss_server.models.remote.faults import ProviderFault

FAULTS_TO_OPEN = 5  # one after the other
FIRST_PROBE_S = 2.0
LAST_PROBE_S = 60.0


class Breaker:
    """Open: no call goes out but probes, one after the other, in the background. Closed: all do."""

    def __init__(self, clock: Clock, probe: Callable[[], Awaitable[None]], report: Report) -> None:
        """Takes `probe`, which makes one small call or raises ProviderFault."""
        self._clock = clock
        self._probe = probe
        self._report = report
        self._faults = 0  # since the last success
        self._why = ""  # what health was told
        self._probing: asyncio.Task[None] | None = None
        self._next_probe_s = 0.0

    @property
    def is_open(self) -> bool:
        """Whether no call may go out."""
        return self._probing is not None

    def check(self) -> None:
        """Returns where calls may go out.

        Raises:
            ProviderUnavailableError: the breaker is open.
        """
        if self.is_open:
            wait_s = max(0.0, self._next_probe_s - self._clock.monotonic_s())
            raise ProviderUnavailableError(self._why, retry_after_s=wait_s)

    def succeeded(self) -> None:
        """Takes note of a call that gave vectors."""
        self._faults = 0
        if self._probing is None:
            self._tell("")

    def failed(self, fault: ProviderFault) -> None:
        """Takes note of a fault; after some of the provider's, one after the other, the breaker opens."""
        if fault.kind.misset:
            self._tell(str(fault))
        if fault.kind.ill:
            self._faults += 1
            if self._faults >= FAULTS_TO_OPEN:
                self.open(fault)

    def open(self, fault: ProviderFault) -> None:
        """Lets no call out until a probe succeeds."""
        if self._probing is None:
            self._tell(str(fault))
            self._probing = asyncio.create_task(self._probe_until_well())

    def close(self) -> None:
        """Ends the probes."""
        if self._probing is not None:
            self._probing.cancel()

    async def _probe_until_well(self) -> None:
        wait_s = FIRST_PROBE_S
        while True:
            self._next_probe_s = self._clock.monotonic_s() + wait_s
            await self._clock.sleep(wait_s)
            try:
                await self._probe()
            except ProviderFault as fault:
                self._tell(str(fault))
                wait_s = min(2 * wait_s, LAST_PROBE_S)
            else:
                self._probing = None
                self.succeeded()
                return

    def _tell(self, why: str) -> None:
        if why != self._why:
            self._why = why
            self._report(State.DEGRADED if why else State.SERVING, why)
