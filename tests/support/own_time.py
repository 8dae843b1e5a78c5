"""A clock that the test owns: who sleeps wakes when the test lets time pass, or at once where it flies."""

import asyncio
import heapq
import itertools


class OwnTime:
    """Stands still until `pass_s`; where it `flies`, each sleep takes it forward by as much and returns."""

    def __init__(self, *, flies: bool = False) -> None:
        self.now_s = 1000.0
        self.slept_s: list[float] = []  # what was asked of `sleep`, in order
        self._flies = flies
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._changed = asyncio.Event()

    def monotonic_s(self) -> float:
        """Returns the seconds since the clock's own beginning."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Returns once so many seconds of this clock have passed."""
        self.slept_s.append(seconds)
        wake_s = self.now_s + seconds
        if self._flies:
            await asyncio.sleep(0)  # others may go on first, as in any sleep
            self.now_s = max(self.now_s, wake_s)
            return
        sleeper = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (wake_s, next(self._order), sleeper))
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
            self.now_s, _, sleeper = heapq.heappop(self._sleepers)
            if not sleeper.done():
                sleeper.set_result(None)
        self.now_s = end_s
