"""Wraps every call: identity, deadline, errors to statuses, one log line."""

import asyncio
import math
import secrets
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError

from isogloss_server import logs
from isogloss_server.clock import Clock
from isogloss_server.errors import DomainError, InternalError, MalformedRequestError
from isogloss_server.rpc.status import to_status

T = TypeVar("T")
REQUEST_ID = "x-request-id"
MAX_REQUEST_ID_CHARACTERS = 128


Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(slots=True)
class CallContext:
    """One call of the EmbeddingService; `deadline_s` is a moment of the clock."""

    method: str
    request_id: str
    deadline_s: float
    texts: int = 0
    tokens: int = 0
    model: str = ""


CURRENT_CALL: ContextVar[CallContext] = ContextVar("current_call")


def parse(read: Callable[[bytes], T], request: bytes) -> T:
    """Returns the message in `request`; read here, since grpc.aio would answer UNKNOWN where it is none.

    Raises:
        MalformedRequestError: the bytes are no message of the contract.
    """
    try:
        return read(request)
    except DecodeError:
        raise MalformedRequestError("the request's bytes are no message of the contract") from None


def to_domain_error(error: Exception, call: CallContext) -> DomainError:
    """Returns a domain error itself; any other is logged under an opaque id, which is all that the caller learns."""
    if isinstance(error, DomainError):
        return error
    fault_id = uuid.uuid4().hex
    logs.internal_error(error, fault_id=fault_id, request_id=call.request_id, method=call.method)
    return InternalError(f"internal error; see fault_id={fault_id} in the server log", id=fault_id)


Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps all methods of one service, and other services' ones, whose calls are not logged."""

    def __init__(self, service: str, clock: Clock, *, access_log: bool) -> None:
        self._prefix = f"/{service}/"
        self._clock = clock
        self._access_log = access_log
        self._wrapped: dict[str, Handler] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the method's handler, wrapped once and for all."""
        details: Any = handler_call_details  # the stubs do not say what is in it
        method: str = details.method
        if method not in self._wrapped:
            handler = await continuation(handler_call_details)
            if handler is None:  # whatever names are tried, nothing is kept of them
                return None
            self._wrapped[method] = self._wrap(handler, method)
        return self._wrapped[method]

    def _wrap(self, handler: Any, method: str) -> Handler:
        ours = method.startswith(self._prefix)
        name = method.removeprefix(self._prefix)
        read = handler.request_deserializer

        async def answer(request: bytes, context: Context) -> Any:
            """Returns the response to the bytes of a request."""
            held = [request]
            del request  # grpc keeps this frame of a refused call until the collector comes by, and with it the bytes
            return await self._answer(name, lambda: handler.unary_unary(parse(read, held.pop()), context), context)

        async def stream(requests: Any, context: Context) -> None:
            """Serves a stream, which reads bytes and parses them itself."""
            await self._answer(name, lambda: handler.stream_stream(requests, context), context)

        async def others(requests: Any, context: Context) -> AsyncIterator[Any]:
            """Yields the answers of another service's stream, to one request or to a stream of them."""
            try:
                if handler.unary_stream is not None:
                    answers = handler.unary_stream(parse(read, requests), context)
                else:
                    answers = handler.stream_stream(_parsed_one_by_one(read, requests), context)
                async for answer in answers:
                    yield answer
            except DomainError as error:
                await context.abort(to_status(error).code, error.message)

        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)
        if ours:
            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
        kind = (
            grpc.stream_stream_rpc_method_handler
            if handler.unary_stream is None
            else grpc.unary_stream_rpc_method_handler
        )
        return kind(others, None, handler.response_serializer)

    async def _answer(self, method: str, work: Callable[[], Awaitable[Any]], context: Context) -> Any:
        began_s = self._clock.monotonic_s()
        remaining_s: float | None = context.time_remaining()
        deadline_s = math.inf if remaining_s is None else began_s + remaining_s
        call = CallContext(method, _request_id(context.invocation_metadata()), deadline_s)
        CURRENT_CALL.set(call)
        identity = (REQUEST_ID, call.request_id)
        code = "OK"
        context.set_trailing_metadata((identity,))
        try:
            return await work()
        except asyncio.CancelledError:
            code = "DEADLINE_EXCEEDED" if self._clock.monotonic_s() >= call.deadline_s else "CANCELLED"
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets a status
            status = to_status(to_domain_error(error, call))
            code = status.code.name
        finally:
            if self._access_log and not call.method.startswith("/"):  # another service's keeps its full name
                logs.call(call, code, (self._clock.monotonic_s() - began_s) * 1e3)
        # Not within the handler above: grpc's call and what abort raises keep each other, and would keep the error that
        # is being handled as well, with all frames that it passed through, the request and its texts among them.
        trailers = status.trailers(call.deadline_s - self._clock.monotonic_s())
        return await context.abort(status.code, status.proto.message, (*trailers, identity))


async def _parsed_one_by_one(read: Callable[[bytes], Any], requests: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for request in requests:
        yield parse(read, request)


def _request_id(metadata: Any) -> str:
    """Returns the caller's id for the call where it is fit to be logged, else a new one."""
    given = next((value for key, value in metadata or () if key == REQUEST_ID), "")
    fit = isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID_CHARACTERS
    return given if fit and given.isascii() and given.isprintable() else secrets.token_hex(16)
