"""Interceptor around each call: identity, deadline, errors to statuses, one log line."""

import asyncio
import contextlib
import math
import secrets
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError
from isogloss.wire.status import REQUEST_ID_TRAILER

from isogloss_server import logs
from isogloss_server.clock import Clock
from isogloss_server.errors import DomainError, DrainingError, InternalError, MalformedRequestError
from isogloss_server.rpc.status import to_status

MAX_REQUEST_ID_CHARACTERS = 128
QUIET_S = 0.05  # without a new call, after which callers have noticed that the server is stopping

T = TypeVar("T")
GrpcContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


@dataclass(slots=True)
class CallContext:
    """Context of one call of the EmbeddingService, which its methods receive instead of gRPC's context.

    Attributes:
        grpc: Context of gRPC.
        method: Name of the method.
        request_id: Id of the call, the caller's own if it sent a valid one.
        deadline_s: Moment of the clock at which the call expires.
        texts: Texts of the call so far, for its log line; likewise `tokens` and `model`.
    """

    grpc: GrpcContext
    method: str
    request_id: str
    deadline_s: float
    texts: int = 0
    tokens: int = 0
    model: str = ""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of the EmbeddingService, and of the other services, whose calls are not logged."""

    def __init__(self, service: str, clock: Clock, *, access_log: bool) -> None:
        self._prefix = f"/{service}/"
        self._clock = clock
        self._access_log = access_log
        self._wrapped: dict[str, Handler] = {}
        self._calls: set[asyncio.Task[Any]] = set()  # of all services
        self._ended = asyncio.Event()
        self._in_progress: set[asyncio.Task[Any]] = set()  # of the EmbeddingService alone, from their request
        self._accepted: frozenset[asyncio.Task[Any]] | None = None  # once new calls are refused: those before
        self._refused = 0
        self._ending = False

    def end_streams(self) -> None:
        """Ends the streams of other services when they have answered what they have read."""
        self._ended.set()

    async def until_idle(self) -> None:
        """Waits until no call is in flight: each is answered, up to the last byte that gRPC's core takes."""
        while self._calls:
            await asyncio.wait(self._calls)

    async def refuse_calls(self, max_s: float) -> None:
        """Answers new calls with DRAINING from now on; returns when they stop arriving, or after `max_s` seconds.

        When gRPC stops, it ends the calls that it has received but not yet handed over with a bare CANCELLED. So it is
        stopped only when there are few such calls.
        """
        self._accepted = frozenset(self._calls)
        seen = -1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max_s):
                while seen != self._refused:
                    seen = self._refused
                    await asyncio.sleep(QUIET_S)

    def end_calls(self) -> None:
        """Ends all calls in progress with DRAINING, where gRPC would end them with a bare CANCELLED."""
        self._ending = True
        for task in self._in_progress:
            task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the wrapped handler of the method; each method is wrapped once."""
        call = asyncio.current_task()  # gRPC's task of the call, from its headers to its status
        if call is not None and call not in self._calls:
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        details: Any = handler_call_details  # the type stubs leave out its attributes
        method: str = details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # unknown methods are not stored: a caller could name any number of them
                return None
            self._wrapped[method] = self._wrap(handler, method)
        return self._wrapped[method]

    def _wrap(self, handler: Any, method: str) -> Handler:
        own = method.startswith(self._prefix)
        name = method.removeprefix(self._prefix)
        read = handler.request_deserializer

        async def unary(request: bytes, context: GrpcContext) -> Any:
            """Responds to one request."""
            pending = [request]
            del request  # grpc keeps this frame of a failed call until the garbage collector runs

            def run(call: CallContext) -> Awaitable[Any]:
                """Parses the request and starts its method."""
                message = parse(read, pending.pop())
                return handler.unary_unary(message, call if own else context)  # type: ignore[no-any-return]

            return await self._run(name, run, context)

        async def stream(requests: Any, context: GrpcContext) -> None:
            """Serves a stream, whose handler reads and parses its messages."""
            await self._run(name, lambda call: handler.stream_stream(requests, call), context)

        async def other_stream(requests: Any, context: GrpcContext) -> AsyncIterator[Any]:
            """Yields the responses of another service's stream."""
            try:
                if handler.unary_stream is not None:
                    responses = handler.unary_stream(parse(read, requests), context)
                else:
                    responses = handler.stream_stream(_parse_each(read, requests, self._ended), context)
                async for response in responses:
                    yield response
            except DomainError as error:
                await context.abort(to_status(error).code, error.message)

        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(unary, None, handler.response_serializer)
        if own:
            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
        kind = (
            grpc.stream_stream_rpc_method_handler
            if handler.unary_stream is None
            else grpc.unary_stream_rpc_method_handler
        )
        return kind(other_stream, None, handler.response_serializer)

    async def _run(self, method: str, handle: Callable[[CallContext], Awaitable[Any]], context: GrpcContext) -> Any:
        began_s = self._clock.monotonic_s()
        remaining_s: float | None = context.time_remaining()
        deadline_s = math.inf if remaining_s is None else began_s + remaining_s
        call = CallContext(context, method, _request_id(context.invocation_metadata()), deadline_s)
        identity = (REQUEST_ID_TRAILER, call.request_id)
        code = "OK"
        context.set_trailing_metadata((identity,))
        own, task = not method.startswith("/"), asyncio.current_task()  # other services keep their full name
        try:
            if own and task is not None:
                self._check_accepting(task)
                self._in_progress.add(task)
            return await handle(call)
        except asyncio.CancelledError:
            if not (own and self._ending):
                code = "DEADLINE_EXCEEDED" if self._clock.monotonic_s() >= call.deadline_s else "CANCELLED"
                raise
            status = to_status(DrainingError("the server stopped before the call was finished; send it again"))
            code = status.code.name
        except Exception as error:  # noqa: BLE001 - every error is converted to a status
            status = to_status(to_domain_error(error, call))
            code = status.code.name
            release_frames(error)
        finally:
            if task is not None:
                self._in_progress.discard(task)
            if self._access_log and own:
                logs.call(call, code, (self._clock.monotonic_s() - began_s) * 1e3)
        # Outside the handler above: grpc's call and the exception of `abort` refer to each other, and would keep the
        # handled error as well.
        trailers = status.trailers(call.deadline_s - self._clock.monotonic_s())
        return await context.abort(status.code, status.proto.message, (*trailers, identity))

    def _check_accepting(self, call: asyncio.Task[Any]) -> None:
        if self._accepted is not None and call not in self._accepted:
            self._refused += 1
            raise DrainingError("the server is stopping; send the request to another one, or again later")


