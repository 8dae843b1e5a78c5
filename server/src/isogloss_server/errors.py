"""What can go wrong, each with its reason word. Knows no gRPC: rpc/status.py gives each kind its status.

DomainError
├── InvalidRequestError        the caller can mend the request
│   ├── MalformedRequestError  DuplicateIdError
│   ├── EmptyTextsError  EmptyTextError  TextWithoutTokensError  TextTooLongError
│   ├── TooManyTextsError  RequestTooLargeError  ResponseTooLargeError
│   ├── MissingFieldError  UnknownEnumError  UnsupportedDimensionsError  UnsupportedTruncationError
│   ├── BadMatrixError  DimensionMismatchError  UnequalSidesError  BadKError  BadMinScoreError
│   └── ProviderRefusedError
├── NotFoundError
│   └── UnknownModelError
├── PreconditionError          right in itself, wrong for this server
│   └── SpaceMismatchError  ProviderCredentialsError  ProviderModelError
├── ExhaustedError             more is asked for than there is at the moment
│   └── OverloadedError  OutOfMemoryError  ProviderRateLimitError
├── UnavailableError           another moment or another server may answer
│   ├── ModelNotReadyError  DrainingError  ModelStalledError  WorkerDiedError
│   └── ProviderUnavailableError  ProviderResponseError
├── DeadlineExceededError                nobody waits for the answer any more
└── InternalError            a fault of the server

StartupError                   the server cannot start; one line says why
├── ModelFilesError
│   └── UnsupportedModelError  no damage: another runtime may have what this one lacks
├── ProviderSetupError          a provider's model cannot be served: no key, a key refused, a model retired
├── CacheSetupError             the shared cache: no package, or no URL
└── ListenError

"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from isogloss.wire.sizes import MAX_VIOLATIONS


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of the request that is at fault: its path, and what is wrong with it (never quoting a text)."""

    field: str
    description: str


class DomainError(Exception):
    """A failure with a stable reason, a sentence for people, and figures such as "limit" and "actual"."""

    reason: ClassVar[str]

    def __init__(self, message: str, *, field: str = "", retry_after_s: float | None = None, **figures: object) -> None:
        super().__init__(message)
        self.message = message
        self.violations: tuple[Violation, ...] = (Violation(field, message),) if field else ()
        self.retry_after_s = retry_after_s  # when another try may help, where that is known; inf: never
        self.figures = {name: str(value) for name, value in figures.items()}

    def at(self, path: str, row: int) -> "DomainError":
        """Returns a copy of this error for row `row` of the request's list `path`."""
        located = copy.copy(self)
        located.violations = (Violation(f"{path}[{row}]", self.message),)
        located.figures = {**self.figures, "index": str(row)}
        return located


class InvalidRequestError(DomainError):
    """The request cannot be answered by any server with these limits; the caller can mend it."""


class NotFoundError(DomainError):
    """What the request names does not exist here."""


class PreconditionError(DomainError):
    """The request is right in itself, and wrong for what this server is."""


class UnavailableError(DomainError):
    """The server cannot answer now; another moment or another server may."""


class ExhaustedError(DomainError):
    """More is asked for than there is at the moment."""


class DeadlineExceededError(DomainError):
    """The caller's deadline has passed."""

    reason = "DEADLINE_EXCEEDED"


class InternalError(DomainError):
    """A fault of the server; its id stands in the log."""

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
    """Bytes that are no message of the contract."""

    reason = "MALFORMED_REQUEST"


class DuplicateIdError(InvalidRequestError):
    """An id of a stream was used again while it was in flight."""

    reason = "DUPLICATE_ID"


class EmptyTextsError(InvalidRequestError):
    """A list of texts has none."""

    reason = "EMPTY_TEXTS"


class EmptyTextError(InvalidRequestError):
    """A text has no character that is not white space."""

    reason = "EMPTY_TEXT"


class TextWithoutTokensError(InvalidRequestError):
    """A text of which the tokenizer leaves nothing."""

    reason = "TEXT_WITHOUT_TOKENS"


class TextTooLongError(InvalidRequestError):
    """A text is longer than the model reads, and the caller forbade to cut it."""

    reason = "TEXT_TOO_LONG"


class TooManyTextsError(InvalidRequestError):
    """More texts than one request may have."""

    reason = "TOO_MANY_TEXTS"


