"""Responses -> results. What does not fit its request is refused here, before it can be joined or indexed."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isogloss._failures import code_name, from_status, read_details
from isogloss._messages.matrix import bad_answer, from_matrix
from isogloss._messages.words import known
from isogloss.enums import ServingStatus, Truncation
from isogloss.errors import IsoglossError
from isogloss.results import Embeddings, HealthReport, ModelHealth, ModelInfo, RowError, Scores, Timings
from isogloss.results.comparisons import Comparison
from isogloss.v1 import embedding_pb2 as pb


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
        truncations=tuple(_known(known(Truncation, value) for value in entry.truncations)),
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
    return known(ServingStatus, value) or ServingStatus.UNKNOWN


def _known(words: Iterable[Truncation | None]) -> Iterable[Truncation]:
    return (word for word in words if word is not None)
