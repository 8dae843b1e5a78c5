"""The kinds of domain errors, each with a status of its own, and what all of them carry."""

from dataclasses import dataclass
from typing import ClassVar


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
        """Returns this error, blamed on row `row` of the request's list `path`."""
        self.violations = (Violation(f"{path}[{row}]", self.message),)
        self.figures["index"] = str(row)
        return self


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


class TimeUpError(DomainError):
    """The caller's deadline has passed."""

    reason = "DEADLINE_EXCEEDED"


class UnforeseenError(DomainError):
    """A fault of the server; its id stands in the log."""

    reason = "INTERNAL"
