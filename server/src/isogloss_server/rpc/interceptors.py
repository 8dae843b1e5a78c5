"""Around each call of the EmbeddingService: identity, deadline, error -> status, one log line."""

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from isogloss_server import logs
from isogloss_server.clock import Clock
from isogloss_server.errors import DomainError, MalformedRequestError, UnforeseenError
from isogloss_server.rpc.calls import CURRENT_CALL, Call, Context
from isogloss_server.rpc.status import to_status

REQUEST_ID = "x-request-id"
MAX_REQUEST_ID_CHARACTERS = 128

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the unary methods of one service; other services' calls pass untouched."""

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
        handler = await continuation(handler_call_details)
        behavior: Any = handler and handler.unary_unary
        if handler is None or behavior is None or not details.method.startswith(self._prefix):
            return handler
        method = details.method.removeprefix(self._prefix)
        request_id = _request_id(details.invocation_metadata)

        read: Any = handler.request_deserializer

        async def answer(request: bytes, context: Context) -> Any:
            """Returns the response to the bytes of a request."""
            call = Call(method, request_id, self._deadline_s(context))
            return await self._answer(call, lambda: behavior(_parsed(read, request), context), context)

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
            status = to_status(error if isinstance(error, DomainError) else _unforeseen(error, call))
            code = status.code.name
            await context.abort(status.code, status.proto.message, (*status.trailers, identity))
        finally:
            if self._access_log:
                logs.call(call, code, (self._clock.monotonic_s() - began_s) * 1e3)

    def _deadline_s(self, context: Context) -> float:
        remaining_s: float | None = context.time_remaining()
        return math.inf if remaining_s is None else self._clock.monotonic_s() + remaining_s


def _parsed(read: Callable[[bytes], Any], request: bytes) -> Any:
    """Returns the message in `request`; read here, since grpc.aio would answer UNKNOWN where it is none."""
    try:
        return read(request)
    except DecodeError:
        raise MalformedRequestError("the request's bytes are no message of the contract") from None


def _request_id(metadata: Any) -> str:
    """Returns the caller's id for the call where it is fit to be logged, else a new one."""
    given = next((value for key, value in metadata or () if key == REQUEST_ID), "")
    fit = isinstance(given, str) and 0 < len(given) <= MAX_REQUEST_ID_CHARACTERS
    return given if fit and given.isascii() and given.isprintable() else uuid.uuid4().hex


def _unforeseen(error: Exception, call: Call) -> UnforeseenError:
    """Logs a fault of the server under an opaque id, and returns what the caller learns of it: the id."""
    fault_id = uuid.uuid4().hex
    logs.fault(error, fault_id=fault_id, request_id=call.request_id, method=call.method)
    return UnforeseenError(f"a fault of the server; its log has it under {fault_id}", id=fault_id)
