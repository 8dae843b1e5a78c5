"""The codec of the contract's Matrix: element types exact to their definition, and refusal of invalid messages."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import ElementType
from isogloss.wire.matrix import MatrixError, decode, dequantize, encode, quantize, to_elements, unit_length
from isogloss.wire.sizes import bytes_per_row

Array = np.ndarray[Any, Any]
rows_of_floats = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    elements=st.floats(-(2.0**100), 2.0**100, width=32),
)


@given(rows_of_floats)
def test_float32_is_the_rows_themselves(rows: Array) -> None:
    """FLOAT32 preserves every bit."""
    assert quantize(rows, ElementType.FLOAT32).array.tobytes() == rows.astype("<f4").tobytes()


@given(rows_of_floats)
def test_float16_is_the_nearest_half(rows: Array) -> None:
    """FLOAT16 rounds each number as IEEE 754 defines."""
    with np.errstate(over="ignore"):
        assert quantize(rows, ElementType.FLOAT16).array.tobytes() == rows.astype("<f2").tobytes()


@pytest.mark.parametrize(("element_type", "dtype", "zero"), [("int8", np.int8, 0), ("uint8", np.uint8, 128)])
@given(rows=rows_of_floats)
def test_8_bits_are_within_half_a_step(rows: Array, element_type: str, dtype: type, zero: int) -> None:
    """INT8 and UINT8 give value = (element - zero point) * scale, within half a scale of the number."""
    matrix = quantize(rows, ElementType(element_type))
    assert matrix.array.dtype == dtype
    assert matrix.row_scales.dtype == np.float32
    restored = (matrix.array.astype(np.float64) - zero) * matrix.row_scales.astype(np.float64)[:, None]
    # where the scale itself is subnormal its own rounding is as large as a step
    slack = np.maximum(0.501 * matrix.row_scales.astype(np.float64), 127 * 1.5e-45)[:, None]
    assert (np.abs(restored - rows) <= slack).all()
    np.testing.assert_array_equal(dequantize(matrix), restored.astype(np.float32))


def test_8_bits_by_hand() -> None:
    """The largest number of a row is 127 steps; a row of zeros has scale 0 and the zero point everywhere."""
    rows = np.array([[1.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    signed, unsigned = quantize(rows, ElementType.INT8), quantize(rows, ElementType.UINT8)
    np.testing.assert_array_equal(signed.array, [[127, -127, 64, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(unsigned.array, [[255, 1, 192, 128], [128] * 4])
    np.testing.assert_array_equal(signed.row_scales, np.array([1 / 127, 0], np.float32))


@given(rows_of_floats)
def test_binary_types_hold_the_signs(rows: Array) -> None:
    """A bit is set where the value is > 0, first column in the high bit, spare low bits 0; BINARY is the byte - 128."""
    packed = quantize(rows, ElementType.UBINARY)
    shifted = quantize(rows, ElementType.BINARY)
    columns = rows.shape[1]
    for row, packed_row in zip(rows, packed.array, strict=True):
        bits = "".join("1" if number > 0 else "0" for number in row).ljust(-(-columns // 8) * 8, "0")
        assert [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)] == packed_row.tolist()
    assert shifted.array.dtype == np.int8
    np.testing.assert_array_equal(shifted.array.astype(int), packed.array.astype(int) - 128)
    assert packed.columns == shifted.columns == columns


@pytest.mark.parametrize("element_type", list(ElementType))
def test_bytes_per_row_is_the_size_of_an_encoded_row(element_type: ElementType) -> None:
    """The predicted size of a row is its size in the message."""
    matrix = quantize(np.ones((3, 13), np.float32), element_type)
    assert len(matrix.array.tobytes()) == 3 * bytes_per_row(13, element_type)


@given(rows_of_floats)
def test_unit_length(rows: Array) -> None:
    """A normalised row has length 1, however small or large its numbers; zeros stay zeros, nothing becomes NaN."""
    lengths = np.linalg.norm(unit_length(rows).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, rows.any(axis=1).astype(float), atol=1e-6)


def test_shape_shortens_before_it_normalises() -> None:
    """`dimensions` keeps the first columns and rescales the row to unit length only where normalize holds."""
    rows = np.array([[3.0, 4.0, 12.0]], np.float32)
    kept = to_elements(rows, 2, normalize=True, element_type=ElementType.FLOAT32)
    raw = to_elements(rows, 2, normalize=False, element_type=ElementType.FLOAT32)
    np.testing.assert_allclose(kept.array, [[0.6, 0.8]], rtol=1e-7)
    np.testing.assert_array_equal(raw.array, [[3.0, 4.0]])


@pytest.mark.parametrize("element_type", list(ElementType))
@given(rows=rows_of_floats)
def test_a_message_is_decoded_to_the_elements_that_it_was_encoded_from(rows: Array, element_type: ElementType) -> None:
    """Arrays survive the message bit for bit, and are read-only."""
    elements, message = quantize(rows, element_type), pb.Matrix()
    encode(elements, message)
    decoded = decode(pb.Matrix.FromString(message.SerializeToString()), element_type)
    assert message.element_type == element_type.number
    assert (decoded.columns, decoded.element_type) == (elements.columns, element_type)
    assert decoded.array.dtype == elements.array.dtype
    assert decoded.array.tobytes() == elements.array.tobytes()
    np.testing.assert_array_equal(decoded.row_scales, elements.row_scales)
    assert not decoded.array.flags.writeable
    assert not decoded.row_scales.flags.writeable


@pytest.mark.parametrize("element_type", [ElementType.UBINARY, ElementType.BINARY])
@given(rows=rows_of_floats)
def test_bits_are_dequantized_to_signs(rows: Array, element_type: ElementType) -> None:
    """Both binary types become +1 where the number was positive, and -1 elsewhere."""
    np.testing.assert_array_equal(dequantize(quantize(rows, element_type)), np.where(rows > 0, 1, -1))


@pytest.mark.parametrize(
    ("element_type", "fields", "part"),
    [
        ("float32", {"rows": 1, "columns": 2, "data": b"1234"}, "data"),
        ("ubinary", {"rows": 2, "columns": 9, "data": b"123"}, "data"),
        ("int8", {"rows": 1, "columns": 4, "data": b"1234"}, "row_scales"),
        ("float32", {"rows": 1, "columns": 1, "data": b"1234", "row_scales": [1.0]}, "row_scales"),
    ],
)
def test_a_message_whose_parts_disagree_is_refused(element_type: str, fields: dict[str, Any], part: str) -> None:
    """The error names the field at fault."""
    with pytest.raises(MatrixError) as raised:
        decode(pb.Matrix(**fields), ElementType(element_type))
    assert raised.value.part == part
