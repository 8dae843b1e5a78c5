"""Exceptions of the client. Exceptions of grpc never reach the caller.

IsoglossError
├── InvalidArgumentError       the request is invalid and stays so; also a ValueError
├── NotFoundError              unknown model
├── FailedPreconditionError    a valid request, not possible in the current state of server or client
│   └── SpaceMismatchError     vectors of two embedding spaces
├── UnauthenticatedError       API key missing, unknown or expired
├── PermissionDeniedError      API key without permission for the call
├── ResourceExhaustedError     overload, a quota, or a message that is too large
├── UnavailableError           the server is unreachable, starting or draining
├── DeadlineExceededError      the time limit of the call has passed; also a TimeoutError
├── CallCancelledError         the call was cancelled, such as by closing the client
├── UnimplementedError         the server does not implement the call
└── InternalError              a failure of the server, or an invalid response

KeyIgnoredWarning              the server has no keys, so that everybody may call it; a UserWarning
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Self

RETRYABLE_CODES = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"})


def printable(text: str) -> str:
    """Returns `text` on one line, without characters that control a terminal or reorder the line."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(character: str) -> str:
    match unicodedata.category(character):
        case "Cc" | "Zl" | "Zp":
            return " "
        case "Cs":
            return "\ufffd"
        case "Cf":
            # Keeps joiners, which shape Indic and Arabic letters and emoji; drops others, such as directional marks.
            return character if character in "\u200c\u200d" else ""
        case _:
            return character


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """An invalid argument: its name, such as "texts[3]", and what is wrong with it."""

    field: str
    description: str


class IsoglossError(Exception):
    """Failure of a call. Handle it by class, `reason` and `retryable`; messages may change between versions.

    Attributes:
        message: Description for people, one sentence. Like str(error), it is one line of printable characters, whatever
            the server sent, so that it can be logged.
        code: Name of the gRPC status, such as "INVALID_ARGUMENT".
        reason: Stable identifier of the cause, such as "TOO_MANY_TEXTS"; empty if the server sent none.
        metadata: Values that belong to the reason, such as "limit" and "actual".
        violations: The invalid arguments, if the caller can correct them.
        retryable: True if the same call may succeed later. The client has used up its own retries by then.
        retry_after_s: Seconds to wait before a retry, as requested by the server; None if it requested no delay.
        is_final: True if the server asks clients not to repeat the call by themselves, because the delay exceeds the
            deadline, or because the server has repeated its own work already.
        request_id: Identifier of the call, also in the server's log if the call arrived there; None if no request was
            sent, such as for an invalid argument.
    """

    default_code: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        code: str = "",
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retryable: bool | None = None,
        retry_after_s: float | None = None,
        is_final: bool = False,
        request_id: str | None = None,
    ) -> None:
        message = printable(message)
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retryable = self.code in RETRYABLE_CODES if retryable is None else retryable
        self.retry_after_s = retry_after_s
        self.is_final = is_final
        self.request_id = request_id

    def __str__(self) -> str:
        marks = [self.reason or self.code]
        fields = [printable(violation.field) for violation in self.violations[:3]]
        marks += [field for field in fields if field not in self.message]
        if self.request_id:
            marks.append(f"request {self.request_id}")
        return printable(f"{self.message} [{', '.join(marks)}]")

    def replaced(self, message: str, **changes: Any) -> Self:
        """Returns a copy of the error with another message and the attributes in `changes` replaced."""
        return type(self)(message, **{**self._attributes(), **changes})

    def __reduce__(self) -> tuple[Any, ...]:
        # By default, pickle (used by process pools) calls the class with the message alone.
        return partial(type(self), **self._attributes()), (self.message,)

    def _attributes(self) -> dict[str, Any]:
        names = ("code", "reason", "metadata", "violations", "retryable", "retry_after_s", "is_final", "request_id")
        return {name: getattr(self, name) for name in names}


class InvalidArgumentError(IsoglossError, ValueError):
    """The request is invalid; `violations` name the arguments. Some are detected before a request is sent."""

    default_code = "INVALID_ARGUMENT"


