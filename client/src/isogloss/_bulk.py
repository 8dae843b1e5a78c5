"""The plan of embed_many: chunks in flight on a stream that is replaced when needed, returned in order."""

import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from isogloss._arguments import LONGEST_S, BulkArguments, EmbedArguments, utf8_bytes
from isogloss._embed import REASONS, Call, KnownModels, most_texts, shifted
from isogloss._messages import read_embed, read_stream_answer, stream_request
from isogloss.errors import IsoglossError, SpaceMismatchError, UnavailableError
from isogloss.results import EmbeddedChunk, Embeddings

END = object()  # in the place of a message: the server has ended the stream, with OK
# What gRPC's core and proxies end a call with when a connection goes; the service itself would give a reason.
OF_THE_CONNECTION = frozenset({"CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"})
FAREWELL_S = 1.0  # that a server has to end a stream on which all is answered
NO_STREAMS = "the server has no EmbedStream, which embed_many needs: it is older, or no Isogloss server at all"


@dataclass(slots=True, eq=False)
class Chunk:
    """Texts that follow one another, on their way to vectors.

    Attributes:
        start: Row of the first text in the whole.
        texts: The texts.
        in_flight: Whether an answer may still come.
        due_s: The moment before which it is not to be sent.
        refusals: How often the server has put it off.
        result: The vectors, or why there will be none.
    """

    start: int
    texts: tuple[str, ...]
    in_flight: bool = False
    due_s: float = 0.0
    refusals: int = 0
    result: Embeddings | IsoglossError | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more will become of it."""
        return self.result is not None

    @property
    def waiting(self) -> bool:
        """Whether it is to be sent."""
        return not self.in_flight and not self.done

    def halves(self) -> tuple["Chunk", "Chunk"]:
        """Returns the chunk as two."""
        middle = len(self.texts) // 2
        return Chunk(self.start, self.texts[:middle]), Chunk(self.start + middle, self.texts[middle:])


class Chunker:
    """Fills one chunk after another, by count and by bytes of UTF-8."""

    def __init__(self, max_texts: int, max_bytes: int) -> None:
        self.max_texts = max_texts
        self._max_bytes = max_bytes
        self._texts: list[str] = []
        self._bytes = 0
        self._start = 0
        self._left_over: tuple[str, int] | None = None  # a text that did not fit, and its bytes

    @property
    def full(self) -> bool:
        """Whether the chunk takes no more texts."""
        return self._left_over is not None or len(self._texts) >= self.max_texts or self._bytes >= self._max_bytes

    def add(self, text: str) -> bool:
        """Takes the next text, unless `full` already; returns whether the chunk is full now.

        Raises:
            InvalidArgumentError: It is no str that UTF-8 can write (reason BAD_TEXT).
        """
        size = utf8_bytes(f"texts[{self._start + len(self._texts)}]", text)
        if self._texts and self._bytes + size > self._max_bytes:
            self._left_over = text, size
        else:  # a text too large by itself goes alone, for the server to refuse
            self._texts.append(text)
            self._bytes += size
        return self.full

    def cut(self) -> Chunk | None:
        """Returns the chunk as far as it is filled, and begins the next; None where there is no text."""
        if not self._texts:
            return None
        chunk = Chunk(self._start, tuple(self._texts))
        self._start += len(self._texts)
        self._texts, self._bytes = [], 0
        if self._left_over is not None:
            text, self._bytes = self._left_over
            self._texts, self._left_over = [text], None
        return chunk


@dataclass(frozen=True, slots=True)
class Read:
    """Feed `chunker` from the source until it is full; answered by whether the source may have more."""

    chunker: Chunker


@dataclass(frozen=True, slots=True)
class Open:
    """Open a stream. There is none."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request on the stream, without waiting until it is gone."""

    request: Any


@dataclass(frozen=True, slots=True)
class HalfClose:
    """Send nothing more on the stream."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Cancel the stream."""


