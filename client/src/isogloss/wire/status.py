"""Error details: google.rpc.Status with ErrorInfo, BadRequest and RetryInfo, and the trailers that carry them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from google.protobuf import duration_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from isogloss.wire.sizes import MAX_DETAILS_BYTES, MAX_VIOLATIONS

DOMAIN = "isogloss"
DETAILS_TRAILER = "grpc-status-details-bin"
PUSHBACK_TRAILER = "grpc-retry-pushback-ms"
REQUEST_ID_TRAILER = "x-request-id"
WARNING_TRAILER = "x-isogloss-warning"  # a word about a call that succeeded
KEY_IGNORED = "KEY_IGNORED"  # the call had an API key, and the server has no keys to compare it with
NO_RETRY = (PUSHBACK_TRAILER, "-1")
MAX_MESSAGE_CHARACTERS = 300
MAX_METADATA_CHARACTERS = 600
MAX_DESCRIPTION_CHARACTERS = 200

Trailer = tuple[str, str | bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorDetails:
    """The details of an error.

    Attributes:
        reason: Upper-case word of ErrorInfo; empty if the status has no ErrorInfo.
        metadata: Values of ErrorInfo, such as "limit".
        violations: Pairs of a field's path and its description, of BadRequest.
        retry_after_s: Delay of RetryInfo in seconds, or None.
    """

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[tuple[str, str]] = ()
    retry_after_s: float | None = None


def build(code: int, message: str, details: ErrorDetails) -> status_pb2.Status:
    """Returns the status with `details`; long strings are cut, and violations over MAX_DETAILS_BYTES are dropped."""
    details = replace(details, violations=details.violations[:MAX_VIOLATIONS])
    status = _assemble(code, message, details)
    while status.ByteSize() > MAX_DETAILS_BYTES and details.violations:
        details = replace(details, violations=details.violations[:-1])
        status = _assemble(code, message, details)
    return status


def build_row_error(code: int, message: str, details: ErrorDetails) -> status_pb2.Status:
    """Returns the status of one failed row. RowError.row has the row's number, so the details omit it."""
    metadata = {name: value for name, value in details.metadata.items() if name != "index"}
    return _assemble(code, message, replace(details, metadata=metadata, violations=()))


def _assemble(code: int, message: str, details: ErrorDetails) -> status_pb2.Status:
    parts: list[Message] = []
    if details.reason:
        metadata = {name: _cut(value, MAX_METADATA_CHARACTERS) for name, value in details.metadata.items()}
        parts.append(error_details_pb2.ErrorInfo(reason=details.reason, domain=DOMAIN, metadata=metadata))
    if details.violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=path, description=_cut(description, MAX_DESCRIPTION_CHARACTERS)
            )
            for path, description in details.violations
        ]
        parts.append(error_details_pb2.BadRequest(field_violations=violations))
    if details.retry_after_s is not None and math.isfinite(details.retry_after_s):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(_milliseconds(details.retry_after_s))
        parts.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=code, message=_cut(message, MAX_MESSAGE_CHARACTERS))
    for part in parts:
        status.details.add().Pack(part)
    return status


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _milliseconds(seconds: float) -> int:
    return math.ceil(seconds * 1e3)


def trailers(status: status_pb2.Status, retry_after_s: float | None, remaining_s: float) -> tuple[Trailer, ...]:
    """Returns the trailers of a failed call: its details and, if a retry has a delay, the pushback.

    gRPC clients obey the pushback and ignore RetryInfo. If the retry would be after the client's deadline, the
    pushback forbids it, because the client would otherwise wait until the deadline.
    """
    details = (DETAILS_TRAILER, status.SerializeToString())
    if retry_after_s is None:
        return (details,)
    if retry_after_s >= remaining_s:
        return details, NO_RETRY
    return details, (PUSHBACK_TRAILER, str(_milliseconds(retry_after_s)))


def parse(trailer: bytes) -> status_pb2.Status:
    """Returns the status in a DETAILS_TRAILER; an empty status if the bytes are not a status."""
    try:
        return status_pb2.Status.FromString(trailer)
    except DecodeError:
        return status_pb2.Status()


def read(status: status_pb2.Status) -> ErrorDetails:
    """Returns the details of `status`; unknown and damaged details are ignored."""
    details = ErrorDetails()
    for packed in status.details:
        try:
            details = _read_detail(packed, details)
        except DecodeError:
            continue
    return details


def _read_detail(packed: AnyMessage, details: ErrorDetails) -> ErrorDetails:
    info, request, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    if packed.Unpack(info):
        return replace(details, reason=info.reason, metadata=dict(info.metadata))
    if packed.Unpack(request):
        return replace(details, violations=tuple((v.field, v.description) for v in request.field_violations))
    if packed.Unpack(retry):
        return replace(details, retry_after_s=retry.retry_delay.ToMicroseconds() / 1e6)
    return details


def code_name(status: status_pb2.Status) -> str:
    """Returns the name of the code of `status`; "UNKNOWN" if gRPC has no such code."""
    return code_pb2.Code.Name(status.code) if status.code in code_pb2.Code.values() else "UNKNOWN"
