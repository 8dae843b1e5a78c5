"""Rows shaped as a request wants them: shortened, normalised, quantised. Pure numpy.

The definitions of the element types are those of `ElementType` and `Matrix` in the contract.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from isogloss.wire.enums import ElementType
from numpy.typing import NDArray

from isogloss_server.models.interfaces import Rows

# Little-endian dtype of what travels. In the two binary types a byte holds 8 columns.
WIRE_DTYPE: dict[ElementType, np.dtype[Any]] = {
    ElementType.FLOAT32: np.dtype("<f4"),
    ElementType.FLOAT16: np.dtype("<f2"),
    ElementType.INT8: np.dtype("i1"),
    ElementType.UINT8: np.dtype("u1"),
    ElementType.UBINARY: np.dtype("u1"),
    ElementType.BINARY: np.dtype("i1"),
}
SCALED = frozenset({ElementType.INT8, ElementType.UINT8})
BIT_PACKED = frozenset({ElementType.UBINARY, ElementType.BINARY})
_ZERO_POINT = {ElementType.INT8: 0, ElementType.UINT8: 128}


@dataclass(frozen=True, slots=True)
class Quantised:
    """n rows of `columns` numbers as they travel: elements [n, bytes_per_row / itemsize], row_scales [n] or [0]."""

    elements: NDArray[np.generic]
    columns: int
    element_type: ElementType
    row_scales: NDArray[np.float32]


def bytes_per_row(columns: int, element_type: ElementType) -> int:
    """Returns how many bytes a row of `columns` numbers takes, scales not counted."""
    if element_type in BIT_PACKED:
        return -(-columns // 8)
    return columns * WIRE_DTYPE[element_type].itemsize


def shape(rows: Rows, columns: int, *, normalize: bool, element_type: ElementType) -> Quantised:
    """Returns the first `columns` columns of float32 [n, d], of unit length where `normalize`, as `element_type`."""
    kept = rows[:, :columns]
    return quantise(unit_length(kept) if normalize else kept, element_type)


def unit_length(rows: Rows) -> Rows:
    """Returns float32 [n, d], each row divided by its Euclidean length; a row of zeros stays zeros."""
    wide = rows.astype(np.float64)  # the squares of small or large float32 numbers stay in range
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    wide /= np.maximum(lengths, np.finfo(np.float64).tiny)[:, None]
    return wide.astype(np.float32)


def quantise(rows: Rows, element_type: ElementType) -> Quantised:
    """Returns float32 [n, d] as elements of `element_type`."""
    no_scales = np.empty(0, dtype=np.float32)
    columns = rows.shape[1]
    if element_type in SCALED:
        return _scaled(rows, element_type)
    if element_type in BIT_PACKED:
        bits = np.packbits(rows > 0, axis=1)
        elements = bits if element_type is ElementType.UBINARY else (bits ^ 0x80).view(np.int8)
        return Quantised(elements, columns, element_type, no_scales)
    if element_type is ElementType.FLOAT32:
        return Quantised(np.ascontiguousarray(rows), columns, element_type, no_scales)
    with np.errstate(over="ignore"):  # a number beyond float16 becomes infinite, as IEEE 754 says
        elements = np.ascontiguousarray(rows, dtype=WIRE_DTYPE[element_type])
    return Quantised(elements, columns, element_type, no_scales)


def _scaled(rows: Rows, element_type: ElementType) -> Quantised:
    """Rows in 8 bits, each with the scale that maps its largest number to 127; a row of zeros has scale 0."""
    scales = (np.abs(rows).max(axis=1) / np.float32(127)).astype(np.float32)
    divisors = np.where(scales > 0, scales, np.float32(np.inf))
    steps = np.clip(np.rint(rows / divisors[:, None]), -127, 127)
    elements = (steps + _ZERO_POINT[element_type]).astype(WIRE_DTYPE[element_type])
    return Quantised(elements, rows.shape[1], element_type, scales)


def widen(matrix: Quantised) -> Rows:
    """Returns float32 [n, d]: the values of a matrix of numbers (not of one of the two binary types)."""
    values = matrix.elements.astype(np.float32)
    if matrix.element_type in SCALED:
        values = (values - _ZERO_POINT[matrix.element_type]) * matrix.row_scales[:, None]
    return values
