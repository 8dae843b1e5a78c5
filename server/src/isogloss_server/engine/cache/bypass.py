"""Whether the shared cache is asked: not while it does not answer, which is found out in the background."""

import asyncio
from collections.abc import Awaitable, Callable

from isogloss_server.clock import Clock
from isogloss_server.models.base import Report, State

FAULTS_TO_BYPASS = 3  # one after the other; a single late answer is nothing
FIRST_PAUSE_S = 0.5  # doubled after each probe in vain
LAST_PAUSE_S = 8.0
WHY = "the shared cache does not answer"


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
