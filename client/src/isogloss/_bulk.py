"""Plan for embed_many: chunks in flight on a stream that is replaced when it ends, yielded in the order of the texts.

BulkEmbed does no I/O. Its generator yields steps, such as Send or Receive, which the blocking or the asyncio client
executes and replies to. Responses arrive in any order. A chunk is sent again if the stream ends without its response,
or if the server refuses it for a transient reason; its response counts once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from isogloss._arguments import MAX_PATIENCE_S, BulkArguments, EmbedArguments, utf8_bytes
from isogloss._embed import LIMIT_REASONS, Call, KnownLimits, max_texts_per_request
from isogloss._messages import read_embed, read_stream_response, stream_request
from isogloss.errors import IsoglossError, UnavailableError, with_row_offset
from isogloss.results import EmbeddedChunk, Embeddings

END_OF_STREAM = object()  # received in place of a message when the server ends the stream with status OK
# Statuses that gRPC's core and proxies use for lost connections. The service itself adds a reason.
CONNECTION_CODES = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"})
HALF_CLOSE_WAIT_S = 1.0  # for the server to end a stream after its last response
NO_STREAMS = "the server does not implement EmbedStream, which embed_many requires; it may be an older version"


@dataclass(frozen=True, slots=True)
class Read:
    """Add texts from the source to `chunker` until it is full. Reply: True if the source may have more.

    The step ends before if a message arrives or, if the source can be interrupted, after `timeout_s`.
    """

    chunker: Chunker
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Open:
    """Open a stream; none is open."""


@dataclass(frozen=True, slots=True)
class Send:
    """Queue a request for the open stream, without waiting for it to be written."""

    request: Any


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Send no more requests on the open stream; responses still arrive."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel the open stream."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for a message. Reply: the message, END_OF_STREAM, or None after `timeout_s`; an error ends the stream."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait, or until the client is closed."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Emit:
    """Yield a chunk to the caller."""

    chunk: EmbeddedChunk


Step = Call | Read | Open | Send | HalfClose | Cancel | Receive | Sleep | Emit
Steps = Generator[Step, Any, None]


@dataclass(slots=True)
class _OpenStream:
    """State of the open stream: opening time, requests in flight, seconds without a message."""

    opened_s: float
    in_flight: dict[int, Chunk] = field(default_factory=dict)
    half_closed: bool = False
    silent_s: float = 0.0


class BulkEmbed:
    """The plan of one embed_many."""

    def __init__(self, known: KnownLimits, arguments: EmbedArguments, bulk: BulkArguments, timing: BulkTiming) -> None:
        self._known = known
        self._bulk = bulk
        self._arguments = arguments  # require the space of the first response once that has arrived
        self._timing = timing
        self._budget = RetryBudget(bulk.patience_s, timing)
        self._max_silence_s = bulk.patience_s / 2  # leaves time to try another stream within the budget
        self._window = Window(bulk.window_chunks)
        self._stream: _OpenStream | None = None
        self._reopen_s = 0.0  # no stream is opened before this time
        self._ids = count(1)  # never reused: the server may still hold the id of a request that it has responded to

    def steps(self) -> Steps:
        """Yields the steps to execute, to the end of the source; raises the first error in the order of the texts."""
        chunker = yield from self._new_chunker()
        while True:
            if self._window.has_room:
                yield from self._read(chunker)
            if not self._window and not self._window.has_room:
                break
            yield from self._send()
            yield from self._receive(chunker)
            chunk = self._window.pop_first()
            if chunk is not None:
                yield Emit(chunk)
        self._window.raise_source_error()
        yield from self._end_stream()

    def _new_chunker(self) -> Generator[Any, Any, Chunker]:
        """Fetches the server's limits and returns a chunker that keeps them. The client repeats the request itself."""
        limits = yield from self._known.fetch(self._arguments.model)
        most = min(max_texts_per_request(self._arguments, limits), self._bulk.chunk_texts)
        return Chunker(max(1, most), limits.max_request_bytes)

    def _read(self, chunker: Chunker) -> Steps:
        try:
            if not chunker.full and not (yield Read(chunker, self._next_send_s())):
                self._window.end_source()
        except Exception as error:  # noqa: BLE001 - any error of the source is raised after the chunks before it
            self._window.end_source(error)
        if chunker.full or not self._window.has_room:
            chunk = chunker.cut()
            if chunk is not None:
                self._window.append(chunk)

    def _next_send_s(self) -> float | None:
        """Returns the seconds until a chunk must be sent again, or None."""
        due_s = [max(chunk.due_s, self._reopen_s) for chunk in self._window.unsent()]
        return max(0.0, min(due_s) - self._timing.clock()) if due_s else None

    def _send(self) -> Steps:
        """Sends the chunks that are due; opens a stream if there is none, and half-closes one that is old."""
        now_s = self._timing.clock()
        due = [chunk for chunk in self._window.unsent() if max(chunk.due_s, self._reopen_s) <= now_s]
        if not due:
            return
        if self._stream is None:
            yield Open()
            self._stream = _OpenStream(now_s)
        elif not self._stream.half_closed and now_s - self._stream.opened_s >= self._timing.max_stream_age_s:
            self._stream.half_closed = True
            yield HalfClose()
        if self._stream.half_closed:
            return
        for chunk in due:
            request_id, chunk.in_flight = next(self._ids), True
            self._stream.in_flight[request_id] = chunk
            # The server works on one request after another, so that a later one may take longer.
            timeout_s = min(self._bulk.patience_s * len(self._stream.in_flight), MAX_PATIENCE_S)
            yield Send(stream_request(request_id, self._arguments, chunk.texts, timeout_s))

    def _receive(self, chunker: Chunker) -> Steps:
        """Handles the messages that have arrived; waits for one only if there is nothing else to do."""
        idle = not self._window.first_done and not self._window.has_room
        message = yield from self._next_message(self._max_wait_s() if idle else 0.0)
        while message is not None:
            self._handle(message, chunker)
            message = yield from self._next_message(0.0)

    def _next_message(self, timeout_s: float) -> Generator[Step, Any, Any]:
        """Returns the next message; None if none arrives within `timeout_s` or the stream has ended."""
        if self._stream is None:
            if timeout_s > 0:
                yield from self._sleep(timeout_s)
            return None
        began_s = self._timing.clock()
        try:
            message = yield Receive(timeout_s)
        except IsoglossError as error:
            message = error
        waited_s = self._timing.clock() - began_s if timeout_s > 0 else 0.0
        self._budget.spend(waited_s)
        if message is END_OF_STREAM or isinstance(message, IsoglossError):
            self._stream_ended(message if isinstance(message, IsoglossError) else None)
            return None
        silent = message is None and (self._stream.in_flight or self._stream.half_closed)
        self._stream.silent_s = self._stream.silent_s + waited_s if silent else 0.0
        if self._stream.silent_s >= self._max_silence_s:
            yield Cancel()
            self._stream_ended(UnavailableError(f"the server sent nothing for {self._max_silence_s:g} s"))
        return message

    def _sleep(self, seconds: float) -> Steps:
        began_s = self._timing.clock()
        yield Sleep(seconds)
        self._budget.spend(self._timing.clock() - began_s)

    def _max_wait_s(self) -> float:
        """Returns the seconds until something is due; raises the last error if the retry budget is used up."""
        now_s, waits_s = self._timing.clock(), [self._budget.remaining_s()]
        if self._stream is not None:
            waits_s.append(self._max_silence_s - self._stream.silent_s)
        if self._stream is None or not self._stream.half_closed:
            waits_s += [max(chunk.due_s, self._reopen_s) - now_s for chunk in self._window.unsent()]
        return max(0.0, min(waits_s))

    def _stream_ended(self, error: IsoglossError | None) -> None:
        """Marks the requests in flight as unsent and sets the backoff; fails them if `error` is not transient."""
        stream, self._stream = self._stream, None
        if stream is None or (error is None and stream.half_closed and not stream.in_flight):
            return
        for chunk in stream.in_flight.values():
            chunk.in_flight = False
        error = error or UnavailableError("the server ended the stream before it had answered all requests")
        if error.code == "UNIMPLEMENTED":
            error = error.replaced(NO_STREAMS)
        try:
            if not is_transient(error):
                raise error
            self._reopen_s = self._timing.clock() + self._budget.delay_s(error)
        except IsoglossError as final:
            self._window.fail_unanswered(final)

    def _handle(self, message: Any, chunker: Chunker) -> None:
        """Stores the response for a chunk, schedules a retry for a transient error, or fails the chunk."""
        request_id, outcome = read_stream_response(message)
        chunk = self._stream.in_flight.pop(request_id, None) if self._stream is not None else None
        if chunk is None:
            return
        chunk.in_flight = False
        try:
            if not isinstance(outcome, IsoglossError):
                chunk.result = self._accepted(read_embed(outcome, self._arguments, len(chunk.texts)))
            elif outcome.reason in LIMIT_REASONS and len(chunk.texts) > 1:
                # The limits became smaller during the call, such as by a restart of the server with other settings.
                chunker.max_texts = min(chunker.max_texts, self._window.halve(chunk))
            elif outcome.retryable or outcome.code == "DEADLINE_EXCEEDED":
                chunk.refusals += 1
                chunk.due_s = self._timing.clock() + self._budget.delay_s(outcome, chunk.refusals)
            else:
                raise outcome
        except IsoglossError as error:
            self._window.fail(chunk, error)

    def _accepted(self, embeddings: Embeddings) -> Embeddings:
        """Returns `embeddings`; all further responses must have their space and dimensions."""
        self._arguments = replace(self._arguments, space_id=embeddings.space_id, dimensions=embeddings.dimensions)
        self._budget.reset()
        return embeddings

    def _end_stream(self) -> Steps:
        """Half-closes and waits briefly for OK, so that the server does not record a cancellation."""
        if self._stream is None:
            return
        if not self._stream.half_closed:
            yield HalfClose()
        try:
            yield Receive(HALF_CLOSE_WAIT_S)
        except IsoglossError:
            return


