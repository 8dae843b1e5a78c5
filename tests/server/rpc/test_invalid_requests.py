"""Errors of invalid requests: status code, reason and field path, as any gRPC client reads them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from isogloss.v1 import embedding_pb2 as pb

from tests.support.wire import WireError, error_of, matrix_of, texts, vectors

Stub = Any


def space_of(stub: Stub) -> str:
    return str(stub.ListModels(pb.ListModelsRequest()).models[0].space_id)


EMBEDS = [
    (pb.EmbedRequest(), "INVALID_ARGUMENT", "EMPTY_TEXTS", ["texts"]),
    (pb.EmbedRequest(texts=["a", "", "b"]), "INVALID_ARGUMENT", "EMPTY_TEXT", ["texts[1]"]),
    (pb.EmbedRequest(texts=[" \t\n\u3000\u2029"]), "INVALID_ARGUMENT", "EMPTY_TEXT", ["texts[0]"]),
    (pb.EmbedRequest(texts=["", "a", " "]), "INVALID_ARGUMENT", "EMPTY_TEXT", ["texts[0]", "texts[2]"]),
    (pb.EmbedRequest(texts=["a"] * 9), "INVALID_ARGUMENT", "TOO_MANY_TEXTS", ["texts"]),
    (pb.EmbedRequest(texts=["é" * 2049]), "INVALID_ARGUMENT", "REQUEST_TOO_LARGE", ["texts"]),
    (pb.EmbedRequest(texts=["a"], model="gpt"), "NOT_FOUND", "UNKNOWN_MODEL", ["model"]),
    (pb.EmbedRequest(texts=["a"], dimensions=100), "INVALID_ARGUMENT", "UNSUPPORTED_DIMENSIONS", ["dimensions"]),
    (pb.EmbedRequest(texts=["a"], input_type=99), "INVALID_ARGUMENT", "UNKNOWN_ENUM", ["input_type"]),
    (pb.EmbedRequest(texts=["a"], element_type=7), "INVALID_ARGUMENT", "UNKNOWN_ENUM", ["element_type"]),
    (pb.EmbedRequest(texts=["a"], truncation=4), "INVALID_ARGUMENT", "UNKNOWN_ENUM", ["truncation"]),
    (pb.EmbedRequest(texts=["a"], priority=-1), "INVALID_ARGUMENT", "UNKNOWN_ENUM", ["priority"]),
    (pb.EmbedRequest(texts=["a"], space_id="other"), "FAILED_PRECONDITION", "SPACE_MISMATCH", ["space_id"]),
    (pb.EmbedRequest(texts=["a"] * 8), "INVALID_ARGUMENT", "RESPONSE_TOO_LARGE", ["texts"]),
]


@pytest.mark.parametrize(
    ("request_", "code", "reason", "fields"), EMBEDS, ids=[f"{case[2]} {case[3]}" for case in EMBEDS]
)
def test_embed_rejects(small_stub: Stub, request_: pb.EmbedRequest, code: str, reason: str, fields: list[str]) -> None:
    """The error of an invalid Embed has the code, the reason and the field."""
    error = error_of(lambda: small_stub.Embed(request_))
    assert (error.code, error.reason, error.fields) == (code, reason, fields)
    assert error.request_id


ROW = np.ones((1, 256), np.float32)
VALID = matrix_of(ROW)


def with_queries(make_queries: Callable[[str], pb.Items]) -> Callable[[str], pb.SimilarityRequest]:
    return lambda space: pb.SimilarityRequest(queries=make_queries(space), candidates=texts("b"))


def with_matrix(matrix: pb.Matrix) -> Callable[[str], pb.SimilarityRequest]:
    return with_queries(lambda space: vectors(matrix, space))


def with_texts(*lines: str, **fields: Any) -> Callable[[str], pb.SimilarityRequest]:
    return lambda space: pb.SimilarityRequest(queries=texts(*lines), **fields)


INVALID, PATH = "INVALID_ARGUMENT", "queries.vectors.vectors"
BITS = pb.Matrix(data=bytes(32), rows=1, columns=256, element_type=pb.ELEMENT_TYPE_BINARY)
SHORT = pb.Matrix(data=bytes(1023), rows=1, columns=256)
HUGE_ROWS = pb.Matrix(data=bytes(1024), rows=2**32 - 1, columns=2**32 - 1)
NO_SCALES = pb.Matrix(data=bytes(256), rows=1, columns=256, element_type=pb.ELEMENT_TYPE_INT8)
STRAY_SCALE = matrix_of(ROW, scales=[1.0])
BAD_SCALE = matrix_of(ROW, pb.ELEMENT_TYPE_INT8, scales=[math.inf])
UNKNOWN_TYPE = pb.Matrix(data=VALID.data, rows=1, columns=256, element_type=42)
MANY = pb.Nearest(k=2**32 - 1)


SIMILARITIES = [
    ("no queries", lambda space: pb.SimilarityRequest(), INVALID, "MISSING_FIELD", ["queries"]),
    ("empty side", with_texts("a", candidates=pb.Items()), INVALID, "MISSING_FIELD", ["candidates"]),
    ("no texts", with_texts(), INVALID, "EMPTY_TEXTS", ["queries.texts.texts"]),
    ("white space", with_texts("a", " "), INVALID, "EMPTY_TEXT", ["queries.texts.texts[1]"]),
    ("empty candidate", with_texts("a", candidates=texts("")), INVALID, "EMPTY_TEXT", ["candidates.texts.texts[0]"]),
    ("too many texts", with_texts(*"abcdefghi"), INVALID, "TOO_MANY_TEXTS", ["queries.texts.texts"]),
    ("too many bytes", with_texts("a" * 5000), INVALID, "REQUEST_TOO_LARGE", ["queries.texts.texts"]),
    (
        "too many bytes of vectors",
        with_matrix(matrix_of(np.ones((5, 256)))),
        INVALID,
        "REQUEST_TOO_LARGE",
        ["queries.vectors"],
    ),
    ("too many pairs", with_texts(*"abcde"), INVALID, "RESPONSE_TOO_LARGE", ["candidates"]),
    ("too many pairs of nearest", with_texts(*"abcde", nearest=MANY), INVALID, "RESPONSE_TOO_LARGE", ["candidates"]),
    ("unknown model", with_texts("a", model="x"), "NOT_FOUND", "UNKNOWN_MODEL", ["model"]),
    ("unknown metric", with_texts("a", metric=5), INVALID, "UNKNOWN_ENUM", ["metric"]),
    ("unknown priority", with_texts("a", priority=3), INVALID, "UNKNOWN_ENUM", ["priority"]),
    ("unknown truncation", with_texts("a", truncation=9), INVALID, "UNKNOWN_ENUM", ["truncation"]),
    (
        "unknown input type",
        lambda space: pb.SimilarityRequest(queries=texts("a", input_type=6)),
        INVALID,
        "UNKNOWN_ENUM",
        ["queries.texts.input_type"],
    ),
    ("unsupported dimensions", with_texts("a", dimensions=3), INVALID, "UNSUPPORTED_DIMENSIONS", ["dimensions"]),
    ("binary vectors", with_matrix(BITS), INVALID, "BAD_MATRIX", [f"{PATH}.element_type"]),
    ("short data", with_matrix(SHORT), INVALID, "BAD_MATRIX", [f"{PATH}.data"]),
    ("huge rows", with_matrix(HUGE_ROWS), INVALID, "BAD_MATRIX", [f"{PATH}.data"]),
    ("no rows", with_matrix(pb.Matrix()), INVALID, "BAD_MATRIX", [f"{PATH}.rows"]),
    ("no columns", with_matrix(pb.Matrix(rows=1)), INVALID, "BAD_MATRIX", [f"{PATH}.columns"]),
    ("no scales", with_matrix(NO_SCALES), INVALID, "BAD_MATRIX", [f"{PATH}.row_scales"]),
    ("stray scale", with_matrix(STRAY_SCALE), INVALID, "BAD_MATRIX", [f"{PATH}.row_scales"]),
    ("bad scale", with_matrix(BAD_SCALE), INVALID, "BAD_MATRIX", [f"{PATH}.row_scales"]),
    ("NaN", with_matrix(matrix_of(ROW * math.nan)), INVALID, "BAD_MATRIX", [f"{PATH}.data"]),
    ("infinity", with_matrix(matrix_of(ROW * -math.inf)), INVALID, "BAD_MATRIX", [f"{PATH}.data"]),
    ("unknown element type", with_matrix(UNKNOWN_TYPE), INVALID, "UNKNOWN_ENUM", [f"{PATH}.element_type"]),
    (
        "no space id",
        with_queries(lambda space: vectors(VALID, "")),
        "FAILED_PRECONDITION",
        "SPACE_MISMATCH",
        ["queries.vectors.space_id"],
    ),
    (
        "other space",
        with_queries(lambda space: vectors(VALID, "s1-0")),
        "FAILED_PRECONDITION",
        "SPACE_MISMATCH",
        ["queries.vectors.space_id"],
    ),
    (
        "different columns of two sides of vectors",
        lambda space: pb.SimilarityRequest(
            queries=vectors(VALID, space), candidates=vectors(matrix_of(np.ones((1, 64))), space)
        ),
        INVALID,
        "DIMENSION_MISMATCH",
        ["candidates.vectors"],
    ),
    (
        "columns other than the dimensions",
        lambda space: pb.SimilarityRequest(queries=vectors(VALID, space), candidates=texts("a"), dimensions=64),
        INVALID,
        "DIMENSION_MISMATCH",
        ["queries.vectors"],
    ),
    (
        "columns that the model does not offer",
        with_matrix(matrix_of(np.ones((1, 100)))),
        INVALID,
        "UNSUPPORTED_DIMENSIONS",
        ["dimensions"],
    ),
    (
        "unequal sides",
        with_texts("a", candidates=texts("b", "c"), pairwise=pb.Pairwise()),
        INVALID,
        "UNEQUAL_SIDES",
        ["candidates"],
    ),
    ("no k", with_texts("a", nearest=pb.Nearest()), INVALID, "BAD_K", ["nearest.k"]),
    (
        "NaN as min_score",
        with_texts("a", nearest=pb.Nearest(k=1, min_score=math.nan)),
        INVALID,
        "BAD_MIN_SCORE",
        ["nearest.min_score"],
    ),
]


@pytest.mark.parametrize(
    ("make", "code", "reason", "fields"),
    [case[1:] for case in SIMILARITIES],
    ids=[c[0] for c in SIMILARITIES],
)
def test_similarity_rejects(
    small_stub: Stub, make: Callable[[str], pb.SimilarityRequest], code: str, reason: str, fields: list[str]
) -> None:
    """The error of an invalid Similarity has the code, the reason and the field."""
    request = make(space_of(small_stub))
    error = error_of(lambda: small_stub.Similarity(request))
    assert (error.code, error.reason, error.fields) == (code, reason, fields)


def test_a_response_with_too_many_bytes_is_rejected_before_inference() -> None:
    """All pairs and nearest are rejected if the response would exceed its limit of bytes, within the limit of pairs."""
    from isogloss_server.engine.request import AllPairs, Limits, Nearest, SimilarityRequest, TextSide
    from isogloss_server.errors import ResponseTooLargeError
    from isogloss_server.models.interfaces import InputType, ModelCard

    limits = Limits(max_texts=100, max_request_bytes=1000, max_response_bytes=100, max_pairs=1000)
    card = ModelCard(backend="", space_id="", dimensions=(4,), max_tokens=9)
    side = TextSide("queries", ["a"] * 20, InputType.QUERY)
    for shape in (AllPairs(), Nearest(20, None)):
        with pytest.raises(ResponseTooLargeError) as raised:
            SimilarityRequest(queries=side, candidates=None, shape=shape).check(card, limits)
        assert raised.value.figures["limit"] == "100"


def test_the_error_of_a_too_long_text_has_index_tokens_and_limit(stub: Stub) -> None:
    """With TRUNCATION_ERROR a text beyond the limit fails with its index, its number of tokens and the limit."""
    request = pb.EmbedRequest(texts=["short", "7" * 40_000], truncation=pb.TRUNCATION_ERROR)
    error = error_of(lambda: stub.Embed(request))
    assert (error.code, error.reason, error.fields) == ("INVALID_ARGUMENT", "TEXT_TOO_LONG", ["texts[1]"])
    limit = stub.ListModels(pb.ListModelsRequest()).models[0].max_tokens
    assert error.figures["limit"] == str(limit)
    assert int(error.figures["actual"]) > limit
    assert error.figures["index"] == "1"


def test_the_error_of_an_unknown_model_lists_the_served_models(stub: Stub) -> None:
    """The error has the names of the served models."""
    error = error_of(lambda: stub.Embed(pb.EmbedRequest(texts=["a"], model="nope")))
    assert error.figures["served"] == "isogloss-static"
    assert error_of(lambda: stub.Health(pb.HealthRequest(model="nope"))).reason == "UNKNOWN_MODEL"


def test_the_error_of_unsupported_dimensions_lists_the_offered_ones(stub: Stub) -> None:
    """The error has the dimensions that the model offers."""
    error = error_of(lambda: stub.Embed(pb.EmbedRequest(texts=["a"], dimensions=100)))
    offered = stub.ListModels(pb.ListModelsRequest()).models[0].dimensions
    assert error.figures["offered"] == ", ".join(map(str, offered))


def test_errors_are_small_and_do_not_contain_texts(stub: Stub) -> None:
    """An error for 40 texts has 16 violations, takes less than 4 KiB, and does not contain a text."""
    secret = "SECRET" + "7" * 40_000
    request = pb.EmbedRequest(texts=[secret] * 40, truncation=pb.TRUNCATION_ERROR)
    error = error_of(lambda: stub.Embed(request))
    assert error.fields == [f"texts[{row}]" for row in range(16)]
    assert error.details_bytes < 4096
    assert "SECRET" not in repr(error)


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("caller-7", True), ("x" * 128, True), ("x" * 129, False), ("", False)],
)
def test_a_valid_request_id_is_returned_and_an_invalid_one_replaced(stub: Stub, given: str, is_kept: bool) -> None:
    """The trailers of responses and errors have the x-request-id of the caller if it is valid, else a new one."""
    metadata = [("x-request-id", given)]
    _, call = stub.Embed.with_call(pb.EmbedRequest(texts=["a"]), metadata=metadata)
    returned = dict(call.trailing_metadata())["x-request-id"]
    failed: WireError = error_of(lambda: stub.Embed(pb.EmbedRequest(), metadata=metadata))
    assert (returned == given) is is_kept
    assert (failed.request_id == given) is is_kept
    assert len(returned) >= 8
