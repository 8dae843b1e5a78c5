"""Circuit breakers: stop calls to a dependency that fails, and probe it in the background until it recovers."""

import asyncio
from collections.abc import Awaitable, Callable

from isogloss_server.clock import Clock
from isogloss_server.errors import ProviderUnavailableError
from isogloss_server.models.interfaces import Report, State
from isogloss_server.models.providers.errors import ProviderCallError

FAULTS_TO_BYPASS = 3  # one after the other; a single late answer is nothing
FIRST_PAUSE_S = 0.5  # doubled after each probe in vain
LAST_PAUSE_S = 8.0
WHY = "the shared cache does not answer"
FAULTS_TO_OPEN = 5  # one after the other
FIRST_PROBE_S = 2.0
LAST_PROBE_S = 60.0


class Bypass:
    """Counts faults; after some, nobody is to ask until a probe is answered."""

    def __init__(self, clock: Clock, probe: Callable[[], Awaitable[str]], report: Report) -> None:
        """Takes `probe`, which returns why the shared cache does not answer, else nothing; tells health of changes."""
        self._clock = clock
        self._probe = probe
        self._report = report
        self._faults = 0  # since the last answer
        self._probing: asyncio.Task[None] | None = None
        self._told = State.SERVING

    @property
    def is_open(self) -> bool:
        """Whether nobody is to ask."""
        return self._probing is not None

    def start(self) -> None:
        """Asks for the first time; until that is answered, nobody else is to ask."""
        self._probing = asyncio.create_task(self._probe_until_answered(0.0))

    def answered(self) -> None:
        """Takes note of an answer in time."""
        self._faults = 0

    def failed(self, why: str) -> None:
        """Takes note of an answer that did not come in time, or of an error."""
        self._faults += 1
        if self._faults >= FAULTS_TO_BYPASS and self._probing is None:
            self._tell(State.DEGRADED, f"{WHY}: {why}")
            self._probing = asyncio.create_task(self._probe_until_answered(FIRST_PAUSE_S))

    def close(self) -> None:
        """Ends the probes."""
        if self._probing is not None:
            self._probing.cancel()

    async def _probe_until_answered(self, pause_s: float) -> None:
        if pause_s:
            await self._clock.sleep(pause_s)
        while why := await self._probe():
            self._tell(State.DEGRADED, f"{WHY}: {why}")
            pause_s = min(2 * pause_s, LAST_PAUSE_S) or FIRST_PAUSE_S
            await self._clock.sleep(pause_s)
        self._faults = 0
        self._probing = None
        self._tell(State.SERVING, "")

    def _tell(self, state: State, detail: str) -> None:
        if state is not self._told:
            self._told = state
            self._report(state, detail)


class Breaker:
    """Open: no call goes out but probes, one after the other, in the background. Closed: all do."""

    def __init__(self, clock: Clock, probe: Callable[[], Awaitable[None]], report: Report) -> None:
        """Takes `probe`, which makes one small call or raises ProviderCallError."""
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

    def failed(self, fault: ProviderCallError) -> None:
        """Takes note of a fault; after some of the provider's, one after the other, the breaker opens."""
        if fault.kind.misconfigured:
            self._tell(str(fault))
        if fault.kind.counts_as_failure:
            self._faults += 1
            if self._faults >= FAULTS_TO_OPEN:
                self.open(fault)

    def open(self, fault: ProviderCallError) -> None:
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
            except ProviderCallError as fault:
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
