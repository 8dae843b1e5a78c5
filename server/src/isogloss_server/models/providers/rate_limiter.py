"""Rate limiter of a provider: limits calls in flight and texts a minute. INTERACTIVE is first; callers take turns."""

import asyncio
from collections import deque
from typing import NamedTuple

from isogloss.wire.enums import Priority

from isogloss_server.clock import Clock
from isogloss_server.errors import ProviderRateLimitError
from isogloss_server.fair_queue import CallerQueue
from isogloss_server.models.interfaces import Urgency

MINUTE_S = 60.0


class _Waiter(NamedTuple):
    """A waiting call. The calls of a caller are ordered by round, then by arrival."""

    round: int
    texts: int
    started: "asyncio.Future[None]"


class RateLimiter:
    """Limits the calls in flight to one provider's model, and its texts a minute by a token bucket.

    A text's token returns to the bucket a minute after its call has ended, so that the provider's limit holds in every
    interval of a minute.
    """

    def __init__(self, clock: Clock, *, calls: int, texts_per_minute: int) -> None:
        """Creates a limiter with a full bucket.

        Args:
            clock: Measures the minutes and the pauses.
            calls: The limit of calls in flight.
            texts_per_minute: The limit of texts; 0 for no limit.
        """
        self._clock = clock
        self._free_calls = calls
        self._texts_per_minute = texts_per_minute
        self._taken_texts = 0  # tokens taken from the bucket and not yet returned
        self._returns: deque[tuple[float, int]] = deque()  # time of a return to the bucket, and number of tokens
        self._paused_until_s = 0.0
        self._waiting: dict[Priority, CallerQueue[_Waiter]] = {
            priority: CallerQueue() for priority in (Priority.INTERACTIVE, Priority.BULK)
        }
        self._round = 0  # of the call that started last
        self._timer: asyncio.Task[None] | None = None

    async def acquire(self, texts: int, urgency: Urgency, chunk: int = 0) -> None:
        """Waits until a call may start; `release` must follow when it has ended.

        Callers take turns. The requests of one share its turns round by round: chunk 3 of a request starts after chunks
        0 to 2 of a later request, and before its chunk 3.

        Args:
            texts: The number of texts of the call.
            urgency: Priority, deadline and caller of the request.
            chunk: The number of the chunk in its request.

        Raises:
            ProviderRateLimitError: The call cannot start before the deadline.
        """
        started = asyncio.get_running_loop().create_future()
        waiter = _Waiter(self._round + chunk, texts, started)
        waiting = self._waiting[urgency.priority]
        before = [*waiting.before(urgency.caller, waiter.round)]
        if urgency.priority is Priority.BULK:
            before += self._waiting[Priority.INTERACTIVE]
        self.check(texts + sum(other.texts for other in before), urgency)
        waiting.put(urgency.caller, waiter, waiter.round)
        self._start_waiters()
        try:
            await waiter.started
        except asyncio.CancelledError:
            if waiter.started.done() and not waiter.started.cancelled():  # no call was made: return its tokens at once
                self._free_calls += 1
                self._taken_texts -= texts
            self._start_waiters()
            raise

    def check(self, texts: int, urgency: Urgency) -> None:
        """Checks that a number of texts can be sent before the deadline.

        Raises:
            ProviderRateLimitError: They cannot.
        """
        now_s = self._clock.monotonic_s()
        wait_s = self._wait_s(texts, now_s)
        if now_s + wait_s >= urgency.deadline_s:
            message = f"the provider's rate limit delays the texts by {wait_s:.1f} s, beyond the deadline"
            raise ProviderRateLimitError(message, retry_after_s=wait_s, limit=self._texts_per_minute)

    def release(self, texts: int) -> None:
        """Records the end of a call, and starts waiting calls."""
        self._free_calls += 1
        if self._texts_per_minute:
            self._returns.append((self._clock.monotonic_s() + MINUTE_S, texts))
        self._start_waiters()

    def pause(self, seconds: float) -> None:
        """Delays all calls for a number of seconds, as the provider requested."""
        self._paused_until_s = max(self._paused_until_s, self._clock.monotonic_s() + seconds)

    def close(self) -> None:
        """Cancels the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _start_waiters(self) -> None:
        now_s = self._clock.monotonic_s()
        while self._returns and self._returns[0][0] <= now_s:
            self._taken_texts -= self._returns.popleft()[1]
        while self._free_calls and (waiting := next(filter(None, self._waiting.values()), None)):
            first = waiting.first()
            if not first.started.done():  # else its request was cancelled
                wait_s = self._wait_s(first.texts, now_s)
                if wait_s > 0:
                    self._start_waiters_after(wait_s)
                    return
                self._round = first.round
                self._free_calls -= 1
                self._taken_texts += first.texts
                first.started.set_result(None)
            waiting.pop()

    def _wait_s(self, texts: int, now_s: float) -> float:
        """Returns the seconds until the bucket holds `texts` tokens and any pause has ended; 0 if it does now."""
        paused_s = max(0.0, self._paused_until_s - now_s)
        if not self._texts_per_minute:
            return paused_s
        missing = texts - (self._texts_per_minute - self._taken_texts)
        if missing <= 0:
            return paused_s
        for return_s, returned in self._returns:
            missing -= returned
            if missing <= 0:
                return max(paused_s, return_s - now_s)
        # Some tokens belong to calls in flight: they return a minute after the end of their call, at the earliest.
        return max(paused_s, MINUTE_S * -(-missing // self._texts_per_minute))

    def _start_waiters_after(self, seconds: float) -> None:
        self.close()
        self._timer = asyncio.create_task(self._wait_and_start(seconds))

    async def _wait_and_start(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._timer = None
        self._start_waiters()
