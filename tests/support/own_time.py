"""A clock that the test owns: who sleeps on it wakes when the test lets time pass."""

import asyncio
import heapq
import itertools
import math
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class OwnTime:
    """Stands still until `pass_s`, or until it flies to the end of something."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.slept_s: list[float] = []  # what was asked of `sleep`, in order
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def monotonic_s(self) -> float:
        """Returns the seconds since the clock's own beginning."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Returns once so many seconds of this clock have passed."""
        self.slept_s.append(seconds)
        sleeper = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now_s + seconds, next(self._order), sleeper))
        self._changed.set()
        await sleeper

    async def asleep(self, sleeps: int) -> None:
        """Returns once so many sleeps have been asked for, since the clock was made."""
        async with asyncio.timeout(60):
            while len(self.slept_s) < sleeps:
                self._changed.clear()
                await self._changed.wait()

    def pass_s(self, seconds: float) -> None:
        """Lets time pass, and wakes who has slept enough, in the order of their moments."""
        end_s = self.now_s + seconds
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self._wake_next()
        self.now_s = end_s

    async def fly(
        self, work: Awaitable[T], *, at_most_s: float = math.inf, busy: Callable[[], bool] = lambda: False
    ) -> T:
        """Returns what `work` gives; until it is done, who falls asleep is woken, and so time passes.

        Nobody is woken who would sleep until later than `at_most_s` from now, nor anybody while others are `busy`.
        """
        last_s = self.now_s + at_most_s
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
        moment_s, _, sleeper = heapq.heappop(self._sleepers)
        if not sleeper.done():  # who was cancelled takes no time with it
            self.now_s = moment_s
            sleeper.set_result(None)
