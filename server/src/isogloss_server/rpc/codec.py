"""Converts protobuf messages to engine requests, and results to protobuf messages."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import numpy as np
from google.protobuf import duration_pb2
from isogloss.v1 import embedding_pb2 as pb

from isogloss_server.engine.pipeline import EmbedResult, SimilarityResult, Timings
from isogloss_server.engine.registry import Registry, ServedModel
from isogloss_server.engine.request import (
    AllPairs,
    EmbedRequest,
    Nearest,
    Pairwise,
    SimilarityRequest,
    TextSide,
    VectorSide,
)
from isogloss_server.engine.similarity import Metric, Rankings
from isogloss_server.engine.vectors import (
    BIT_PACKED,
    SCALED,
    WIRE_DTYPE,
    ElementType,
    Quantised,
    bytes_per_row,
    quantise,
    widen,
)
from isogloss_server.errors import BadMatrixError, MissingFieldError, UnknownEnumError
from isogloss_server.models.interfaces import Priority, Role, Rows, State, Truncation
from isogloss_server.rpc.status import to_row_status
from isogloss_server.settings.declarations import HIGHEST_MAX_TEXTS

E = TypeVar("E", bound=Enum | None)


@dataclass(frozen=True)
class EnumTable(Generic[E]):
    """The words of one enum by their number; number 0 stands for the default, None where that is the model's."""

    words: Mapping[int, E]

    def read(self, number: int, path: str) -> E:
        """Returns the word of a number.

        Raises:
            UnknownEnumError: the contract has no such number.
        """
        if number not in self.words:
            known = ", ".join(str(known) for known in self.words)
            raise UnknownEnumError(f"{number} is none of {known}", field=path, actual=number, known=known)
        return self.words[number]

    def write(self, word: E) -> Any:
        """Returns the number of a word."""
        # The default has number 0 besides its own; its own is told.
        return max(number for number, known in self.words.items() if known is word)


INPUT_TYPES = EnumTable(
    {
        pb.INPUT_TYPE_UNSPECIFIED: Role.SIMILARITY,
        pb.INPUT_TYPE_SIMILARITY: Role.SIMILARITY,
        pb.INPUT_TYPE_QUERY: Role.QUERY,
        pb.INPUT_TYPE_DOCUMENT: Role.DOCUMENT,
        pb.INPUT_TYPE_CLASSIFICATION: Role.CLASSIFICATION,
        pb.INPUT_TYPE_CLUSTERING: Role.CLUSTERING,
    }
)


TRUNCATIONS: EnumTable[Truncation | None] = EnumTable(
    {
        pb.TRUNCATION_UNSPECIFIED: None,
        pb.TRUNCATION_END: Truncation.END,
        pb.TRUNCATION_START: Truncation.START,
        pb.TRUNCATION_ERROR: Truncation.ERROR,
    }
)


PRIORITIES = EnumTable(
    {
        pb.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
        pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
        pb.PRIORITY_BULK: Priority.BULK,
    }
)


ELEMENT_TYPES = EnumTable(
    {
        pb.ELEMENT_TYPE_UNSPECIFIED: ElementType.FLOAT32,
        pb.ELEMENT_TYPE_FLOAT32: ElementType.FLOAT32,
        pb.ELEMENT_TYPE_FLOAT16: ElementType.FLOAT16,
        pb.ELEMENT_TYPE_INT8: ElementType.INT8,
        pb.ELEMENT_TYPE_UINT8: ElementType.UINT8,
        pb.ELEMENT_TYPE_UBINARY: ElementType.UBINARY,
        pb.ELEMENT_TYPE_BINARY: ElementType.BINARY,
    }
)


METRICS = EnumTable(
    {
        pb.METRIC_UNSPECIFIED: Metric.COSINE,
        pb.METRIC_COSINE: Metric.COSINE,
        pb.METRIC_DOT: Metric.DOT,
        pb.METRIC_EUCLIDEAN: Metric.EUCLIDEAN,
        pb.METRIC_MANHATTAN: Metric.MANHATTAN,
    }
)


SERVING_STATUSES = EnumTable(
    {
        pb.SERVING_STATUS_SERVING: State.SERVING,
        pb.SERVING_STATUS_DEGRADED: State.DEGRADED,
        pb.SERVING_STATUS_STARTING: State.STARTING,
        pb.SERVING_STATUS_NOT_SERVING: State.NOT_SERVING,
    }
)


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


def to_embed_request(request: pb.EmbedRequest, deadline_s: float, *, patient: bool) -> EmbedRequest:
    """Returns the job that an Embed asks for, on a stream a patient one; raises UnknownEnumError."""
    return EmbedRequest(
        texts=_texts(request.texts),
        model=request.model,
        role=INPUT_TYPES.read(request.input_type, "input_type"),
        dimensions=request.dimensions,
        element_type=ELEMENT_TYPES.read(request.element_type, "element_type"),
        truncation=TRUNCATIONS.read(request.truncation, "truncation"),
        normalize=request.normalize if request.HasField("normalize") else True,
        priority=PRIORITIES.read(request.priority, "priority"),
        allow_partial=request.allow_partial,
        space_id=request.space_id,
        deadline_s=deadline_s,
        patient=patient,
    )


