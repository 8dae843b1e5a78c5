"""Bounds of the memory that calls hold: one budget for all of them, and time limits for callers that are slow.

A call holds memory from its first byte until its caller has read the response, also while no code of the server runs
for it. The budget counts the requests and responses that the server has seen. It cannot count a request while it is
still arriving, which gRPC does not report; if the memory of the process shows that such requests are large, those that
arrive most slowly are refused.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from isogloss_server import logs, metrics, system
from isogloss_server.clock import Clock
from isogloss_server.errors import DeadlineExceededError, DomainError, OverloadedError

CALL_BYTES = 16 * 1024  # of a call in gRPC and here, with small messages
SMALL_BYTES = 4096  # a message that is not counted apart
REQUEST_COPIES = 3  # of a request: its bytes, the message, and the engine's texts or vectors
RESULT_COPIES = 3  # of a response that is being computed: blocks, the whole, and the message
RESPONSE_COPIES = 2  # of a response: its bytes, and gRPC's copy until the caller has read it
SMALL_RESPONSE_BYTES = 64 * 1024  # a smaller response is never refused once it is computed
STREAM_PART = 2  # streams wait while more than 1 / STREAM_PART of the memory is in use
PRESSED_SHARE = 0.75  # of the memory in use, from which on slow readers have PRESSED_S instead of their time limit
ALWAYS_SHARE = 2  # of the memory, up to which health and reflection are answered
LARGE_SHARE = 0.9  # of the memory for large messages; the rest is for calls with small ones
PRESSED_S = 5.0
CHECK_S = 0.25
IDLE_CHECKS = 8  # without large calls, one of this number of checks is made
SETTLE_CHECKS = 16  # after the last large call, in which all are made
SLOW_CHECKS = 4  # a request that has not arrived after as many checks is slow; a busy event loop delays both alike
IDLE_BYTES = 4 * 1024 * 1024  # while calls hold less, the memory of the process is taken for that of the rest
RETRY_S = 1.0


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


class Caller(Protocol):
    """The caller of a call, as gRPC's context knows it."""

    def peer(self) -> str:
        """Returns the address of the caller."""
        ...


