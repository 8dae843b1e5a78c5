"""Bounds of the memory that calls hold: one budget for all of them, and time limits for callers that are slow.

A call holds memory from its first byte until its caller has read the response, also while no code of the server runs
for it. The budget counts the requests and responses that the server has seen. It cannot count a request while it is
still arriving, which gRPC does not report; if the memory of the process shows that such requests are large, those that
arrive most slowly are refused.
"""

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from isogloss_server import logs, metrics, system
from isogloss_server.clock import Clock
from isogloss_server.errors import DeadlineExceededError, DomainError, OverloadedError

CALL_BYTES = 16 * 1024  # of a call without its messages, in gRPC and here
REQUEST_COPIES = 3  # of a request: its bytes, the message, and the engine's texts or vectors
RESPONSE_COPIES = 2  # of a response: its bytes, and gRPC's copy until the caller has read it
SMALL_RESPONSE_BYTES = 64 * 1024  # a smaller response is never refused once it is computed
STREAM_PART = 2  # streams wait while more than 1 / STREAM_PART of the memory is in use
PRESSED_SHARE = 0.75  # of the memory in use, from which on slow readers have PRESSED_S instead of their time limit
PRESSED_S = 5.0
CHECK_S = 0.25
SLOW_CHECKS = 4  # a request that has not arrived after as many checks is slow; a busy event loop delays both alike
IDLE_BYTES = 4 * 1024 * 1024  # while calls hold less, the memory of the process is taken for that of the rest
RETRY_S = 1.0
RETURN_BYTES = 64 * 1024 * 1024  # growth of the process from which on the allocator is made to return memory,
RETURN_CHECKS, MAX_RETURN_CHECKS = 8, 2400  # once in as many checks


