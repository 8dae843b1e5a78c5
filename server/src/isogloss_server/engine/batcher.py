"""Batcher: the one queue between callers and a model. Token budget, length order, priorities, deadlines, failures.

A batch starts as soon as a thread is free, with the texts that are queued then; it never waits for more.
"""

import asyncio
import contextlib
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
from isogloss.wire.enums import Priority

from isogloss_server.clock import Clock
from isogloss_server.engine.batch_queue import BatchQueue, InferenceResult, QueuedText, Submission
from isogloss_server.engine.monitoring import FailureMonitor, Report, Watchdog, ignore_report
from isogloss_server.errors import (
    DeadlineExceededError,
    DrainingError,
    ModelStalledError,
    OutOfMemoryError,
    WorkerDiedError,
)
from isogloss_server.models.interfaces import Model, Rows, TokenBatch, Urgency

BULK_SHARE = 8  # while both priorities wait, one batch in BULK_SHARE is of BULK
# While INTERACTIVE calls arrive, BULK is computed in small batches, to keep their wait short. It costs BULK a fifth to
# a third of its speed; smaller batches cost more than they gain.
RECENTLY_S = 1.0
BULK_PIECE_S, BULK_PIECE_TOKENS = 0.010, 128
SHARED_TOKENS = 512  # below this, splitting a batch over two threads costs more than it gains

Outcome = InferenceResult | Exception


class BatchError(Exception):
    """The model failed on a batch with texts of the call; `__cause__` is the model's error."""

    @classmethod
    def of(cls, cause: BaseException) -> "BatchError":
        """Returns an error for one caller. Each caller gets its own, because raising an error extends its traceback."""
        error = cls("inference failed on a batch with texts of the call")
        error.__cause__ = cause
        return error


def draining_error() -> DrainingError:
    """Returns the error of texts that are queued or submitted after the batcher closes."""
    return DrainingError("the server is stopping; retry on another server")


def stalled_error() -> ModelStalledError:
    """Returns the error of texts whose batch exceeds its time limit."""
    return ModelStalledError("inference timed out; retry on another server")


def worker_died_error() -> WorkerDiedError:
    """Returns the error of texts whose worker thread died."""
    return WorkerDiedError("the worker thread of the batch died and was restarted; retry")


def out_of_memory_error() -> OutOfMemoryError:
    """Returns the error of a text that does not fit into memory, alone: a retry would fail again."""
    return OutOfMemoryError("not enough memory for one of the texts, alone", retry_after_s=math.inf)


def non_finite_error() -> ValueError:
    """Returns the error of rows with numbers that are not finite."""
    return ValueError("the model returned numbers that are not finite")


def checked_forward(model: Model, batch: TokenBatch, dimensions: int) -> Rows:
    """Returns the rows of a model for n texts, float32 [n, d], which may not be finite.

    Raises:
        ValueError: the model returned another shape or dtype.
    """
    rows = model.forward(batch)
    expected = (len(batch.lengths), dimensions)
    if rows.shape != expected or rows.dtype != np.float32:
        raise ValueError(f"the model returned {rows.dtype} {list(rows.shape)}; expected float32 {list(expected)}")
    return rows


