"""Element types are exact to their definition in the contract."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from isogloss.wire.enums import ElementType
from isogloss_server.engine.vectors import bytes_per_row, quantise, shape, unit_length, widen

Array = np.ndarray[Any, Any]
rows_of_floats = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(rows_of_floats)
def test_float32_is_the_rows_themselves(rows: Array) -> None:
    """FLOAT32 carries every bit."""
    assert quantise(rows, ElementType.FLOAT32).elements.tobytes() == rows.astype("<f4").tobytes()


@given(rows_of_floats)
def test_float16_is_the_nearest_half(rows: Array) -> None:
    """FLOAT16 is IEEE 754's own rounding of each number."""
    with np.errstate(over="ignore"):
        assert quantise(rows, ElementType.FLOAT16).elements.tobytes() == rows.astype("<f2").tobytes()


@pytest.mark.parametrize(("element_type", "dtype", "zero"), [("int8", np.int8, 0), ("uint8", np.uint8, 128)])
@given(rows=rows_of_floats)
def test_8_bits_are_within_half_a_step(rows: Array, element_type: str, dtype: type, zero: int) -> None:
    """INT8 and UINT8 give value = (element - zero point) * scale, within half a scale of the number."""
    matrix = quantise(rows, ElementType(element_type))
    assert matrix.elements.dtype == dtype
    assert matrix.row_scales.dtype == np.float32
    restored = (matrix.elements.astype(np.float64) - zero) * matrix.row_scales.astype(np.float64)[:, None]
    # where the scale itself is subnormal its own rounding is as large as a step
    slack = np.maximum(0.501 * matrix.row_scales.astype(np.float64), 127 * 1.5e-45)[:, None]
    assert (np.abs(restored - rows) <= slack).all()
    np.testing.assert_array_equal(widen(matrix), restored.astype(np.float32))


def test_8_bits_by_hand() -> None:
    """The largest number of a row is 127 steps; a row of zeros has scale 0 and the zero point everywhere."""
    rows = np.array([[1.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    signed, unsigned = quantise(rows, ElementType.INT8), quantise(rows, ElementType.UINT8)
    np.testing.assert_array_equal(signed.elements, [[127, -127, 64, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(unsigned.elements, [[255, 1, 192, 128], [128] * 4])
    np.testing.assert_array_equal(signed.row_scales, np.array([1 / 127, 0], np.float32))


@given(rows_of_floats)
def test_binary_types_hold_the_signs(rows: Array) -> None:
    """A bit is set where the value is > 0, first column in the high bit, spare low bits 0; BINARY is the byte - 128."""
    packed = quantise(rows, ElementType.UBINARY)
    shifted = quantise(rows, ElementType.BINARY)
    columns = rows.shape[1]
    for row, packed_row in zip(rows, packed.elements, strict=True):
        bits = "".join("1" if number > 0 else "0" for number in row).ljust(-(-columns // 8) * 8, "0")
        assert [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)] == packed_row.tolist()
    assert shifted.elements.dtype == np.int8
    np.testing.assert_array_equal(shifted.elements.astype(int), packed.elements.astype(int) - 128)
    assert packed.columns == shifted.columns == columns


@pytest.mark.parametrize("element_type", list(ElementType))
def test_bytes_per_row_is_what_travels(element_type: ElementType) -> None:
    """The size that is announced before any work is the size that the answer has."""
    matrix = quantise(np.ones((3, 13), np.float32), element_type)
    assert len(matrix.elements.tobytes()) == 3 * bytes_per_row(13, element_type)


@given(rows_of_floats)
def test_unit_length(rows: Array) -> None:
    """A normalised row has length 1, however small or large its numbers; zeros stay zeros, nothing becomes NaN."""
    lengths = np.linalg.norm(unit_length(rows).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, rows.any(axis=1).astype(float), atol=1e-6)


def test_shape_shortens_before_it_normalises() -> None:
    """`dimensions` keeps the first columns and rescales the row to unit length only where normalize holds."""
    rows = np.array([[3.0, 4.0, 12.0]], np.float32)
    kept = shape(rows, 2, normalize=True, element_type=ElementType.FLOAT32)
    raw = shape(rows, 2, normalize=False, element_type=ElementType.FLOAT32)
    np.testing.assert_allclose(kept.elements, [[0.6, 0.8]], rtol=1e-7)
    np.testing.assert_array_equal(raw.elements, [[3.0, 4.0]])
