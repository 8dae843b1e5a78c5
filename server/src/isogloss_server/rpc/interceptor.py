"""Interceptor around each call: identity, deadline, errors to statuses, one log line."""

import asyncio
import contextlib
import math
import random
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
from isogloss.wire.status import KEY_IGNORED, REQUEST_ID_TRAILER, WARNING_TRAILER, Trailer

from isogloss_server import logs, metrics, tracing
from isogloss_server.clock import Clock
from isogloss_server.errors import (
    DomainError,
    DrainingError,
    InternalError,
    MalformedRequestError,
    RequestTooLargeError,
)
from isogloss_server.rpc.call_memory import (
    REQUEST_COPIES,
    RESPONSE_COPIES,
    SMALL_BYTES,
    SMALL_RESPONSE_BYTES,
    CallMemory,
)
from isogloss_server.rpc.codec import parse
from isogloss_server.rpc.status import to_status
from isogloss_server.security.keys import ANYONE, METHODS, Key, KeyRing
from isogloss_server.security.quotas import Quotas
from isogloss_server.security.tls import client_name

MAX_REQUEST_ID_CHARACTERS = 128
MAX_USER_AGENT_CHARACTERS = 256  # in the log
MAX_SMALL_REQUEST_BYTES = 64 * 1024  # of health checks and reflection, which name a model, a service or a file
ALWAYS_ANSWERED = frozenset({"Health"})  # also if the memory for calls is full; like all of grpc.health.v1
HEALTH_PREFIX = "/grpc.health.v1.Health/"
REFLECTION_PREFIX = "/grpc.reflection."  # of all its versions
KEY_METADATA = "authorization"
QUIET_S = 0.05  # without a new call, after which callers have noticed that the server is stopping

GrpcContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


