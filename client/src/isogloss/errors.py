"""What can go wrong, as exceptions. No exception of grpc ever leaves this package.

IsoglossError
├── InvalidArgumentError       the call is wrong and stays wrong; also a ValueError
├── NotFoundError              no such model
├── FailedPreconditionError    right in itself, wrong for what this server or client now is
│   └── SpaceMismatchError     vectors of two spaces
├── UnauthenticatedError       no key, or an unknown one
├── PermissionDeniedError      a key that may not do this
├── ResourceExhaustedError     overload, a quota, or a message too large
├── UnavailableError           no server answers, or it is starting or draining
├── DeadlineExceededError      the call's time is up; also a TimeoutError
├── CallCancelledError         the call was given up, such as by closing the client under it
├── UnimplementedError         the server does not know the call
└── InternalError              a fault of the server's, or an answer that makes no sense
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar, Self

RETRYABLE_CODES = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "ABORTED"})


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One argument that is at fault: its path, such as "texts[3]", and what is wrong with it."""

    field: str
    description: str


class IsoglossError(Exception):
    """Any failure of a call. Decide by its class, `reason` and `retryable`, never by its message.

    Attributes:
        message: One sentence for people.
        code: The name of the gRPC status, such as "INVALID_ARGUMENT".
        reason: A stable upper-case word, such as "TOO_MANY_TEXTS"; empty where the server gave none.
        metadata: Figures that belong to the reason, such as "limit" and "actual".
        violations: The arguments at fault, where the caller can mend them.
        retryable: Whether the same call may succeed later. The channel has tried again already.
        retry_after_s: Seconds that the server asks to wait before that, where it says so.
        request_id: The server's name for the call, to find it in the server's log.
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
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.violations = violations
        self.retryable = self.code in RETRYABLE_CODES if retryable is None else retryable
        self.retry_after_s = retry_after_s
        self.request_id = request_id

    def __str__(self) -> str:
        marks = [self.reason or self.code]
        marks += [violation.field for violation in self.violations[:3] if violation.field not in self.message]
        if self.request_id:
            marks.append(f"request {self.request_id}")
        return f"{self.message} [{', '.join(marks)}]"

    def replaced(self, message: str, **changes: Any) -> Self:
        """Returns the same error with another message and, by keyword, other attributes."""
        return type(self)(message, **{**self._attributes(), **changes})

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process pools by pickle, which would call the class with the message alone.
        return partial(type(self), **self._attributes()), (self.message,)

    def _attributes(self) -> dict[str, Any]:
        names = ("code", "reason", "metadata", "violations", "retryable", "retry_after_s", "request_id")
        return {name: getattr(self, name) for name in names}


class InvalidArgumentError(IsoglossError, ValueError):
    """The call is wrong whatever the server's state; `violations` say where. Some are found before anything is sent."""

    default_code = "INVALID_ARGUMENT"


class NotFoundError(IsoglossError):
    """What the call names is not served here, such as a model (reason UNKNOWN_MODEL)."""

    default_code = "NOT_FOUND"


class FailedPreconditionError(IsoglossError):
    """The call is right in itself, and wrong for what the server, or this client, now is."""

    default_code = "FAILED_PRECONDITION"


class SpaceMismatchError(FailedPreconditionError):
    """Vectors of one space were to be used in another, where comparing them means nothing."""


class UnauthenticatedError(IsoglossError):
    """The server wants a key, and got none or an unknown one."""

    default_code = "UNAUTHENTICATED"


class PermissionDeniedError(IsoglossError):
    """The server knows the key and does not let it do this."""

    default_code = "PERMISSION_DENIED"


class ResourceExhaustedError(IsoglossError):
    """The server is overloaded, a quota is used up, or a message is too large for the transport."""

    default_code = "RESOURCE_EXHAUSTED"


class UnavailableError(IsoglossError):
    """No server could be reached, or it is starting or draining."""

    default_code = "UNAVAILABLE"


class DeadlineExceededError(IsoglossError, TimeoutError):
    """The call took longer than its timeout_s, retries and parts included."""

    default_code = "DEADLINE_EXCEEDED"


class CallCancelledError(IsoglossError):
    """The call was given up, such as by closing the client while it ran."""

    default_code = "CANCELLED"


class UnimplementedError(IsoglossError):
    """The server does not know the call: it is older, or no Isogloss server at all."""

    default_code = "UNIMPLEMENTED"


class InternalError(IsoglossError):
    """A fault of the server's, or an answer that makes no sense (reason BAD_ANSWER)."""

    default_code = "INTERNAL"


# Every status that gRPC has, but OK. The contract does not use those that share a class with their neighbour; a proxy
# may, and `code` tells them apart.
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

# Reasons that callers handle on their own. Each refines the class of its status.
BY_REASON: Mapping[str, type[IsoglossError]] = MappingProxyType({"SPACE_MISMATCH": SpaceMismatchError})


def error_class(code: str, reason: str) -> type[IsoglossError]:
    """Returns the exception's class for a gRPC status name and an ErrorInfo reason."""
    general = BY_CODE.get(code, InternalError)
    refined = BY_REASON.get(reason, general)
    return refined if issubclass(refined, general) else general
