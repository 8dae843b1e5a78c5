"""What becomes of submissions, and how it is told to who waits for them."""

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
from isogloss_server.engine.monitoring import FailureMonitor, Reporter, Watchdog, to_nobody
from isogloss_server.errors import (
    DeadlineExceededError,
    DrainingError,
    ModelStalledError,
    OutOfMemoryError,
    WorkerDiedError,
)
from isogloss_server.models.interfaces import Model, Rows, TokenBatch, Urgency

BULK_SHARE = 8  # while both lanes wait, one batch in so many is of BULK
# While INTERACTIVE calls come, BULK is computed in small pieces, so that they wait for little. It costs BULK a fifth to
# a third of its speed; shorter pieces cost more than they win.
RECENTLY_S = 1.0
BULK_PIECE_S, BULK_PIECE_TOKENS = 0.010, 128
SHARED_TOKENS = 512  # smaller batches lose more time than a second thread, which were idle, would win


Outcome = InferenceResult | Exception


class BatchError(Exception):
    """The model failed on a batch that a caller's text was in; the cause says how."""

    @classmethod
    def of(cls, cause: BaseException) -> "BatchError":
        """Returns the error of one caller; each has one of its own, since a traceback grows with whoever raises it."""
        error = cls("the model failed on a batch that the call had texts in")
        error.__cause__ = cause
        return error


def draining_error() -> DrainingError:
    """Returns the error of who comes or waits when the batcher closes."""
    return DrainingError("the server is about to stop; another one may answer")


def stalled_error() -> ModelStalledError:
    """Returns the error of who waits for a batch that hangs."""
    return ModelStalledError("the model does not come to an end with a batch; another server may answer")


def worker_died_error() -> WorkerDiedError:
    """Returns the error of who waits for a thread that has died."""
    return WorkerDiedError("the thread that computed the call's texts died; asked again, they are computed anew")


