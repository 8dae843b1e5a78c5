"""EmbedStream: many requests in flight on one stream, answered as they are ready, each by its id."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from isogloss.v1 import embedding_pb2 as pb

from isogloss_server.clock import Clock
from isogloss_server.errors import DeadlineExceededError, DomainError, DrainingError, DuplicateIdError
from isogloss_server.rpc.interceptor import CURRENT_CALL, Context, parse, to_domain_error
from isogloss_server.rpc.status import to_status

Embed = Callable[[pb.EmbedRequest, float], Awaitable[pb.EmbedResponse]]


@dataclass(frozen=True, slots=True)
class StreamWindow:
    """How much of one stream may be unanswered before the server reads no further."""

    max_requests: int
    max_bytes: int


class EmbedStreams:
    """Serves every open stream, and ends them all when the server stops taking calls."""

    def __init__(self, embed: Embed, window: StreamWindow, clock: Clock) -> None:
        self._embed = embed
        self._window = window
        self._clock = clock
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Lets every stream read no further; each answers what it has read, then ends with DRAINING."""
        self._ending.set()

    async def serve(self, context: Context) -> None:
        """Answers one stream until its caller half-closes.

        Raises:
            DuplicateIdError: an id in flight was used again.
            MalformedRequestError: bytes were no message.
            DrainingError: the server stops; all that was read is answered.
        """
        stream = _OpenStream(self._embed, self._window, self._clock, context)
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            while (request := await _next(context, ending)) is not None:
                await stream.take(parse(pb.EmbedStreamRequest.FromString, request), len(request))
            await stream.all_answered()
        except DomainError:
            await stream.cut_short()
            raise
        finally:
            ending.cancel()
            stream.give_up()
        if self._ending.is_set():
            raise DrainingError("the server is about to stop; ids without an answer want to be sent again")


class _OpenStream:
    """The requests in flight of one stream."""

    def __init__(self, embed: Embed, window: StreamWindow, clock: Clock, context: Context) -> None:
        self._embed = embed
        self._window = window
        self._clock = clock
        self._context = context
        self._call = CURRENT_CALL.get()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unanswered_bytes = 0
        self._answered = asyncio.Event()
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None  # who holds it

    async def take(self, message: pb.EmbedStreamRequest, size: int) -> None:
        """Begins to answer a request, and returns when there is room for another one."""
        if message.id in self._tasks:
            raise DuplicateIdError("the id is still in flight", field="id", id=message.id)
        self._unanswered_bytes += size
        self._tasks[message.id] = asyncio.create_task(self._answer(message, size))
        while len(self._tasks) >= self._window.max_requests or self._unanswered_bytes >= self._window.max_bytes:
            self._answered.clear()
            await self._answered.wait()

    async def all_answered(self) -> None:
        """Returns once nothing is in flight."""
        while self._tasks:
            self._answered.clear()
            await self._answered.wait()

    async def cut_short(self) -> None:
        """Cancels what is in flight, but lets out the answer that is being written: without it gRPC sends no status."""
        for task in self._tasks.values():
            if task is not self._writer:
                task.cancel()
        async with self._writing:
            pass

    def give_up(self) -> None:
        """Cancels what is in flight."""
        for task in self._tasks.values():
            task.cancel()

    async def _answer(self, message: pb.EmbedStreamRequest, size: int) -> None:
        """Answers one request with its response or its own error, written one at a time."""
        try:
            answer = await self._response(message)
            grown = max(0, answer.ByteSize() - size)  # an answer that waits to be written counts as well
            size += grown
            self._unanswered_bytes += grown
            async with self._writing:
                self._writer = asyncio.current_task()
                with contextlib.suppress(grpc.aio.BaseError):  # the caller is gone, and the stream ends by itself
                    await self._context.write(answer)
                self._writer = None
        finally:
            self._unanswered_bytes -= size
            del self._tasks[message.id]
            self._answered.set()

    async def _response(self, message: pb.EmbedStreamRequest) -> pb.EmbedStreamResponse:
        try:
            timeout_s = message.timeout.ToNanoseconds() / 1e9 if message.HasField("timeout") else None
            deadline_s = self._call.deadline_s
            if timeout_s is not None:
                deadline_s = min(deadline_s, self._clock.monotonic_s() + timeout_s)
            async with asyncio.timeout(timeout_s):
                response = await self._embed(message.request, deadline_s)
        except TimeoutError:
            error = DeadlineExceededError("the request's own timeout has passed")
            return pb.EmbedStreamResponse(id=message.id, error=to_status(error).proto)
        except Exception as error:  # noqa: BLE001 - whatever it is, it answers for its request alone
            return pb.EmbedStreamResponse(id=message.id, error=to_status(to_domain_error(error, self._call)).proto)
        return pb.EmbedStreamResponse(id=message.id, response=response)


async def _next(context: Context, ending: "asyncio.Future[Any]") -> bytes | None:
    """Returns the next message's bytes; None after a half-close, or once the streams are to end."""
    reading = asyncio.ensure_future(context.read())
    try:
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        if ending.done():
            return None
        message: Any = reading.result()
        return None if message is grpc.aio.EOF else message
    finally:
        reading.cancel()
