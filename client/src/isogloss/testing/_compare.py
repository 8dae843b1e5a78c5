"""Similarity of the fake server: sides -> scores."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isogloss.enums import ElementType, InputType, Metric, Priority, Truncation
from isogloss.testing import _checks as checks
from isogloss.testing._answers import Answers
from isogloss.testing._errors import refusal
from isogloss.testing._settings import Settings
from isogloss.testing._vectors import Rows, read_matrix, shaped, to_matrix
from isogloss.v1 import embedding_pb2 as pb

NEIGHBOR_BYTES = 9  # a row number and a score


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: texts, or vectors float32 [n, d]; `path` is its place in the request."""

    path: str
    texts: tuple[str, ...]
    rows: Rows | None
    wire_bytes: int

    def __len__(self) -> int:
        return len(self.texts if self.rows is None else self.rows)


def compare(settings: Settings, answers: Answers, request: pb.SimilarityRequest) -> pb.SimilarityResponse:
    """Returns the scores that the request asks for."""
    metric = checks.word(Metric.COSINE, request.metric, "metric")
    truncation = checks.word(Truncation.END, request.truncation, "truncation")
    checks.word(Priority.INTERACTIVE, request.priority, "priority")
    checks.check_model(settings, request.model)
    sides = [_side(settings, request.queries, "queries")]
    if request.HasField("candidates"):
        sides.append(_side(settings, request.candidates, "candidates"))
    checks.check_request_bytes(settings, sum(side.wire_bytes for side in sides), sides[-1].path)
    _check_shape(settings, request, len(sides[0]), len(sides[-1]))
    columns = _columns(settings, request, sides)

    rows, truncated = [], []
    for side in sides:
        vectors, cut = _vectors(answers, side, columns, truncation)
        rows.append(vectors)
        truncated.append(cut)
    response = pb.SimilarityResponse(
        model=settings.model,
        space_id=settings.space_id,
        truncated_queries=truncated[0],
        truncated_candidates=truncated[1] if len(sides) > 1 else (),
    )
    shape = request.WhichOneof("shape")
    if shape == "pairwise":
        found = _scores(rows[0][:, None], rows[-1][:, None], metric)[:, 0, 0]
        response.scores.CopyFrom(to_matrix(found[None], ElementType.FLOAT32))
    elif shape == "nearest":
        found = _scores(rows[0], rows[-1], metric)
        response.nearest.queries.extend(_nearest(row, request.nearest) for row in found)
    else:
        response.scores.CopyFrom(to_matrix(_scores(rows[0], rows[-1], metric), ElementType.FLOAT32))
    return response


def _side(settings: Settings, items: pb.Items, path: str) -> Side:
    match items.WhichOneof("kind"):
        case "texts":
            texts = tuple(items.texts.texts)
            checks.word(InputType.SIMILARITY, items.texts.input_type, f"{path}.texts.input_type")
            checks.check_texts(settings, texts, f"{path}.texts.texts")
            return Side(f"{path}.texts.texts", texts, None, checks.utf8_bytes(texts))
        case "vectors":
            matrix = items.vectors.vectors
            rows = read_matrix(matrix, f"{path}.vectors.vectors")
            checks.check_space(settings, items.vectors.space_id, f"{path}.vectors.space_id")
            return Side(f"{path}.vectors", (), rows, len(matrix.data) + 4 * len(matrix.row_scales))
        case _:
            raise refusal("MISSING_FIELD", "texts or vectors are needed", path)


def _check_shape(settings: Settings, request: pb.SimilarityRequest, queries: int, candidates: int) -> None:
    shape, nearest = request.WhichOneof("shape"), request.nearest
    if shape == "pairwise" and queries != candidates:
        message = f"{queries} queries and {candidates} candidates; pairwise needs as many of both"
        raise refusal("UNEQUAL_SIDES", message, "candidates", queries=queries, candidates=candidates)
    if shape == "nearest" and nearest.k < 1:
        raise refusal("BAD_K", "k must be at least 1", "nearest.k", actual=nearest.k, limit=1)
    if shape == "nearest" and math.isnan(nearest.min_score):
        raise refusal("BAD_MIN_SCORE", "min_score is not a number", "nearest.min_score")
    pairs = queries if shape == "pairwise" else queries * candidates
    neighbors = queries * min(nearest.k, candidates)
    checks.check_pairs(settings, pairs)
    checks.check_response_bytes(settings, neighbors * NEIGHBOR_BYTES if shape == "nearest" else 4 * pairs, "candidates")


def _columns(settings: Settings, request: pb.SimilarityRequest, sides: list[Side]) -> int:
    """Returns the columns to compare in."""
    given = [(side.path, int(side.rows.shape[1])) for side in sides if side.rows is not None]
    if len(given) == len(sides):
        wanted = given[0][1]
    else:
        wanted = checks.columns_of(settings, request.dimensions or (given[0][1] if given else 0))
    for path, columns in given:
        if columns != wanted:
            message = f"{columns} columns, the other side has {wanted}"
            raise refusal("DIMENSION_MISMATCH", message, path, actual=columns, expected=wanted)
    return wanted


def _vectors(answers: Answers, side: Side, columns: int, truncation: Truncation) -> tuple[Rows, tuple[int, ...]]:
    if side.rows is not None:
        return side.rows, ()
    read = answers.read(side.texts, columns, truncation, side.path)
    if read.faults:
        raise checks.merged(read.faults)
    return shaped(read.raw, normalize=True), read.truncated


def _scores(queries: Rows, candidates: Rows, metric: Metric) -> Rows:
    """Returns float32 [..., q, c] of [..., q, d] and [..., c, d]."""
    one, other = queries.astype(np.float64), candidates.astype(np.float64)
    if metric is Metric.COSINE:
        one, other = _directions(one), _directions(other)
    if metric in {Metric.COSINE, Metric.DOT}:
        scores = one @ np.swapaxes(other, -1, -2)
    else:
        power = 2 if metric is Metric.EUCLIDEAN else 1
        # One query at a time: all differences at once would take the memory of q * c vectors.
        scores = np.stack(
            [0.0 - np.linalg.norm(one[..., row, None, :] - other, power, axis=-1) for row in range(one.shape[-2])],
            axis=-2,
        )
    return (np.clip(scores, -1.0, 1.0) if metric is Metric.COSINE else scores).astype(np.float32)


def _directions(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _nearest(scores: Rows, shape: pb.Nearest) -> pb.NeighborList:
    rows = np.argsort(-scores, kind="stable")  # so that lower rows win ties
    if shape.HasField("min_score"):
        rows = rows[scores[rows] >= np.float32(shape.min_score)]
    best = rows[: shape.k]
    return pb.NeighborList(rows=best.tolist(), scores=scores[best].tolist())