@dataclass(slots=True, eq=False)
class CallContext:
    """Context of one call of the EmbeddingService, which its methods receive instead of gRPC's context.

    Attributes:
        grpc: Context of gRPC.
        method: Name of the method.
        request_id: Id of the call, the caller's own if it sent a valid one.
        deadline_s: Moment of the clock at which the call expires.
        caller: Name of the caller, "" if it is unknown.
        key: Rights of the caller.
        metadata: The metadata that the caller sent; of several values of a key, the first one.
        texts: Texts of the call so far, for its log line; likewise `tokens`, `model` and `priority`.
        peer: The other end of the connection, ipv4:HOST:PORT, ipv6:[HOST]:PORT or unix:PATH, once the call has ended.
        user_agent: The program of the caller, as it names itself, once the call has ended.
        reason: Reason of the error that it ended with.
        trace_id: Id of its trace, "" if there is none.
        span: Its span, if its trace is sampled.
        queue_s: Seconds that its requests so far have waited, None if none has a result; likewise `tokenization_s` and
            `inference_s`.
        held_bytes: Memory that is counted for the call until it ends.
        reserved_bytes: Part of it that is for the response, while that is computed.
    """

    grpc: GrpcContext
    method: str
    request_id: str
    deadline_s: float
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)  # with the key
    caller: str = ""
    key: Key = ANYONE
    texts: int = 0
    tokens: int = 0
    model: str = ""
    priority: str = ""
    peer: str = ""
    user_agent: str = ""
    reason: str = ""
    trace_id: str = ""
    span: tracing.Span | None = None
    queue_s: float | None = None
    tokenization_s: float | None = None
    inference_s: float | None = None
    held_bytes: int = 0
    reserved_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Rules of the calls that a server accepts.

    Attributes:
        keys: The keys of callers; None accepts every caller.
        quotas: The use of the keys.
        open_health: grpc.health.v1 needs no key.
        open_reflection: Reflection needs no key.
        client_certificates: Callers have certificates, whose name is theirs if there is no key.
    """

    keys: KeyRing | None
    quotas: Quotas
    open_health: bool
    open_reflection: bool
    client_certificates: bool

    def is_open(self, method: str) -> bool:
        """Returns True if a method of another service than EmbeddingService, by its full name, needs no key."""
        if method.startswith(HEALTH_PREFIX):
            return self.open_health
        return self.open_reflection and method.startswith(REFLECTION_PREFIX)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of the EmbeddingService, and of the other services, whose calls are not logged.

    A unary method is served as one that receives a stream, of which it reads one request. On the wire both are the
    same, but so a call is refused before its request is read, and the time that the request takes is limited.
    """

    def __init__(
        self,
        service: str,
        clock: Clock,
        memory: CallMemory,
        access: Access,
        *,
        access_log: bool,
        tracer: tracing.Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._prefix = f"/{service}/"
        self._access = access
        self._warned = False  # of a key that is ignored
        self._clock = clock
        self._memory = memory
        self._access_log = access_log
        self._wrapped: dict[str, Handler] = {}
        self._outcomes: dict[str, metrics.Outcomes] = {}
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
                metrics.CALLS.labels(metrics.UNKNOWN_METHOD, "UNIMPLEMENTED", "").inc()
                return None
            self._wrapped[method] = self._wrap(handler, method)
        return self._wrapped[method]

    def _wrap(self, handler: Any, method: str) -> Handler:
        own = method.startswith(self._prefix)
        name = method.removeprefix(self._prefix)
        self._outcomes[name] = metrics.Outcomes.of_method(name.removeprefix("/"))
        always = not own or name in ALWAYS_ANSWERED
        takes_call = own or method.startswith(HEALTH_PREFIX)
        max_bytes = MAX_SMALL_REQUEST_BYTES if always else None
        read, write = handler.request_deserializer, handler.response_serializer

        async def unary(_requests: Any, context: GrpcContext) -> bytes:
            """Responds to one request."""

            async def run(call: CallContext) -> bytes:
                """Receives the request, runs the method, and serializes the response."""
                request = await self._memory.receive(context.read)
                message = parse(read, self._received(request, call, max_bytes))
                del request
                response = await handler.unary_unary(message, call if takes_call else context)
                return self._serialized(write, response, call)

            return await self._run(name, run, context, always=always)  # type: ignore[no-any-return]

        async def stream(requests: Any, context: GrpcContext) -> None:
            """Serves a stream, whose handler reads and parses its messages."""
            await self._run(name, lambda call: handler.stream_stream(requests, call), context, always=False)

        async def other_stream(requests: Any, context: GrpcContext) -> None:
            """Serves another service's stream."""

            async def run(call: CallContext) -> None:
                """Writes the responses."""
                if handler.unary_stream is not None:
                    request = self._received(await self._memory.receive(context.read), call, max_bytes)
                    responses = handler.unary_stream(parse(read, request), call if takes_call else context)
                else:
                    responses = handler.stream_stream(_parse_each(read, requests, self._ended, max_bytes), context)
                async for response in responses:
                    await context.write(write(response))

            await self._run(name, run, context, always=True)

        if handler.unary_unary is not None:
            return grpc.stream_unary_rpc_method_handler(unary)
        if own:
            return grpc.stream_stream_rpc_method_handler(stream, None, write)
        return grpc.stream_stream_rpc_method_handler(other_stream)

    def _received(self, request: Any, call: CallContext, max_bytes: int | None) -> bytes:
        """Returns a request that was received, after its memory is counted; `max_bytes` limits small services."""
        if request is grpc.aio.EOF:
            raise MalformedRequestError("the call ended without a request")
        if len(request) > SMALL_BYTES:
            size = REQUEST_COPIES * len(request)
            if max_bytes is None:
                self._memory.check_room(size, held=call.held_bytes)
            self._memory.hold_for(call, size)
        return _checked(request, max_bytes)

    def _serialized(self, write: Callable[[Any], bytes], response: Any, call: CallContext) -> bytes:
        """Returns the bytes of a response, whose caller has a limited time to read it."""
        data = write(response)
        if len(data) > SMALL_BYTES:
            size = RESPONSE_COPIES * len(data) - call.reserved_bytes
            if size > 0 and len(data) > SMALL_RESPONSE_BYTES:
                self._memory.check_room(size, held=call.held_bytes)
            self._memory.hold_for(call, size)
        self._memory.sending(call.grpc)
        return data

    async def _run(
        self, method: str, handle: Callable[[CallContext], Awaitable[Any]], context: GrpcContext, *, always: bool
    ) -> Any:
        began_s = self._clock.monotonic_s()
        remaining_s: float | None = context.time_remaining()
        deadline_s = math.inf if remaining_s is None else began_s + remaining_s
        own, task = not method.startswith("/"), asyncio.current_task()  # other services keep their full name
        pairs: Any = context.invocation_metadata() or ()
        metadata = _first_values(pairs)
        call = CallContext(context, method, _request_id(metadata), deadline_s, metadata)
        if self._access.client_certificates:
            call.caller = client_name(context.auth_context())
        if own:
            self._trace(call, began_s)
        credentials = [value for name, value in pairs if name == KEY_METADATA]
        identity = self._trailers(call, credentials)
        code, outcomes = "INTERNAL", self._outcomes[method]
        context.set_trailing_metadata(identity)
        ended: Any = partial(self._memory.leave, call)  # after the response is sent, or the call is cancelled
        context.add_done_callback(ended)
        outcomes.in_flight += 1
        try:
            if own and task is not None:
                self._check_accepting(task)
                self._in_progress.add(task)
            self._authenticate(call, credentials)
            self._memory.enter(call, always=always)
            response = await handle(call)
            code = "OK"
            return response  # noqa: TRY300 - without an error, the code below does not run
        except BaseException as error:
            # The error is in no variable that outlives this block: gRPC keeps the frame.
            if not is_shutdown(error):
                status = to_status(to_domain_error(error, call))
            elif own and self._ending and isinstance(error, asyncio.CancelledError):
                status = to_status(DrainingError("the server stopped before the call was finished; send it again"))
            else:
                code = "DEADLINE_EXCEEDED" if self._clock.monotonic_s() >= call.deadline_s else "CANCELLED"
                raise
            code, call.reason = status.code.name, status.reason
            release_frames(error)
        finally:
            if task is not None:
                self._in_progress.discard(task)
            outcomes.in_flight -= 1
            outcomes.ended(code, call.reason, self._clock.monotonic_s() - began_s)
            if own:
                self._finish(call, code, began_s)
        # Outside the handler above: grpc's call and the exception of `abort` refer to each other, and would keep the
        # handled error as well.
        trailers = status.trailers(call.deadline_s - self._clock.monotonic_s())
        return await context.abort(status.code, status.proto.message, (*trailers, *identity))

    def _trailers(self, call: CallContext, credentials: Sequence[str | bytes]) -> tuple[Trailer, ...]:
        """Returns the trailing metadata of every call: its id, and a warning if the server ignores its key."""
        identity = (REQUEST_ID_TRAILER, call.request_id)
        if self._access.keys is not None or not credentials:
            return (identity,)
        if not self._warned:
            self._warned = True
            logs.warning("a caller sent an API key, but the server has no keys; set --keys-file", method=call.method)
        return identity, (WARNING_TRAILER, KEY_IGNORED)

    def _authenticate(self, call: CallContext, credentials: Sequence[str | bytes]) -> None:
        """Sets the key of a call, and counts the call; raises a DomainError if the key is missing or has no right."""
        if self._access.keys is None:
            return
        call.key = self._access.keys.authenticate(credentials, optional=self._access.is_open(call.method))
        call.caller = call.key.name or call.caller
        call.key.check_method(call.method)
        if call.method in METHODS:
            end = self._access.quotas.begin_call(call.key.name, call.key.quota)
            ended: Any = lambda _context: end()  # noqa: E731 - the type stubs of gRPC do not describe it
            call.grpc.add_done_callback(ended)

    def _trace(self, call: CallContext, began_s: float) -> None:
        """Sets the trace of a call: its own span if calls are traced, else only the id that the caller sent."""
        if self._tracer is None:
            if tracing.TRACEPARENT in call.metadata:
                call.trace_id = tracing.trace_id(call.metadata)
            return
        span = self._tracer.start(f"{self._prefix[1:]}{call.method}", call.metadata, began_s)
        call.trace_id = span.trace_id
        if span.is_recorded:
            call.span = span
            tracing.enter(span)

    def _finish(self, call: CallContext, code: str, began_s: float) -> None:
        """Logs a call that has ended, and ends its span."""
        if not self._access_log and call.span is None:
            return
        ended_s = self._clock.monotonic_s()
        call.peer = unquote(call.grpc.peer())
        call.user_agent = str(call.metadata.get("user-agent", ""))[:MAX_USER_AGENT_CHARACTERS]
        if self._access_log:
            logs.call(call, code, ended_s - began_s)
        if call.span is not None:
            attributes = {
                "rpc.status_code": code,
                "isogloss.request_id": call.request_id,
                "isogloss.texts": call.texts,
                "isogloss.tokens": call.tokens,
                **tracing.peer_attributes(call.peer),
            }
            for name in ("reason", "model", "priority", "caller"):
                if value := getattr(call, name):
                    attributes[f"isogloss.{name}"] = value
            call.span.end(ended_s, attributes, error=code if code in tracing.SERVER_ERRORS else "")

    def _check_accepting(self, call: asyncio.Task[Any]) -> None:
        if self._accepted is not None and call not in self._accepted:
            self._refused += 1
            raise DrainingError("the server is stopping; send the request to another one, or again later")


def to_domain_error(error: BaseException, call: CallContext) -> DomainError:
    """Returns a DomainError as it is; any other error is logged under an id, and the caller receives only the id."""
    if isinstance(error, DomainError):
        return error
    fault_id = uuid.uuid4().hex
    logs.internal_error(error, fault_id=fault_id, request_id=call.request_id, method=call.method)
    return InternalError(f"internal error; see fault_id={fault_id} in the server log", id=fault_id)


def is_shutdown(error: BaseException) -> bool:
    """Returns whether an exception ends the task, the call or the process, and must be raised further.

    gRPC raises its own after the call has ended. All others become a status: some libraries raise exceptions that are
    not an Exception, like the panics of pyo3, and a CancelledError that nobody requested for this task is an error of
    the code that raised it.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit, grpc.aio.BaseError))


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
    read: Callable[[bytes], Any],
    requests: AsyncIterator[bytes],
    ended: asyncio.Event,
    max_bytes: int | None,
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
            yield parse(read, _checked(request, max_bytes))
    finally:
        ending.cancel()


def _checked(request: bytes, max_bytes: int | None) -> bytes:
    """Returns the bytes of a request; raises RequestTooLargeError if they exceed a limit."""
    if max_bytes is not None and len(request) > max_bytes:
        message = f"{len(request)} bytes; the limit of a request to this service is {max_bytes}"
        raise RequestTooLargeError(message, actual=len(request), limit=max_bytes)
    return request


def _first_values(metadata: Any) -> dict[str, Any]:
    """Returns metadata by key; of several values of a key, the first one."""
    return {key: value for key, value in reversed(metadata or ())}  # noqa: C416 - the pairs are of a class of gRPC


def _request_id(metadata: Mapping[str, Any]) -> str:
    """Returns the caller's id of the call if it can be logged, else a new one."""
    given = metadata.get(REQUEST_ID_TRAILER, "")
    valid = isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID_CHARACTERS
    return given if valid and given.isascii() and given.isprintable() else f"{random.getrandbits(128):032x}"
