"""grpc's exceptions and google.rpc.Status -> the exceptions of errors.py. The only reader of error details."""

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from isogloss.errors import FieldViolation, IsoglossError, error_class

DETAILS_TRAILER = "grpc-status-details-bin"
REQUEST_ID_TRAILER = "x-request-id"
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"


def from_rpc_error(failure: grpc.RpcError) -> IsoglossError:
    """Returns the exception for a call that failed, blocking or asyncio: status, details and trailers in one."""
    call: Any = failure  # grpc raises objects that are grpc.Call too; its types do not say so
    trailers = {key: value for key, value in call.trailing_metadata() or ()}  # noqa: C416 - pairs of grpc's own kind
    code = call.code().name
    details = read_details(_parsed(trailers.get(DETAILS_TRAILER, b"")))
    if str(trailers.get(PUSHBACK_TRAILER, "")).startswith("-"):
        details["retryable"] = False  # the server says that trying again is pointless
    kind = error_class(code, details.get("reason", ""))
    return kind(call.details() or code, code=code, request_id=trailers.get(REQUEST_ID_TRAILER), **details)


def from_status(status: status_pb2.Status) -> IsoglossError:
    """Returns the exception for a request that failed by itself, while its call goes on."""
    code, details = code_name(status), read_details(status)
    return error_class(code, details.get("reason", ""))(status.message or code, code=code, **details)


def code_name(status: status_pb2.Status) -> str:
    """Returns the name of the code of `status`."""
    return code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"


def read_details(status: status_pb2.Status) -> dict[str, Any]:
    """Returns the attributes of IsoglossError that the details of `status` hold.

    What is damaged or unknown is left out: the code and the message of an error are worth more than its details.
    """
    found: dict[str, Any] = {}
    for detail in status.details:
        try:
            _read_detail(detail, found)
        except DecodeError:
            continue
    return found


def _read_detail(detail: Any, found: dict[str, Any]) -> None:
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    if detail.Unpack(info):
        found.update(reason=info.reason, metadata=dict(info.metadata))
    elif detail.Unpack(request):
        found["violations"] = tuple(FieldViolation(v.field, v.description) for v in request.field_violations)
    elif detail.Unpack(retry):
        found["retry_after_s"] = retry.retry_delay.ToMicroseconds() / 1e6


def _parsed(trailer: bytes) -> status_pb2.Status:
    try:
        return status_pb2.Status.FromString(trailer)
    except DecodeError:
        return status_pb2.Status()
