"""A clock whose time a test advances; sleepers wake when their time has passed."""

import asyncio
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class ManualClock:
    """A Clock whose time changes only by `advance`, by `run_until_done`, or by an assignment to `now_s`."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.requested_sleeps_s: list[float] = []  # the arguments of `sleep`, in order
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def monotonic_s(self) -> float:
        """Returns the current time."""
        return self.now_s

    def unix_s(self) -> float:
        """Returns the current time, as if the clock counted from 1970."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Returns after `seconds` of this clock's time."""
        self.requested_sleeps_s.append(seconds)
        sleeper = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._order), sleeper))
        self._changed.set()
        await sleeper

    async def wait_for_sleeps(self, sleeps: int) -> None:
        """Returns when `sleep` has been called at least `sleeps` times since the clock was made."""
        async with asyncio.timeout(60):
            while len(self.requested_sleeps_s) < sleeps:
                self._changed.clear()
                await self._changed.wait()

    def advance(self, seconds: float) -> None:
        """Advances the time and wakes the sleepers that are due, in the order of their times."""
        end_s = self.now_s + seconds
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self._wake_next()
        self.now_s = end_s

    async def run_until_done(
        self, work: Awaitable[T], *, limit_s: float = math.inf, busy: Callable[[], bool] = lambda: False
    ) -> T:
        """Returns the result of `work`; until then, advances the time to each next sleeper and wakes it.

        Does not advance by more than `limit_s`, nor while `busy()` is true.
        """
        last_s = self.now_s + limit_s
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self._changed.set())
        while not task.done():
            self._changed.clear()
            if not busy():
                if self._sleepers and self._sleepers[0][0] <= last_s:
                    self._wake_next()
                else:
                    await self._changed.wait()
            await asyncio.sleep(0)
        return await task

    def _wake_next(self) -> None:
        wake_s, _, sleeper = heapq.heappop(self._sleepers)
        if not sleeper.done():  # a cancelled sleeper does not advance the time
            self.now_s = wake_s
            sleeper.set_result(None)
