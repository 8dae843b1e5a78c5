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

from isogloss_server import metrics, system, tracing
from isogloss_server.clock import Clock
from isogloss_server.engine.backlog import Throughput
from isogloss_server.engine.batch_queue import BatchScheduler, InferenceResult, QueuedText, Submission, to_token_batch
from isogloss_server.engine.monitoring import FailureMonitor, Report, Watchdog, ignore_report
from isogloss_server.errors import (
    DeadlineExceededError,
    DrainingError,
    ModelStalledError,
    OutOfMemoryError,
    WorkerDiedError,
)
from isogloss_server.models.interfaces import Model, Positions, Rows, TokenBatch, Urgency, without_padding

STALL_FACTOR = 8  # a batch may take this many times as long as the measured speed predicts, plus the time limit

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
    """Returns the error of texts that cannot be computed while all threads are stalled."""
    return ModelStalledError("all threads of the model are stalled; retry on another server")


def stalled_batch_error() -> ModelStalledError:
    """Returns the error of texts whose own batch exceeded its time limit: a retry would stall another thread."""
    return ModelStalledError("inference of a batch with texts of the call timed out", retry_after_s=math.inf)


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
        throughput: Throughput,
        report: Report = ignore_report,
        name: str = "",
        positions: Positions = without_padding,
    ) -> None:
        """Starts the threads.

        Args:
            model: The model.
            dimensions: Width d of its rows.
            threads: Batches computed at a time.
            max_batch_tokens: Tokens of a batch; a longer text is a batch of its own.
            clock: The clock.
            watchdog_s: Time limit of a batch, in addition to the time that the measured speed predicts for it.
            throughput: Measures tokens a second of one thread.
            report: Receives the health of batches and threads; called from any thread.
            name: The name that the model is served under, for metrics.
            positions: Returns the positions that the model computes for a batch.
        """
        self._metrics = metrics.BatchMetrics(name, threads)
        self._positions = positions
        self._model = model
        self._dimensions = dimensions
        self._clock = clock
        self._failures = FailureMonitor(report)
        self._watchdog: Watchdog[list[QueuedText]] = Watchdog(
            threads, watchdog_s, clock, report, part="threads", on_stall=self._on_stall
        )
        self._throughput = throughput
        self._scheduler = BatchScheduler(max_batch_tokens, throughput)
        self._idle = 0  # idle threads
        self._closed = False
        self._changed = threading.Condition(threading.Lock())  # guards all of the above, and the submissions
        names = [f"isogloss-batcher-{number}" for number in range(threads)]
        self._threads = [threading.Thread(target=self._run_worker, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_texts(self) -> int:
        """Texts that wait for a thread; equal texts count once."""
        return self._scheduler.texts

    @property
    def waiting_tokens(self) -> int:
        """Tokens of those texts."""
        return self._scheduler.tokens

    def submit(self, batch: TokenBatch, urgency: Urgency) -> "asyncio.Future[InferenceResult]":
        """Enqueues a non-empty batch; returns a future for its rows, in order.

        A text that another call has queued, or whose batch is running, is computed once for both.
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
        submission = Submission(len(batch.lengths), self._dimensions, urgency, future)
        if (span := tracing.current()) is not None:
            submission.traced = tracing.QueuedCall(span, self._clock.monotonic_s())
        with self._changed:
            if self._closed:
                raise draining_error()
            if self._watchdog.all_stalled:
                raise stalled_error()
            self._changed.notify(self._scheduler.put(submission, batch, urgency.priority, self._clock.monotonic_s()))
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
        if submission.traced is not None and (future.cancelled() or future.exception() is not None):
            error = "CancelledError" if future.cancelled() else tracing.error_type(future.exception())
            submission.traced.leave(self._clock.monotonic_s(), error=error)
        if future.cancelled():
            with self._changed:
                submission.queue.drop(submission)

    def _run_worker(self) -> None:
        """Worker loop. An escaped error fails the current batch and restarts the loop.

        It restarts on the same thread: if threads die, there may be no resources for another one.
        """
        system.lower_thread_priority()
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
            part = self._wanted(parts.pop())
            if not part or self._attempt(part, batch):
                continue
            if len(part) == 1:
                self._fail(part, out_of_memory_error)
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]

    def _wanted(self, batch: list[QueuedText]) -> list[QueuedText]:
        """Returns the texts that a call still waits for, and ends the sharing of the others."""
        with self._changed:
            wanted = [text for text in batch if text.is_wanted]
            if len(wanted) < len(batch):
                self._forget([text for text in batch if not text.is_wanted])
        return wanted

    def _attempt(self, part: list[QueuedText], batch: list[QueuedText]) -> bool:
        """Computes a part of a batch and resolves its futures; returns False if memory is insufficient."""
        tokens = sum(text.length for text in part)
        rate = self._throughput.cautious_rate
        running = self._watchdog.begin(batch, STALL_FACTOR * tokens / rate if rate else 0.0)
        began_s = self._clock.monotonic_s()
        try:
            token_batch = to_token_batch(part)
            rows = checked_forward(self._model, token_batch, self._dimensions)
            ended_s = self._clock.monotonic_s()
            self._throughput.record(tokens, ended_s - began_s)
            self._metrics.computed(len(part), tokens, self._positions(token_batch.lengths), ended_s - began_s)
            if broken := [part[at] for at in np.flatnonzero(~np.isfinite(rows).all(axis=1))]:
                self._fail_batch(broken, non_finite_error())
            else:
                self._failures.batch_succeeded()
            self._record_batch(part, (began_s, ended_s))
            self._deliver(part, rows, (began_s, ended_s))
        except MemoryError as error:
            if len(part) == 1:
                self._failures.batch_failed(error)
            return False
        except SystemExit:  # ends the worker, see _run_worker
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of a Rust library is a BaseException
            self._record_batch(part, (began_s, self._clock.monotonic_s()), error)
            self._fail_batch(part, error)
        finally:
            self._watchdog.end(running)
        return True

    def _record_batch(
        self, batch: list[QueuedText], times_s: tuple[float, float], error: BaseException | None = None
    ) -> None:
        """Records a computed batch, if a call with texts of it is traced."""
        submissions = dict.fromkeys(submission for text in batch for submission, _ in text.owners)
        calls = [submission.traced for submission in submissions if submission.traced is not None]
        if calls:
            attributes = {"isogloss.texts": len(batch), "isogloss.tokens": sum(text.length for text in batch)}
            tracing.record_batch(calls, times_s, attributes, error=tracing.error_type(error))

    def _on_stall(self, batch: list[QueuedText]) -> None:
        """Fails a batch that exceeds its time limit and, if all threads are stalled, all queued texts."""
        self._fail(batch, stalled_batch_error)
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
                batch, expired = self._scheduler.take(self._clock.monotonic_s(), self._idle)
            message = "the deadline passed while the texts were queued"
            resolve_futures((submission, DeadlineExceededError(message)) for submission in expired)
        return batch

    def _deliver(self, batch: list[QueuedText], rows: Rows, span: tuple[float, float]) -> None:
        """Writes each row to its submissions, and resolves the submissions that are complete."""
        with self._changed:
            self._forget(batch)  # from now on no further submission waits for these texts
        for text, row in zip(batch, rows, strict=True):
            for submission, at in text.owners:
                submission.rows[at] = row
        finished: list[Submission] = []
        with self._changed:
            tokens: Counter[Submission] = Counter()
            for text in batch:
                for submission, _ in text.owners:
                    submission.missing -= 1
                    tokens[submission] += text.length
            for submission, computed in tokens.items():
                submission.spans.append(span)
                if not submission.missing:
                    finished.append(submission)
                elif submission.progress is not None:
                    submission.progress.computed(computed)
        resolve_futures(
            (submission, InferenceResult(submission.rows, tuple(submission.spans))) for submission in finished
        )

    def _forget(self, batch: list[QueuedText]) -> None:
        for text in batch:
            text.queue.forget(text)

    def _fail_batch(self, batch: list[QueuedText], error: BaseException) -> None:
        """Fails the submissions of a batch on which the model failed."""
        self._failures.batch_failed(error)
        self._fail(batch, partial(BatchError.of, error))

    def _fail(self, batch: list[QueuedText], error: Callable[[], Exception]) -> None:
        """Fails the submissions of these texts, and removes the rest of their texts from the queue."""
        with self._changed:
            self._forget(batch)
            # In the order of the batch; a submission may have several of its texts.
            owners = dict.fromkeys(submission for text in batch for submission, _ in text.owners)
            failed = [submission for submission in owners if not submission.dropped]
            for submission in failed:
                submission.queue.drop(submission)
        resolve_futures((submission, error()) for submission in failed)

    def _drop_all(self, error: Callable[[], Exception]) -> None:
        with self._changed:
            waiting = self._scheduler.drop_all()
        resolve_futures((submission, error()) for submission in waiting)
