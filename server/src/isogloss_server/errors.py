"""The server's errors. Each that a caller sees has a reason: a word that is stable across versions.

This module is independent of gRPC; rpc/status.py maps each kind to a status.

DomainError
├── InvalidRequestError        the request is invalid; the caller must change it
│   ├── MalformedRequestError  DuplicateIdError
│   ├── EmptyTextsError  EmptyTextError  TextWithoutTokensError  TextTooLongError
│   ├── TooManyTextsError  RequestTooLargeError  ResponseTooLargeError
│   ├── MissingFieldError  UnknownEnumError  UnsupportedDimensionsError  UnsupportedTruncationError
│   ├── BadMatrixError  DimensionMismatchError  UnequalSidesError  BadKError  BadMinScoreError
│   └── ProviderRefusedError
├── UnauthenticatedError       the call has no valid API key
│   └── KeyRequiredError  KeyInvalidError  KeyExpiredError
├── ForbiddenError             the key of the call does not permit it
│   └── MethodNotAllowedError
├── NotFoundError              the request names something that the server does not have
│   └── UnknownModelError  UnknownServiceError
├── PreconditionError          the request is valid, but the state of the server forbids it
│   └── SpaceMismatchError  ProviderCredentialsError  ProviderModelError
├── ExhaustedError             a resource is used up at the moment
│   └── OverloadedError  OutOfMemoryError  QuotaError  ProviderRateLimitError
├── UnavailableError           a retry, or another server, may succeed
│   ├── ModelNotReadyError  DrainingError  ModelStalledError  WorkerDiedError
│   └── ProviderUnavailableError  ProviderResponseError
├── DeadlineExceededError      the caller's deadline has passed
└── InternalError              a bug or an unexpected failure in the server

StartupError                   the server cannot start; the message is one line (exit status 1)
├── SettingsError              a setting is wrong: the operator must change it (exit status 2)
├── ModelFilesError            a model's files are missing, damaged or unsupported
│   └── UnsupportedModelError  the files are valid, but this runtime does not support the model; another one may
├── ProviderSetupError         a provider's model cannot be served: refused key or model, missing package
├── CacheSetupError            the shared cache cannot be used: missing package
└── ListenError                the server cannot listen on its address
"""

import copy
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from isogloss.wire.sizes import MAX_VIOLATIONS

MAX_MESSAGE_CHARACTERS = 200  # of a library's message that is passed on


@dataclass(frozen=True, slots=True)
class Violation:
    """An invalid field of the request: its path, and a description that never quotes a text."""

    field: str
    description: str


def first_line(error: BaseException) -> str:
    """Returns the first line of the message of a library's error, shortened; without a message, its class."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return textwrap.shorten(lines[0], MAX_MESSAGE_CHARACTERS, placeholder=" ...")


class DomainError(Exception):
    """An error that a caller sees.

    Attributes:
        reason: Stable word that programs decide by, such as "TEXT_TOO_LONG".
        message: One sentence for people.
        violations: The invalid fields of the request.
        retry_after_s: Seconds after which a retry may succeed; inf if none will, None if unknown.
        is_retried: True if the server has used the call's retries: the client must not add its own.
        figures: Values such as "limit" and "actual", as text.
    """

    reason: ClassVar[str]

    def __init__(self, message: str, *, field: str = "", retry_after_s: float | None = None, **figures: object) -> None:
        super().__init__(message)
        self.message = message
        self.violations: tuple[Violation, ...] = (Violation(field, message),) if field else ()
        self.retry_after_s = retry_after_s
        self.is_retried = False
        self.figures = {name: str(value) for name, value in figures.items()}

    def at(self, path: str, row: int) -> "DomainError":
        """Returns a copy of this error for row `row` of the request's list `path`."""
        located = copy.copy(self)
        located.violations = (Violation(f"{path}[{row}]", self.message),)
        located.figures = {**self.figures, "index": str(row)}
        return located


