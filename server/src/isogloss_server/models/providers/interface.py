"""The interface to a provider's API, and the parsing and checking of its responses."""

import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from isogloss.wire.enums import InputType, Truncation

from isogloss_server.models.interfaces import Rows

MAX_BILLED_TOKENS = 2**31 - 1  # of one call; a larger figure is not a count
Encoding = Literal["base64", "float"]  # of vectors, as Cohere and OpenAI name them


class InvalidResponseError(Exception):
    """A response does not hold valid vectors; the message never quotes the response."""


@dataclass(frozen=True, slots=True)
class ProviderResponse:
    """The response to one call with n texts."""

    rows: Rows  # float32 [n, d]
    billed_tokens: int  # 0 if the provider does not report a count


def to_rows(vectors: Sequence[Any]) -> Rows:
    """Converts a provider's vectors.

    Args:
        vectors: n vectors; each is a list of numbers, or base64 of little-endian float32.

    Returns:
        float32 [n, d].

    Raises:
        InvalidResponseError: They are something else, or differ in length.
    """
    try:
        rows = [_row(vector) for vector in vectors]
    except (ValueError, TypeError) as error:
        raise InvalidResponseError("a vector is neither a list of numbers nor base64 of float32") from error
    if len({row.shape for row in rows}) > 1:
        raise InvalidResponseError("the vectors differ in length")
    return np.stack(rows) if rows else np.empty((0, 0), np.float32)


def check_rows(rows: Rows, texts: int, columns: int) -> None:
    """Raises InvalidResponseError unless `rows` are finite float32 [texts, columns]; columns 0 accepts any number."""
    if len(rows) != texts:
        raise InvalidResponseError(f"{len(rows)} vectors for {texts} texts")
    if columns and rows.shape[1] != columns:
        raise InvalidResponseError(f"vectors of {rows.shape[1]} numbers instead of {columns}")
    if not rows.shape[1] or not np.isfinite(rows).all():
        raise InvalidResponseError("vectors that are empty or not finite")


def _row(vector: Any) -> Rows:
    if isinstance(vector, str):
        # Faster than base64.b64decode, which checks the text in Python first.
        return np.frombuffer(binascii.a2b_base64(vector, strict_mode=True), "<f4").astype(np.float32)
    row = np.asarray(vector)
    if row.ndim != 1 or row.dtype.kind not in "iuf":  # numpy would read "1.5", True and None as numbers
        raise ValueError("not a list of numbers")
    with np.errstate(over="ignore"):  # infinite numbers are rejected with the response
        return row.astype(np.float32)


def count_or_zero(value: object) -> int:
    """Returns a provider's count as an integer; 0 if it is missing, negative, not a number, or absurdly large."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 0
    return int(value) if 0 <= value <= MAX_BILLED_TOKENS else 0


class Provider(Protocol):
    """One model at a provider, called through the provider's SDK."""

    title: str  # the provider's name, for people
    encoding: Encoding  # of the vectors in responses

    async def embed(
        self, texts: Sequence[str], input_type: InputType, truncation: Truncation, timeout_s: float
    ) -> ProviderResponse:
        """Makes one HTTP call, without retries.

        Args:
            texts: The texts to embed, within the provider's limits.
            input_type: What the texts are for.
            truncation: The end that texts over the model's limit are cut at.
            timeout_s: Time limit, in seconds.

        Raises:
            ProviderCallError: The call failed.
            InvalidResponseError: The response does not hold vectors.
            TimeoutError: There was no response within `timeout_s`.
            Exception: The SDK could not parse the response.
        """
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...
