"""The plan of an embed_many: chunks in flight on a stream that is replaced as often as need be, given out in order."""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from isogloss._arguments import BulkArguments, EmbedArguments
from isogloss._arguments.bulk import LONGEST_S
from isogloss._messages import read_embed, read_stream_answer, stream_request
from isogloss._plans.chunks import Chunk, Chunker
from isogloss._plans.embed import most_texts
from isogloss._plans.limits import REASONS, KnownModels
from isogloss._plans.patience import Pace, Patience, passes
from isogloss._plans.steps import END, Drop, Give, HalfClose, Open, Pause, Read, Receive, Send, Step, Steps
from isogloss._plans.window import Window
from isogloss.errors import IsoglossError, SpaceMismatchError, UnavailableError
from isogloss.results import Embeddings

FAREWELL_S = 1.0  # that a server has to end a stream on which all is answered
NO_STREAMS = "the server has no EmbedStream, which embed_many needs: it is older, or no Isogloss server at all"


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