def to_embed_response(result: EmbedResult) -> pb.EmbedResponse:
    """Returns the answer to an Embed."""
    embedded = result.embedded
    counts = embedded.token_counts
    response = pb.EmbedResponse(
        embeddings=to_matrix(result.matrix),
        model=result.model,
        space_id=result.space_id,
        token_counts=None if counts is None else counts.tolist(),
        truncated_rows=embedded.truncated_rows,
        row_errors=[pb.RowError(row=row, status=to_row_status(fault)) for row, fault in result.faults.items()],
        total_tokens=embedded.total_tokens,
        per_text_counts=counts is not None,
    )
    _write_timings(result.timings, response.timings)
    return response


def to_similarity_request(request: pb.SimilarityRequest, deadline_s: float) -> SimilarityRequest:
    """Returns the job that a Similarity asks for; raises UnknownEnumError, BadMatrixError, MissingFieldError."""
    return SimilarityRequest(
        queries=_side(request.queries, "queries"),
        candidates=_side(request.candidates, "candidates") if request.HasField("candidates") else None,
        model=request.model,
        metric=METRICS.read(request.metric, "metric"),
        dimensions=request.dimensions,
        truncation=TRUNCATIONS.read(request.truncation, "truncation"),
        priority=PRIORITIES.read(request.priority, "priority"),
        shape=_shape(request),
        deadline_s=deadline_s,
    )


def to_similarity_response(result: SimilarityResult) -> pb.SimilarityResponse:
    """Returns the answer to a Similarity."""
    response = pb.SimilarityResponse(
        model=result.model,
        space_id=result.space_id,
        truncated_queries=result.truncated_queries,
        truncated_candidates=result.truncated_candidates,
    )
    _write_timings(result.timings, response.timings)
    if isinstance(result.compared, Rankings):
        for rows, scores in result.compared.lists():
            response.nearest.queries.add(rows=rows, scores=scores)
    else:
        response.scores.CopyFrom(to_matrix(quantise(result.compared, ElementType.FLOAT32)))
    return response


def to_health_response(
    registry: Registry, models: Iterable[ServedModel], *, version: str, uptime_s: float
) -> pb.HealthResponse:
    """Returns how `models` are, and the worst of it."""
    models = list(models)
    response = pb.HealthResponse(
        status=SERVING_STATUSES.write(max(registry.state(model) for model in models)),
        version=version,
        models=[
            pb.ModelHealth(
                model=model.name,
                status=SERVING_STATUSES.write(registry.state(model)),
                detail="the server is about to stop" if registry.draining else model.detail,
                queued_texts=model.queued_texts,
                embedded_texts=model.embedded_texts,
            )
            for model in models
        ],
    )
    _write_seconds(uptime_s, response.uptime)
    return response


def to_model_info(model: ServedModel) -> pb.ModelInfo:
    """Returns the description of a model; raises ModelNotReadyError while it loads."""
    card, limits = model.ready.embedder.card, model.ready.limits
    return pb.ModelInfo(
        name=model.name,
        space_id=card.space_id,
        backend=card.backend,
        revision=card.revision,
        dimensions=card.dimensions,
        max_tokens=card.max_tokens,
        max_texts=limits.max_texts,
        max_request_bytes=limits.max_request_bytes,
        max_response_bytes=limits.max_response_bytes,
        max_pairs=limits.max_pairs,
        languages=card.languages,
        has_roles=card.has_roles,
        truncations=[TRUNCATIONS.write(truncation) for truncation in card.truncations],
        license=card.license,
    )


def _side(items: pb.Items, path: str) -> TextSide | VectorSide:
    kind = items.WhichOneof("kind")
    if kind == "texts":
        role = INPUT_TYPES.read(items.texts.input_type, f"{path}.texts.input_type")
        return TextSide(f"{path}.texts.texts", _texts(items.texts.texts), role)
    if kind == "vectors":
        place, matrix = f"{path}.vectors", items.vectors.vectors
        rows = from_matrix(matrix, f"{place}.vectors")
        return VectorSide(place, rows, items.vectors.space_id, len(matrix.data) + 4 * len(matrix.row_scales))
    raise MissingFieldError("texts or vectors are needed", field=path)


def _texts(given: Sequence[str]) -> Sequence[str]:
    """Returns the texts of a message; of more than any limit admits, their number alone is looked at."""
    return list(given) if len(given) <= HIGHEST_MAX_TEXTS else given


def _shape(request: pb.SimilarityRequest) -> AllPairs | Pairwise | Nearest:
    kind = request.WhichOneof("shape")
    if kind == "nearest":
        nearest = request.nearest
        return Nearest(nearest.k, nearest.min_score if nearest.HasField("min_score") else None)
    return Pairwise() if kind == "pairwise" else AllPairs()


def _write_timings(timings: Timings, to: pb.Timings) -> None:
    _write_seconds(timings.total_s, to.total)
    _write_seconds(timings.tokenization_s, to.tokenization)
    _write_seconds(timings.queue_s, to.queue)
    _write_seconds(timings.inference_s, to.inference)
    to.cached_rows = timings.cached_rows


def _write_seconds(seconds: float, to: duration_pb2.Duration) -> None:
    to.seconds, to.nanos = divmod(max(0, int(seconds * 1e9)), 1_000_000_000)