@dataclass(frozen=True, slots=True)
class Receive:
    """Answered by the stream's next message, by END, or by None where neither comes within `timeout_s`."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Give:
    """Give the caller a chunk."""

    chunk: EmbeddedChunk


Step = Call | Read | Open | Send | HalfClose | Drop | Receive | Pause | Give


Steps = Generator[Step, Any, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The clock, and the pace of what is done over and over.

    Attributes:
        clock: Seconds from any moment on, never backwards.
        jitter: From 0 to 1, so that clients that lost one server do not come back at one moment.
        stream_s: Seconds after which a stream is replaced. A stream stays with one server, whatever others there are.
        first_delay_s: Seconds between the first failure and the next attempt; each further delay is twice as long.
        longest_delay_s: The longest of these delays.
    """

    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random
    stream_s: float = 30.0
    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0

    def delay_s(self, failures: int) -> float:
        """Returns the seconds to wait after so many failures in a row."""
        longest = min(self.first_delay_s * 2.0 ** min(failures - 1, 30), self.longest_delay_s)
        return longest * (1 + self.jitter()) / 2


class Patience:
    """Seconds of waiting without an answer. Time that the caller takes is not waiting."""

    def __init__(self, patience_s: float, pace: Pace) -> None:
        self.patience_s = patience_s
        self._pace = pace
        self._waited_s = 0.0
        self._failures = 0
        self._last: IsoglossError | None = None

    def restore(self) -> None:
        """Begins anew, for there was an answer."""
        self._waited_s, self._failures, self._last = 0.0, 0, None

    def spend(self, seconds: float) -> None:
        """Takes note of seconds that passed in waiting."""
        self._waited_s += seconds

    def left_s(self) -> float:
        """Returns the seconds that are left; raises what went wrong last where there are none."""
        if self._waited_s >= self.patience_s:
            raise self._given_up()
        return self.patience_s - self._waited_s

    def delay_s(self, error: IsoglossError, failures: int | None = None) -> float:
        """Returns the seconds to wait after `error`, the server's own where it names them.

        Args:
            error: What went wrong.
            failures: How often it did; None = as often as this was asked since there was an answer.

        Raises:
            IsoglossError: `error` itself, where it says to wait longer than the patience that is left.
        """
        self._last = error
        if error.retry_after_s is None:
            self._failures += failures is None
            return self._pace.delay_s(failures or self._failures)
        if error.retry_after_s > self.patience_s - self._waited_s:
            raise error
        return error.retry_after_s

    def _given_up(self) -> IsoglossError:
        message = f"no answer for {self.patience_s:g} s"
        if self._last is None:
            return UnavailableError(message)
        message = f"{message}; the last failure: {self._last.message}"
        return self._last.replaced(message) if self._last.retryable else UnavailableError(message)


def passes(error: IsoglossError) -> bool:
    """Says whether what ended a call or a stream may pass by itself."""
    return error.retryable or (not error.reason and error.code in OF_THE_CONNECTION)


