"""The threads that heavy work runs on."""

import asyncio
import threading
from collections.abc import Callable

import pytest
from isogloss_server.engine.executor import Executor, WatchedExecutor
from isogloss_server.engine.monitoring import ignore_report

from tests.support.gated_model import WATCHDOG_S, OwnClock


def plain() -> Executor:
    return Executor(1)


def watched() -> Executor:
    return WatchedExecutor(1, WATCHDOG_S, OwnClock(), ignore_report)


KINDS = pytest.mark.parametrize("make", [plain, watched])


@KINDS
async def test_closing_waits_for_nothing(make: Callable[[], Executor]) -> None:
    """A piece of work that has begun does not hold the end."""
    began, go_on = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go_on.wait(60)

    workers = make()
    piece = asyncio.ensure_future(workers.run(work))
    await asyncio.get_running_loop().run_in_executor(None, began.wait, 60)
    workers.close()
    assert not piece.done()
    go_on.set()
    await piece


@KINDS
async def test_who_is_cancelled_waits_no_more(make: Callable[[], Executor]) -> None:
    """A caller that gives up is cancelled at once, and its work is not begun where it had to wait."""
    began, go_on, ran = threading.Event(), threading.Event(), []
    workers = make()
    first = asyncio.ensure_future(workers.run(lambda: (began.set(), go_on.wait(60))))
    second = asyncio.ensure_future(workers.run(lambda: ran.append(2)))
    await asyncio.get_running_loop().run_in_executor(None, began.wait, 60)
    for call in (first, second):
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    go_on.set()
    await workers.run(lambda: ran.append(3))
    assert ran == [3]
    workers.close()


@KINDS
async def test_what_work_raises_reaches_its_caller(make: Callable[[], Executor]) -> None:
    """An error of the work is its caller's, and the thread goes on."""
    workers = make()
    with pytest.raises(ZeroDivisionError):
        await workers.run(lambda: 1 / 0)
    assert await workers.run(lambda: 5) == 5
    workers.close()
