"""Executor: runs heavy work on threads, so that the event loop stays free. Callers take turns.

The only place that decides between the event loop and a thread: below a threshold, the work takes less time than the
hand-over to a thread.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from isogloss_server import system
from isogloss_server.clock import Clock
from isogloss_server.engine.backlog import Backlog, Throughput
from isogloss_server.engine.monitoring import Report, Watchdog
from isogloss_server.errors import ModelStalledError
from isogloss_server.fair_queue import CURRENT_CALLER, FairSemaphore

# Largest work that runs on the event loop itself, in numbers of numpy, characters to tokenize, and ranked lists.
INLINE_NUMBERS = 1 << 17
INLINE_CHARACTERS = 1 << 10
INLINE_RANKINGS = 256
# The smallest block of a comparison, in products of two numbers: 2 ms of one core, so that the hand-over costs little.
COMPARISON_PRODUCTS = 1 << 25

P = ParamSpec("P")
T = TypeVar("T")


class LibraryPanicError(Exception):
    """Work ended in an exception that is not an Exception; `__cause__` is that one."""


def _checked(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Returns the result of `work(*args, **kwargs)`; each error is an Exception, which its caller can handle.

    A panic of a library in Rust is a BaseException, and would pass by every handler, up to the event loop.

    Raises:
        LibraryPanicError: The work raised a BaseException.
    """
    try:
        return work(*args, **kwargs)
    except Exception:
        raise
    except BaseException as error:
        raise LibraryPanicError(type(error).__name__) from error


class Executor:
    """A fixed number of threads; callers take turns, and the work of each waits in order.

    Attributes:
        comparisons: The work of comparisons, in products of two numbers; they use at most half of the threads.
    """

    def __init__(self, threads: int) -> None:
        throughput = Throughput(full_units=COMPARISON_PRODUCTS / 4, memory_units=64 * COMPARISON_PRODUCTS)
        self.comparisons = Backlog(throughput, lanes=max(1, threads // 2), turn=COMPARISON_PRODUCTS)
        self._pool = ThreadPoolExecutor(threads, "isogloss-worker", system.lower_thread_priority)
        # The pool has no turns: it gets a piece for each thread, and one that follows without the event loop.
        self._places = FairSemaphore(threads + 1)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns the result of `work(*args, **kwargs)`, run on a thread.

        A cancelled caller stops waiting; work that has begun runs to its end, so pieces should be small.
        """
        async with self._places.hold(CURRENT_CALLER.get()):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, lambda: _checked(work, *args, **kwargs))

    async def run_if_large(
        self, size: int, inline_size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Returns the result of `work`: on a thread if its size exceeds `inline_size`, an INLINE_ constant."""
        if size <= inline_size:
            return _checked(work, *args, **kwargs)
        return await self.run(work, *args, **kwargs)

    def close(self) -> None:
        """Drops queued work and returns at once; work that has begun runs to its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True, eq=False)
class _Call:
    """A caller that waits for work."""

    future: "asyncio.Future[Any] | None" = None
    stalled: bool = False

    def fail_stalled(self) -> None:
        """Ends the wait with ModelStalledError."""
        if self.future is not None and not self.future.done():
            self.stalled = True
            self.future.cancel()


class WatchedExecutor(Executor):
    """An executor with a watchdog: callers of stalled work receive an error instead of waiting.

    It tokenizes texts of all models, and runs models without a batch queue; a piece of work takes a fraction of a
    second. Work on the event loop is not watched, because a stalled loop could not send the error.
    """

    def __init__(self, threads: int, watchdog_s: float, clock: Clock, report: Report) -> None:
        """Takes the time limit of one piece of work, and `report`, which is called from any thread."""
        super().__init__(threads)
        self._watchdog: Watchdog[_Call] = Watchdog(
            threads, watchdog_s, clock, report, part="executor", on_stall=self._on_stall
        )
        self._calls: set[_Call] = set()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns the result of `work(*args, **kwargs)`; see Executor.

        Raises:
            ModelStalledError: the work exceeds its time limit, or all threads are stalled.
        """
        if self._watchdog.all_stalled:
            raise _stalled_error()
        self._watchdog.ensure_running()
        call = _Call()

        def watched() -> T:
            """Runs the work under the watchdog."""
            running = self._watchdog.begin(call)
            try:
                return _checked(work, *args, **kwargs)
            finally:
                self._watchdog.end(running)

        call.future = place = self._places.request(CURRENT_CALLER.get())
        self._calls.add(call)
        try:
            await place
            if self._watchdog.all_stalled:
                raise _stalled_error()
            call.future = future = asyncio.get_running_loop().run_in_executor(self._pool, watched)
            return await future
        except asyncio.CancelledError:
            if call.stalled:
                raise _stalled_error() from None
            raise
        finally:
            self._calls.discard(call)
            self._places.release(place)

    def _on_stall(self, call: _Call) -> None:
        for stalled in [*self._calls] if self._watchdog.all_stalled else [call]:
            stalled.fail_stalled()


def _stalled_error() -> ModelStalledError:
    return ModelStalledError("tokenization or inference exceeded its time limit; retry on another server")
