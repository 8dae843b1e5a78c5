"""Upper bounds of the sizes of messages, and other limits that client and server share.

A test compares the bounds with the sizes of real messages.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from isogloss.wire.enums import ElementType

BITS: Mapping[ElementType, int] = MappingProxyType(  # of a number in Matrix.data
    {
        ElementType.FLOAT32: 32,
        ElementType.FLOAT16: 16,
        ElementType.INT8: 8,
        ElementType.UINT8: 8,
        ElementType.UBINARY: 1,
        ElementType.BINARY: 1,
    }
)
ROW_OVERHEAD_BYTES = 20  # of a row without its numbers: token count, truncated row, scale
ROW_ERROR_BYTES = 240
RANKING_BYTES = 20  # of a query without its neighbors
NEIGHBOR_BYTES = 9  # a row number and a score
SCORE_BYTES = 4
MAX_VIOLATIONS = 16  # of one error
MAX_DETAILS_BYTES = 4096  # of all details of an error; larger trailers get lost in transit


def utf8_bytes(texts: Iterable[str]) -> int:
    """Returns the total size of `texts` in UTF-8."""
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)


def bytes_per_row(columns: int, element_type: ElementType) -> int:
    """Returns the size of a row of `columns` numbers in Matrix.data, without its scale."""
    return -(-columns * BITS[element_type] // 8)


def matrix_bytes(message: Any) -> int:
    """Returns the size of a Matrix that counts toward the limit of a request: data and scales."""
    return len(message.data) + 4 * len(message.row_scales)


def embed_response_bytes(texts: int, columns: int, element_type: ElementType, *, allow_partial: bool) -> int:
    """Returns the maximum size of the response to an Embed; with `allow_partial`, every row may have an error."""
    overhead = ROW_OVERHEAD_BYTES + (ROW_ERROR_BYTES if allow_partial else 0)
    return texts * (bytes_per_row(columns, element_type) + overhead)


def scores_bytes(pairs: int) -> int:
    """Returns the size of the scores of `pairs` pairs."""
    return SCORE_BYTES * pairs


def rankings_bytes(queries: int, neighbors: int) -> int:
    """Returns the maximum size of `neighbors` neighbors for each of `queries` queries."""
    return queries * (RANKING_BYTES + neighbors * NEIGHBOR_BYTES)
