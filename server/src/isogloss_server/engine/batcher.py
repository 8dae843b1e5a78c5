"""The one queue between callers and a model: token budget, length order, lanes, deadlines, cancellation, failure.

A batch starts the moment that a thread is free, with what waits then; nothing waits for company.
"""

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterable
from functools import partial

import numpy as np

from isogloss_server.clock import Clock
from isogloss_server.engine.waiting import Computed, Submission, Text, Waiting
from isogloss_server.errors import DrainingError, TimeUpError
from isogloss_server.models.base import Model, Priority, Rows, TokenBatch, Urgency

BULK_SHARE = 8  # while both lanes wait, one batch in so many is of BULK
SHARED_TOKENS = 512  # smaller batches lose more time than a second thread, which were idle, would win


class BatchError(Exception):
    """The model failed on a batch that a caller's text was in; the cause says how."""


class Batcher:
    """Collects the texts of all callers into batches for one model, on threads of its own."""

    def __init__(self, model: Model, *, dimensions: int, threads: int, max_batch_tokens: int, clock: Clock) -> None:
        """Starts the threads; `dimensions` is the width d of the model's rows."""
        self._model = model
        self._dimensions = dimensions
        self._max_batch_tokens = max_batch_tokens
        self._clock = clock
        self._interactive, self._bulk = Waiting(), Waiting()
        self._passed_over = 0  # batches of INTERACTIVE since one of BULK, while both waited
        self._idle = 0  # threads that wait
        self._closed = False
        self._changed = threading.Condition(threading.Lock())  # guards all of the above, and the submissions
        names = [f"isogloss-batcher-{number}" for number in range(threads)]
        self._threads = [threading.Thread(target=self._serve, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_texts(self) -> int:
        """How many texts wait for a thread."""
        return self._interactive.texts + self._bulk.texts

    @property
    def waiting_tokens(self) -> int:
        """How many tokens those texts have."""
        return self._interactive.tokens + self._bulk.tokens

    def submit(self, batch: TokenBatch, urgency: Urgency) -> "asyncio.Future[Computed]":
        """Lets the texts of `batch`, at least one, wait from now on; returns the future of their rows, in order.

        It is no coroutine, since that would let nothing wait before the caller first awaits. Whoever cancels the
        future takes out of the queue what is not computed yet. The future fails with TimeUpError where the deadline
        passes before the last text is taken, with DrainingError where the batcher closes, with BatchError where the
        model fails.

        Raises:
            DrainingError: the batcher is closed.
        """
        future: asyncio.Future[Computed] = asyncio.get_running_loop().create_future()
        submission = Submission(batch, self._dimensions, urgency.deadline_s, future)
        lane = self._interactive if urgency.priority is Priority.INTERACTIVE else self._bulk
        with self._changed:
            if self._closed:
                raise _draining()
            lane.put(submission)
            self._changed.notify(1 + len(batch.ids) // min(SHARED_TOKENS, self._max_batch_tokens))
        future.add_done_callback(partial(self._left, submission))
        return future

    def close(self, wait_s: float = 0.0) -> None:
        """Fails what waits, and lets the batches that run end, for which it waits `wait_s` seconds at most."""
        with self._changed:
            self._closed = True
            waiting = self._interactive.drop_all() + self._bulk.drop_all()
            self._changed.notify_all()
        _settle((submission, _draining()) for submission in waiting)
        until_s = self._clock.monotonic_s() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - self._clock.monotonic_s()))

    def _left(self, submission: Submission, future: "asyncio.Future[Computed]") -> None:
        if future.cancelled():
            with self._changed:
                submission.lane.drop(submission)

    def _serve(self) -> None:
        while batch := self._next():
            began_s = self._clock.monotonic_s()
            try:
                rows = self._model.forward(_joined(batch))
                self._check(rows, len(batch))
                if broken := [batch[at] for at in np.flatnonzero(~np.isfinite(rows).all(axis=1))]:
                    self._fail(broken, ValueError("the model gave numbers that are not finite"))
                self._deliver(batch, rows, (began_s, self._clock.monotonic_s()))
            except BaseException as error:  # noqa: BLE001 - a panic of a library in Rust is no Exception
                self._fail(batch, error)

    def _next(self) -> list[Text]:
        """Waits until there is a batch to compute, and returns it; nothing once the batcher is closed."""
        batch: list[Text] = []
        while not batch:
            with self._changed:
                self._idle += 1
                self._changed.wait_for(lambda: self._closed or self.waiting_texts)
                self._idle -= 1
                if self._closed:
                    return []
                batch, expired = self._take()
            message = "the deadline passed while the texts waited"
            _settle((submission, TimeUpError(message)) for submission in expired)
        return batch

    def _take(self) -> tuple[list[Text], list[Submission]]:
        """Takes from the lane whose turn it is; where threads are idle, no more than this one's share."""
        lane = self._interactive
        if not lane.texts or (self._bulk.texts and self._passed_over >= BULK_SHARE - 1):
            lane = self._bulk
        self._passed_over = self._passed_over + 1 if lane is self._interactive and self._bulk.texts else 0
        share = max(SHARED_TOKENS, -(-lane.tokens // (self._idle + 1)))
        return lane.take(min(self._max_batch_tokens, share), self._clock.monotonic_s())

    def _check(self, rows: Rows, texts: int) -> None:
        if rows.shape != (texts, self._dimensions) or rows.dtype != np.float32:
            expected = f"float32 {[texts, self._dimensions]}"
            raise ValueError(f"the model gave {rows.dtype} {list(rows.shape)} where {expected} was due")

    def _deliver(self, batch: list[Text], rows: Rows, span: tuple[float, float]) -> None:
        """Writes each row to its place, and tells the submissions that now have all of theirs."""
        for text, row in zip(batch, rows, strict=True):
            text.submission.rows[text.row] = row
        finished: list[Submission] = []
        with self._changed:
            for submission, texts in Counter(text.submission for text in batch).items():
                submission.missing -= texts
                submission.spans.append(span)
                if not submission.missing:
                    finished.append(submission)
        _settle((submission, Computed(submission.rows, tuple(submission.spans))) for submission in finished)

    def _fail(self, batch: list[Text], error: BaseException) -> None:
        """Fails every submission that one of these texts is of, and takes the rest of them out of the queue."""
        with self._changed:
            failed = {text.submission for text in batch if not text.submission.gone}
            for submission in failed:
                submission.lane.drop(submission)
        outcomes: list[tuple[Submission, Exception]] = []
        for submission in failed:
            own = BatchError("the model failed on a batch that the call had texts in")
            own.__cause__ = error
            outcomes.append((submission, own))
        _settle(outcomes)


def _joined(batch: list[Text]) -> TokenBatch:
    ids = np.concatenate([text.submission.ids_of(text.row) for text in batch])
    return TokenBatch(ids, np.array([text.length for text in batch], dtype=np.int64))


def _draining() -> DrainingError:
    return DrainingError("the server is about to stop; another one may answer")


def _settle(outcomes: Iterable[tuple[Submission, Computed | Exception]]) -> None:
    """Settles futures, each on its loop, which is woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Computed], Computed | Exception]]] = {}
    for submission, outcome in outcomes:
        by_loop.setdefault(submission.future.get_loop(), []).append((submission.future, outcome))
    for loop, settled in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there any more
            loop.call_soon_threadsafe(_tell, settled)


def _tell(settled: list[tuple["asyncio.Future[Computed]", Computed | Exception]]) -> None:
    for future, outcome in settled:
        if future.done():  # cancelled meanwhile
            continue
        if isinstance(outcome, Computed):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)
