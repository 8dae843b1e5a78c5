"""The codec of the contract's `Matrix`: numpy arrays to bytes and back, for every element type.

The definitions are those of `EmbedRequest`, `ElementType` and `Matrix` in the contract. This module imports no
protobuf: it reads and fills messages that it is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isogloss.wire.enums import ElementType

DTYPES: Mapping[ElementType, np.dtype[Any]] = MappingProxyType(
    {
        ElementType.FLOAT32: np.dtype("<f4"),
        ElementType.FLOAT16: np.dtype("<f2"),
        ElementType.INT8: np.dtype("i1"),
        ElementType.UINT8: np.dtype("u1"),
        ElementType.UBINARY: np.dtype("u1"),
        ElementType.BINARY: np.dtype("i1"),
    }
)
SCALED = frozenset({ElementType.INT8, ElementType.UINT8})  # value = (element - zero point) * scale of the row
BIT_PACKED = frozenset({ElementType.UBINARY, ElementType.BINARY})  # eight columns to a byte
ZERO_POINTS: Mapping[ElementType, int] = MappingProxyType({ElementType.INT8: 0, ElementType.UINT8: 128})
NO_SCALES = np.empty(0, dtype=np.float32)
NO_SCALES.setflags(write=False)


class MatrixError(ValueError):
    """A Matrix message that is inconsistent, or has unsupported values.

    Attributes:
        part: The field of the message at fault, such as "data".
    """

    def __init__(self, part: str, message: str) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True, slots=True)
class Elements:
    """The contents of a Matrix as numpy arrays.

    Attributes:
        array: [rows, columns] of the element type's dtype; [rows, ceil(columns / 8)] for the two binary types.
        columns: Length of each vector.
        element_type: Interpretation of `array`.
        row_scales: float32 [rows] for INT8 and UINT8, else [0].
    """

    array: NDArray[np.generic]
    columns: int
    element_type: ElementType
    row_scales: NDArray[np.float32]


def to_elements(rows: NDArray[np.float32], columns: int, *, normalize: bool, element_type: ElementType) -> Elements:
    """Returns the first `columns` columns of float32 [n, d] as `element_type`, scaled to unit length if `normalize`."""
    kept = rows[:, :columns]
    return quantize(unit_length(kept) if normalize else kept, element_type)


def unit_length(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns float32 [n, d], each row divided by its Euclidean length; a zero row stays zero."""
    wide = rows.astype(np.float64)  # in float64 the squares of all float32 numbers are in range
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    wide /= np.maximum(lengths, np.finfo(np.float64).tiny)[:, None]
    return wide.astype(np.float32)


def quantize(rows: NDArray[np.float32], element_type: ElementType) -> Elements:
    """Converts float32 [n, d] to elements of `element_type`; contiguous float32 rows are not copied."""
    columns = rows.shape[1]
    if element_type in SCALED:
        return _scaled(rows, element_type)
    if element_type in BIT_PACKED:
        bits = np.packbits(rows > 0, axis=1)
        array = bits if element_type is ElementType.UBINARY else (bits ^ 0x80).view(np.int8)
        return Elements(array, columns, element_type, NO_SCALES)
    with np.errstate(over="ignore"):  # by IEEE 754 a number beyond the range of float16 becomes infinite
        array = np.ascontiguousarray(rows, dtype=DTYPES[element_type])
    return Elements(array, columns, element_type, NO_SCALES)


def _scaled(rows: NDArray[np.float32], element_type: ElementType) -> Elements:
    """Converts rows to 8 bits, each with the scale that maps its largest magnitude to 127; a zero row has scale 0."""
    scales = (np.abs(rows).max(axis=1) / np.float32(127)).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(np.inf))
    steps = np.clip(np.rint(rows / divisors[:, None]), -127, 127)
    array = (steps + ZERO_POINTS[element_type]).astype(DTYPES[element_type])
    return Elements(array, rows.shape[1], element_type, scales)


def dequantize(elements: Elements) -> NDArray[np.float32]:
    """Converts elements to float32 [n, d]; the bits of the two binary types become +1 and -1."""
    if elements.element_type in BIT_PACKED:
        # The BINARY byte is the UBINARY byte minus 128; XOR with 0x80 adds the 128 modulo 256.
        flip = np.uint8(0x80 if elements.element_type is ElementType.BINARY else 0)
        bits = np.unpackbits(elements.array.view(np.uint8) ^ flip, axis=1, count=elements.columns)
        return bits.astype(np.float32) * np.float32(2) - np.float32(1)
    values = elements.array.astype(np.float32, copy=False)
    if elements.element_type in SCALED:
        values = (values - np.float32(ZERO_POINTS[elements.element_type])) * elements.row_scales[:, None]
    return values


def encode(elements: Elements, message: Any) -> None:
    """Fills `message`, an empty Matrix, with `elements`."""
    message.data = elements.array.tobytes()
    message.rows = len(elements.array)
    message.columns = elements.columns
    message.element_type = elements.element_type.number
    if elements.row_scales.size:
        message.row_scales.extend(elements.row_scales.tolist())


def decode(message: Any, element_type: ElementType) -> Elements:
    """Returns the elements of a Matrix as read-only arrays.

    Args:
        message: The Matrix.
        element_type: Meaning of its `element_type`; unknown numbers are the caller's to refuse.

    Raises:
        MatrixError: The numbers of rows, columns, bytes and scales disagree.
    """
    dtype, rows, columns = DTYPES[element_type], message.rows, message.columns
    row_elements = -(-columns // 8) if element_type in BIT_PACKED else columns
    size = rows * row_elements * dtype.itemsize
    data = message.data  # once, because protobuf copies the bytes at each access
    if len(data) != size:
        shape = f"{rows} rows of {columns} columns in {element_type}"
        raise MatrixError("data", f"{shape} have {size} bytes, not {len(data)}")
    expected = rows if element_type in SCALED else 0
    if len(message.row_scales) != expected:
        raise MatrixError("row_scales", f"expected {expected} scales, not {len(message.row_scales)}")
    array = np.frombuffer(data, dtype).reshape(rows, row_elements)
    scales = NO_SCALES
    if expected:
        scales = np.array(message.row_scales, dtype=np.float32)
        scales.setflags(write=False)
    return Elements(array, columns, element_type, scales)


def decode_numbers(message: Any, element_type: ElementType) -> NDArray[np.float32]:
    """Returns the vectors of a Matrix as float32 [n, d].

    Raises:
        MatrixError: `decode` refuses the message, or it has no rows or no columns, holds bits, or holds a number that
            is not finite.
    """
    if element_type in BIT_PACKED:
        raise MatrixError("element_type", f"numbers are required, not {element_type}")
    if not message.rows or not message.columns:
        raise MatrixError("columns" if message.rows else "rows", "at least one row and one column are required")
    elements = decode(message, element_type)
    if not np.isfinite(elements.row_scales).all():
        raise MatrixError("row_scales", "a scale is not finite")
    with np.errstate(over="ignore"):
        rows = dequantize(elements)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise MatrixError("data", f"row {int(np.argmin(finite))} has a number that is not finite")
    return rows