class Window:
    """At most so many chunks, from reading their texts to giving them out.

    Where a chunk fails for good, those after it are let go, and its error is what is found in its place. Where the
    source fails, that comes after all chunks that it had given.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._chunks: list[Chunk] = []
        self._more = True
        self._failure: Exception | None = None

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def room(self) -> bool:
        """Whether another chunk is to be read."""
        return self._more and len(self._chunks) < self._most

    @property
    def ready(self) -> bool:
        """Whether the first chunk has become what it will be."""
        return bool(self._chunks) and self._chunks[0].done

    def waiting(self) -> list[Chunk]:
        """Returns the chunks that are to be sent."""
        return [chunk for chunk in self._chunks if chunk.waiting]

    def take(self, chunk: Chunk) -> None:
        """Holds another chunk."""
        self._chunks.append(chunk)

    def end(self, failure: Exception | None = None) -> None:
        """Takes note that the source has no more texts, for `failure` where it broke off."""
        self._more, self._failure = False, failure

    def first(self) -> EmbeddedChunk | None:
        """Lets go of the first chunk, where it has its answer; raises its error, where it failed."""
        result = self._chunks[0].result if self._chunks else None
        if isinstance(result, IsoglossError):
            raise result
        if result is None:
            return None
        chunk = self._chunks.pop(0)
        return EmbeddedChunk(start=chunk.start, texts=chunk.texts, embeddings=result)

    def check(self) -> None:
        """Raises what the source broke off for, once nothing is held any more."""
        if self._failure is not None:
            raise self._failure

    def halve(self, chunk: Chunk) -> int:
        """Puts two chunks in the place of one that is too large for a request; returns how many texts may be tried."""
        place = self._chunks.index(chunk)
        self._chunks[place : place + 1] = chunk.halves()
        return len(self._chunks[place + 1].texts)

    def fail(self, chunk: Chunk, error: IsoglossError) -> None:
        """Takes note that `chunk` will have no answer."""
        if chunk in self._chunks:
            del self._chunks[self._chunks.index(chunk) + 1 :]
            chunk.result = shifted(error, chunk.start)
            self.end()

    def fail_rest(self, error: IsoglossError) -> None:
        """Takes note that no chunk without an answer will have one."""
        for chunk in self._chunks:
            if not chunk.done:
                self.fail(chunk, error)
                break


@dataclass(slots=True)
class _Stream:
    """The open stream: since when, what is unanswered on it, and for how long it was waited for in vain."""

    opened_s: float
    in_flight: dict[int, Chunk] = field(default_factory=dict)
    closing: bool = False
    silent_s: float = 0.0


class Bulk:
    """An embed_many under way: what comes next, what an answer means, what is sent again, and when.

    Answers come in any order, and are given out in that of the source. A chunk is sent again where a stream ends
    without its answer, or the server puts it off; its answer counts once.
    """

    def __init__(self, known: KnownModels, arguments: EmbedArguments, bulk: BulkArguments, pace: Pace) -> None:
        self._known = known
        self._bulk = bulk
        self._arguments = arguments  # with the space of the first answer, once there is one
        self._pace = pace
        self._patience = Patience(bulk.patience_s, pace)
        self._silence_s = bulk.patience_s / 2  # leaves time for another stream before patience ends
        self._window = Window(bulk.window_chunks)
        self._stream: _Stream | None = None
        self._resume_s = 0.0  # the moment before which no stream is to be opened
        self._numbers = count(1)  # never used again: the server may not have let go of one that it has answered
        self._answered = False

    def steps(self) -> Steps:
        """Yields what is to be done, to the end of the source; raises what went wrong in its turn."""
        chunker = yield from self._new_chunker()
        while True:
            if self._window.room:
                yield from self._read(chunker)
            if not self._window:
                break
            yield from self._send()
            yield from self._receive(chunker)
            chunk = self._window.first()
            if chunk is not None:
                yield Give(chunk)
        self._window.check()
        yield from self._farewell()

    def _new_chunker(self) -> Generator[Step, Any, Chunker]:
        """Returns a chunker that keeps the limits of the server, once it has told them."""
        while True:
            began_s = self._pace.clock()
            try:
                limits = yield from self._known.learned(self._arguments.model)
            except IsoglossError as error:
                self._patience.spend(self._pace.clock() - began_s)
                if not passes(error):
                    raise
                delay_s = self._patience.delay_s(error)
                yield from self._pause(min(delay_s, self._patience.left_s()))
            else:
                self._patience.restore()
                most = min(most_texts(self._arguments, limits), self._bulk.chunk_texts)
                return Chunker(max(1, most), limits.max_request_bytes)

    def _read(self, chunker: Chunker) -> Steps:
        try:
            if not chunker.full and not (yield Read(chunker)):
                self._window.end()
        except Exception as error:  # noqa: BLE001 - whatever the source raises, the caller gets after what came before
            self._window.end(error)
        chunk = chunker.cut()
        if chunk is not None:
            self._window.take(chunk)

    def _send(self) -> Steps:
        """Sends what is due, on a stream that is opened where there is none, and half-closed where it is old."""
        now_s = self._pace.clock()
        due = [chunk for chunk in self._window.waiting() if max(chunk.due_s, self._resume_s) <= now_s]
        if not due:
            return
        if self._stream is None:
            yield Open()
            self._stream = _Stream(now_s)
        elif not self._stream.closing and now_s - self._stream.opened_s >= self._pace.stream_s:
            self._stream.closing = True
            yield HalfClose()
        if self._stream.closing:
            return
        for chunk in due:
            number, chunk.in_flight = next(self._numbers), True
            self._stream.in_flight[number] = chunk
            # The server answers one after another, so that each may take its time.
            timeout_s = min(self._bulk.patience_s * len(self._stream.in_flight), LONGEST_S)
            yield Send(stream_request(number, self._arguments, chunk.texts, timeout_s))

    def _receive(self, chunker: Chunker) -> Steps:
        """Takes in what has come, and waits for something where there is nothing else to do."""
        idle = not self._window.ready and not self._window.room
        message = yield from self._next_message(self._longest_wait_s() if idle else 0.0)
        while message is not None:
            self._take(message, chunker)
            message = yield from self._next_message(0.0)

    def _next_message(self, timeout_s: float) -> Generator[Step, Any, Any]:
        """Returns the stream's next message; None where there is none within `timeout_s`, or the stream has ended."""
        if self._stream is None:
            if timeout_s > 0:
                yield from self._pause(timeout_s)
            return None
        began_s = self._pace.clock()
        try:
            message = yield Receive(timeout_s)
        except IsoglossError as error:
            message = error
        waited_s = self._pace.clock() - began_s if timeout_s > 0 else 0.0
        self._patience.spend(waited_s)
        if message is END or isinstance(message, IsoglossError):
            self._ended(message if isinstance(message, IsoglossError) else None)
            return None
        silent = message is None and (self._stream.in_flight or self._stream.closing)
        self._stream.silent_s = self._stream.silent_s + waited_s if silent else 0.0
        if self._stream.silent_s >= self._silence_s:
            yield Drop()
            self._ended(UnavailableError(f"the server has said nothing for {self._silence_s:g} s"))
        return message

    def _pause(self, seconds: float) -> Steps:
        began_s = self._pace.clock()
        yield Pause(seconds)
        self._patience.spend(self._pace.clock() - began_s)

    def _longest_wait_s(self) -> float:
        """Returns the seconds until something is due; raises what went wrong where patience has ended."""
        now_s, waits_s = self._pace.clock(), [self._patience.left_s()]
        if self._stream is not None:
            waits_s.append(self._silence_s - self._stream.silent_s)
        if self._stream is None or not self._stream.closing:
            waits_s += [max(chunk.due_s, self._resume_s) - now_s for chunk in self._window.waiting()]
        return max(0.0, min(waits_s))

    def _ended(self, error: IsoglossError | None) -> None:
        """Lets what is unanswered be sent again, on another stream and not at once."""
        stream, self._stream = self._stream, None
        if stream is None or (error is None and stream.closing and not stream.in_flight):
            return
        for chunk in stream.in_flight.values():
            chunk.in_flight = False
        error = error or UnavailableError("the server ended the stream without an answer to all that it was sent")
        if error.code == "UNIMPLEMENTED":
            error = error.replaced(NO_STREAMS)
        try:
            if not passes(error):
                raise error
            self._resume_s = self._pace.clock() + self._patience.delay_s(error)
        except IsoglossError as final:
            self._window.fail_rest(final)

    def _take(self, message: Any, chunker: Chunker) -> None:
        number, answer = read_stream_answer(message)
        chunk = self._stream.in_flight.pop(number, None) if self._stream is not None else None
        if chunk is None:
            return
        chunk.in_flight = False
        try:
            if not isinstance(answer, IsoglossError):
                chunk.result = self._accepted(read_embed(answer, len(chunk.texts)))
            elif answer.reason in REASONS and len(chunk.texts) > 1:
                # Its limits have changed since it told them. That is no reason to end a work of hours.
                chunker.max_texts = min(chunker.max_texts, self._window.halve(chunk))
            elif answer.retryable or answer.code == "DEADLINE_EXCEEDED":
                chunk.refusals += 1
                chunk.due_s = self._pace.clock() + self._patience.delay_s(answer, chunk.refusals)
            else:
                raise answer
        except IsoglossError as error:
            self._window.fail(chunk, error)

    def _accepted(self, embeddings: Embeddings) -> Embeddings:
        """Returns the answer; raises SpaceMismatchError where it lies in another space than the first one's."""
        if self._answered and embeddings.space_id != self._arguments.space_id:
            spaces = f"{self._arguments.space_id!r} and {embeddings.space_id!r}"
            raise SpaceMismatchError(f"the server answered in two spaces: {spaces}", reason="SPACE_MISMATCH")
        self._answered, self._arguments = True, replace(self._arguments, space_id=embeddings.space_id)
        self._patience.restore()
        return embeddings

    def _farewell(self) -> Steps:
        """Lets the stream end as one on which nothing went wrong, rather than cancelled."""
        if self._stream is None:
            return
        if not self._stream.closing:
            yield HalfClose()
        try:
            yield Receive(FAREWELL_S)
        except IsoglossError:
            return
