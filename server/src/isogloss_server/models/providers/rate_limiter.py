"""When a call to a provider may begin: so many at once, so many texts a minute, INTERACTIVE ones first."""

import asyncio
from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from isogloss.wire.enums import Priority

from isogloss_server.clock import Clock
from isogloss_server.errors import ProviderRateLimitError
from isogloss_server.models.interfaces import Urgency

MINUTE_S = 60.0


class _Waiter(NamedTuple):
    """One call that waits; they sort by lane, then by turn, then by arrival."""

    lane: int
    turn: int
    number: int
    texts: int
    begins: "asyncio.Future[None]"


class RateLimiter:
    """One provider model's calls in flight, and its token bucket of texts.

    A text's token comes back a minute after its call has ended, so that in no minute, wherever it begins, the
    provider sees more texts than it allows.
    """

    def __init__(self, clock: Clock, *, calls: int, texts_per_minute: int) -> None:
        """Takes how many calls may be in flight, and how many texts a minute may have; 0: any number."""
        self._clock = clock
        self._free_calls = calls
        self._texts_per_minute = texts_per_minute
        self._taken_texts = 0  # tokens that are out of the bucket
        self._coming_back: deque[tuple[float, int]] = deque()  # moment and number of those that will be put back
        self._paused_until_s = 0.0
        self._waiting: list[_Waiter] = []
        self._numbers = count()
        self._turn = 0  # of the last call that began
        self._alarm: asyncio.Task[None] | None = None

    async def acquire(self, texts: int, urgency: Urgency, chunk: int = 0) -> None:
        """Returns when a call with so many texts may begin; `leave` must be called once it has ended.

        Jobs take turns: a job's chunk 3 begins after the first three of one that came later, and before its fourth.

        Raises:
            ProviderRateLimitError: that cannot be before the deadline.
        """
        begins = asyncio.get_running_loop().create_future()
        lane = int(urgency.priority is Priority.BULK)
        waiter = _Waiter(lane, self._turn + chunk, next(self._numbers), texts, begins)
        self.check(texts + sum(other.texts for other in self._waiting if other < waiter), urgency)
        heappush(self._waiting, waiter)
        self._begin_what_may()
        try:
            await waiter.begins
        except asyncio.CancelledError:
            if waiter.begins.done() and not waiter.begins.cancelled():  # no call was made: its tokens go back at once
                self._free_calls += 1
                self._taken_texts -= texts
            self._begin_what_may()
            raise

    def check(self, texts: int, urgency: Urgency) -> None:
        """Returns where so many texts can be sent before the deadline.

        Raises:
            ProviderRateLimitError: they cannot.
        """
        now_s = self._clock.monotonic_s()
        wait_s = self._wait_s(texts, now_s)
        if now_s + wait_s >= urgency.deadline_s:
            message = "the provider's limit leaves no room for the texts before the deadline"
            raise ProviderRateLimitError(message, retry_after_s=wait_s, limit=self._texts_per_minute)

    def release(self, texts: int) -> None:
        """Makes room for the next call."""
        self._free_calls += 1
        if self._texts_per_minute:
            self._coming_back.append((self._clock.monotonic_s() + MINUTE_S, texts))
        self._begin_what_may()

    def pause(self, seconds: float) -> None:
        """Lets no call begin for so long: the provider asks for it."""
        self._paused_until_s = max(self._paused_until_s, self._clock.monotonic_s() + seconds)

    def close(self) -> None:
        """Ends what runs by itself."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _begin_what_may(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._coming_back and self._coming_back[0][0] <= now_s:
            self._taken_texts -= self._coming_back.popleft()[1]
        while self._waiting and self._free_calls:
            first = self._waiting[0]
            if not first.begins.done():  # else it was cancelled
                wait_s = self._wait_s(first.texts, now_s)
                if wait_s > 0:
                    self._look_again_in(wait_s)
                    return
                self._turn = first.turn
                self._free_calls -= 1
                self._taken_texts += first.texts
                first.begins.set_result(None)
            heappop(self._waiting)

    def _wait_s(self, texts: int, now_s: float) -> float:
        """Returns how long it takes until the bucket has so many tokens, and no pause holds."""
        paused_s = max(0.0, self._paused_until_s - now_s)
        if not self._texts_per_minute:
            return paused_s
        missing = texts - (self._texts_per_minute - self._taken_texts)
        if missing <= 0:
            return paused_s
        for moment_s, returned in self._coming_back:
            missing -= returned
            if missing <= 0:
                return max(paused_s, moment_s - now_s)
        # Some are of calls that have not ended: theirs come back a minute after that, at the earliest.
        return max(paused_s, MINUTE_S * -(-missing // self._texts_per_minute))

    def _look_again_in(self, seconds: float) -> None:
        self.close()
        self._alarm = asyncio.create_task(self._look_again(seconds))

    async def _look_again(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._alarm = None
        self._begin_what_may()
