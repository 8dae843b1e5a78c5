"""FakeServer refuses invalid requests with the status, reason and field of the contract."""

from typing import Any

import grpc
import numpy as np
import pytest
from isogloss import Client, InvalidArgumentError, IsoglossError, NotFoundError, SpaceMismatchError, Vectors
from isogloss.testing import FakeServer
from isogloss.v1 import embedding_pb2 as pb
from isogloss.v1 import embedding_pb2_grpc

from tests.support.wire import error_of


@pytest.mark.parametrize(
    ("call", "kind", "reason", "field"),
    [
        (lambda c: c.embed([]), InvalidArgumentError, "EMPTY_TEXTS", "texts"),
        (lambda c: c.embed(["a", "\n"]), InvalidArgumentError, "EMPTY_TEXT", "texts[1]"),
        (lambda c: c.embed(["a"], dimensions=7), InvalidArgumentError, "UNSUPPORTED_DIMENSIONS", "dimensions"),
        (lambda c: c.embed(["a"], model="other"), NotFoundError, "UNKNOWN_MODEL", "model"),
        (lambda c: c.embed(["a"], space_id="other"), SpaceMismatchError, "SPACE_MISMATCH", "space_id"),
        (
            lambda c: c.similarity(["a"], Vectors(np.ones((1, 256)), "other")),
            SpaceMismatchError,
            "SPACE_MISMATCH",
            "candidates.space_id",
        ),
        (
            lambda c: c.similarity(["a"], Vectors(np.ones((1, 7)), "fake-space")),
            InvalidArgumentError,
            "UNSUPPORTED_DIMENSIONS",
            "dimensions",
        ),
        (lambda c: c.similarity([""], ["a"]), InvalidArgumentError, "EMPTY_TEXT", "queries[0]"),
        (lambda c: c.health("other"), NotFoundError, "UNKNOWN_MODEL", "model"),
    ],
)
def test_refusals_carry_reason_and_field(
    client: Client, call: Any, kind: type[IsoglossError], reason: str, field: str
) -> None:
    """An invalid argument raises an error with reason, field and request id."""
    with pytest.raises(kind) as raised:
        call(client)
    assert raised.value.reason == reason
    assert [violation.field for violation in raised.value.violations] == [field]
    assert raised.value.request_id


def test_refusals_of_raw_messages(server: FakeServer) -> None:
    """Invalid messages that the client never sends are refused with their own reasons."""
    texts = pb.Items(texts=pb.TextList(texts=["a"]))
    bad = pb.Items(vectors=pb.VectorList(vectors=pb.Matrix(rows=1, columns=2, data=b"1234"), space_id="fake-space"))
    nan = pb.Matrix(rows=1, columns=1, data=np.float32("nan").tobytes())
    requests: dict[str, Any] = {
        "UNKNOWN_ENUM": pb.SimilarityRequest(queries=texts, metric=99),  # type: ignore[arg-type]
        "MISSING_FIELD": pb.SimilarityRequest(),
        "BAD_K": pb.SimilarityRequest(queries=texts, nearest=pb.Nearest()),
        "BAD_MIN_SCORE": pb.SimilarityRequest(queries=texts, nearest=pb.Nearest(k=1, min_score=float("nan"))),
        "BAD_MATRIX": pb.SimilarityRequest(queries=bad),
        "UNEQUAL_SIDES": pb.SimilarityRequest(
            queries=texts, candidates=pb.Items(texts=pb.TextList(texts=["a", "b"])), pairwise=pb.Pairwise()
        ),
    }
    with grpc.insecure_channel(server.target) as channel:
        stub = embedding_pb2_grpc.EmbeddingServiceStub(channel)
        for reason, request in requests.items():
            error = error_of(lambda request=request: stub.Similarity(request, timeout=30))
            assert (error.code, error.reason, bool(error.fields)) == ("INVALID_ARGUMENT", reason, True)
        bad.vectors.vectors.CopyFrom(nan)
        assert error_of(lambda: stub.Similarity(pb.SimilarityRequest(queries=bad), timeout=30)).reason == "BAD_MATRIX"
