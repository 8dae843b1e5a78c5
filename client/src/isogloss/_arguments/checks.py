"""Checks of single arguments. Each names the argument that it refuses."""

import math
import operator
from enum import StrEnum
from typing import Any, TypeVar

from isogloss.errors import FieldViolation, InvalidArgumentError

Word = TypeVar("Word", bound=StrEnum)

LARGEST_UINT32 = 2**32 - 1


def word(kind: type[Word], name: str, value: str) -> Word:
    """Returns the member of `kind` that `value` is or spells; raises InvalidArgumentError, reason UNKNOWN_ENUM."""
    try:
        return kind(value)
    except ValueError:
        raise refusal(name, f"must be one of {', '.join(kind)}; not {value!r}", "UNKNOWN_ENUM") from None


def string(name: str, value: str) -> str:
    """Returns `value`; raises InvalidArgumentError where it is no str, which protobuf would refuse without a name."""
    if not isinstance(value, str):
        raise refusal(name, f"must be a str, not {type_name(value)}", "BAD_TYPE")
    return value


def count(name: str, value: int, reason: str, *, least: int = 0) -> int:
    """Returns `value` as an int that fits the wire; raises InvalidArgumentError with `reason` where it does not."""
    try:
        number = operator.index(value)
    except TypeError:
        raise refusal(name, f"must be a whole number, not {type_name(value)}", reason) from None
    if not least <= number <= LARGEST_UINT32:
        raise refusal(name, f"must be from {least} to {LARGEST_UINT32}, not {number}", reason)
    return number


def seconds(name: str, value: Any, default: float) -> float:
    """Returns the seconds that `value` stands for; raises InvalidArgumentError unless they are finite and above 0."""
    if value is None:
        return default
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise refusal(name, f"must be a number of seconds above 0, not {value!r}", "BAD_TIMEOUT")
    return float(value)


def refusal(name: str, description: str, reason: str) -> InvalidArgumentError:
    """Returns the error for an argument that is wrong whatever a server says."""
    violations = (FieldViolation(name, description),)
    return InvalidArgumentError(f"{name} {description}", reason=reason, violations=violations)


def type_name(value: object) -> str:
    """Returns the name of the value's class."""
    return type(value).__name__
