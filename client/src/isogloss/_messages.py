"""Converts arguments to requests, and responses to results. Other modules of the client handle no messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf import duration_pb2
from numpy.typing import NDArray

from isogloss._arguments import AllPairs, CompareArguments, EmbedArguments, Nearest, Pairwise, Shape, TextSide
from isogloss._failures import from_status
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
)
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import UNSPECIFIED
from isogloss.wire.matrix import Elements, MatrixError, decode, encode, quantize
from isogloss.wire.status import code_name, read


def from_matrix(message: pb.Matrix, rows: int) -> Elements:
    """Returns the contents of a Matrix as read-only arrays.

    Raises:
        InternalError: The matrix is invalid, or the number of its rows is not `rows`; joined or indexed,
            it would assign vectors to the wrong texts (reason BAD_ANSWER).
    """
    element_type = ElementType.by_number.get(message.element_type or ElementType.FLOAT32.number)
    if element_type is None:
        raise bad_answer(f"vectors of the unknown element type {message.element_type}")
    if message.rows != rows:
        raise bad_answer(f"{message.rows} rows instead of {rows}")
    try:
        return decode(message, element_type)
    except MatrixError as error:
        raise bad_answer(f"an invalid matrix: {error}") from None


def bad_answer(problem: str) -> InternalError:
    """Returns the error for a response that contradicts its request."""
    return InternalError(f"the server answered with {problem}", reason="BAD_ANSWER")


def embed_request(arguments: EmbedArguments, texts: Sequence[str]) -> pb.EmbedRequest:
    """Returns the request to embed `texts`."""
    return pb.EmbedRequest(
        texts=texts,
        model=arguments.model,
        input_type=arguments.input_type.number,
        dimensions=arguments.dimensions,
        element_type=arguments.element_type.number,
        truncation=_number(arguments.truncation),
        normalize=arguments.normalize,
        priority=arguments.priority.number,
        allow_partial=arguments.allow_partial,
        space_id=arguments.space_id,
    )


def stream_request(
    number: int, arguments: EmbedArguments, texts: Sequence[str], timeout_s: float
) -> pb.EmbedStreamRequest:
    """Returns request `number` of a stream, to embed `texts` within `timeout_s`."""
    timeout = duration_pb2.Duration()
    timeout.FromMicroseconds(round(timeout_s * 1e6))
    return pb.EmbedStreamRequest(id=number, request=embed_request(arguments, texts), timeout=timeout)


def similarity_request(
    arguments: CompareArguments, shape: Shape, queries: TextSide | Vectors, candidates: TextSide | Vectors | None
) -> pb.SimilarityRequest:
    """Returns the request to compare the sides; without candidates, the queries with each other."""
    return pb.SimilarityRequest(
        queries=_items(queries),
        candidates=None if candidates is None else _items(candidates),
        model=arguments.model,
        metric=arguments.metric.number,
        dimensions=arguments.dimensions,
        truncation=_number(arguments.truncation),
        priority=arguments.priority.number,
        all_pairs=pb.AllPairs() if isinstance(shape, AllPairs) else None,
        pairwise=pb.Pairwise() if isinstance(shape, Pairwise) else None,
        nearest=pb.Nearest(k=shape.k, min_score=shape.min_score) if isinstance(shape, Nearest) else None,
    )


def health_request(model: str) -> pb.HealthRequest:
    """Returns the request for the health of `model`, or of the whole server if `model` is empty."""
    return pb.HealthRequest(model=model)


def models_request() -> pb.ListModelsRequest:
    """Returns the request for the list of models."""
    return pb.ListModelsRequest()


def _number(truncation: Truncation | None) -> Any:
    return UNSPECIFIED if truncation is None else truncation.number


def _items(side: TextSide | Vectors) -> pb.Items:
    if isinstance(side, Vectors):
        items = pb.Items(vectors=pb.VectorList(space_id=side.space_id))
        encode(quantize(side.array, ElementType.FLOAT32), items.vectors.vectors)
        return items
    return pb.Items(texts=pb.TextList(texts=side.texts, input_type=side.input_type.number))


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighborLists(Comparison):
    """Neighbors of each query, best first, as pairs of candidate rows int64 [k] and scores float32 [k]."""

    lists: tuple[tuple[NDArray[np.int64], NDArray[np.float32]], ...]


def read_embed(response: pb.EmbedResponse, texts: int) -> Embeddings:
    """Returns the result of an embed; raises InternalError if the response is not for `texts` texts."""
    if response.per_text_counts and len(response.token_counts) != texts:
        raise bad_answer(f"{len(response.token_counts)} token counts for {texts} texts")
    row_errors = tuple(_row_error(entry) for entry in response.row_errors)
    timings = _timings(response.timings)
    elements = from_matrix(response.embeddings, texts)
    return Embeddings(
        elements=elements.array,
        element_type=elements.element_type,
        row_scales=elements.row_scales,
        dimensions=elements.columns,
        model=response.model,
        space_id=response.space_id,
        token_counts=tuple(response.token_counts),
        truncated_rows=tuple(response.truncated_rows),
        row_errors=row_errors,
        total_tokens=response.total_tokens,
        timings=timings,
    )


def read_stream_response(message: pb.EmbedStreamResponse) -> tuple[int, pb.EmbedResponse | IsoglossError]:
    """Returns the number of the answered request, and its response or its error."""
    failed = message.WhichOneof("result") == "error"
    return message.id, from_status(message.error) if failed else message.response


def read_scores(response: pb.SimilarityResponse, rows: int, columns: int) -> Scores:
    """Returns the scores of a comparison; raises InternalError unless they are a matrix [rows, columns]."""
    if response.WhichOneof("result") != "scores" or response.scores.columns != columns:
        raise bad_answer("scores of another shape than requested")
    values = from_matrix(response.scores, rows).array.astype(np.float32, copy=False)
    return Scores(values=values, **_comparison(response))


def read_nearest(response: pb.SimilarityResponse, queries: int, candidates: int) -> NeighborLists:
    """Returns the neighbors of each query; raises InternalError if their number or a candidate row is invalid."""
    lists = tuple((np.array(q.rows, np.int64), np.array(q.scores, np.float32)) for q in response.nearest.queries)
    valid = all(len(rows) == len(scores) and (rows < candidates).all() for rows, scores in lists)
    if len(lists) != queries or not valid:
        raise bad_answer("other neighbors than requested")
    return NeighborLists(lists=lists, **_comparison(response))


def read_health(response: pb.HealthResponse) -> HealthReport:
    """Returns the health of the server and its models."""
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
    """Returns the models of the server, the default first."""
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
        truncations=tuple(filter(None, map(Truncation.by_number.get, entry.truncations))),
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
    return RowError(entry.row, code_name(entry.status), read(entry.status).reason, entry.status.message)


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
    return ServingStatus.by_number.get(value, ServingStatus.UNKNOWN)
