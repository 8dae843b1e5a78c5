"""Requests -> jobs, results -> responses: translation only, nothing is decided here."""

from collections.abc import Iterable, Sequence

from google.protobuf import duration_pb2
from isogloss.v1 import embedding_pb2 as pb

from isogloss_server.engine.job import AllPairs, EmbedJob, Nearest, Pairwise, SimilarityJob, TextSide, VectorSide
from isogloss_server.engine.pipeline import EmbedResult, SimilarityResult, Timings
from isogloss_server.engine.registry import Registry, ServedModel
from isogloss_server.engine.similarity import Rankings
from isogloss_server.engine.vectors import ElementType, quantise
from isogloss_server.errors import MissingFieldError
from isogloss_server.rpc.enums import (
    ELEMENT_TYPES,
    INPUT_TYPES,
    METRICS,
    PRIORITIES,
    SERVING_STATUSES,
    TRUNCATIONS,
)
from isogloss_server.rpc.matrix import from_matrix, to_matrix
from isogloss_server.rpc.status import to_row_status
from isogloss_server.settings import HIGHEST_MAX_TEXTS


def to_embed_job(request: pb.EmbedRequest, deadline_s: float, *, patient: bool) -> EmbedJob:
    """Returns the job that an Embed asks for, on a stream a patient one; raises UnknownEnumError."""
    return EmbedJob(
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


def to_similarity_job(request: pb.SimilarityRequest, deadline_s: float) -> SimilarityJob:
    """Returns the job that a Similarity asks for; raises UnknownEnumError, BadMatrixError, MissingFieldError."""
    return SimilarityJob(
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
