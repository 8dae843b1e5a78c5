"""Work that does not come to an end is found, whoever does it: a watch over a fixed number of threads."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from isogloss_server.clock import Clock
from isogloss_server.models.base import Report, State

LOOKS = 8  # within the limit

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Running(Generic[T]):
    """Something that a thread is at; `looks` is how many have seen it."""

    what: T
    looks: int = 0

    @property
    def hangs(self) -> bool:
        """Whether it has been seen so often that it has run for longer than the limit."""
        return self.looks > LOOKS


class Watch(Generic[T]):
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
        self._running: set[Running[T]] = set()
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

    def begin(self, what: T) -> Running[T]:
        """Takes note that a thread begins something."""
        running = Running(what)
        with self._lock:
            self._running.add(running)
        return running

    def end(self, running: Running[T]) -> None:
        """Takes note that it has come to its end, however late."""
        with self._lock:
            self._running.discard(running)
            if running.hangs:
                self._hanging -= 1
                self._tell()

    async def _look_on(self) -> None:
        while True:
            await self._clock.sleep(self._limit_s / LOOKS)
            for running in self._look():
                self._found(running.what)

    def _look(self) -> list[Running[T]]:
        """Returns what hangs since this look."""
        found: list[Running[T]] = []
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