@dataclass(slots=True, eq=False)
class Chunk:
    """Consecutive texts that go into one request.

    Attributes:
        start: Row of the first text among all texts.
        texts: The texts.
        in_flight: True while a response may arrive.
        due_s: Time before which the chunk is not sent.
        refusals: Number of times that the server refused it for a transient reason.
        result: The vectors, or the final error.
    """

    start: int
    texts: tuple[str, ...] = field(repr=False)
    in_flight: bool = False
    due_s: float = 0.0
    refusals: int = 0
    result: Embeddings | IsoglossError | None = None

    @property
    def done(self) -> bool:
        """True if the chunk has its vectors or its final error."""
        return self.result is not None

    @property
    def unsent(self) -> bool:
        """True if the chunk must be sent, for the first time or again."""
        return not self.in_flight and not self.done

    def halves(self) -> tuple[Chunk, Chunk]:
        """Returns two new chunks with half of the texts each."""
        middle = len(self.texts) // 2
        return Chunk(self.start, self.texts[:middle]), Chunk(self.start + middle, self.texts[middle:])


class Chunker:
    """Groups texts into chunks, by number of texts and by bytes of UTF-8."""

    def __init__(self, max_texts: int, max_bytes: int) -> None:
        self.max_texts = max_texts
        self._max_bytes = max_bytes
        self._texts: list[str] = []
        self._bytes = 0
        self._start = 0
        self._next: tuple[str, int] | None = None  # a text that exceeds max_bytes of this chunk, and its bytes

    @property
    def full(self) -> bool:
        """True if the chunk accepts no more texts."""
        return self._next is not None or len(self._texts) >= self.max_texts or self._bytes >= self._max_bytes

    def add(self, text: str) -> bool:
        """Adds a text, unless `full` already; returns True if the chunk is full now.

        Raises:
            InvalidArgumentError: The text is not a str, or not valid UTF-8 (reason BAD_TEXT).
        """
        size = utf8_bytes(f"texts[{self._start + len(self._texts)}]", text)
        if self._texts and self._bytes + size > self._max_bytes:
            self._next = text, size
        else:  # a text that alone exceeds the limit is sent alone, and refused by the server
            self._texts.append(text)
            self._bytes += size
        return self.full

    def cut(self) -> Chunk | None:
        """Returns the texts so far as a chunk, or None if there are none, and begins the next chunk."""
        if not self._texts:
            return None
        chunk = Chunk(self._start, tuple(self._texts))
        self._start += len(self._texts)
        self._texts, self._bytes = [], 0
        if self._next is not None:
            text, self._bytes = self._next
            self._texts, self._next = [text], None
        return chunk


