"""Checks of single arguments. Each names the argument that it refuses."""

import math
import operator
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from isogloss.errors import FieldViolation, InvalidArgumentError

Word = TypeVar("Word", bound=StrEnum)

YEAR_S = 365 * 86_400.0  # a deadline much further away is past for gRPC, whose clock wraps
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
    utf8_bytes(name, value)
    return value


def utf8_bytes(name: str, text: str) -> int:
    """Returns how many bytes a text takes; raises InvalidArgumentError, reason BAD_TEXT, where UTF-8 cannot write it.

    The text itself is not quoted: errors end in logs.
    """
    if not isinstance(text, str):
        raise refusal(name, f"must be a str, not {type_name(text)}", "BAD_TEXT")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise refusal(name, "has half a surrogate pair, which is no character", "BAD_TEXT") from None


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
        value = default
    if not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise refusal(name, f"must be a number of seconds above 0, not {value!r}", "BAD_TIMEOUT")
    return min(float(value), YEAR_S)


def refusal(name: str, description: str, reason: str) -> InvalidArgumentError:
    """Returns the error for an argument that is wrong whatever a server says."""
    violations = (FieldViolation(name, description),)
    return InvalidArgumentError(f"{name} {description}", reason=reason, violations=violations)


def type_name(value: object) -> str:
    """Returns the name of the value's class."""
    return type(value).__name__