class RequestTooLargeError(InvalidRequestError):
    """More bytes of text or vectors than one request may have."""

    reason = "REQUEST_TOO_LARGE"


class ResponseTooLargeError(InvalidRequestError):
    """The answer would have more pairs or bytes than one response may have."""

    reason = "RESPONSE_TOO_LARGE"


class MissingFieldError(InvalidRequestError):
    """A message without the field that it is about."""

    reason = "MISSING_FIELD"


class UnknownEnumError(InvalidRequestError):
    """A number that the contract's enum does not have."""

    reason = "UNKNOWN_ENUM"


class UnsupportedDimensionsError(InvalidRequestError):
    """A number of dimensions that the model does not offer."""

    reason = "UNSUPPORTED_DIMENSIONS"


class UnsupportedTruncationError(InvalidRequestError):
    """A truncation that the model does not offer."""

    reason = "UNSUPPORTED_TRUNCATION"


class BadMatrixError(InvalidRequestError):
    """A Matrix whose parts disagree, or whose numbers are none."""

    reason = "BAD_MATRIX"


class DimensionMismatchError(InvalidRequestError):
    """The two sides of a comparison differ in columns."""

    reason = "DIMENSION_MISMATCH"


class UnequalSidesError(InvalidRequestError):
    """Pairwise scores were asked of sides that differ in rows."""

    reason = "UNEQUAL_SIDES"


class BadKError(InvalidRequestError):
    """Fewer than one neighbour was asked for."""

    reason = "BAD_K"


class BadMinScoreError(InvalidRequestError):
    """A least score that is not a number."""

    reason = "BAD_MIN_SCORE"


class UnknownModelError(NotFoundError):
    """A model that is not served."""

    reason = "UNKNOWN_MODEL"


class SpaceMismatchError(PreconditionError):
    """Vectors or expectations of another space than the model's."""

    reason = "SPACE_MISMATCH"


class ModelNotReadyError(UnavailableError):
    """The model is loading, or failed to load."""

    reason = "NOT_READY"


class DrainingError(UnavailableError):
    """The server is about to stop; another one may answer."""

    reason = "DRAINING"


class ModelStalledError(UnavailableError):
    """The model does not come to an end with what it computes."""

    reason = "MODEL_STUCK"


class WorkerDiedError(UnavailableError):
    """The thread that computed ended, and a new one has taken its place."""

    reason = "WORKER_DIED"


class OverloadedError(ExhaustedError):
    """More work waits than there is room for, or than can be done before the deadline."""

    reason = "OVERLOADED"


class OutOfMemoryError(ExhaustedError):
    """The machine has not enough memory for even this text alone."""

    reason = "OUT_OF_MEMORY"


class ProviderRefusedError(InvalidRequestError):
    """The provider says that the request is wrong."""

    reason = "PROVIDER_REFUSED"


class ProviderCredentialsError(PreconditionError):
    """The provider does not accept the server's key."""

    reason = "PROVIDER_CREDENTIALS"


class ProviderModelError(PreconditionError):
    """The provider does not have the model, or not for the server's key."""

    reason = "PROVIDER_MODEL"


class ProviderRateLimitError(ExhaustedError):
    """The provider takes no more at the moment, or the server keeps to the provider's limit."""

    reason = "PROVIDER_RATE_LIMIT"


class ProviderUnavailableError(UnavailableError):
    """The provider cannot be reached, or fails."""

    reason = "PROVIDER_UNAVAILABLE"


class ProviderResponseError(UnavailableError):
    """The provider answered with what cannot be vectors of these texts."""

    reason = "PROVIDER_ANSWER"


class StartupError(Exception):
    """The server cannot start; the message is the one line that an operator reads."""


class ModelFilesError(StartupError):
    """A model's files are missing, damaged, or of a kind that is not served."""


class UnsupportedModelError(ModelFilesError):
    """A model is of a kind that the runtime does not compute."""


class ProviderSetupError(StartupError):
    """A provider's model cannot be served: no key, a key that is refused, no such model, or a retired one."""


class CacheSetupError(StartupError):
    """The shared cache cannot be used: its package is missing, or its URL is none."""


class ListenError(StartupError):
    """The address cannot be listened on."""
