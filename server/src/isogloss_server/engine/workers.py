"""The threads on which heavy work runs, so that the event loop stays free."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Workers:
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
