"""Converts gRPC errors and google.rpc.Status to the exceptions of `isogloss.errors`."""

from typing import Any

import grpc
from google.rpc import status_pb2

from isogloss.errors import FieldViolation, IsoglossError, error_class
from isogloss.wire.status import (
    DETAILS_TRAILER,
    PUSHBACK_TRAILER,
    REQUEST_ID_TRAILER,
    ErrorDetails,
    code_name,
    parse,
    read,
)


def from_rpc_error(failure: grpc.RpcError) -> IsoglossError:
    """Returns the exception for a failed call, blocking or asyncio, with the contents of its status and trailers."""
    call: Any = failure  # grpc raises objects that are also grpc.Call, which its types do not declare
    trailers = {key: value for key, value in call.trailing_metadata() or ()}  # noqa: C416 - grpc's own pair type
    code = call.code().name
    # A negative pushback means that a retry is pointless, whatever the code.
    retryable = False if str(trailers.get(PUSHBACK_TRAILER, "")).startswith("-") else None
    details = read(parse(trailers.get(DETAILS_TRAILER, b"")))
    request_id = trailers.get(REQUEST_ID_TRAILER)
    return _exception(code, call.details(), details, retryable=retryable, request_id=request_id)


def from_status(status: status_pb2.Status) -> IsoglossError:
    """Returns the exception for one failed request of a stream."""
    return _exception(code_name(status), status.message, read(status))


def _exception(code: str, message: str, details: ErrorDetails, **attributes: Any) -> IsoglossError:
    return error_class(code, details.reason)(
        message or code,
        code=code,
        reason=details.reason,
        metadata=details.metadata,
        violations=tuple(FieldViolation(*violation) for violation in details.violations),
        retry_after_s=details.retry_after_s,
        **attributes,
    )
