"""The interface of a provider's API, and the answers it gives."""

import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from isogloss.wire.enums import InputType, Truncation

from isogloss_server.models.interfaces import Rows


class InvalidResponseError(Exception):
    """An answer that cannot be the vectors that were asked for; the message never quotes it."""


@dataclass(frozen=True, slots=True)
class ProviderResponse:
    """The vectors, float32 [n, d], of the n texts of one call, and the tokens that the provider bills for them."""

    rows: Rows
    billed_tokens: int


def to_rows(vectors: Sequence[Any]) -> Rows:
    """Returns float32 [n, d] of a provider's vectors: each a list of numbers, or base64 of little-endian float32.

    Raises:
        InvalidResponseError: they are something else, or differ in width.
    """
    try:
        rows = [_row(vector) for vector in vectors]
    except (ValueError, TypeError) as error:
        raise InvalidResponseError("a vector is neither numbers nor base64 of them") from error
    if len({row.shape for row in rows}) > 1:
        raise InvalidResponseError("its vectors differ in width")
    return np.stack(rows) if rows else np.empty((0, 0), np.float32)


def check_rows(rows: Rows, texts: int, columns: int) -> None:
    """Raises InvalidResponseError unless `rows` are finite float32 [texts, columns]; 0 columns: any number."""
    if len(rows) != texts:
        raise InvalidResponseError(f"{len(rows)} vectors for {texts} texts")
    if columns and rows.shape[1] != columns:
        raise InvalidResponseError(f"vectors of {rows.shape[1]} numbers, where {columns} are due")
    if not rows.shape[1] or not np.isfinite(rows).all():
        raise InvalidResponseError("numbers that are not finite")


def _row(vector: Any) -> Rows:
    if isinstance(vector, str):
        # Not base64.b64decode, which looks through the text in Python before it decodes it.
        return np.frombuffer(binascii.a2b_base64(vector, strict_mode=True), "<f4").astype(np.float32)
    row = np.asarray(vector, np.float32)
    if row.ndim != 1:
        raise ValueError("not a list of numbers")
    return row


class Provider(Protocol):
    """One provider's API, on its SDK."""

    title: str  # its name, for people

    async def embed(
        self, texts: Sequence[str], input_type: InputType, truncation: Truncation, timeout_s: float
    ) -> ProviderResponse:
        """Makes one HTTP call.

        Raises:
            ProviderCallError: it gave no answer.
            InvalidResponseError: or one that could not be understood.
            TimeoutError: or none within `timeout_s`.
            Exception: whatever its SDK makes of an answer that it cannot read.
        """
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...
