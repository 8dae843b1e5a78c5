"""Executor: the thread that runs work, cancellation, errors, and the end."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable

import pytest
from isogloss_server.engine.executor import Executor, LibraryPanicError, WatchedExecutor
from isogloss_server.engine.monitoring import ignore_report
from isogloss_server.errors import ModelStalledError
from isogloss_server.fair_queue import CURRENT_CALLER
from isogloss_server.system import COMPUTING_NICE

from tests.support.gated_model import WATCHDOG_S
from tests.support.manual_clock import ManualClock


def plain_executor() -> Executor:
    return Executor(1)


def watched_executor() -> Executor:
    return WatchedExecutor(1, WATCHDOG_S, ManualClock(), ignore_report)


KINDS = pytest.mark.parametrize("make_executor", [plain_executor, watched_executor])


@KINDS
async def test_closing_does_not_wait_for_running_work(make_executor: Callable[[], Executor]) -> None:
    """`close` returns while work runs, and the work still returns its result to its caller."""
    began, released = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        released.wait(60)

    executor = make_executor()
    task = asyncio.ensure_future(executor.run(work))
    await asyncio.get_running_loop().run_in_executor(None, began.wait, 60)
    executor.close()
    assert not task.done()
    released.set()
    await task


@pytest.mark.skipif(sys.platform != "linux", reason="a nice value is that of a thread only on Linux")
@KINDS
async def test_threads_that_compute_have_a_lower_priority_than_the_event_loop(
    make_executor: Callable[[], Executor],
) -> None:
    """The nice value of a working thread is higher, by the same amount for each piece of work."""
    executor, own = make_executor(), os.getpriority(os.PRIO_PROCESS, 0)
    values = [await executor.run(os.getpriority, os.PRIO_PROCESS, 0) for _ in range(3)]
    executor.close()
    assert values == [min(own + COMPUTING_NICE, 19)] * 3
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


@KINDS
async def test_a_cancelled_caller_stops_waiting_and_its_queued_work_is_dropped(
    make_executor: Callable[[], Executor],
) -> None:
    """A cancelled caller returns at once; its work is not run if it was queued."""
    began, released, ran = threading.Event(), threading.Event(), []
    executor = make_executor()
    first = asyncio.ensure_future(executor.run(lambda: (began.set(), released.wait(60))))
    second = asyncio.ensure_future(executor.run(lambda: ran.append(2)))
    await asyncio.get_running_loop().run_in_executor(None, began.wait, 60)
    for call in (first, second):
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    released.set()
    await executor.run(lambda: ran.append(3))
    assert ran == [3]
    executor.close()


@KINDS
async def test_callers_take_turns(make_executor: Callable[[], Executor]) -> None:
    """The work of a quiet caller does not wait for that which a greedy caller has queued before it."""
    executor = make_executor()
    began, released, ran = threading.Event(), threading.Event(), list[str]()

    async def call(caller: str) -> None:
        CURRENT_CALLER.set(caller)
        await executor.run(lambda: (began.set(), released.wait(60), ran.append(caller)))

    calls = [asyncio.create_task(call(caller)) for caller in [*["greedy"] * 10, "quiet"]]
    await asyncio.get_running_loop().run_in_executor(None, began.wait, 60)
    released.set()
    await asyncio.gather(*calls)
    executor.close()
    assert ran.index("quiet") <= 3  # after the piece that runs, the one that follows, and one turn of the greedy caller


async def test_work_that_waits_for_its_turn_fails_when_all_threads_are_stalled() -> None:
    """Callers whose work has not reached the threads receive the error too, and later work runs again."""
    clock = ManualClock()
    executor = WatchedExecutor(1, WATCHDOG_S, clock, ignore_report)
    began, released = threading.Event(), threading.Event()
    calls = [asyncio.create_task(executor.run(lambda: (began.set(), released.wait(60)))) for _ in range(10)]
    await asyncio.get_running_loop().run_in_executor(None, began.wait, 60)
    outcomes = await clock.run_until_done(asyncio.gather(*calls, return_exceptions=True))
    assert [type(outcome) for outcome in outcomes] == [ModelStalledError] * 10
    released.set()
    while True:
        try:
            assert await executor.run(lambda: 5) == 5
            break
        except ModelStalledError:  # until the watchdog has seen the end of the work
            await asyncio.sleep(0)
    executor.close()


@KINDS
async def test_an_error_of_work_is_raised_in_its_caller(make_executor: Callable[[], Executor]) -> None:
    """The caller receives the error, and the thread runs later work."""
    executor = make_executor()
    with pytest.raises(ZeroDivisionError):
        await executor.run(lambda: 1 / 0)
    assert await executor.run(lambda: 5) == 5
    executor.close()


@KINDS
@pytest.mark.parametrize("inline_size", [0, 1])
@pytest.mark.parametrize("kind", [BaseException, SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
async def test_work_never_raises_a_base_exception(
    make_executor: Callable[[], Executor], kind: type[BaseException], inline_size: int
) -> None:
    """A panic of a library, or its attempt to exit, is an Exception in the caller, on every thread."""
    executor = make_executor()

    def work() -> None:
        raise kind

    with pytest.raises(LibraryPanicError) as raised:
        await executor.run_if_large(1, inline_size, work)
    assert type(raised.value.__cause__) is kind
    assert await executor.run(lambda: 5) == 5
    executor.close()


@KINDS
async def test_small_work_runs_on_the_event_loop_and_large_work_on_a_thread(
    make_executor: Callable[[], Executor],
) -> None:
    """`run_if_large` runs work of up to `inline_size` on the calling thread, and larger work on another one."""

    def work(value: str, *, suffix: str) -> tuple[str, int]:
        return value + suffix, threading.get_ident()

    executor = make_executor()
    small = await executor.run_if_large(10, 10, work, "a", suffix="b")
    large, thread = await executor.run_if_large(11, 10, work, "c", suffix="d")
    executor.close()
    assert small == ("ab", threading.get_ident())
    assert large == "cd"
    assert thread != threading.get_ident()
