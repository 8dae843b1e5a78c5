"""The threads on which heavy work runs, so that the event loop stays free."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from isogloss_server.clock import Clock
from isogloss_server.engine.monitoring import Watchdog
from isogloss_server.errors import ModelStalledError
from isogloss_server.models.interfaces import Report

P = ParamSpec("P")


T = TypeVar("T")


class Executor:
    """A fixed number of threads; work waits in order for a free one."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="isogloss-worker")

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns what `work(*args, **kwargs)` returns, run on a worker thread.

        A caller that is cancelled stops waiting; work that has begun runs to its end, so pieces should be small.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: work(*args, **kwargs))

    def close(self) -> None:
        """Drops what waits, and waits for nothing: a piece that has begun runs on to its end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True, eq=False)
class _Call:
    """A caller that waits for a piece of work."""

    future: "asyncio.Future[Any] | None" = None
    stuck: bool = False

    def give_up(self) -> None:
        """Ends the wait."""
        if self.future is not None and not self.future.done():
            self.stuck = True
            self.future.cancel()


class WatchedExecutor(Executor):
    """Executor whose callers do not wait for a piece that hangs, whatever it is.

    Here the models without a queue compute and all models' texts are tokenised; a piece is a fraction of a second's
    work. What is so small that it is done on the event loop itself is not watched: a loop that hangs answers no one.
    """

    def __init__(self, threads: int, watchdog_s: float, clock: Clock, report: Report) -> None:
        """A piece that runs for longer than `watchdog_s` hangs; `report` is called from any thread."""
        super().__init__(threads)
        self._watch: Watchdog[_Call] = Watchdog(threads, watchdog_s, clock, report, found=self._hangs)
        self._calls: set[_Call] = set()

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns what `work(*args, **kwargs)` returns; see Executor.

        Raises:
            ModelStalledError: the work hangs, or all threads do.
        """
        if self._watch.all_hang:
            raise _stalled_error()
        self._watch.keep()
        call = _Call()

        def piece() -> T:
            """Returns what the work does, under the watch."""
            running = self._watch.begin(call)
            try:
                return work(*args, **kwargs)
            finally:
                self._watch.end(running)

        call.future = future = asyncio.get_running_loop().run_in_executor(self._pool, piece)
        self._calls.add(call)
        try:
            return await future
        except asyncio.CancelledError:
            if call.stuck:
                raise _stalled_error() from None
            raise
        finally:
            self._calls.discard(call)

    def _hangs(self, call: _Call) -> None:
        for stuck in [*self._calls] if self._watch.all_hang else [call]:
            stuck.give_up()


def _stalled_error() -> ModelStalledError:
    return ModelStalledError("work on the call does not come to an end; another server may answer")