def parse(read: Callable[[bytes], T], request: bytes) -> T:
    """Returns the message in `request`. Parsed here, because grpc.aio would return UNKNOWN for malformed bytes.

    Raises:
        MalformedRequestError: the bytes are not a message of the contract.
    """
    try:
        return read(request)
    except DecodeError:
        raise MalformedRequestError("the bytes of the request are not a message of the contract") from None


def to_domain_error(error: Exception, call: CallContext) -> DomainError:
    """Returns a DomainError as it is; any other error is logged under an id, and the caller receives only the id."""
    if isinstance(error, DomainError):
        return error
    fault_id = uuid.uuid4().hex
    logs.internal_error(error, fault_id=fault_id, request_id=call.request_id, method=call.method)
    return InternalError(f"internal error; see fault_id={fault_id} in the server log", id=fault_id)


def release_frames(error: BaseException) -> None:
    """Clears the frames that a handled error passed through: they hold the request and its texts.

    Frames, futures and errors refer to each other, so that without this the memory of a failed request would be freed
    only when the garbage collector runs.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        link = pending.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        pending += [link.__cause__, link.__context__]
        if isinstance(link, BaseExceptionGroup):
            pending += link.exceptions


async def _parse_each(
    read: Callable[[bytes], Any], requests: AsyncIterator[bytes], ended: asyncio.Event
) -> AsyncIterator[Any]:
    """Yields the messages of a stream until its end, or until `ended` is set."""

    async def receive() -> bytes | None:
        """Returns the next request, or None at the end."""
        return await anext(requests, None)

    ending = asyncio.ensure_future(ended.wait())
    try:
        while not ended.is_set():
            receiving = asyncio.ensure_future(receive())
            try:
                await asyncio.wait({receiving, ending}, return_when=asyncio.FIRST_COMPLETED)
                request = receiving.result() if receiving.done() else None
            finally:
                receiving.cancel()
            if request is None:
                return
            yield parse(read, request)
    finally:
        ending.cancel()


def _request_id(metadata: Any) -> str:
    """Returns the caller's id of the call if it can be logged, else a new one."""
    given = next((value for key, value in metadata or () if key == REQUEST_ID_TRAILER), "")
    valid = isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID_CHARACTERS
    return given if valid and given.isascii() and given.isprintable() else secrets.token_hex(16)
