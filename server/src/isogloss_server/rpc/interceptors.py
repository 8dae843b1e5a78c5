"""Around each call of the EmbeddingService: identity, deadline, error -> status, one log line."""

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc

from isogloss_server import logs
from isogloss_server.clock import Clock
from isogloss_server.rpc.calls import CURRENT_CALL, Call, Context
from isogloss_server.rpc.faults import domain_error, parsed
from isogloss_server.rpc.status import to_status

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID_CHARACTERS = 128

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps all methods of one service, and other services' unary ones, whose calls are not logged."""

    def __init__(self, service: str, clock: Clock, *, access_log: bool) -> None:
        self._prefix = f"/{service}/"
        self._clock = clock
        self._access_log = access_log

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the method's handler, wrapped."""
        details: Any = handler_call_details  # the stubs do not say what is in it
        handler: Any = await continuation(handler_call_details)
        ours = details.method.startswith(self._prefix)
        if handler is None or not (ours or handler.unary_unary):
            return cast("Handler", handler)
        method = details.method.removeprefix(self._prefix)
        request_id = _request_id(details.invocation_metadata)

        async def answer(request: bytes, context: Context) -> Any:
            """Returns the response to the bytes of a request."""
            call = Call(method, request_id, self._deadline_s(context))
            read = handler.request_deserializer
            return await self._answer(call, lambda: handler.unary_unary(parsed(read, request), context), context)

        async def stream(requests: Any, context: Context) -> None:
            """Serves a stream, which reads bytes and parses them itself."""
            call = Call(method, request_id, self._deadline_s(context))
            await self._answer(call, lambda: handler.stream_stream(requests, context), context)

        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(stream, None, handler.response_serializer)
        return grpc.unary_unary_rpc_method_handler(answer, None, handler.response_serializer)

    async def _answer(self, call: Call, work: Callable[[], Awaitable[Any]], context: Context) -> Any:
        began_s = self._clock.monotonic_s()
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
            status = to_status(domain_error(error, call))
            code = status.code.name
            await context.abort(status.code, status.proto.message, (*status.trailers, identity))
        finally:
            if self._access_log and not call.method.startswith("/"):  # another service's keeps its full name
                logs.call(call, code, (self._clock.monotonic_s() - began_s) * 1e3)

    def _deadline_s(self, context: Context) -> float:
        remaining_s: float | None = context.time_remaining()
        return math.inf if remaining_s is None else self._clock.monotonic_s() + remaining_s


def _request_id(metadata: Any) -> str:
    """Returns the caller's id for the call where it is fit to be logged, else a new one."""
    given = next((value for key, value in metadata or () if key == REQUEST_ID), "")
    fit = isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID_CHARACTERS
    return given if fit and given.isascii() and given.isprintable() else uuid.uuid4().hex
