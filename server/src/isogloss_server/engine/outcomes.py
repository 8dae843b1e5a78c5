"""What becomes of submissions, and how it is told to who waits for them."""

import asyncio
import contextlib
from collections.abc import Iterable

from isogloss_server.engine.waiting import Computed, Submission
from isogloss_server.errors import DrainingError, ModelStuckError, WorkerDiedError

Outcome = Computed | Exception


class BatchError(Exception):
    """The model failed on a batch that a caller's text was in; the cause says how."""

    @classmethod
    def of(cls, cause: BaseException) -> "BatchError":
        """Returns the error of one caller; each has one of its own, since a traceback grows with whoever raises it."""
        error = cls("the model failed on a batch that the call had texts in")
        error.__cause__ = cause
        return error


def draining() -> DrainingError:
    """Returns the error of who comes or waits when the batcher closes."""
    return DrainingError("the server is about to stop; another one may answer")


def stuck() -> ModelStuckError:
    """Returns the error of who waits for a batch that hangs."""
    return ModelStuckError("the model does not come to an end with a batch; another server may answer")


def died() -> WorkerDiedError:
    """Returns the error of who waits for a thread that has died."""
    return WorkerDiedError("the thread that computed the call's texts died; asked again, they are computed anew")


def settle(outcomes: Iterable[tuple[Submission, Outcome]]) -> None:
    """Settles futures, each on its loop, which is woken once; from any thread. Those that are done stay as they are."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Computed], Outcome]]] = {}
    for submission, outcome in outcomes:
        by_loop.setdefault(submission.future.get_loop(), []).append((submission.future, outcome))
    for loop, settled in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there any more
            loop.call_soon_threadsafe(_tell, settled)


def _tell(settled: list[tuple["asyncio.Future[Computed]", Outcome]]) -> None:
    for future, outcome in settled:
        if future.done():  # cancelled meanwhile
            continue
        if isinstance(outcome, Computed):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
