"""A domain error to a gRPC status with google.rpc details, the one place where that is done."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from isogloss_server import errors

DOMAIN = "isogloss"
MAX_DETAILS_BYTES = 4096  # all details of an error, as the contract says; larger trailers get lost on the way
MAX_MESSAGE_CHARACTERS = 300
MAX_FIGURE_CHARACTERS = 600

CODES: Mapping[type[errors.DomainError], grpc.StatusCode] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}


@dataclass(frozen=True, slots=True)
class Status:
    """What a failed call answers: the code, and google.rpc.Status for trailers and RowError."""

    code: grpc.StatusCode
    proto: status_pb2.Status
    retry_after_s: float | None = None

    def trailers(self, remaining_s: float) -> tuple[tuple[str, str | bytes], ...]:
        """Returns the trailing metadata that carries the details, for a caller that waits so long still.

        gRPC clients obey grpc-retry-pushback-ms, not RetryInfo: told to come back after their deadline, they would wait
        for it in vain, so they are told not to.
        """
        details = ("grpc-status-details-bin", self.proto.SerializeToString())
        if self.retry_after_s is None:
            return (details,)
        pushback_ms = math.ceil(self.retry_after_s * 1e3) if self.retry_after_s < remaining_s else -1
        return details, ("grpc-retry-pushback-ms", str(pushback_ms))


def code_of(error: errors.DomainError) -> grpc.StatusCode:
    """Returns the status code of an error's kind."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def to_status(error: errors.DomainError) -> Status:
    """Returns the status of an error, its details within MAX_DETAILS_BYTES."""
    violations = [
        error_details_pb2.BadRequest.FieldViolation(field=v.field, description=_cut(v.description, 200))
        for v in error.violations[: errors.MAX_VIOLATIONS]
    ]
    proto = _assembled(error, error.figures, violations)
    while proto.ByteSize() > MAX_DETAILS_BYTES and violations:
        violations.pop()
        proto = _assembled(error, error.figures, violations)
    return Status(code_of(error), proto, error.retry_after_s)


def to_row_status(error: errors.DomainError) -> status_pb2.Status:
    """Returns the status of one failed row: the row says where, so the details say only why."""
    figures = {name: value for name, value in error.figures.items() if name != "index"}
    return _assembled(error, figures, [])


def _assembled(
    error: errors.DomainError,
    figures: Mapping[str, str],
    violations: list[error_details_pb2.BadRequest.FieldViolation],
) -> status_pb2.Status:
    metadata = {name: _cut(value, MAX_FIGURE_CHARACTERS) for name, value in figures.items()}
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    ]
    if violations:
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if error.retry_after_s is not None and math.isfinite(error.retry_after_s):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(math.ceil(error.retry_after_s * 1e3))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    proto = status_pb2.Status(code=code_of(error).value[0], message=_cut(error.message, MAX_MESSAGE_CHARACTERS))
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        proto.details.append(packed)
    return proto


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"
