"""Health of a model: the states that its parts report, consecutive failures of batches, and stalled work."""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

from isogloss_server import logs
from isogloss_server.clock import Clock


class State(IntEnum):
    """Health of a model; a greater number is worse."""

    SERVING = 1
    DEGRADED = 2
    STARTING = 3
    NOT_SERVING = 4


FAILURES = 3  # consecutive failed batches after which a model is DEGRADED: fewer may be due to single texts
CHECKS = 8  # checks of the watchdog within its time limit

T = TypeVar("T")

Report = Callable[[str, State, str], None]  # part, its state, and one line that explains it; safe from any thread


def ignore_report(_part: str, _state: State, _detail: str) -> None:
    """Discards a report."""


class HealthReporter:
    """State of one model: the worst of the states that its parts report.

    Attributes:
        state: The current state; STARTING until `start_serving`.
        detail: One line that explains the state; empty while SERVING.
    """

    def __init__(self, model: str, on_change: Callable[[], None]) -> None:
        """Creates a reporter for the model named `model`; calls `on_change` on the event loop after each change.

        Without a running event loop, it applies reports on the threads that make them.
        """
        self.state = State.STARTING
        self.detail = "loading"
        self._model = model
        self._on_change = on_change
        self._reported: dict[str, tuple[State, str]] = {}  # by part; those that are SERVING are left out
        self._serving = False
        self._thread = threading.get_ident()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    def report(self, part: str, state: State, detail: str) -> None:
        """Sets the state of one part, such as "cache"; safe from any thread, applied on the event loop in order."""
        if self._loop is None or threading.get_ident() == self._thread:
            self._apply(part, state, detail)
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._apply, part, state, detail)

    def report_degraded(self, part: str, detail: str) -> None:
        """Sets the state of one part to DEGRADED because of `detail`, or to SERVING if that is empty."""
        self.report(part, State.DEGRADED if detail else State.SERVING, detail)

    def start_serving(self) -> None:
        """Ends STARTING: from now on the state is the worst that a part reports."""
        self._serving = True
        self._update()

    def _apply(self, part: str, state: State, detail: str) -> None:
        if state is State.SERVING:
            if self._reported.pop(part, None) is not None:
                logs.info("model recovered", model=self._model, part=part)
        else:
            self._reported[part] = state, detail
            logs.warning("model degraded", model=self._model, part=part, state=state.name, cause=detail)
        if self._serving:
            self._update()

    def _update(self) -> None:
        self.state = max((state for state, _ in self._reported.values()), default=State.SERVING)
        self.detail = "; ".join(detail for state, detail in self._reported.values() if state is self.state)
        self._on_change()


class FailureMonitor:
    """Reports DEGRADED after FAILURES consecutive failed batches or when a worker thread dies.

    The next batch that succeeds reports SERVING. Reports name the type of an error, not its message, which may quote
    a text. Safe from any thread.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._failures = 0
        self._degraded = False
        self._lock = threading.Lock()  # guards all of the above, and the order of the reports

    def batch_succeeded(self) -> None:
        """Records a batch that returned its rows."""
        if self._failures or self._degraded:
            with self._lock:
                self._failures = 0
                if self._degraded:
                    self._degraded = False
                    self._report("batches", State.SERVING, "")

    def batch_failed(self, error: BaseException) -> None:
        """Records a batch that failed."""
        with self._lock:
            self._failures += 1
            if self._failures == FAILURES:
                self._degrade(f"the last {self._failures} batches failed: {type(error).__name__}")

    def worker_died(self, error: BaseException) -> None:
        """Records that a worker thread died, as opposed to a failed batch."""
        with self._lock:
            self._degrade(f"a worker thread died and was restarted: {type(error).__name__}")

    def _degrade(self, detail: str) -> None:
        self._degraded = True
        self._report("batches", State.DEGRADED, detail)


@dataclass(slots=True, eq=False)
class WatchedWork(Generic[T]):
    """Work that a thread runs; `checks` counts the checks of the watchdog that found it running."""

    work: T
    max_checks: int
    checks: int = 0

    @property
    def is_stalled(self) -> bool:
        """True if it has run for longer than its time limit."""
        return self.checks > self.max_checks


class Watchdog(Generic[T]):
    """Detects work that exceeds its time limit on a fixed set of threads.

    It counts its own checks, not seconds: a process that was suspended for an hour, or a clock that jumps, is one
    check.
    """

    def __init__(
        self,
        threads: int,
        limit_s: float,
        clock: Clock,
        report: Report,
        *,
        part: str,
        on_stall: Callable[[T], None],
    ) -> None:
        """Reports as `part`; calls `on_stall` on the event loop with each piece of stalled work."""
        self._threads = threads
        self._limit_s = limit_s
        self._clock = clock
        self._report = report
        self._part = part
        self._on_stall = on_stall
        self._running: set[WatchedWork[T]] = set()
        self._stalled = 0
        self._lock = threading.Lock()  # guards the two above, and the order of the reports
        self._checking: asyncio.Task[None] | None = None

    @property
    def all_stalled(self) -> bool:
        """True if every thread is stalled."""
        return self._stalled >= self._threads

    def ensure_running(self) -> None:
        """Starts the checks on the running event loop unless they run already."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._check_forever())

    def begin(self, work: T, extra_s: float = 0.0) -> WatchedWork[T]:
        """Registers work that the calling thread begins, and that may take `extra_s` beyond the time limit."""
        running = WatchedWork(work, CHECKS + math.ceil(extra_s * CHECKS / self._limit_s))
        with self._lock:
            self._running.add(running)
        return running

    def end(self, running: WatchedWork[T]) -> None:
        """Removes work that has ended, however late."""
        with self._lock:
            self._running.discard(running)
            if running.is_stalled:
                self._stalled -= 1
                self._report_state()

    async def _check_forever(self) -> None:
        while True:
            await self._clock.sleep(self._limit_s / CHECKS)
            for running in self._check():
                self._on_stall(running.work)

    def _check(self) -> list[WatchedWork[T]]:
        """Returns the work that this check is the first to find stalled."""
        newly_stalled: list[WatchedWork[T]] = []
        with self._lock:
            for running in self._running:
                before = running.is_stalled
                running.checks += 1
                if running.is_stalled and not before:
                    newly_stalled.append(running)
            if newly_stalled:
                self._stalled += len(newly_stalled)
                self._report_state()
        return newly_stalled

    def _report_state(self) -> None:
        if not self._stalled:
            self._report(self._part, State.SERVING, "")
            return
        state = State.NOT_SERVING if self.all_stalled else State.DEGRADED
        which = f"{self._stalled} of {self._threads} threads" if self._threads > 1 else "the only thread"
        self._report(self._part, state, f"{which} exceeded the time limit of a batch (watchdog_s {self._limit_s:g})")
