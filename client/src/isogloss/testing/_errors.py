"""The exceptions of isogloss.errors -> statuses as the contract describes them; what _failures.py of the client reads.

The fake raises inside what its caller's client will raise outside.
"""

from typing import Any, NoReturn

import grpc
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from isogloss._failures import DETAILS_TRAILER, PUSHBACK_TRAILER
from isogloss.errors import RETRYABLE_CODES, FieldViolation, InvalidArgumentError, IsoglossError

DOMAIN = "isogloss"
MAX_VIOLATIONS = 16


def refusal(reason: str, message: str, *fields: str, **figures: object) -> InvalidArgumentError:
    """Returns the error for a request that is wrong in these fields."""
    violations = tuple(FieldViolation(field, message) for field in fields[:MAX_VIOLATIONS])
    metadata = {name: str(value) for name, value in figures.items()}
    return InvalidArgumentError(message, reason=reason, metadata=metadata, violations=violations)


def to_status(error: IsoglossError) -> status_pb2.Status:
    """Returns `error` with its details."""
    details: list[Message] = []
    if error.reason:
        details.append(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if error.violations:
        violation = error_details_pb2.BadRequest.FieldViolation
        fields = [violation(field=v.field, description=v.description) for v in error.violations]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(_milliseconds(error.retry_after_s))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code: int = grpc.StatusCode[error.code].value[0]
    status = status_pb2.Status(code=code, message=error.message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def abort(context: Any, error: IsoglossError, trailers: tuple[tuple[str, str], ...]) -> NoReturn:
    """Ends the call with `error`."""
    if error.code in RETRYABLE_CODES and not error.retryable:
        trailers = (*trailers, (PUSHBACK_TRAILER, "-1"))
    elif error.retry_after_s is not None:
        trailers = (*trailers, (PUSHBACK_TRAILER, str(_milliseconds(error.retry_after_s))))
    status = (DETAILS_TRAILER, to_status(error).SerializeToString())
    context.set_trailing_metadata([*trailers, status])
    context.abort(grpc.StatusCode[error.code], error.message)
    raise AssertionError("abort returns never")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