class InvalidRequestError(DomainError):
    """The request is invalid for every server with these limits; the caller must change it."""


class UnauthenticatedError(DomainError):
    """The call has no valid API key."""


class ForbiddenError(DomainError):
    """The call has a valid API key, which does not permit it."""


class NotFoundError(DomainError):
    """The request names something that the server does not have."""


class PreconditionError(DomainError):
    """The request is valid, but the state or the settings of the server forbid it."""


class UnavailableError(DomainError):
    """The server cannot process the request now; a retry, or another server, may succeed."""


class ExhaustedError(DomainError):
    """The request needs more of a resource than is free at the moment."""


class DeadlineExceededError(DomainError):
    """The caller's deadline has passed."""

    reason = "DEADLINE_EXCEEDED"


class InternalError(DomainError):
    """The server failed unexpectedly; the details are in its log, under the id in the message."""

    reason = "INTERNAL"


def merge_row_errors(path: str, row_errors: Mapping[int, DomainError]) -> DomainError:
    """Returns the first of `row_errors` (by row of the request's list `path`, ascending, at least one).

    It has the violations of all that share its reason, at most MAX_VIOLATIONS.
    """
    located = [error.at(path, row) for row, error in row_errors.items()]
    first = located[0]
    violations = [violation for error in located if error.reason == first.reason for violation in error.violations]
    first.violations = tuple(violations[:MAX_VIOLATIONS])
    return first


class MalformedRequestError(InvalidRequestError):
    """The request's bytes are not a valid message of the contract."""

    reason = "MALFORMED_REQUEST"


class DuplicateIdError(InvalidRequestError):
    """A request of a stream has the id of another request in flight."""

    reason = "DUPLICATE_ID"


class EmptyTextsError(InvalidRequestError):
    """The list of texts is empty."""

    reason = "EMPTY_TEXTS"


class EmptyTextError(InvalidRequestError):
    """A text is empty or has only white space."""

    reason = "EMPTY_TEXT"


class TextWithoutTokensError(InvalidRequestError):
    """The tokenizer removes all characters of a text."""

    reason = "TEXT_WITHOUT_TOKENS"


class TextTooLongError(InvalidRequestError):
    """A text has more tokens than the model's limit, and the request forbids truncation."""

    reason = "TEXT_TOO_LONG"


class TooManyTextsError(InvalidRequestError):
    """The request has more texts than the limit."""

    reason = "TOO_MANY_TEXTS"


class RequestTooLargeError(InvalidRequestError):
    """The texts or vectors of the request have more bytes than the limit."""

    reason = "REQUEST_TOO_LARGE"


class ResponseTooLargeError(InvalidRequestError):
    """The response would have more pairs or bytes than the limit."""

    reason = "RESPONSE_TOO_LARGE"


class MissingFieldError(InvalidRequestError):
    """A required field is missing."""

    reason = "MISSING_FIELD"


class UnknownEnumError(InvalidRequestError):
    """A field has a number that its enum does not define."""

    reason = "UNKNOWN_ENUM"


class UnsupportedDimensionsError(InvalidRequestError):
    """The model does not offer this number of dimensions."""

    reason = "UNSUPPORTED_DIMENSIONS"


class UnsupportedTruncationError(InvalidRequestError):
    """The model does not offer this truncation."""

    reason = "UNSUPPORTED_TRUNCATION"


class BadMatrixError(InvalidRequestError):
    """The parts of a Matrix disagree, or its values are not finite."""

    reason = "BAD_MATRIX"


class DimensionMismatchError(InvalidRequestError):
    """The two sides of a comparison have different numbers of columns."""

    reason = "DIMENSION_MISMATCH"


class UnequalSidesError(InvalidRequestError):
    """A pairwise comparison has sides with different numbers of rows."""

    reason = "UNEQUAL_SIDES"


class BadKError(InvalidRequestError):
    """The number of neighbours, k, is less than 1."""

    reason = "BAD_K"


