"""numpy arrays <-> the contract's Matrix: dense, row-major, little-endian."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isogloss._messages.words import known, number
from isogloss.enums import ElementType
from isogloss.errors import InternalError
from isogloss.results.embeddings import read_only
from isogloss.v1 import embedding_pb2 as pb

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
PACKED = frozenset({ElementType.UBINARY, ElementType.BINARY})  # eight columns to a byte
SCALED = frozenset({ElementType.INT8, ElementType.UINT8})


@dataclass(frozen=True, slots=True)
class Elements:
    """A Matrix as numpy reads it: array [rows, columns] (packed types: [rows, ceil(columns / 8)]), scales [rows]."""

    array: NDArray[np.generic]
    element_type: ElementType
    scales: NDArray[np.float32]
    columns: int


def row_bytes(element_type: ElementType, columns: int) -> int:
    """Returns the bytes that a row of `columns` numbers takes in a Matrix's data."""
    return -(-columns // 8) if element_type in PACKED else columns * DTYPES[element_type].itemsize


def to_matrix(array: NDArray[np.float32]) -> pb.Matrix:
    """Returns float32 [n, d] as a message."""
    rows, columns = array.shape
    data = array.astype("<f4", copy=False).tobytes()
    return pb.Matrix(data=data, rows=rows, columns=columns, element_type=number(ElementType.FLOAT32))


def from_matrix(matrix: pb.Matrix, rows: int) -> Elements:
    """Returns what `matrix` holds, read-only and without copying it.

    Raises:
        InternalError: The parts of the matrix disagree, or it has not the `rows` that were asked for; joining or
            indexing it would give one text the vector of another (reason BAD_ANSWER).
    """
    element_type = known(ElementType, matrix.element_type or number(ElementType.FLOAT32))
    if element_type is None:
        raise bad_answer(f"vectors of the unknown element type {matrix.element_type}")
    width = row_bytes(element_type, matrix.columns)
    if matrix.rows != rows or len(matrix.data) != rows * width:
        found = f"{matrix.rows} rows of {matrix.columns} columns in {len(matrix.data)} bytes"
        raise bad_answer(f"{found} where {rows} rows of {element_type} were asked for")
    scales = np.array(matrix.row_scales, dtype=np.float32)
    if len(scales) != (rows if element_type in SCALED else 0):
        raise bad_answer(f"{len(scales)} scales for {rows} rows of {element_type}")
    dtype = DTYPES[element_type]
    array = np.frombuffer(matrix.data, dtype).reshape(rows, width // dtype.itemsize)
    return Elements(array, element_type, read_only(scales), matrix.columns)


def bad_answer(found: str) -> InternalError:
    """Returns the error for a response that does not fit its request."""
    return InternalError(f"the server answered with {found}", reason="BAD_ANSWER")
