"""Converts arguments to requests, and responses to results. No other module of the client reads or builds messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from google.protobuf import duration_pb2
from numpy.typing import NDArray

from isogloss._arguments import AllPairs, CompareArguments, EmbedArguments, Nearest, Pairwise, Shape, TextSide
from isogloss._failures import code_name, from_status, read_details
from isogloss.enums import ElementType, ServingStatus, Truncation
from isogloss.errors import InternalError, IsoglossError
from isogloss.results import (
    Comparison,
    Embeddings,
    HealthReport,
    ModelHealth,
    ModelInfo,
    RowError,
    Scores,
    Timings,
    Vectors,
    read_only,
)
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import to_number

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
    return pb.Matrix(data=data, rows=rows, columns=columns, element_type=ElementType.FLOAT32.number)


def from_matrix(matrix: pb.Matrix, rows: int) -> Elements:
    """Returns what `matrix` holds, read-only and without copying it.

    Raises:
        InternalError: The parts of the matrix disagree, or it has not the `rows` that were asked for; joining or
            indexing it would give one text the vector of another (reason BAD_ANSWER).
    """
    element_type = ElementType.from_number(matrix.element_type or ElementType.FLOAT32.number)
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


def embed_request(arguments: EmbedArguments, texts: Sequence[str]) -> pb.EmbedRequest:
    """Returns the request for the vectors of `texts`."""
    return pb.EmbedRequest(
        texts=texts,
        model=arguments.model,
        input_type=arguments.input_type.number,
        dimensions=arguments.dimensions,
        element_type=arguments.element_type.number,
        truncation=to_number(arguments.truncation),
        normalize=arguments.normalize,
        priority=arguments.priority.number,
        allow_partial=arguments.allow_partial,
        space_id=arguments.space_id,
    )


def stream_request(
    number: int, arguments: EmbedArguments, texts: Sequence[str], timeout_s: float
) -> pb.EmbedStreamRequest:
    """Returns a request for the vectors of `texts` among others on a stream, to be answered within `timeout_s`."""
    timeout = duration_pb2.Duration()
    timeout.FromMicroseconds(round(timeout_s * 1e6))
    return pb.EmbedStreamRequest(id=number, request=embed_request(arguments, texts), timeout=timeout)


def similarity_request(
    arguments: CompareArguments, shape: Shape, queries: TextSide | Vectors, candidates: TextSide | Vectors | None
) -> pb.SimilarityRequest:
    """Returns the request that compares the sides; without candidates, the queries with themselves."""
    return pb.SimilarityRequest(
        queries=_items(queries),
        candidates=None if candidates is None else _items(candidates),
        model=arguments.model,
        metric=arguments.metric.number,
        dimensions=arguments.dimensions,
        truncation=to_number(arguments.truncation),
        priority=arguments.priority.number,
        all_pairs=pb.AllPairs() if isinstance(shape, AllPairs) else None,
        pairwise=pb.Pairwise() if isinstance(shape, Pairwise) else None,
        nearest=pb.Nearest(k=shape.k, min_score=shape.min_score) if isinstance(shape, Nearest) else None,
    )


def health_request(model: str) -> pb.HealthRequest:
    """Returns the request for the health of `model`, or of the whole server where it is empty."""
    return pb.HealthRequest(model=model)


def models_request() -> pb.ListModelsRequest:
    """Returns the request for what the server offers."""
    return pb.ListModelsRequest()


def _items(side: TextSide | Vectors) -> pb.Items:
    if isinstance(side, Vectors):
        return pb.Items(vectors=pb.VectorList(vectors=to_matrix(side.array), space_id=side.space_id))
    return pb.Items(texts=pb.TextList(texts=side.texts, input_type=side.input_type.number))


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighborLists(Comparison):
    """The neighbours of each query, best first: lists of (candidate rows int64 [k], scores float32 [k])."""

    lists: tuple[tuple[NDArray[np.int64], NDArray[np.float32]], ...]


def read_embed(response: pb.EmbedResponse, texts: int) -> Embeddings:
    """Returns the answer to an embed of so many texts; raises InternalError where it does not fit them."""
    elements = from_matrix(response.embeddings, texts)
    if response.per_text_counts and len(response.token_counts) != texts:
        raise bad_answer(f"{len(response.token_counts)} token counts for {texts} texts")
    return Embeddings(
        elements=elements.array,
        element_type=elements.element_type,
        row_scales=elements.scales,
        dimensions=elements.columns,
        model=response.model,
        space_id=response.space_id,
        token_counts=tuple(response.token_counts),
        truncated_rows=tuple(response.truncated_rows),
        row_errors=tuple(_row_error(entry) for entry in response.row_errors),
        total_tokens=response.total_tokens,
        timings=_timings(response.timings),
    )


def read_stream_answer(answer: pb.EmbedStreamResponse) -> tuple[int, pb.EmbedResponse | IsoglossError]:
    """Returns the number of the request that `answer` is for, and the response, or why there is none."""
    failed = answer.WhichOneof("result") == "error"
    return answer.id, from_status(answer.error) if failed else answer.response


def read_scores(response: pb.SimilarityResponse, rows: int, columns: int) -> Scores:
    """Returns the scores of a comparison, [rows, columns]; raises InternalError where there are others."""
    if response.WhichOneof("result") != "scores" or response.scores.columns != columns:
        raise bad_answer("other scores than were asked for")
    values = from_matrix(response.scores, rows).array.astype(np.float32, copy=False)
    return Scores(values=values, **_comparison(response))


def read_nearest(response: pb.SimilarityResponse, queries: int, candidates: int) -> NeighborLists:
    """Returns the neighbours of each query; raises InternalError where they are others' or not candidates."""
    lists = tuple((np.array(q.rows, np.int64), np.array(q.scores, np.float32)) for q in response.nearest.queries)
    fits = all(len(rows) == len(scores) and (rows < candidates).all() for rows, scores in lists)
    if len(lists) != queries or not fits:
        raise bad_answer("other neighbours than were asked for")
    return NeighborLists(lists=lists, **_comparison(response))