class Holder(Protocol):
    """A call that holds memory."""

    held_bytes: int
    reserved_bytes: int

    @property
    def grpc(self) -> Caller:
        """The caller."""
        ...


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
        self._used = 0
        self._freed = asyncio.Event()
        self._checks = 0
        # Requests that are being received: the task, and the time and the number of checks when it began. Oldest first,
        # likewise _unread, the responses that are being sent. Requests of streams are apart: they may take any time.
        self._arrivals: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._stream_arrivals: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._refusals: dict[asyncio.Task[Any], DomainError] = {}  # of tasks that are cancelled for being slow
        self._unread: dict[Caller, float] = {}
        self._checking: asyncio.Task[None] | None = None
        metrics.CALL_BYTES.set_function(lambda: self._used)

    def enter(self, call: Holder, *, always: bool) -> None:
        """Counts a call; raises OverloadedError if it does not fit. Those `always` answered have twice the memory."""
        used = self._used + CALL_BYTES
        if used > self._limits.max_bytes * (ALWAYS_SHARE if always else 1):
            self.check_room(CALL_BYTES)
        self._used = used
        call.held_bytes = CALL_BYTES

    def leave(self, call: Holder, _context: object = None) -> None:
        """Counts a call that has ended no more; gRPC passes its context."""
        self._used -= call.held_bytes
        self._unread.pop(call.grpc, None)
        self._freed.set()

    def check_room(self, size: int, *, held: int = 0) -> None:
        """Raises OverloadedError if a call that holds `held` bytes has no room for `size` more beside other calls."""
        others = self._used - held
        share = 1.0 if size <= CALL_BYTES else LARGE_SHARE
        if others > 0 and self._used + size > share * self._limits.max_bytes:
            metrics.MEMORY_REFUSALS.inc()
            raise _overloaded("the memory for calls is full", used_bytes=self._used, limit=self._limits.max_bytes)

    def hold_for(self, call: Holder, size: int) -> None:
        """Counts `size` bytes more until a call ends, or less if negative."""
        call.held_bytes += size
        self.hold(size)

    def hold(self, size: int) -> None:
        """Counts `size` bytes more, or less if negative, until they are counted back."""
        self._used += size
        if size < 0:
            self._freed.set()

    def reserve(self, call: Holder, response_bytes: int) -> None:
        """Counts a response of at most `response_bytes` bytes before it is computed, unless it is small.

        Raises:
            OverloadedError: there is no room for it beside other calls.
        """
        if response_bytes > SMALL_RESPONSE_BYTES:
            size = RESULT_COPIES * response_bytes
            self.check_room(size, held=call.held_bytes)
            call.reserved_bytes = size
            self.hold_for(call, size)

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
        task: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]  # a coroutine of grpc.aio has one
        arrivals = self._stream_arrivals if in_stream else self._arrivals
        arrivals[task] = self._clock.monotonic_s(), self._checks
        try:
            return await read()
        except asyncio.CancelledError:
            refusal = self._refusals.pop(task, None)
            if refusal is None or task.uncancel():
                raise
            raise refusal from None
        finally:
            del arrivals[task]

    def sending(self, caller: "Caller") -> None:
        """Starts the time limit of a response."""
        self._unread[caller] = self._clock.monotonic_s()

    def sent(self, caller: "Caller") -> None:
        """Ends the time limit of a response, if it has begun."""
        self._unread.pop(caller, None)

    def start(self) -> None:
        """Checks the limits repeatedly from now on."""
        self._checking = asyncio.create_task(self._check_repeatedly())

    def stop(self) -> None:
        """Ends the checks."""
        if self._checking is not None:
            self._checking.cancel()

    async def _check_repeatedly(self) -> None:
        freed, idle_checks = system.FreedMemory(self._process_bytes), SETTLE_CHECKS
        while True:
            await asyncio.sleep(CHECK_S)
            idle_checks = idle_checks + 1 if self._is_idle else 0
            has_settled = idle_checks > SETTLE_CHECKS
            if has_settled and idle_checks % IDLE_CHECKS > 1:
                continue
            try:
                self.end_slow_requests()
                await self._close_slow_readers()
                if freed.is_due(soon=idle_checks > 0 and not has_settled):
                    await asyncio.get_running_loop().run_in_executor(None, freed.release)
            except Exception as error:  # noqa: BLE001 - the next check may succeed
                logs.internal_error(error)

    @property
    def _is_idle(self) -> bool:
        return self._used <= IDLE_BYTES and not (self._arrivals or self._stream_arrivals or self._unread)

    async def _close_slow_readers(self) -> None:
        addresses = self.slow_readers()
        if addresses:
            closed = await asyncio.get_running_loop().run_in_executor(None, system.close_connections, addresses)
            metrics.CLOSED_CONNECTIONS.inc(closed)
            logs.warning("connections closed, because responses were not read in time", connections=closed)

    def end_slow_requests(self) -> None:
        """Ends the calls whose requests are late, and of the slow ones the oldest if the memory is full.

        gRPC does not report how much of a request has arrived. The memory of the process shows it for all together.
        """
        self._checks += 1
        process_bytes = self._process_bytes()
        arriving = len(self._arrivals) + len(self._stream_arrivals)
        if self._used <= IDLE_BYTES and not arriving:
            self._rest_bytes = process_bytes
        now_s, limit_s = self._clock.monotonic_s(), self._limits.request_timeout_s
        for task, (began_s, _) in self._arrivals.items():
            if now_s - began_s < limit_s:
                break
            self._refuse(task, DeadlineExceededError(f"the request did not arrive within {limit_s:g} s"))
        if process_bytes - self._rest_bytes > self._limits.max_bytes:
            self._refuse_slowest(arriving - self._limits.max_slow_requests)

    def _refuse_slowest(self, excess: int) -> None:
        """Ends `excess` calls whose requests are slow to arrive, those of streams last."""
        for arrivals in (self._arrivals, self._stream_arrivals):
            for task, (_, check) in arrivals.items():
                if excess <= 0 or self._checks - check <= SLOW_CHECKS:
                    break
                metrics.MEMORY_REFUSALS.inc()
                self._refuse(task, _overloaded("the memory for requests is full, and this one arrives slowly"))
                excess -= 1

    def _refuse(self, task: "asyncio.Task[Any]", error: DomainError) -> None:
        if task not in self._refusals:
            self._refusals[task] = error
            task.cancel()

    def slow_readers(self) -> set[str]:
        """Returns the addresses of callers that have not read a response in time; under pressure the time is short."""
        pressed = self._used >= PRESSED_SHARE * self._limits.max_bytes
        limit_s = min(self._limits.response_timeout_s, PRESSED_S if pressed else math.inf)
        now_s, slow = self._clock.monotonic_s(), set()
        for caller, began_s in self._unread.items():
            if now_s - began_s < limit_s:
                break
            slow.add(caller.peer())
        return slow


def _overloaded(message: str, **figures: object) -> OverloadedError:
    return OverloadedError(message, field="", retry_after_s=RETRY_S, **figures)
