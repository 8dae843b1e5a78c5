"""Monitors what models compute: consecutive failures, and work that exceeds its time limit."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from isogloss_server.clock import Clock
from isogloss_server.models.interfaces import Report, State

FAILURES = 3  # batches, one after the other, that are more than bad luck with a text
CHECKS = 8  # within the limit
T = TypeVar("T")


Reporter = Callable[[str], Report]  # gives a part of a model, by its name, what it tells its state by


def to_nobody(_part: str) -> Report:
    """Returns a report that nobody hears."""
    return lambda _state, _detail: None


def from_threads(reporter: Reporter, loop: asyncio.AbstractEventLoop) -> Reporter:
    """Returns a reporter whose reports may come from any thread; they are heard in the loop, in their order."""

    def safely(part: str) -> Report:
        """Returns what one part tells its state by."""
        report = reporter(part)

        def tell(state: State, detail: str) -> None:
            """Tells it in the loop."""
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(report, state, detail)

        return tell

    return safely


class FailureMonitor:
    """Tells that a model is not well where its batches fail one after the other, or a thread of its dies.

    The next batch that succeeds makes it well. What is told names kinds of errors, not their messages, which may quote
    a text. To be called from any thread.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._failures = 0
        self._ill = False
        self._lock = threading.Lock()  # guards all of the above, and the order of the reports

    def succeeded(self) -> None:
        """Takes note of a batch that gave its rows."""
        if self._failures or self._ill:
            with self._lock:
                self._failures = 0
                if self._ill:
                    self._ill = False
                    self._report(State.SERVING, "")

    def failed(self, error: BaseException) -> None:
        """Takes note of a batch that did not."""
        with self._lock:
            self._failures += 1
            if self._failures == FAILURES:
                self._tell(f"the last {self._failures} batches failed: {type(error).__name__}")

    def died(self, error: BaseException) -> None:
        """Takes note of a thread that something ended: not the model's failure on a batch, but the thread itself."""
        with self._lock:
            self._tell(f"a thread that computes died: {type(error).__name__}")

    def _tell(self, detail: str) -> None:
        self._ill = True
        self._report(State.DEGRADED, detail)


@dataclass(slots=True, eq=False)
class WatchedWork(Generic[T]):
    """Something that a thread is at; `looks` is how many have seen it."""

    what: T
    looks: int = 0

    @property
    def hangs(self) -> bool:
        """Whether it has been seen so often that it has run for longer than the limit."""
        return self.looks > CHECKS


class Watchdog(Generic[T]):
    """Looks again and again at what threads are at; what has run for longer than the limit hangs.

    Looks are counted, not seconds: a process that was stopped for an hour, or a clock that leaps, is one look older.
    """

    def __init__(
        self, threads: int, limit_s: float, clock: Clock, report: Report, *, found: Callable[[T], None]
    ) -> None:
        """`found` is called, in the loop, with what hangs; `report`, from any thread, when the state changes."""
        self._threads = threads
        self._limit_s = limit_s
        self._clock = clock
        self._report = report
        self._found = found
        self._running: set[WatchedWork[T]] = set()
        self._hanging = 0
        self._lock = threading.Lock()  # guards the two above, and the order of the reports
        self._looking: asyncio.Task[None] | None = None

    @property
    def all_hang(self) -> bool:
        """Whether no thread is left that comes to an end."""
        return self._hanging >= self._threads

    def keep(self) -> None:
        """Sees to it that somebody looks from now on, for as long as the running loop lives."""
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look_on())

    def begin(self, what: T) -> WatchedWork[T]:
        """Takes note that a thread begins something."""
        running = WatchedWork(what)
        with self._lock:
            self._running.add(running)
        return running

    def end(self, running: WatchedWork[T]) -> None:
        """Takes note that it has come to its end, however late."""
        with self._lock:
            self._running.discard(running)
            if running.hangs:
                self._hanging -= 1
                self._tell()

    async def _look_on(self) -> None:
        while True:
            await self._clock.sleep(self._limit_s / CHECKS)
            for running in self._look():
                self._found(running.what)

    def _look(self) -> list[WatchedWork[T]]:
        """Returns what hangs since this look."""
        found: list[WatchedWork[T]] = []
        with self._lock:
            for running in self._running:
                hung = running.hangs
                running.looks += 1
                if running.hangs and not hung:
                    found.append(running)
            if found:
                self._hanging += len(found)
                self._tell()
        return found

    def _tell(self) -> None:
        if not self._hanging:
            self._report(State.SERVING, "")
            return
        state = State.NOT_SERVING if self.all_hang else State.DEGRADED
        which = f"{self._hanging} of {self._threads} threads" if self._threads > 1 else "the thread"
        self._report(state, f"{which} did not come to an end within {self._limit_s:g} s")
