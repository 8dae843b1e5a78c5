"""How a model does, by what becomes of its batches; and where that is told."""

import asyncio
import contextlib
import threading
from collections.abc import Callable

from isogloss_server.models.base import Report, State

FAILURES = 3  # batches, one after the other, that are more than bad luck with a text

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


class Vitals:
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
