"""Texts -> repeatable vectors, and vectors <-> the contract's Matrix. Shapes: [n texts, d dimensions]."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from isogloss._messages.matrix import DTYPES, PACKED, SCALED, from_matrix
from isogloss._messages.words import number
from isogloss.enums import ElementType
from isogloss.errors import InternalError, InvalidArgumentError
from isogloss.results import Embeddings
from isogloss.testing._errors import refusal
from isogloss.v1 import embedding_pb2 as pb

Rows = NDArray[np.float32]

# A number is +SHARED or -SHARED as the group has it, and within OWN of that as the text itself has it. So a vector's
# angle to its group's is at most asin(OWN / SHARED), in any number of first columns, and that of two texts of a group
# at most twice that: their cosine is at least 0.92.
SHARED, OWN = 1000, 200


def raw_rows(texts: Sequence[str], kin: Mapping[str, str], space_id: str, columns: int) -> NDArray[np.int64]:
    """Returns int64 [n, columns] from the texts and the space alone; rows of one group of `kin` lie near each other."""
    rows = [_numbers(text, kin.get(text, text), space_id, columns) for text in texts]
    return np.array(rows, np.int64).reshape(len(texts), columns)


def shaped(raw: NDArray[np.int64], *, normalize: bool) -> Rows:
    """Returns float32 [n, d], of unit length where `normalize`. Sums of whole numbers are exact on every machine."""
    lengths = np.sqrt((raw**2).sum(axis=1)) if normalize else np.full(len(raw), float(SHARED))
    return (raw / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)


def to_matrix(rows: Rows, element_type: ElementType) -> pb.Matrix:
    """Returns float32 [n, d] as a message of elements of `element_type`."""
    count, columns = rows.shape
    scales = np.zeros(0, np.float32)
    if element_type in SCALED:
        scales = (np.abs(rows).max(axis=1) / np.float32(127)).astype(np.float32)
        steps = np.rint(rows / np.where(scales > 0, scales, np.float32(1))[:, None])
        elements = steps + (128 if element_type is ElementType.UINT8 else 0)
    elif element_type in PACKED:
        bits = np.packbits(rows > 0, axis=1).astype(np.int16)
        elements = bits - (128 if element_type is ElementType.BINARY else 0)
    else:
        elements = rows
    data = elements.astype(DTYPES[element_type]).tobytes()
    kind = number(element_type)
    return pb.Matrix(data=data, rows=count, columns=columns, element_type=kind, row_scales=scales.tolist())


def read_matrix(matrix: pb.Matrix, path: str) -> Rows:
    """Returns float32 [n, d] of a request's matrix; raises InvalidArgumentError, reason BAD_MATRIX."""
    try:
        elements = from_matrix(matrix, matrix.rows)
    except InternalError:
        raise _bad(path, "rows, columns, scales and bytes disagree") from None
    if elements.element_type in PACKED or not elements.array.size:
        raise _bad(path, "at least one row and one column of numbers are needed, not of bits")
    rows = Embeddings(
        elements=elements.array,
        element_type=elements.element_type,
        row_scales=elements.scales,
        dimensions=elements.columns,
        model="",
        space_id="",
    ).vectors
    if not np.isfinite(rows).all():
        raise _bad(path, "a number is not finite")
    return rows


def _numbers(text: str, head: str, space_id: str, columns: int) -> NDArray[np.int64]:
    signs = np.where(_hashed(columns, "group", space_id, head) & 1, SHARED, -SHARED)
    return signs + _hashed(columns, "text", space_id, text) % (2 * OWN + 1) - OWN


def _hashed(columns: int, *seed: str) -> NDArray[np.int64]:
    """Returns whole numbers from 0 to 65,535; the first ones of many are those of few."""
    digest = hashlib.shake_128("\0".join(seed).encode()).digest(2 * columns)
    return np.frombuffer(digest, "<u2").astype(np.int64)


def _bad(path: str, what: str) -> InvalidArgumentError:
    return refusal("BAD_MATRIX", what, path)