def resolve_futures(outcomes: Iterable[tuple[Submission, Outcome]]) -> None:
    """Resolves futures from any thread, waking each event loop once; futures that are done stay as they are."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[InferenceResult], Outcome]]] = {}
    for submission, outcome in outcomes:
        by_loop.setdefault(submission.future.get_loop(), []).append((submission.future, outcome))
    for loop, resolved in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, and its callers with it
            loop.call_soon_threadsafe(_resolve_on_loop, resolved)


def _resolve_on_loop(resolved: list[tuple["asyncio.Future[InferenceResult]", Outcome]]) -> None:
    for future, outcome in resolved:
        if future.done():  # cancelled meanwhile
            continue
        if isinstance(outcome, InferenceResult):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)


class Batcher:
    """Collects the texts of all callers into batches for one model, and computes the batches on its own threads."""

    def __init__(
        self,
        model: Model,
        *,
        dimensions: int,
        threads: int,
        max_batch_tokens: int,
        clock: Clock,
        watchdog_s: float,
        report: Report = ignore_report,
    ) -> None:
        """Starts the threads.

        Args:
            model: The model.
            dimensions: Width d of its rows.
            threads: Batches computed at a time.
            max_batch_tokens: Tokens of a batch; a longer text is a batch of its own.
            clock: The clock.
            watchdog_s: Time limit of a batch.
            report: Receives the health of batches and threads; called from any thread.
        """
        self._model = model
        self._dimensions = dimensions
        self._max_batch_tokens = max_batch_tokens
        self._clock = clock
        self._failures = FailureMonitor(report)
        self._watchdog: Watchdog[list[QueuedText]] = Watchdog(
            threads, watchdog_s, clock, report, part="threads", on_stall=self._on_stall
        )
        self._interactive, self._bulk = BatchQueue(), BatchQueue()
        self._last_interactive_s = -math.inf
        self._tokens_per_s = 0.0  # of one thread, recently; 0: unknown
        self._passed_over = 0  # batches of INTERACTIVE since the last of BULK, while both waited
        self._idle = 0  # idle threads
        self._closed = False
        self._changed = threading.Condition(threading.Lock())  # guards all of the above, and the submissions
        names = [f"isogloss-batcher-{number}" for number in range(threads)]
        self._threads = [threading.Thread(target=self._run_worker, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_texts(self) -> int:
        """Texts that wait for a thread."""
        return self._interactive.texts + self._bulk.texts

    @property
    def waiting_tokens(self) -> int:
        """Tokens of those texts."""
        return self._interactive.tokens + self._bulk.tokens

    def submit(self, batch: TokenBatch, urgency: Urgency) -> "asyncio.Future[InferenceResult]":
        """Enqueues a non-empty batch; returns a future for its rows, in order.

        Not a coroutine: the texts must be queued at the call, not at the first await. Cancelling the future removes
        its remaining texts from the queue. The future fails with DeadlineExceededError if the deadline passes
        before the last text is taken, DrainingError if the batcher closes, BatchError if the model fails,
        OutOfMemoryError if memory is insufficient for a single text, ModelStalledError if the batch stalls, and
        WorkerDiedError if the thread dies.

        Raises:
            DrainingError: the batcher is closed.
            ModelStalledError: all threads are stalled.
        """
        future: asyncio.Future[InferenceResult] = asyncio.get_running_loop().create_future()
        submission = Submission(batch, self._dimensions, urgency.deadline_s, future)
        queue = self._interactive if urgency.priority is Priority.INTERACTIVE else self._bulk
        with self._changed:
            if self._closed:
                raise draining_error()
            if self._watchdog.all_stalled:
                raise stalled_error()
            queue.put(submission)
            if queue is self._interactive:
                self._last_interactive_s = self._clock.monotonic_s()
            self._changed.notify(1 + len(batch.ids) // min(SHARED_TOKENS, self._max_batch_tokens))
        future.add_done_callback(partial(self._on_done, submission))
        self._watchdog.ensure_running()
        return future

    def close(self, wait_s: float = 0.0) -> None:
        """Fails the queued texts, and waits at most `wait_s` seconds for running batches."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._drop_all(draining_error)
        until_s = self._clock.monotonic_s() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - self._clock.monotonic_s()))

    def _on_done(self, submission: Submission, future: "asyncio.Future[InferenceResult]") -> None:
        if future.cancelled():
            with self._changed:
                submission.queue.drop(submission)

    def _run_worker(self) -> None:
        """Worker loop. An escaped error fails the current batch and restarts the loop.

        It restarts on the same thread: if threads die, there may be no resources for another one.
        """
        while not self._closed:
            batch: list[QueuedText] = []
            try:
                while batch := self._next_batch():
                    self._compute(batch)
                    batch.clear()  # releases it, so that a later error cannot fail it
            except BaseException as error:  # noqa: BLE001 - the thread must survive every error
                self._failures.worker_died(error)
                self._fail(batch, worker_died_error)

    def _compute(self, batch: list[QueuedText]) -> None:
        """Computes a batch; if memory is insufficient, in halves, down to single texts."""
        parts = [batch]
        while parts:
            part = [text for text in parts.pop() if not text.submission.dropped]
            if not part or self._attempt(part, batch):
                continue
            if len(part) == 1:
                self._fail(part, out_of_memory_error)
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]

    def _attempt(self, part: list[QueuedText], batch: list[QueuedText]) -> bool:
        """Computes a part of a batch and resolves its futures; returns False if memory is insufficient."""
        began_s = self._clock.monotonic_s()
        running = self._watchdog.begin(batch)
        try:
            rows = checked_forward(self._model, _to_token_batch(part), self._dimensions)
            if broken := [part[at] for at in np.flatnonzero(~np.isfinite(rows).all(axis=1))]:
                self._fail_batch(broken, non_finite_error())
            else:
                self._failures.batch_succeeded()
            self._deliver(part, rows, (began_s, self._clock.monotonic_s()))
        except MemoryError as error:
            if len(part) == 1:
                self._failures.batch_failed(error)
            return False
        except SystemExit:  # ends the worker, see _run_worker
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of a Rust library is a BaseException
            self._fail_batch(part, error)
        finally:
            self._watchdog.end(running)
        return True

    def _on_stall(self, batch: list[QueuedText]) -> None:
        """Fails a batch that exceeds its time limit and, if all threads are stalled, all queued texts."""
        self._fail(batch, stalled_error)
        if self._watchdog.all_stalled:
            self._drop_all(stalled_error)

    def _next_batch(self) -> list[QueuedText]:
        """Waits for a batch to compute and returns it; returns an empty one once the batcher is closed."""
        batch: list[QueuedText] = []
        while not batch:
            with self._changed:
                self._idle += 1
                try:
                    self._changed.wait_for(lambda: self._closed or self.waiting_texts)
                finally:
                    self._idle -= 1
                if self._closed:
                    return []
                batch, expired = self._take_batch()
            message = "the deadline passed while the texts were queued"
            resolve_futures((submission, DeadlineExceededError(message)) for submission in expired)
        return batch

    def _take_batch(self) -> tuple[list[QueuedText], list[Submission]]:
        """Takes a batch of the next priority and the expired submissions; idle threads get a share of the work."""
        queue = self._interactive
        if not queue.texts or (self._bulk.texts and self._passed_over >= BULK_SHARE - 1):
            queue = self._bulk
        self._passed_over = self._passed_over + 1 if queue is self._interactive and self._bulk.texts else 0
        now_s = self._clock.monotonic_s()
        share = max(SHARED_TOKENS, -(-queue.tokens // (self._idle + 1)))
        if queue is self._bulk and now_s - self._last_interactive_s < RECENTLY_S:
            share = max(BULK_PIECE_TOKENS, round(BULK_PIECE_S * self._tokens_per_s))
        return queue.take(min(self._max_batch_tokens, share), now_s)

    def _deliver(self, batch: list[QueuedText], rows: Rows, span: tuple[float, float]) -> None:
        """Writes each row to its submission, and resolves the submissions that are complete."""
        for text, row in zip(batch, rows, strict=True):
            text.submission.rows[text.row] = row
        tokens, took_s = sum(text.length for text in batch), span[1] - span[0]
        finished: list[Submission] = []
        with self._changed:
            # The time of smaller batches does not depend on their tokens.
            if tokens >= BULK_PIECE_TOKENS and took_s > 0:
                self._tokens_per_s += (tokens / took_s - self._tokens_per_s) / (8 if self._tokens_per_s else 1)
            for submission, texts in Counter(text.submission for text in batch).items():
                submission.missing -= texts
                submission.spans.append(span)
                if not submission.missing:
                    finished.append(submission)
        resolve_futures(
            (submission, InferenceResult(submission.rows, tuple(submission.spans))) for submission in finished
        )

    def _fail_batch(self, batch: list[QueuedText], error: BaseException) -> None:
        """Fails the submissions of a batch on which the model failed."""
        self._failures.batch_failed(error)
        self._fail(batch, partial(BatchError.of, error))

    def _fail(self, batch: list[QueuedText], error: Callable[[], Exception]) -> None:
        """Fails the submissions of these texts, and removes the rest of their texts from the queue."""
        with self._changed:
            failed = {text.submission for text in batch if not text.submission.dropped}
            for submission in failed:
                submission.queue.drop(submission)
        resolve_futures((submission, error()) for submission in failed)

    def _drop_all(self, error: Callable[[], Exception]) -> None:
        with self._changed:
            waiting = self._interactive.drop_all() + self._bulk.drop_all()
        resolve_futures((submission, error()) for submission in waiting)


def _to_token_batch(batch: list[QueuedText]) -> TokenBatch:
    ids = np.concatenate([text.submission.ids_of(text.row) for text in batch])
    return TokenBatch(ids, np.array([text.length for text in batch], dtype=np.int64))
