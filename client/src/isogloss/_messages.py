"""Converts arguments to requests, and responses to results. Other modules of the client handle no messages."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from google.rpc import code_pb2
from numpy.typing import NDArray

from isogloss._arguments import (
    AllPairs,
    CompareArguments,
    EmbedArguments,
    Nearest,
    Pairwise,
    Shape,
    Sides,
    TextSide,
)
from isogloss.enums import ElementType, Metric, ServingStatus, Truncation
from isogloss.errors import InternalError, SpaceMismatchError
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
from isogloss.wire.matrix import BIT_PACKED, SCALED, Elements, MatrixError, decode, encode, quantize
from isogloss.wire.status import code_name, read

Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]  # candidate rows and scores, best first

UNIT_TOLERANCE = 0.01  # of the squared length of a row; float16 rounds it by up to 0.001
MAX_SCALE = float(np.finfo(np.float32).max) / 128  # the product with an element stays finite
SCORE_RANGES: Mapping[Metric, tuple[float, float]] = MappingProxyType(  # with the rounding of float32
    {Metric.COSINE: (-1.00001, 1.00001), Metric.EUCLIDEAN: (-np.inf, 0), Metric.MANHATTAN: (-np.inf, 0)}
)
NANOS_PER_S = 1_000_000_000
MAX_QUOTED = 100  # characters of a server's word in an error


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


# The functions below are the only place where the client reads responses. They check every field that has a rule in the
# contract, so that the results of a server that breaks it are never used.


@dataclass(frozen=True, kw_only=True, eq=False)
class NeighborLists(Comparison):
    """Neighbors of each query, best first, as pairs of candidate rows int64 [k] and scores float32 [k]."""

    lists: tuple[Ranking, ...]


def bad_answer(problem: str) -> InternalError:
    """Returns the error for a response that breaks the contract, or contradicts its request (reason BAD_ANSWER)."""
    return InternalError(f"the server answered with {problem}", reason="BAD_ANSWER")


def read_embed(response: pb.EmbedResponse, arguments: EmbedArguments, texts: int) -> Embeddings:
    """Returns the result of an embed of `texts` texts.

    Raises:
        SpaceMismatchError: The vectors are of another space than `arguments.space_id`.
        InternalError: The response breaks the contract in another way (reason BAD_ANSWER).
    """
    _check_origin(response, arguments.model, arguments.space_id)
    elements = _matrix(response.embeddings, texts, arguments.element_type)
    if arguments.dimensions not in (0, elements.columns):
        raise bad_answer(f"{elements.columns} dimensions instead of {arguments.dimensions}")
    _check_numbers(elements, normalize=arguments.normalize)
    token_counts = tuple(response.token_counts)
    counted = texts if response.per_text_counts else 0
    if len(token_counts) != counted:
        raise bad_answer(f"{len(token_counts)} token counts instead of {counted}")
    if counted and response.total_tokens != sum(token_counts):
        raise bad_answer("a total of tokens that is not the sum of the token counts")
    return Embeddings(
        elements=elements.array,
        element_type=elements.element_type,
        row_scales=elements.row_scales,
        dimensions=elements.columns,
        model=response.model,
        space_id=response.space_id,
        token_counts=token_counts,
        truncated_rows=_rows("truncated_rows", response.truncated_rows, counted),
        row_errors=_row_errors(response.row_errors, elements, arguments),
        total_tokens=response.total_tokens,
        timings=_timings(response.timings, texts),
    )


def read_similarity(
    response: pb.SimilarityResponse, arguments: CompareArguments, shape: Shape, sides: Sides
) -> Scores | NeighborLists:
    """Returns the scores of a comparison, for pairs as one row; for the shape Nearest, the neighbors of each query.

    Raises:
        SpaceMismatchError: The space is not that of the vectors among `sides`.
        InternalError: The response breaks the contract in another way (reason BAD_ANSWER).
    """
    queries, candidates = sides.size
    kind = "nearest" if isinstance(shape, Nearest) else "scores"
    if response.WhichOneof("result") != kind or not queries or not candidates:
        raise bad_answer(f"another result than the {kind} that were requested")
    attributes = _comparison(response, arguments, sides)
    if isinstance(shape, Nearest):
        lists = _rankings(response.nearest.queries, shape, arguments.metric, queries, candidates)
        return NeighborLists(lists=lists, **attributes)
    rows, columns = (1, queries) if isinstance(shape, Pairwise) else (queries, candidates)
    elements = _matrix(response.scores, rows, ElementType.FLOAT32)
    if elements.columns != columns:
        raise bad_answer(f"{elements.columns} scores of a row instead of {columns}")
    values = elements.array.astype(np.float32, copy=False)
    _check_scores(values, arguments.metric)
    return Scores(values=values, **attributes)


def read_health(response: pb.HealthResponse, model: str) -> HealthReport:
    """Returns the health of the server and of all models, or of `model` alone unless empty.

    Raises:
        InternalError: The response breaks the contract (reason BAD_ANSWER).
    """
    names = [entry.model for entry in response.models]
    _check_names(names)
    if model and names != [model]:
        raise bad_answer("the health of another model than requested")
    if response.status != max(entry.status for entry in response.models):
        raise bad_answer("a status that is not the worst of its models")
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
    """Returns the models of the server, the default first.

    Raises:
        InternalError: The response breaks the contract (reason BAD_ANSWER).
    """
    _check_names([entry.name for entry in response.models])
    return [_model(entry) for entry in response.models]


def _check_origin(response: pb.EmbedResponse | pb.SimilarityResponse, model: str, space_id: str) -> None:
    """Checks the model and the space of a response against those of the request, which are empty for any."""
    if not response.model or response.model != (model or response.model):
        raise bad_answer(f"the result of another model than {model!r}" if model else "a result without its model")
    if not response.space_id:
        raise bad_answer("a result without its space")
    if response.space_id != (space_id or response.space_id):
        message = f"the server answered in the space {response.space_id[:MAX_QUOTED]!r}, but {space_id!r} is required"
        raise SpaceMismatchError(message, reason="SPACE_MISMATCH")


def _matrix(message: pb.Matrix, rows: int, element_type: ElementType) -> Elements:
    """Returns the contents of a Matrix as read-only arrays, with `rows` rows of the requested element type."""
    if (message.element_type or ElementType.FLOAT32.number) != element_type.number:
        raise bad_answer(f"the element type {message.element_type} instead of {element_type} ({element_type.number})")
    if message.rows != rows or not rows:
        raise bad_answer(f"{message.rows} rows instead of {rows}")
    if not message.columns:
        raise bad_answer("vectors without dimensions")
    try:
        return decode(message, element_type)
    except MatrixError as error:
        raise bad_answer(f"an invalid matrix: {error}") from None


def _check_numbers(elements: Elements, *, normalize: bool) -> None:
    """Checks that numbers are finite and, if `normalize`, that rows have unit length or are zero."""
    array = elements.array
    if elements.element_type in BIT_PACKED:
        unused = -elements.columns % 8  # low bits, which are the same for BINARY and UBINARY
        if unused and (array[:, -1].view(np.uint8) & ((1 << unused) - 1)).any():
            raise bad_answer("bits beyond the last dimension")
        return
    if elements.element_type in SCALED:
        scales = elements.row_scales
        _check_rows("a scale that is negative, too large or not a number", (scales >= 0) & (scales <= MAX_SCALE))
    elif normalize:
        numbers = array.astype(np.float32, copy=False)
        squares = np.einsum("nd,nd->n", numbers, numbers)  # not finite if a number is not
        if not (squares.min() >= 1 - UNIT_TOLERANCE and squares.max() <= 1 + UNIT_TOLERANCE):
            valid = (np.abs(squares - 1) <= UNIT_TOLERANCE) | (squares == 0)
            _check_rows("a vector that is not of unit length", valid)
    elif elements.element_type is ElementType.FLOAT16:  # a value beyond its range becomes infinite
        _check_rows("a number that is NaN", ~np.isnan(array).any(axis=1))
    else:
        _check_rows("a number that is not finite", np.isfinite(array).all(axis=1))


def _check_rows(problem: str, valid: NDArray[np.bool_]) -> None:
    if not valid.all():
        raise bad_answer(f"{problem}, in row {int(np.argmin(valid))}")


def _rows(name: str, rows: Iterable[int], count: int) -> tuple[int, ...]:
    """Returns row numbers of a response, which must be ascending and below `count`."""
    found = tuple(rows)
    if found and (found[-1] >= count or any(map(operator.ge, found, found[1:]))):
        raise bad_answer(f"{name} that are not ascending, or not below {count}")
    return found


def _row_errors(entries: Sequence[pb.RowError], elements: Elements, arguments: EmbedArguments) -> tuple[RowError, ...]:
    if not entries:
        return ()
    if not arguments.allow_partial:
        raise bad_answer("errors of single texts, which were not requested")
    rows = list(_rows("row_errors", (entry.row for entry in entries), len(elements.array)))
    if any(entry.status.code == code_pb2.OK for entry in entries):
        raise bad_answer("an error of a text with the status OK")
    zeros = quantize(np.zeros((1, elements.columns), np.float32), elements.element_type)
    if (elements.array[rows] != zeros.array).any():
        raise bad_answer("a vector for a text that failed")
    return tuple(
        RowError(entry.row, code_name(entry.status), read(entry.status).reason, entry.status.message)
        for entry in entries
    )


def _comparison(response: pb.SimilarityResponse, arguments: CompareArguments, sides: Sides) -> dict[str, Any]:
    queries, candidates = sides.queries, sides.queries if sides.candidates is None else sides.candidates
    spaces = [side.space_id for side in (queries, candidates) if isinstance(side, Vectors)]
    _check_origin(response, arguments.model, next(iter(spaces), ""))
    texts = [len(side) if isinstance(side, TextSide) else 0 for side in (queries, candidates)]
    if sides.candidates is None and response.truncated_candidates != response.truncated_queries:
        raise bad_answer("truncated candidates that are not the truncated queries")
    return {
        "model": response.model,
        "space_id": response.space_id,
        "truncated_queries": _rows("truncated_queries", response.truncated_queries, texts[0]),
        "truncated_candidates": _rows("truncated_candidates", response.truncated_candidates, texts[1]),
        "timings": _timings(response.timings, sum(texts)),
    }


def _check_scores(scores: NDArray[np.float32], metric: Metric) -> None:
    """Checks that scores, of any shape, are numbers in the range of the metric."""
    if not scores.size:
        return
    low, high = SCORE_RANGES.get(metric, (-np.inf, np.inf))
    with np.errstate(invalid="ignore"):  # NaN fails both comparisons
        if not (scores.min() >= low and scores.max() <= high):
            raise bad_answer(f"a score that is NaN or outside the range of {metric}")


def _rankings(
    lists: Sequence[pb.NeighborList], shape: Nearest, metric: Metric, queries: int, candidates: int
) -> tuple[Ranking, ...]:
    """Returns the neighbors of each query: distinct candidates, as many as requested, best first."""
    if len(lists) != queries:
        raise bad_answer(f"neighbors of {len(lists)} queries instead of {queries}")
    rankings = tuple((np.array(entry.rows, np.int64), np.array(entry.scores, np.float32)) for entry in lists)
    counts = np.array([len(rows) for rows, _ in rankings])
    most = min(shape.k, candidates)
    if any(len(rows) != len(scores) for rows, scores in rankings):
        raise bad_answer("neighbors without a score, or scores without a neighbor")
    if (counts > most).any() or (shape.min_score is None and (counts < most).any()):
        raise bad_answer(f"another number of neighbors than {most}")
    rows, scores = (np.concatenate(parts) for parts in zip(*rankings, strict=True))
    _check_scores(scores, metric)
    query = np.repeat(np.arange(queries), counts)
    if (rows >= candidates).any() or len(np.unique(query * candidates + rows)) != len(rows):
        raise bad_answer(f"neighbors that are repeated, or not below {candidates}")
    with np.errstate(invalid="ignore"):  # of equal infinite scores
        if ((scores[1:] > scores[:-1]) & (query[1:] == query[:-1])).any():
            raise bad_answer("neighbors that are not in the order of their scores")
    if shape.min_score is not None and (scores < np.float32(shape.min_score)).any():
        raise bad_answer("neighbors with a score below min_score")
    return rankings


def _check_names(names: Sequence[str]) -> None:
    """Checks the names of the models in a response: at least one, none empty, no two alike."""
    if not names or not all(names) or len(set(names)) != len(names):
        raise bad_answer("no models, or models whose names are empty or not unique")


def _model(entry: pb.ModelInfo) -> ModelInfo:
    dimensions = tuple(entry.dimensions)
    if not entry.space_id or not dimensions or not all(dimensions):
        raise bad_answer("a model without space or dimensions")
    return ModelInfo(
        name=entry.name,
        space_id=entry.space_id,
        backend=entry.backend,
        revision=entry.revision,
        dimensions=dimensions,
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


def _timings(timings: pb.Timings, rows: int) -> Timings:
    if timings.cached_rows > rows:
        raise bad_answer(f"{timings.cached_rows} cached rows of {rows}")
    return Timings(
        _seconds(timings.total),
        _seconds(timings.tokenization),
        _seconds(timings.queue),
        _seconds(timings.inference),
        timings.cached_rows,
    )


def _seconds(duration: Any) -> float:
    seconds, nanos = duration.seconds, duration.nanos
    if seconds < 0 or not 0 <= nanos < NANOS_PER_S:
        raise bad_answer("a time that is negative")
    return float(seconds + nanos / NANOS_PER_S)


def _status(value: int) -> ServingStatus:
    return ServingStatus.by_number.get(value, ServingStatus.UNKNOWN)