class NotFoundError(IsoglossError):
    """The server does not serve the named model (reason UNKNOWN_MODEL)."""

    default_code = "NOT_FOUND"


class FailedPreconditionError(IsoglossError):
    """The request is valid, but not possible in the current state of the server or of this client."""

    default_code = "FAILED_PRECONDITION"


class SpaceMismatchError(FailedPreconditionError):
    """Vectors of two embedding spaces cannot be compared or joined."""


class UnauthenticatedError(IsoglossError):
    """The server requires an API key, and the call had none, an unknown one, or one that has expired."""

    default_code = "UNAUTHENTICATED"


class PermissionDeniedError(IsoglossError):
    """The API key is known, but has no permission for the call."""

    default_code = "PERMISSION_DENIED"


class ResourceExhaustedError(IsoglossError):
    """The server is overloaded, a quota is used up, or a message is too large for the transport."""

    default_code = "RESOURCE_EXHAUSTED"


class UnavailableError(IsoglossError):
    """The server is unreachable, starting or draining."""

    default_code = "UNAVAILABLE"


class DeadlineExceededError(IsoglossError, TimeoutError):
    """The call took longer than its timeout_s, which includes retries and all parts of a split call."""

    default_code = "DEADLINE_EXCEEDED"


class CallCancelledError(IsoglossError):
    """The call was cancelled, such as by closing the client while it ran."""

    default_code = "CANCELLED"


class UnimplementedError(IsoglossError):
    """The server does not implement the call: it is an older version, or not an Isogloss server."""

    default_code = "UNIMPLEMENTED"


class InternalError(IsoglossError):
    """The server failed, or sent an invalid response (reason BAD_ANSWER)."""

    default_code = "INTERNAL"


class KeyIgnoredWarning(UserWarning):
    """The client has an API key, and the server has no keys to compare it with: everybody may call it."""


# All gRPC statuses except OK. The contract does not use those that share a class with the line above; a proxy may, and
# `code` distinguishes them.
BY_CODE: Mapping[str, type[IsoglossError]] = MappingProxyType(
    {
        "INVALID_ARGUMENT": InvalidArgumentError,
        "OUT_OF_RANGE": InvalidArgumentError,
        "NOT_FOUND": NotFoundError,
        "FAILED_PRECONDITION": FailedPreconditionError,
        "ALREADY_EXISTS": FailedPreconditionError,
        "UNAUTHENTICATED": UnauthenticatedError,
        "PERMISSION_DENIED": PermissionDeniedError,
        "RESOURCE_EXHAUSTED": ResourceExhaustedError,
        "UNAVAILABLE": UnavailableError,
        "ABORTED": UnavailableError,
        "DEADLINE_EXCEEDED": DeadlineExceededError,
        "CANCELLED": CallCancelledError,
        "UNIMPLEMENTED": UnimplementedError,
        "INTERNAL": InternalError,
        "UNKNOWN": InternalError,
        "DATA_LOSS": InternalError,
    }
)

# Reasons with a class of their own, a subclass of that of their status.
BY_REASON: Mapping[str, type[IsoglossError]] = MappingProxyType({"SPACE_MISMATCH": SpaceMismatchError})


@dataclass(frozen=True, slots=True)
class ClientReason:
    """A reason of errors that the client raises itself: its exceptions and its meaning, for docs/errors.md."""

    exceptions: tuple[type[IsoglossError], ...]
    meaning: str


