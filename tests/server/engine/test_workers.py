"""The threads that heavy work runs on."""

import asyncio
import threading

from isogloss_server.engine.workers import Workers


async def test_closing_waits_for_nothing() -> None:
    """A piece of work that has begun does not hold the end."""
    began, go_on = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go_on.wait(60)

    workers = Workers(1)
    piece = asyncio.ensure_future(workers.run(work))
    await asyncio.get_running_loop().run_in_executor(None, began.wait, 60)
    workers.close()
    assert not piece.done()
    go_on.set()
    await piece