def read_health(response: pb.HealthResponse) -> HealthReport:
    """Returns how the server fares."""
    models = tuple(
        ModelHealth(
            model=entry.model,
            status=_status(entry.status),
            detail=entry.detail,
            queued_texts=entry.queued_texts,
            embedded_texts=entry.embedded_texts,
        )
        for entry in response.models
    )
    return HealthReport(
        status=_status(response.status), version=response.version, uptime_s=_seconds(response.uptime), models=models
    )


def read_models(response: pb.ListModelsResponse) -> list[ModelInfo]:
    """Returns the models that a server offers, the default first."""
    return [_model(entry) for entry in response.models]


def _model(entry: pb.ModelInfo) -> ModelInfo:
    return ModelInfo(
        name=entry.name,
        space_id=entry.space_id,
        backend=entry.backend,
        revision=entry.revision,
        dimensions=tuple(entry.dimensions),
        max_tokens=entry.max_tokens,
        max_texts=entry.max_texts,
        max_request_bytes=entry.max_request_bytes,
        max_response_bytes=entry.max_response_bytes,
        max_pairs=entry.max_pairs,
        languages=tuple(entry.languages),
        has_roles=entry.has_roles,
        truncations=tuple(_known(Truncation.from_number(value) for value in entry.truncations)),
        license=entry.license,
    )


def _comparison(response: pb.SimilarityResponse) -> dict[str, Any]:
    return {
        "model": response.model,
        "space_id": response.space_id,
        "truncated_queries": tuple(response.truncated_queries),
        "truncated_candidates": tuple(response.truncated_candidates),
        "timings": _timings(response.timings),
    }


def _row_error(entry: pb.RowError) -> RowError:
    return RowError(
        entry.row, code_name(entry.status), read_details(entry.status).get("reason", ""), entry.status.message
    )


def _timings(timings: pb.Timings) -> Timings:
    return Timings(
        _seconds(timings.total),
        _seconds(timings.tokenization),
        _seconds(timings.queue),
        _seconds(timings.inference),
        timings.cached_rows,
    )


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _status(value: int) -> ServingStatus:
    return ServingStatus.from_number(value) or ServingStatus.UNKNOWN


def _known(words: Iterable[Truncation | None]) -> Iterable[Truncation]:
    return (word for word in words if word is not None)