class BadMinScoreError(InvalidRequestError):
    """The minimum score is not a number."""

    reason = "BAD_MIN_SCORE"


class KeyRequiredError(UnauthenticatedError):
    """The server requires an API key, and the call has none."""

    reason = "KEY_REQUIRED"


class KeyInvalidError(UnauthenticatedError):
    """The API key is unknown, malformed or revoked."""

    reason = "KEY_INVALID"


class KeyExpiredError(UnauthenticatedError):
    """The API key has expired."""

    reason = "KEY_EXPIRED"


class MethodNotAllowedError(ForbiddenError):
    """The scope of the API key does not contain the method."""

    reason = "METHOD_NOT_ALLOWED"


class UnknownModelError(NotFoundError):
    """The server does not serve this model, or not to callers with this API key."""

    reason = "UNKNOWN_MODEL"


class UnknownServiceError(NotFoundError):
    """Health has no service or model of this name."""

    reason = "UNKNOWN_SERVICE"


class SpaceMismatchError(PreconditionError):
    """The vectors, or the expected space, belong to another space than the model's."""

    reason = "SPACE_MISMATCH"


class ModelNotReadyError(UnavailableError):
    """The model is still loading."""

    reason = "NOT_READY"


class DrainingError(UnavailableError):
    """The server is stopping; another server may process the request."""

    reason = "DRAINING"


class ModelStalledError(UnavailableError):
    """Tokenization or inference exceeded its time limit."""

    reason = "MODEL_STUCK"


class WorkerDiedError(UnavailableError):
    """The worker thread that processed the request died; it has been restarted."""

    reason = "WORKER_DIED"


class OverloadedError(ExhaustedError):
    """The queue or the memory for calls is full, or the request cannot be processed before its deadline."""

    reason = "OVERLOADED"


class OutOfMemoryError(ExhaustedError):
    """The machine does not have the memory to process even a single text."""

    reason = "OUT_OF_MEMORY"


class QuotaError(ExhaustedError):
    """The quota of the API key is used up: texts or tokens a minute, or calls in flight."""

    reason = "QUOTA"


class ProviderRefusedError(InvalidRequestError):
    """The provider rejected the request as invalid."""

    reason = "PROVIDER_REFUSED"


class ProviderCredentialsError(PreconditionError):
    """The provider rejected the server's API key."""

    reason = "PROVIDER_CREDENTIALS"


class ProviderModelError(PreconditionError):
    """The provider does not have the model, or the server's key has no access to it."""

    reason = "PROVIDER_MODEL"


class ProviderRateLimitError(ExhaustedError):
    """The provider's rate limit is reached."""

    reason = "PROVIDER_RATE_LIMIT"


class ProviderUnavailableError(UnavailableError):
    """The provider is unreachable or reports a failure."""

    reason = "PROVIDER_UNAVAILABLE"


class ProviderResponseError(UnavailableError):
    """The provider's response does not contain valid vectors of the texts."""

    reason = "PROVIDER_ANSWER"


class StartupError(Exception):
    """The server cannot start; the message is one line for the operator."""

    exit_status: ClassVar[int] = 1


class SettingsError(StartupError):
    """A setting is wrong: its value is invalid, or names something that does not exist or cannot be read."""

    exit_status = 2


class ModelFilesError(StartupError):
    """A model's files are missing, damaged or unsupported."""


class UnsupportedModelError(ModelFilesError):
    """The runtime does not support the model; another runtime may."""


class ProviderSetupError(StartupError):
    """A provider's model cannot be served: the provider refuses the key or the model, or a package is missing."""


class CacheSetupError(StartupError):
    """The shared cache cannot be used: its package is missing."""


class TracingSetupError(StartupError):
    """Traces cannot be exported: the packages are missing, or a variable of OpenTelemetry is invalid."""


class ListenError(StartupError):
    """The server cannot listen on the address, or cannot write its port file."""
