"""Messages of the contract, and errors as any gRPC client reads them, for tests with the generated stubs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from isogloss.v1 import embedding_pb2 as pb


@dataclass(frozen=True)
class WireError:
    """The status, details and trailers of a failed call."""

    code: str
    message: str
    reason: str
    figures: dict[str, str]
    fields: list[str]
    request_id: str
    details_bytes: int


def error_of(call: Callable[[], Any]) -> WireError:
    """Returns the error of a call, which must fail."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error: Any = raised.value
    trailers = dict(error.trailing_metadata() or ())
    details = trailers.get("grpc-status-details-bin", b"")
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for packed in status_pb2.Status.FromString(details).details:
        for message in (info, bad):
            if packed.Is(message.DESCRIPTOR):
                packed.Unpack(message)
    assert not info.reason or info.domain == "isogloss"
    return WireError(
        error.code().name,
        error.details() or "",
        info.reason,
        dict(info.metadata),
        [violation.field for violation in bad.field_violations],
        str(trailers.get("x-request-id", "")),
        len(details),
    )


DTYPES = {
    pb.ELEMENT_TYPE_FLOAT32: "<f4",
    pb.ELEMENT_TYPE_FLOAT16: "<f2",
    pb.ELEMENT_TYPE_INT8: "i1",
    pb.ELEMENT_TYPE_UINT8: "u1",
    pb.ELEMENT_TYPE_UBINARY: "u1",
    pb.ELEMENT_TYPE_BINARY: "i1",
}


def array_of(matrix: pb.Matrix) -> np.ndarray[Any, Any]:
    """Returns the elements of a matrix as encoded, [rows, ...]."""
    return np.frombuffer(matrix.data, DTYPES[matrix.element_type]).reshape(matrix.rows, -1)


def matrix_of(rows: Any, element_type: int = pb.ELEMENT_TYPE_FLOAT32, scales: Sequence[float] = ()) -> pb.Matrix:
    """Returns the Matrix of an array [n, d]."""
    array = np.asarray(rows, dtype=DTYPES[element_type])
    return pb.Matrix(
        data=array.tobytes(), rows=array.shape[0], columns=array.shape[1], element_type=element_type, row_scales=scales
    )


def texts(*lines: str, input_type: int = 0) -> pb.Items:
    """Returns a side of a comparison that has texts."""
    return pb.Items(texts=pb.TextList(texts=lines, input_type=input_type))


def vectors(matrix: pb.Matrix, space_id: str) -> pb.Items:
    """Returns a side of a comparison that has vectors."""
    return pb.Items(vectors=pb.VectorList(vectors=matrix, space_id=space_id))