_INVALID = (InvalidArgumentError,)
# All reasons that appear in the source of the client; a test compares them.
CLIENT_REASONS: Mapping[str, ClientReason] = MappingProxyType(
    {
        "BAD_ANSWER": ClientReason(
            (InternalError,),
            "The response breaks the contract, or does not belong to the request. Nothing of it is used.",
        ),
        "BAD_CHUNK": ClientReason(_INVALID, "`chunk_texts` is not a whole number of at least 1."),
        "BAD_K": ClientReason(_INVALID, "`k` is not a whole number of at least 1."),
        "BAD_MATRIX": ClientReason(_INVALID, "The array of `Vectors` does not consist of rows of numbers."),
        "BAD_MIN_SCORE": ClientReason(_INVALID, "`min_score` exceeds the range of floating-point numbers."),
        "BAD_TEXT": ClientReason(
            _INVALID, "A text is not a `str`, or has an unpaired surrogate, which UTF-8 cannot encode."
        ),
        "BAD_TIMEOUT": ClientReason(_INVALID, "`timeout_s` or `patience_s` is not a finite number of seconds above 0."),
        "BAD_TYPE": ClientReason(_INVALID, "An argument has the wrong type."),
        "BAD_WINDOW": ClientReason(_INVALID, "`window_chunks` is not a whole number of at least 1."),
        "CLIENT_CLOSED": ClientReason(
            (FailedPreconditionError, CallCancelledError), "The client was closed before the call, or during it."
        ),
        "CLIENT_FORKED": ClientReason(
            (FailedPreconditionError,), "The process forked after the client was created; create one in the child."
        ),
        "DIMENSION_MISMATCH": ClientReason(
            _INVALID, "The vectors of the two sides of a comparison have different lengths."
        ),
        "NOT_A_LIST": ClientReason(
            _INVALID,
            "The texts are not a list or another iterable of `str` in an order, but for example a mapping, a "
            "set, a table or a single `str`.",
        ),
        "OTHER_EVENT_LOOP": ClientReason(
            (FailedPreconditionError,), "The `AsyncClient` belongs to the event loop of its first call."
        ),
        "PATCHED_THREADS": ClientReason(
            (FailedPreconditionError,),
            "gevent or eventlet has patched the threads of the process, in which `embed_many` would freeze.",
        ),
        "REQUEST_TOO_LARGE": ClientReason(_INVALID, "A text alone has more bytes than the limit of a request."),
        "SPACE_MISMATCH": ClientReason(
            (SpaceMismatchError,), "The sides of a comparison, or a response and the required space, differ in space."
        ),
        "UNEQUAL_SIDES": ClientReason(_INVALID, "A pairwise comparison has sides of different lengths."),
        "UNKNOWN_ENUM": ClientReason(_INVALID, "An argument is not one of the values of its enum."),
        "UNSUPPORTED_DIMENSIONS": ClientReason(_INVALID, "`dimensions` is not a whole number of at least 0."),
    }
)


def error_class(code: str, reason: str) -> type[IsoglossError]:
    """Returns the exception class for the name of a gRPC status and the reason of an ErrorInfo."""
    general = BY_CODE.get(code, InternalError)
    refined = BY_REASON.get(reason, general)
    return refined if issubclass(refined, general) else general


ROW_NUMBER = re.compile("[0-9]{1,10}")  # int() fails for the thousands of digits that a server may send


def with_row_offset(error: IsoglossError, offset: int, field: str = "texts", *, name: str = "") -> IsoglossError:
    """Returns the error of a part of a call as an error of the whole call.

    Args:
        error: The error of the part.
        offset: Row in the whole call of the part's first row: texts[3] becomes texts[offset + 3].
        field: The argument that was split.
        name: New name of the argument; empty keeps `field`.
    """
    pattern = re.compile(rf"\b{field}\[({ROW_NUMBER.pattern})\]")

    def moved(text: str) -> str:
        """Returns `text` with rows of the whole call."""
        return pattern.sub(lambda found: f"{name or field}[{int(found[1]) + offset}]", text)

    violations = tuple(
        FieldViolation(name if name and v.field == field else moved(v.field), moved(v.description))
        for v in error.violations
    )
    metadata = dict(error.metadata)
    if ROW_NUMBER.fullmatch(metadata.get("index", "")) and any(pattern.match(v.field) for v in error.violations):
        metadata["index"] = str(int(metadata["index"]) + offset)
    return error.replaced(moved(error.message), violations=violations, metadata=metadata)
