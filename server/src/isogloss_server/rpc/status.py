"""Converts domain errors to gRPC statuses."""

from collections.abc import Mapping
from dataclasses import dataclass

import grpc
from google.rpc import status_pb2
from isogloss.wire.status import ErrorDetails, Trailer, build, build_row_error, trailers

from isogloss_server import errors

CODES: Mapping[type[errors.DomainError], grpc.StatusCode] = {
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.ForbiddenError: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.PreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

NAMES: Mapping[int, str] = {code.value[0]: code.name for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Status:
    """Status of a failed call: code and reason, and google.rpc.Status for trailers and EmbedStreamResponse."""

    code: grpc.StatusCode
    reason: str
    proto: status_pb2.Status
    retry_after_s: float | None = None
    is_retried: bool = False

    def trailers(self, remaining_s: float) -> tuple[Trailer, ...]:
        """Returns the trailing metadata with the details, for a caller whose deadline is in `remaining_s` seconds."""
        return trailers(self.proto, self.retry_after_s, 0.0 if self.is_retried else remaining_s)


def code_of(error: errors.DomainError) -> grpc.StatusCode:
    """Returns the status code of an error's class."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def code_name(number: int) -> str:
    """Returns the name of a status code."""
    return NAMES[number]


def to_status(error: errors.DomainError) -> Status:
    """Returns the status of an error, with size-limited details."""
    code = code_of(error)
    proto = build(code.value[0], error.message, _details(error))
    return Status(code, error.reason, proto, error.retry_after_s, error.is_retried)


def to_row_status(error: errors.DomainError) -> status_pb2.Status:
    """Returns the status of one failed row."""
    return build_row_error(code_of(error).value[0], error.message, _details(error))


def _details(error: errors.DomainError) -> ErrorDetails:
    return ErrorDetails(
        reason=error.reason,
        metadata=error.figures,
        violations=[(violation.field, violation.description) for violation in error.violations],
        retry_after_s=error.retry_after_s,
    )
