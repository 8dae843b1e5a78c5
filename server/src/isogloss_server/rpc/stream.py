"""EmbedStream: many in-flight requests on one stream, answered in any order, each under its id."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpc
from isogloss.v1 import embedding_pb2 as pb

from isogloss_server import metrics, tracing
from isogloss_server.clock import Clock
from isogloss_server.errors import DeadlineExceededError, DomainError, DrainingError, DuplicateIdError
from isogloss_server.rpc.call_memory import REQUEST_COPIES, RESPONSE_COPIES, CallMemory
from isogloss_server.rpc.codec import parse
from isogloss_server.rpc.interceptor import CallContext, GrpcContext, is_shutdown, release_frames, to_domain_error
from isogloss_server.rpc.status import code_name, to_status

OUTCOMES = metrics.Outcomes(metrics.STREAM_REQUESTS, metrics.STREAM_REQUEST_SECONDS)  # of the requests of all streams


class Embed(Protocol):
    """Responds to one Embed of a call."""

    async def __call__(
        self, request: pb.EmbedRequest, call: CallContext, deadline_s: float, *, from_stream: bool
    ) -> pb.EmbedResponse:
        """Returns the response; raises a DomainError."""
        ...


@dataclass(frozen=True, slots=True)
class StreamWindow:
    """Bounds of the unanswered requests of one stream: beyond them the server reads no further."""

    max_requests: int
    max_bytes: int


class EmbedStreams:
    """Serves all open streams, and ends them when the server stops accepting calls."""

    def __init__(
        self,
        embed: Embed,
        response_bytes: Callable[[pb.EmbedRequest, CallContext], int],
        window: StreamWindow,
        memory: CallMemory,
        clock: Clock,
    ) -> None:
        """Takes `response_bytes`, which returns the maximum size of the response to a request."""
        self._embed = embed
        self._response_bytes = response_bytes
        self._memory = memory
        self._window = window
        self._clock = clock
        self._ending = asyncio.Event()

    def end(self) -> None:
        """Stops reading on every stream; each answers the requests that it has read, then ends with DRAINING."""
        self._ending.set()

    async def serve(self, call: CallContext) -> None:
        """Serves one stream until its caller half-closes.

        Raises:
            DuplicateIdError: the id of an in-flight request was used again.
            MalformedRequestError: bytes were not a message.
            DrainingError: the server is stopping; all requests that were read are answered.
        """
        stream = _OpenStream(self._embed, self._window, self._memory, self._clock, call)
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            while (request := await self._next(call.grpc, ending)) is not None:
                message = parse(pb.EmbedStreamRequest.FromString, request)
                await stream.accept(message, len(request), self._response_bytes(message.request, call))
            await stream.all_answered()
        except DomainError:
            await stream.abort()
            raise
        finally:
            ending.cancel()
            stream.cancel()
        if self._ending.is_set():
            raise DrainingError("the server is stopping; send the ids without a response to another server")

    async def _next(self, context: GrpcContext, ending: "asyncio.Future[Any]") -> bytes | None:
        """Returns the bytes of the next message; None after a half-close, or when the streams must end."""
        reading = asyncio.ensure_future(self._read(context))
        try:
            await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return None
            message: Any = reading.result()
            return None if message is grpc.aio.EOF else message
        finally:
            reading.cancel()

    async def _read(self, context: GrpcContext) -> Any:
        await self._memory.room_for_stream()
        return await self._memory.receive(context.read, in_stream=True)


class _OpenStream:
    """In-flight requests of one stream."""

    def __init__(self, embed: Embed, window: StreamWindow, memory: CallMemory, clock: Clock, call: CallContext) -> None:
        self._embed = embed
        self._window = window
        self._memory = memory
        self._clock = clock
        self._call = call
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._unanswered_bytes = 0
        self._answered = asyncio.Event()
        self._writing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None  # task that holds the lock

    async def accept(self, message: pb.EmbedStreamRequest, request_bytes: int, response_bytes: int) -> None:
        """Starts to answer a request, and returns when the window has room for another one.

        Args:
            message: The request.
            request_bytes: Size of the request.
            response_bytes: Maximum size of its response.
        """
        if message.id in self._tasks:
            raise DuplicateIdError("the id belongs to a request that is still in flight", field="id", id=message.id)
        size = request_bytes + response_bytes
        held = REQUEST_COPIES * request_bytes + response_bytes
        self._unanswered_bytes += size
        self._memory.hold(held)
        task = self._tasks[message.id] = asyncio.create_task(self._answer(message))
        # A callback runs also if the task is cancelled before it begins.
        task.add_done_callback(partial(self._finish, message.id, size, held))
        while len(self._tasks) >= self._window.max_requests or self._unanswered_bytes >= self._window.max_bytes:
            self._answered.clear()
            await self._answered.wait()

    async def all_answered(self) -> None:
        """Returns when no request is in flight."""
        while self._tasks:
            self._answered.clear()
            await self._answered.wait()

    async def abort(self) -> None:
        """Cancels the in-flight requests, except for a response being written: gRPC sends no status before its end."""
        for task in self._tasks.values():
            if task is not self._writer:
                task.cancel()
        async with self._writing:
            pass

    def cancel(self) -> None:
        """Cancels the in-flight requests."""
        for task in self._tasks.values():
            task.cancel()

    async def _answer(self, message: pb.EmbedStreamRequest) -> None:
        """Answers one request with its response or its own error; responses are written one at a time."""
        response = await self._traced_response(message)
        async with self._writing:
            self._writer = asyncio.current_task()
            copies = RESPONSE_COPIES * response.ByteSize()
            self._memory.hold(copies)
            self._memory.sending(self._call.grpc)
            try:
                with contextlib.suppress(grpc.aio.BaseError):  # the caller disconnected, which ends the stream
                    await self._call.grpc.write(response)
            finally:
                self._memory.sent(self._call.grpc)
                self._memory.hold(-copies)
                self._writer = None

    def _finish(self, number: int, size: int, held: int, _task: "asyncio.Task[None]") -> None:
        self._unanswered_bytes -= size
        self._memory.hold(-held)
        del self._tasks[number]
        self._answered.set()

    async def _traced_response(self, message: pb.EmbedStreamRequest) -> pb.EmbedStreamResponse:
        """Returns the response to a request, which has a span of its own if the stream is traced."""
        stream = tracing.current()
        if stream is None:
            return await self._response(message)
        span = stream.start("request", self._clock.monotonic_s())
        tracing.enter(span)  # of this task alone
        code = "CANCELLED"
        try:
            response = await self._response(message)
            code = code_name(response.error.code)
        finally:
            attributes: tracing.Attributes = {"rpc.status_code": code, "isogloss.texts": len(message.request.texts)}
            error = code if code in tracing.SERVER_ERRORS else ""
            span.end(self._clock.monotonic_s(), attributes, error=error)
        return response

    async def _response(self, message: pb.EmbedStreamRequest) -> pb.EmbedStreamResponse:
        began_s = self._clock.monotonic_s()
        try:
            timeout_s = message.timeout.ToNanoseconds() / 1e9 if message.HasField("timeout") else None
            deadline_s = self._call.deadline_s
            if timeout_s is not None:
                deadline_s = min(deadline_s, began_s + timeout_s)
            async with asyncio.timeout(timeout_s):
                response = await self._embed(message.request, self._call, deadline_s, from_stream=True)
        except TimeoutError:
            status = to_status(DeadlineExceededError("the timeout of the request has passed"))
        except BaseException as error:
            if is_shutdown(error):
                raise
            status = to_status(to_domain_error(error, self._call))
            release_frames(error)
        else:
            OUTCOMES.ended("OK", "", self._clock.monotonic_s() - began_s)
            return pb.EmbedStreamResponse(id=message.id, response=response)
        OUTCOMES.ended(status.code.name, status.reason, self._clock.monotonic_s() - began_s)
        return pb.EmbedStreamResponse(id=message.id, error=status.proto)
