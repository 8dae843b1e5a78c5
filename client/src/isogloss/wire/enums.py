"""The enums of the contract, and their conversion to and from its numbers.

This module imports no protobuf, so that the engine and the models of a server can use it.
"""

from enum import StrEnum
from typing import Any, Self

UNSPECIFIED = 0  # number of "the server's default" in every enum of the contract


class ContractEnum(StrEnum):
    """An enum whose members have a lower-case name for callers and a number in messages.

    Attributes:
        number: Number of the member in the contract. Its type is Any because the generated code has a separate
            integer type for each enum.
    """

    number: Any

    def __new__(cls, value: str, number: int = UNSPECIFIED) -> Self:
        """Creates the member with this value and number; the default makes type checkers accept a lookup by value."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.number = number
        return member

    @classmethod
    def from_number(cls, number: int) -> Self | None:
        """Returns the member with this number, or None if no member has it."""
        for member in cls:
            if member.number == number:
                return member
        return None


def to_number(member: ContractEnum | None) -> Any:
    """Returns the number of `member`, or UNSPECIFIED for None."""
    return UNSPECIFIED if member is None else member.number


class InputType(ContractEnum):
    """Purpose of a text. A model without prompts for input types returns the same vector for every type."""

    SIMILARITY = "similarity", 1
    QUERY = "query", 2
    DOCUMENT = "document", 3
    CLASSIFICATION = "classification", 4
    CLUSTERING = "clustering", 5


class Truncation(ContractEnum):
    """Handling of a text that is longer than the model's maximum."""

    END = "end", 1  # cut the end: keep the beginning
    START = "start", 2  # cut the start: keep the ending
    ERROR = "error", 3  # refuse the text: InvalidArgumentError, reason TEXT_TOO_LONG


class Priority(ContractEnum):
    """Scheduling class of a request: BULK work delays INTERACTIVE work by at most one batch."""

    INTERACTIVE = "interactive", 1
    BULK = "bulk", 2


class ElementType(ContractEnum):
    """Type of each number of a vector in a message."""

    FLOAT32 = "float32", 1
    FLOAT16 = "float16", 2
    INT8 = "int8", 3  # value = element * scale of the row
    UINT8 = "uint8", 4  # value = (element - 128) * scale of the row
    UBINARY = "ubinary", 5  # one bit, set if the value is > 0; the first column in the high bit of a uint8
    BINARY = "binary", 6  # the ubinary byte minus 128, as int8


class Metric(ContractEnum):
    """Measure of similarity. Greater is more similar for every metric: distances are negated."""

    COSINE = "cosine", 1
    DOT = "dot", 2
    EUCLIDEAN = "euclidean", 3
    MANHATTAN = "manhattan", 4


class ServingStatus(ContractEnum):
    """Health of a model or of the whole server."""

    UNKNOWN = "unknown", 0  # the server sent a status that this version of the client does not know
    SERVING = "serving", 1
    DEGRADED = "degraded", 2  # serving, but slower or with a part unavailable
    STARTING = "starting", 3
    NOT_SERVING = "not_serving", 4