class Window:
    """The chunks held in memory, up to `size`, from reading their texts to yielding them, in the order of the texts.

    If a chunk fails, the chunks after it are dropped, and its error is raised in its place. An error of the source is
    raised after all chunks of the texts before it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._chunks: list[Chunk] = []
        self._source_open = True
        self._source_error: Exception | None = None

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def has_room(self) -> bool:
        """True if another chunk should be read."""
        return self._source_open and len(self._chunks) < self._size

    @property
    def first_done(self) -> bool:
        """True if the first chunk has its vectors or its final error."""
        return bool(self._chunks) and self._chunks[0].done

    def unsent(self) -> list[Chunk]:
        """Returns the chunks that must be sent."""
        return [chunk for chunk in self._chunks if chunk.unsent]

    def append(self, chunk: Chunk) -> None:
        """Adds the next chunk."""
        self._chunks.append(chunk)

    def end_source(self, error: Exception | None = None) -> None:
        """Records that the source has ended, with `error` if it failed."""
        self._source_open, self._source_error = False, error

    def pop_first(self) -> EmbeddedChunk | None:
        """Removes and returns the first chunk if it has its vectors, else returns None; raises its final error."""
        result = self._chunks[0].result if self._chunks else None
        if isinstance(result, IsoglossError):
            raise result
        if result is None:
            return None
        chunk = self._chunks.pop(0)
        return EmbeddedChunk(start=chunk.start, texts=chunk.texts, embeddings=result)

    def raise_source_error(self) -> None:
        """Raises the error of the source, if it failed. Call it when the window is empty."""
        if self._source_error is not None:
            raise self._source_error

    def halve(self, chunk: Chunk) -> int:
        """Replaces a chunk that is too large for a request by its halves; returns the texts of the larger half."""
        if chunk not in self._chunks:  # dropped, because an earlier chunk failed
            return len(chunk.texts)
        place = self._chunks.index(chunk)
        self._chunks[place : place + 1] = chunk.halves()
        return len(self._chunks[place + 1].texts)

    def fail(self, chunk: Chunk, error: IsoglossError) -> None:
        """Sets the final error of `chunk` and drops the chunks after it."""
        if chunk in self._chunks:
            del self._chunks[self._chunks.index(chunk) + 1 :]
            chunk.result = with_row_offset(error, chunk.start)
            self.end_source()

    def fail_unanswered(self, error: IsoglossError) -> None:
        """Fails the first chunk without a response, and so drops those after it."""
        for chunk in self._chunks:
            if not chunk.done:
                self.fail(chunk, error)
                break


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkTiming:
    """Clock, backoff and stream age of embed_many.

    Attributes:
        clock: Returns monotonic seconds.
        jitter: Returns a random number between 0 and 1, which spreads the retries of clients that lost one server.
        max_stream_age_s: Age after which a stream is replaced, because a stream stays on one server of several.
        first_delay_s: Maximum delay after the first failure; it doubles with each further failure.
        max_delay_s: Upper bound of the delays.
    """

    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    max_stream_age_s: float = 30.0
    first_delay_s: float = 0.1
    max_delay_s: float = 5.0

    def backoff_s(self, failures: int) -> float:
        """Returns the delay after `failures` consecutive failures: exponential, with jitter of up to one half."""
        longest_s = min(self.first_delay_s * 2.0 ** min(failures - 1, 30), self.max_delay_s)
        return longest_s * (1 + self.jitter()) / 2


class RetryBudget:
    """The seconds that may be spent waiting without a response. Time spent in the caller's code is not counted."""

    def __init__(self, total_s: float, timing: BulkTiming) -> None:
        self._total_s = total_s
        self._timing = timing
        self._spent_s = 0.0
        self._failures = 0
        self._last_error: IsoglossError | None = None

    def reset(self) -> None:
        """Restores the whole budget, after a response."""
        self._spent_s, self._failures, self._last_error = 0.0, 0, None

    def spend(self, seconds: float) -> None:
        """Subtracts seconds of waiting."""
        self._spent_s += seconds

    def remaining_s(self) -> float:
        """Returns the remaining seconds; raises the last error, or UnavailableError, if none remain."""
        if self._spent_s >= self._total_s:
            raise self._exhausted()
        return self._total_s - self._spent_s

    def delay_s(self, error: IsoglossError, failures: int | None = None) -> float:
        """Returns the seconds to wait after `error`: the delay that the server requested, else a backoff.

        Args:
            error: The transient error.
            failures: Number of consecutive failures; None counts the calls of this method since the last response.

        Raises:
            IsoglossError: `error` itself, if the server requested a delay beyond the remaining budget.
        """
        self._last_error = error
        if error.retry_after_s is None:
            self._failures += failures is None
            return self._timing.backoff_s(failures or self._failures)
        if error.retry_after_s > self._total_s - self._spent_s:
            raise error
        return error.retry_after_s

    def _exhausted(self) -> IsoglossError:
        message = f"no response for {self._total_s:g} s (patience_s)"
        if self._last_error is None:
            return UnavailableError(message)
        message = f"{message}; last error: {self._last_error.message}"
        return self._last_error.replaced(message) if self._last_error.retryable else UnavailableError(message)


def is_transient(error: IsoglossError) -> bool:
    """Returns True if a call or a stream that ended with `error` should be tried again."""
    return error.retryable or (not error.reason and error.code in CONNECTION_CODES)