def resolve_futures(outcomes: Iterable[tuple[Submission, Outcome]]) -> None:
    """Settles futures, each on its loop, which is woken once; from any thread. Those that are done stay as they are."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[InferenceResult], Outcome]]] = {}
    for submission, outcome in outcomes:
        by_loop.setdefault(submission.future.get_loop(), []).append((submission.future, outcome))
    for loop, settled in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits there any more
            loop.call_soon_threadsafe(_resolve_on_loop, settled)


def _resolve_on_loop(settled: list[tuple["asyncio.Future[InferenceResult]", Outcome]]) -> None:
    for future, outcome in settled:
        if future.done():  # cancelled meanwhile
            continue
        if isinstance(outcome, InferenceResult):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)


def checked_forward(model: Model, batch: TokenBatch, dimensions: int) -> Rows:
    """Returns what a model gives for n texts, float32 [n, d], which may not be finite.

    Raises:
        ValueError: it gives something else.
    """
    rows = model.forward(batch)
    due = (len(batch.lengths), dimensions)
    if rows.shape != due or rows.dtype != np.float32:
        raise ValueError(f"the model gave {rows.dtype} {list(rows.shape)} where float32 {list(due)} was due")
    return rows


def non_finite_error() -> ValueError:
    """Returns the error of rows that are no vectors."""
    return ValueError("the model gave numbers that are not finite")


def out_of_memory_error() -> OutOfMemoryError:
    """Returns the error of a text that memory does not suffice for: to ask again would only fail again."""
    return OutOfMemoryError("memory does not suffice for one of the call's texts, alone", retry_after_s=math.inf)


class Batcher:
    """Collects the texts of all callers into batches for one model, on threads of its own."""

    def __init__(
        self,
        model: Model,
        *,
        dimensions: int,
        threads: int,
        max_batch_tokens: int,
        clock: Clock,
        watchdog_s: float,
        reporter: Reporter = to_nobody,
    ) -> None:
        """Starts the threads; `dimensions` is the width d of the model's rows.

        A batch that runs for longer than `watchdog_s` hangs. What `reporter` gives is called from any thread.
        """
        self._model = model
        self._dimensions = dimensions
        self._max_batch_tokens = max_batch_tokens
        self._clock = clock
        self._vitals = FailureMonitor(reporter("batches"))
        self._watch: Watchdog[list[QueuedText]] = Watchdog(
            threads, watchdog_s, clock, reporter("threads"), found=self._hangs
        )
        self._interactive, self._bulk = BatchQueue(), BatchQueue()
        self._last_interactive_s = -math.inf
        self._tokens_per_s = 0.0  # of one thread, of late; 0: not known
        self._passed_over = 0  # batches of INTERACTIVE since one of BULK, while both waited
        self._idle = 0  # threads that wait
        self._closed = False
        self._changed = threading.Condition(threading.Lock())  # guards all of the above, and the submissions
        names = [f"isogloss-batcher-{number}" for number in range(threads)]
        self._threads = [threading.Thread(target=self._live, name=name, daemon=True) for name in names]
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

    def submit(self, batch: TokenBatch, urgency: Urgency) -> "asyncio.Future[InferenceResult]":
        """Lets the texts of `batch`, at least one, wait from now on; returns the future of their rows, in order.

        Not a coroutine: the texts must be queued at the call, not at the first await. Cancelling the future removes
        from the queue what is not computed yet. The future fails with DeadlineExceededError if the deadline passes
        before the last text is taken, DrainingError if the batcher closes, BatchError if the model fails,
        OutOfMemoryError if memory does not suffice for a single text, ModelStalledError if the batch stalls, and
        WorkerDiedError if the thread dies.

        Raises:
            DrainingError: the batcher is closed.
            ModelStalledError: all threads hang.
        """
        future: asyncio.Future[InferenceResult] = asyncio.get_running_loop().create_future()
        submission = Submission(batch, self._dimensions, urgency.deadline_s, future)
        lane = self._interactive if urgency.priority is Priority.INTERACTIVE else self._bulk
        with self._changed:
            if self._closed:
                raise draining_error()
            if self._watch.all_hang:
                raise stalled_error()
            lane.put(submission)
            if lane is self._interactive:
                self._last_interactive_s = self._clock.monotonic_s()
            self._changed.notify(1 + len(batch.ids) // min(SHARED_TOKENS, self._max_batch_tokens))
        future.add_done_callback(partial(self._left, submission))
        self._watch.keep()
        return future

    def close(self, wait_s: float = 0.0) -> None:
        """Fails what waits, and lets the batches that run end, for which it waits `wait_s` seconds at most."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._drop_all(draining_error)
        until_s = self._clock.monotonic_s() + wait_s
        for thread in self._threads:
            thread.join(max(0.0, until_s - self._clock.monotonic_s()))

    def _left(self, submission: Submission, future: "asyncio.Future[InferenceResult]") -> None:
        if future.cancelled():
            with self._changed:
                submission.lane.drop(submission)

    def _live(self) -> None:
        """Serves until the batcher closes; what ends it before fails the batch that it was at, and it begins anew.

        It does so on the same thread, as there may be no room for another one where threads die.
        """
        while not self._closed:
            batch: list[QueuedText] = []
            try:
                while batch := self._next():
                    self._compute(batch)
                    batch.clear()  # so that nothing of it is held, nor blamed, while the next one is awaited
            except BaseException as error:  # noqa: BLE001 - that is what dying is
                self._vitals.died(error)
                self._fail(batch, worker_died_error)

    def _compute(self, batch: list[QueuedText]) -> None:
        """Computes a batch; where memory does not suffice, in halves, down to single texts."""
        parts = [batch]
        while parts:
            part = [text for text in parts.pop() if not text.submission.gone]
            if not part or self._attempt(part, batch):
                continue
            if len(part) == 1:
                self._fail(part, out_of_memory_error)
            else:
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]

    def _attempt(self, part: list[QueuedText], batch: list[QueuedText]) -> bool:
        """Returns whether memory sufficed for a part of a batch; whatever else becomes of it is told to its callers."""
        began_s = self._clock.monotonic_s()
        running = self._watch.begin(batch)
        try:
            rows = checked_forward(self._model, _joined(part), self._dimensions)
            if broken := [part[at] for at in np.flatnonzero(~np.isfinite(rows).all(axis=1))]:
                self._blame(broken, non_finite_error())
            else:
                self._vitals.succeeded()
            self._deliver(part, rows, (began_s, self._clock.monotonic_s()))
        except MemoryError as error:
            if len(part) == 1:
                self._vitals.failed(error)
            return False
        except SystemExit:  # means the thread, whoever raised it
            raise
        except BaseException as error:  # noqa: BLE001 - a panic of a library in Rust is no Exception
            self._blame(part, error)
        finally:
            self._watch.end(running)
        return True

    def _hangs(self, batch: list[QueuedText]) -> None:
        """Fails those who wait for a batch that hangs; where no thread is left, all others too."""
        self._fail(batch, stalled_error)
        if self._watch.all_hang:
            self._drop_all(stalled_error)

    def _next(self) -> list[QueuedText]:
        """Waits until there is a batch to compute, and returns it; nothing once the batcher is closed."""
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
                batch, expired = self._take()
            message = "the deadline passed while the texts waited"
            resolve_futures((submission, DeadlineExceededError(message)) for submission in expired)
        return batch

    def _take(self) -> tuple[list[QueuedText], list[Submission]]:
        """Takes from the lane whose turn it is; where threads are idle, no more than this one's share."""
        lane = self._interactive
        if not lane.texts or (self._bulk.texts and self._passed_over >= BULK_SHARE - 1):
            lane = self._bulk
        self._passed_over = self._passed_over + 1 if lane is self._interactive and self._bulk.texts else 0
        now_s = self._clock.monotonic_s()
        share = max(SHARED_TOKENS, -(-lane.tokens // (self._idle + 1)))
        if lane is self._bulk and now_s - self._last_interactive_s < RECENTLY_S:
            share = max(BULK_PIECE_TOKENS, round(BULK_PIECE_S * self._tokens_per_s))
        return lane.take(min(self._max_batch_tokens, share), now_s)

    def _deliver(self, batch: list[QueuedText], rows: Rows, span: tuple[float, float]) -> None:
        """Writes each row to its place, and tells the submissions that now have all of theirs."""
        for text, row in zip(batch, rows, strict=True):
            text.submission.rows[text.row] = row
        tokens, took_s = sum(text.length for text in batch), span[1] - span[0]
        finished: list[Submission] = []
        with self._changed:
            if tokens >= BULK_PIECE_TOKENS and took_s > 0:  # what smaller batches take is not their tokens
                self._tokens_per_s += (tokens / took_s - self._tokens_per_s) / (8 if self._tokens_per_s else 1)
            for submission, texts in Counter(text.submission for text in batch).items():
                submission.missing -= texts
                submission.spans.append(span)
                if not submission.missing:
                    finished.append(submission)
        resolve_futures(
            (submission, InferenceResult(submission.rows, tuple(submission.spans))) for submission in finished
        )

    def _blame(self, batch: list[QueuedText], error: BaseException) -> None:
        """Fails every submission that one of these texts is of, since the model failed on them."""
        self._vitals.failed(error)
        self._fail(batch, partial(BatchError.of, error))

    def _fail(self, batch: list[QueuedText], error: Callable[[], Exception]) -> None:
        """Fails every submission that one of these texts is of, and takes the rest of them out of the queue."""
        with self._changed:
            failed = {text.submission for text in batch if not text.submission.gone}
            for submission in failed:
                submission.lane.drop(submission)
        resolve_futures((submission, error()) for submission in failed)

    def _drop_all(self, error: Callable[[], Exception]) -> None:
        with self._changed:
            waiting = self._interactive.drop_all() + self._bulk.drop_all()
        resolve_futures((submission, error()) for submission in waiting)


def _joined(batch: list[QueuedText]) -> TokenBatch:
    ids = np.concatenate([text.submission.ids_of(text.row) for text in batch])
    return TokenBatch(ids, np.array([text.length for text in batch], dtype=np.int64))
