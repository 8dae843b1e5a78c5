"""Plan for embed_many: chunks in flight as BULK calls of Embed, yielded in the order of the texts.

BulkEmbed does no I/O. Its generator yields steps, such as Send or Receive, which the blocking or the asyncio client
executes and replies to. Responses arrive in any order. A chunk is sent again if its call fails for a transient reason;
its response counts once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import Any

from isogloss._arguments import MAX_PATIENCE_S, BulkArguments, EmbedArguments, utf8_bytes
from isogloss._embed import LIMIT_REASONS, Call, KnownLimits, max_texts_per_request
from isogloss._messages import embed_request, read_embed
from isogloss.errors import IsoglossError, UnavailableError, with_row_offset
from isogloss.results import EmbeddedChunk, Embeddings

# Statuses that gRPC's core and proxies use for lost connections. The service itself adds a reason.
CONNECTION_CODES = frozenset({"CANCELLED", "INTERNAL", "UNKNOWN"})
# A server that has just started does not know its speed and so refuses nothing: it gets few calls until it responds.
FIRST_CALLS = 2


@dataclass(frozen=True, slots=True)
class Read:
    """Add texts from the source to `chunker` until it is full. Reply: True if the source may have more.

    The step ends before if a response arrives or, if the source can be interrupted, after `timeout_s`.
    """

    chunker: Chunker
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Send:
    """Start an Embed call for a chunk, without waiting for it."""

    chunk: Chunk
    request: Any
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel all calls in flight."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for the end of a call. Reply: its chunk, with the response or an IsoglossError; None after `timeout_s`."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Emit:
    """Yield a chunk to the caller."""

    chunk: EmbeddedChunk


Step = Call | Read | Send | Cancel | Receive | Emit
Steps = Generator[Step, Any, None]


class BulkEmbed:
    """The plan of one embed_many."""

    def __init__(self, known: KnownLimits, arguments: EmbedArguments, bulk: BulkArguments, timing: BulkTiming) -> None:
        self._known = known
        self._bulk = bulk
        self._arguments = arguments  # require the space of the first response once that has arrived
        self._timing = timing
        self._budget = RetryBudget(bulk.patience_s, timing)
        self._max_silence_s = bulk.patience_s / 2  # leaves time to repeat the calls within the budget
        self._silent_s = 0.0  # without a response, while calls were in flight
        self._window = Window(bulk.window_chunks)
        self._max_calls = FIRST_CALLS
        self._resume_s = 0.0  # no call is sent before this time

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
        """Returns the seconds until a chunk may be sent, or None if that needs a response before."""
        due_s = [chunk.due_s for chunk in self._window.unsent()]
        if not due_s or self._window.in_flight >= self._max_calls:
            return None
        return max(0.0, max(min(due_s), self._resume_s) - self._timing.clock())

    def _send(self) -> Steps:
        """Sends the chunks that are due, as far as further calls are allowed."""
        now_s = self._timing.clock()
        for chunk in self._window.unsent():
            if self._window.in_flight >= self._max_calls or self._resume_s > now_s:
                return
            if chunk.due_s <= now_s:
                chunk.in_flight = True
                # The calls share the server, so that each may take longer.
                timeout_s = min(self._bulk.patience_s * self._window.in_flight, MAX_PATIENCE_S)
                yield Send(chunk, embed_request(self._arguments, chunk.texts), timeout_s)

    def _receive(self, chunker: Chunker) -> Steps:
        """Handles the responses that have arrived; waits for one only if there is nothing else to do."""
        idle = not self._window.first_done and not self._window.has_room
        response = yield from self._next_response(self._max_wait_s() if idle else 0.0)
        while response is not None:
            self._handle(response, chunker)
            response = yield from self._next_response(0.0)

    def _next_response(self, timeout_s: float) -> Generator[Step, Any, Any]:
        """Returns the next chunk and its response, or None after `timeout_s`; repeats calls after a long silence."""
        began_s = self._timing.clock()
        response = yield Receive(timeout_s)
        waited_s = self._timing.clock() - began_s if timeout_s > 0 else 0.0
        self._budget.spend(waited_s)
        is_silent = response is None and self._window.in_flight
        self._silent_s = self._silent_s + waited_s if is_silent else 0.0
        if self._silent_s >= self._max_silence_s:
            self._silent_s = 0.0
            yield Cancel()
            for chunk in self._window.sent():
                self._fail(chunk, UnavailableError(f"the server sent nothing for {self._max_silence_s:g} s"))
        return response

    def _max_wait_s(self) -> float:
        """Returns the seconds until something is due; raises the last error if the retry budget is used up."""
        waits_s = [self._budget.remaining_s(), self._next_send_s()]
        if self._window.in_flight:
            waits_s.append(self._max_silence_s - self._silent_s)
        return max(0.0, min(wait_s for wait_s in waits_s if wait_s is not None))

    def _handle(self, response: tuple[Chunk, Any], chunker: Chunker) -> None:
        """Stores the response for a chunk, or handles its error."""
        chunk, outcome = response
        chunk.in_flight = False
        try:
            if not isinstance(outcome, IsoglossError):
                chunk.result = self._accepted(read_embed(outcome, self._arguments, len(chunk.texts)))
            elif outcome.reason in LIMIT_REASONS and len(chunk.texts) > 1:
                # The limits became smaller during the call, such as by a restart of the server with other settings.
                chunker.max_texts = min(chunker.max_texts, self._window.halve(chunk))
            else:
                self._fail(chunk, outcome)
        except IsoglossError as error:  # the response is invalid
            self._window.fail(chunk, error)

    def _accepted(self, embeddings: Embeddings) -> Embeddings:
        """Returns `embeddings`; all further responses must have their space and dimensions."""
        self._arguments = replace(self._arguments, space_id=embeddings.space_id, dimensions=embeddings.dimensions)
        self._budget.reset()
        self._max_calls = min(self._max_calls + 1, self._bulk.window_chunks)
        return embeddings

    def _fail(self, chunk: Chunk, error: IsoglossError) -> None:
        """Schedules a retry of a chunk whose call failed, or sets its final error."""
        chunk.in_flight = False
        chunk.failures += 1
        if not (is_transient(error) and self._budget.allows(error)):
            self._window.fail(chunk, error)
            return
        due_s = self._timing.clock() + self._budget.delay_s(error, chunk.failures)
        if error.code == "RESOURCE_EXHAUSTED":  # the server has room for the calls that are left
            chunk.due_s, self._max_calls = due_s, max(1, self._window.in_flight)
        else:  # lost; another server, or one that has restarted, gets few calls again
            self._resume_s, self._max_calls = max(self._resume_s, due_s), 1


@dataclass(slots=True, eq=False)
class Chunk:
    """Consecutive texts that go into one request.

    Attributes:
        start: Row of the first text among all texts.
        texts: The texts.
        in_flight: True while its call is in flight.
        due_s: Time before which the chunk is not sent.
        failures: Number of its calls that failed.
        result: The vectors, or the final error.
    """

    start: int
    texts: tuple[str, ...] = field(repr=False)
    in_flight: bool = False
    due_s: float = 0.0
    failures: int = 0
    result: Embeddings | IsoglossError | None = None

    @property
    def done(self) -> bool:
        """True if the chunk has its vectors or its final error."""
        return self.result is not None

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

    @property
    def in_flight(self) -> int:
        """Number of calls in flight."""
        return len(self.sent())

    def sent(self) -> list[Chunk]:
        """Returns the chunks whose calls are in flight."""
        return [chunk for chunk in self._chunks if chunk.in_flight]

    def unsent(self) -> list[Chunk]:
        """Returns the chunks that must be sent, for the first time or again."""
        return [chunk for chunk in self._chunks if not chunk.in_flight and not chunk.done]

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


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkTiming:
    """Clock and backoff of embed_many.

    Attributes:
        clock: Returns monotonic seconds.
        jitter: Returns a random number between 0 and 1, which spreads the retries of clients that lost one server.
        first_delay_s: Maximum delay after the first failure; it doubles with each further failure.
        max_delay_s: Upper bound of the delays.
    """

    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
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
        self._last_error: IsoglossError | None = None

    def reset(self) -> None:
        """Restores the whole budget, after a response."""
        self._spent_s, self._last_error = 0.0, None

    def spend(self, seconds: float) -> None:
        """Subtracts seconds of waiting."""
        self._spent_s += seconds

    def remaining_s(self) -> float:
        """Returns the remaining seconds; raises the last error, or UnavailableError, if none remain."""
        if self._spent_s >= self._total_s:
            raise self._exhausted()
        return self._total_s - self._spent_s

    def allows(self, error: IsoglossError) -> bool:
        """Returns True unless the server requested a delay beyond the remaining budget."""
        return (error.retry_after_s or 0.0) <= self._total_s - self._spent_s

    def delay_s(self, error: IsoglossError, failures: int) -> float:
        """Returns the delay after `failures` failures of a call: the one that the server requested, else a backoff."""
        self._last_error = error
        return self._timing.backoff_s(failures) if error.retry_after_s is None else error.retry_after_s

    def _exhausted(self) -> IsoglossError:
        message = f"no response for {self._total_s:g} s (patience_s)"
        if self._last_error is None:
            return UnavailableError(message)
        message = f"{message}; last error: {self._last_error.message}"
        return self._last_error.replaced(message) if self._last_error.retryable else UnavailableError(message)


def is_transient(error: IsoglossError) -> bool:
    """Returns True if a call that ended with `error` should be repeated, if only after the delay in the error."""
    lost = not error.reason and error.code in CONNECTION_CODES
    return error.retryable or error.code == "DEADLINE_EXCEEDED" or (lost and not error.is_final)