T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallLimits:
    """Bounds of the calls of one server.

    Attributes:
        max_bytes: Memory of all calls.
        max_message_bytes: Largest request that gRPC receives.
        request_timeout_s: Time that a request may take to arrive.
        response_timeout_s: Time that a caller may take to read a response.
    """

    max_bytes: int
    max_message_bytes: int
    request_timeout_s: float
    response_timeout_s: float

    @property
    def max_slow_requests(self) -> int:
        """Requests that may always be slow to arrive: half of the memory holds them at their largest."""
        return max(1, self.max_bytes // 2 // self.max_message_bytes)


@dataclass(slots=True, eq=False)
class _Arrival:
    """A request that is being received by a task; its first check is number `check`."""

    began_s: float
    check: int
    limit_s: float
    task: "asyncio.Task[Any] | None"
    error: DomainError | None = None

    def end(self, error: DomainError) -> None:
        """Ends the wait for the request with an error."""
        if self.error is None and self.task is not None:
            self.error = error
            self.task.cancel()


class CallMemory:
    """Counts the memory of all calls, refuses what does not fit, and ends calls whose callers are too slow."""

    def __init__(
        self, limits: CallLimits, clock: Clock, process_bytes: Callable[[], int] = system.anonymous_bytes
    ) -> None:
        """Takes `process_bytes`, which returns the memory of the whole process."""
        self._limits = limits
        self._clock = clock
        self._process_bytes = process_bytes
        self._rest_bytes = 0  # memory of the process without calls, as of the last time when there were few
        self._lowest_bytes = sys.maxsize  # memory of the process; `_size_bytes` now, `_returned_bytes` when last returned
        self._size_bytes = self._returned_bytes = 0
        self._returned_check, self._return_checks = 0, RETURN_CHECKS
        self._used = 0
        self._freed = asyncio.Event()
        self._checks = 0
        self._arrivals: dict[_Arrival, None] = {}  # oldest first, likewise _unread
        self._unread: dict[Hashable, tuple[float, Callable[[], str]]] = {}
        self._checking: asyncio.Task[None] | None = None
        metrics.CALL_BYTES.set_function(lambda: self._used)

    @property
    def used(self) -> int:
        """Bytes that calls hold, as far as the server knows them."""
        return self._used

    def check_room(self, size: int, *, held: int = 0) -> None:
        """Raises OverloadedError if a call that holds `held` bytes has no room for `size` more beside other calls."""
        others = self._used - held
        if others > 0 and self._used + size > self._limits.max_bytes:
            metrics.REFUSED_FOR_MEMORY.inc()
            raise _overloaded("the memory for calls is full", used_bytes=self._used, limit=self._limits.max_bytes)

    def hold(self, size: int) -> None:
        """Counts `size` bytes more, or less if negative."""
        self._used += size
        if size < 0:
            self._freed.set()

    async def room_for_stream(self) -> None:
        """Returns when so much memory is free that a stream may read its next request."""
        while self._used > self._limits.max_bytes // STREAM_PART:
            self._freed.clear()
            await self._freed.wait()

    async def receive(self, read: Callable[[], Awaitable[T]], *, in_stream: bool = False) -> T:
        """Returns the result of `read`, which receives one request; one of a stream may take any time.

        Raises:
            DeadlineExceededError: the request did not arrive in time.
            OverloadedError: it arrived slowly, and the memory for requests that arrive is full.
        """
        limit_s = math.inf if in_stream else self._limits.request_timeout_s
        arrival = _Arrival(self._clock.monotonic_s(), self._checks, limit_s, asyncio.current_task())
        self._arrivals[arrival] = None
        try:
            return await read()
        except asyncio.CancelledError:
            if arrival.error is None or arrival.task is None or arrival.task.uncancel():
                raise
            raise arrival.error from None
        finally:
            del self._arrivals[arrival]

    def sending(self, key: Hashable, peer: Callable[[], str]) -> None:
        """Starts the time limit of a response; `peer` returns the address of the caller until `sent`."""
        self._unread[key] = self._clock.monotonic_s(), peer

    def sent(self, key: Hashable) -> None:
        """Ends the time limit of a response, if it has begun."""
        self._unread.pop(key, None)

    def start(self) -> None:
        """Checks the limits repeatedly from now on."""
        self._checking = asyncio.create_task(self._check_repeatedly())

    def stop(self) -> None:
        """Ends the checks."""
        if self._checking is not None:
            self._checking.cancel()

    async def _check_repeatedly(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            self.end_slow_requests()
            if addresses := self.slow_readers():
                closed = await asyncio.get_running_loop().run_in_executor(None, system.close_connections, addresses)
                metrics.CLOSED_CONNECTIONS.inc(closed)
                logs.warning("connections closed, because responses were not read in time", connections=closed)
            if self.returns_memory():
                await asyncio.get_running_loop().run_in_executor(None, system.release_memory)
                self.returned_memory()

    def returns_memory(self) -> bool:
        """Returns whether it is time to make the allocator return freed memory to the operating system.

        The allocator does not report what it could return, and an attempt costs milliseconds. So attempts are made
        while the process is larger than it was, and become rare while they return little.
        """
        self._size_bytes = self._process_bytes()
        self._lowest_bytes = min(self._lowest_bytes, self._size_bytes)
        if self._size_bytes - self._returned_bytes >= RETURN_BYTES:
            self._return_checks = RETURN_CHECKS
        is_due = self._checks - self._returned_check >= self._return_checks
        return is_due and self._size_bytes - self._lowest_bytes >= RETURN_BYTES

    def returned_memory(self) -> None:
        """Measures the result of an attempt, after which the next one is due soon or late."""
        size_bytes = self._process_bytes()
        helped = self._size_bytes - size_bytes >= RETURN_BYTES // 8
        self._return_checks = RETURN_CHECKS if helped else min(2 * self._return_checks, MAX_RETURN_CHECKS)
        self._returned_bytes, self._returned_check = size_bytes, self._checks

    def end_slow_requests(self) -> None:
        """Ends the calls whose requests are late, and of the slow ones the oldest if the memory is full.

        gRPC does not report how much of a request has arrived. The memory of the process shows it for all together.
        """
        self._checks += 1
        process_bytes = self._process_bytes()
        if self._used <= IDLE_BYTES and not self._arrivals:
            self._rest_bytes = process_bytes
        now_s, limits, ended = self._clock.monotonic_s(), self._limits, 0
        excess = 0
        if process_bytes - self._rest_bytes > limits.max_bytes:
            excess = max(0, len(self._arrivals) - limits.max_slow_requests)
        for arrival in self._arrivals:
            if now_s - arrival.began_s >= arrival.limit_s:
                arrival.end(DeadlineExceededError(f"the request did not arrive within {arrival.limit_s:g} s"))
            elif ended < excess and self._checks - arrival.check > SLOW_CHECKS:
                metrics.REFUSED_FOR_MEMORY.inc()
                arrival.end(_overloaded("the memory for requests that arrive is full, and this one arrived slowly"))
            elif arrival.limit_s < math.inf:
                break
            else:
                continue
            ended += 1

    def slow_readers(self) -> set[str]:
        """Returns the addresses of callers that have not read a response in time; under pressure the time is short."""
        pressed = self._used >= PRESSED_SHARE * self._limits.max_bytes
        limit_s = min(self._limits.response_timeout_s, PRESSED_S if pressed else math.inf)
        now_s, slow = self._clock.monotonic_s(), set()
        for began_s, peer in self._unread.values():
            if now_s - began_s < limit_s:
                break
            slow.add(peer())
        return slow


def _overloaded(message: str, **figures: object) -> OverloadedError:
    return OverloadedError(message, retry_after_s=RETRY_S, **figures)
