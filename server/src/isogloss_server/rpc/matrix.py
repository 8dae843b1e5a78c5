"""Matrix messages <-> arrays; the wire format is the contract's."""

import numpy as np
from isogloss.v1 import embedding_pb2 as pb

from isogloss_server.engine.vectors import (
    BIT_PACKED,
    SCALED,
    WIRE_DTYPE,
    ElementType,
    Quantised,
    bytes_per_row,
    widen,
)
from isogloss_server.errors import BadMatrixError
from isogloss_server.models.base import Rows
from isogloss_server.rpc.enums import ELEMENT_TYPES


def to_matrix(matrix: Quantised) -> pb.Matrix:
    """Returns the message of n rows."""
    return pb.Matrix(
        data=matrix.elements.tobytes(),
        rows=len(matrix.elements),
        columns=matrix.columns,
        element_type=ELEMENT_TYPES.write(matrix.element_type),
        row_scales=matrix.row_scales.tolist(),
    )


def from_matrix(matrix: pb.Matrix, path: str) -> Rows:
    """Returns float32 [n, d] of a matrix of numbers; `path` is its place in the request.

    Raises:
        BadMatrixError: bytes, rows, columns and scales disagree, a number is not finite, or numbers are needed and
            the matrix holds bits.
        UnknownEnumError: the element type is not the contract's.
    """
    element_type = ELEMENT_TYPES.read(matrix.element_type, f"{path}.element_type")
    if element_type in BIT_PACKED:
        raise _bad(path, "element_type", f"numbers are needed, not {element_type.value}")
    _check_size(matrix, element_type, path)
    elements = np.frombuffer(matrix.data, dtype=WIRE_DTYPE[element_type]).reshape(matrix.rows, matrix.columns)
    scales = np.array(matrix.row_scales, dtype=np.float32)
    if not np.isfinite(scales).all():
        raise _bad(path, "row_scales", "a scale is not finite")
    with np.errstate(over="ignore"):
        rows = widen(Quantised(elements, matrix.columns, element_type, scales))
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise _bad(path, "data", f"row {int(np.argmin(finite))} holds a number that is not finite")
    return rows


def _check_size(matrix: pb.Matrix, element_type: ElementType, path: str) -> None:
    if not matrix.rows or not matrix.columns:
        raise _bad(path, "rows" if not matrix.rows else "columns", "at least one row and one column are needed")
    expected = matrix.rows * bytes_per_row(matrix.columns, element_type)
    if len(matrix.data) != expected:
        what = f"{matrix.rows} rows of {matrix.columns} columns in {element_type.value}"
        raise _bad(path, "data", f"{what} take {expected} bytes, not {len(matrix.data)}")
    scales = matrix.rows if element_type in SCALED else 0
    if len(matrix.row_scales) != scales:
        raise _bad(path, "row_scales", f"{scales} scales are needed, not {len(matrix.row_scales)}")


def _bad(path: str, part: str, what: str) -> BadMatrixError:
    return BadMatrixError(what, field=f"{path}.{part}")
