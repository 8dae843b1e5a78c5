"""The model of the fake server: settings, checks of requests, vectors and comparisons."""

import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
import numpy as np
from google.protobuf import duration_pb2
from google.rpc import status_pb2
from numpy.typing import NDArray

from isogloss import __version__
from isogloss.enums import ElementType, InputType, Metric, Priority, ServingStatus, Truncation
from isogloss.errors import (
    RETRYABLE_CODES,
    FieldViolation,
    InvalidArgumentError,
    IsoglossError,
    NotFoundError,
    SpaceMismatchError,
)
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import UNSPECIFIED, ContractEnum
from isogloss.wire.matrix import MatrixError, decode_numbers, encode, quantize, to_elements, unit_length
from isogloss.wire.sizes import (
    MAX_VIOLATIONS,
    embed_response_bytes,
    matrix_bytes,
    rankings_bytes,
    scores_bytes,
    utf8_bytes,
)
from isogloss.wire.status import NO_RETRY, ErrorDetails, Trailer, build, build_row_error, trailers

MEBIBYTE = 2**20
# Each number of a raw vector is +SHARED or -SHARED, chosen by the group, plus at most OWN, chosen by the text. So the
# angle between a vector and the direction of its group is at most asin(OWN / SHARED), in any number of first columns,
# and that between two texts of a group at most twice that: their cosine is at least 0.92.
SHARED, OWN = 1000, 200
RETRIED_CODES = RETRYABLE_CODES | {"CANCELLED"}  # by the channels of isogloss clients
REPORTED_TOTAL_S = 0.001  # constant, so that tests can rely on it


@dataclass(kw_only=True, eq=False)
class Settings:
    """Settings of the fake server. A change takes effect with the next call.

    Attributes:
        translations: Groups of texts whose vectors are close to each other.
        dimensions: Length of the vectors; several are those that a request may select, the default first.
        model: Name of the only model.
        space_id: Embedding space of the model. In another space, a text has another vector.
        status: Status that Health reports; it has no effect on other calls.
        status_detail: Reason of the status, for people.
        max_tokens: Maximum number of tokens of a text. A token is a word between white space.
        max_texts: Maximum number of texts of a request.
        max_request_bytes: Maximum size of the texts and vectors of a request.
        max_response_bytes: Maximum size of a response.
        max_pairs: Maximum number of pairs of a Similarity.
    """

    translations: Iterable[Sequence[str]] = ()
    dimensions: int | Sequence[int] = 256
    model: str = "fake"
    space_id: str = "fake-space"
    status: ServingStatus = ServingStatus.SERVING
    status_detail: str = ""
    max_tokens: int = 512
    max_texts: int = 1000
    max_request_bytes: int = 4 * MEBIBYTE
    max_response_bytes: int = 16 * MEBIBYTE
    max_pairs: int = 4 * MEBIBYTE

    @property
    def offered_dimensions(self) -> tuple[int, ...]:
        """Dimensions that a request may select, the default first."""
        return (self.dimensions,) if isinstance(self.dimensions, int) else tuple(self.dimensions)

    def add_translations(self, *texts: str) -> None:
        """Makes the vectors of `texts` close to each other, and to those of all groups that contain one of them."""
        self.translations = [*self.translations, texts]

    def group_heads(self) -> dict[str, str]:
        """Returns for each text of `translations` the text that determines the direction of its group."""
        heads: dict[str, str] = {}
        for group in self.translations:
            if isinstance(group, str):
                raise TypeError(f"translations are groups of texts, not a single text: {group!r}")
            known_heads = {heads[text] for text in group if text in heads}
            # In the order of the groups.
            known = [head for head in dict.fromkeys(heads.values()) if head in known_heads]
            head = next(iter([*known, *group]), "")
            if len(known) > 1:  # this group joins earlier ones
                heads |= {text: head for text, other in heads.items() if other in known}
            heads |= dict.fromkeys(group, head)
        return heads

    def __post_init__(self) -> None:
        self.translations = list(self.translations)  # an iterator can be read only once
        self.group_heads()  # raises at once if they are invalid


def refusal(reason: str, message: str, *fields: str, **figures: object) -> InvalidArgumentError:
    """Returns the error for a request with these invalid fields."""
    violations = tuple(FieldViolation(field, message) for field in fields[:MAX_VIOLATIONS])
    metadata = {name: str(value) for name, value in figures.items()}
    return InvalidArgumentError(message, reason=reason, metadata=metadata, violations=violations)


def to_status(error: IsoglossError) -> status_pb2.Status:
    """Returns the google.rpc.Status of `error`."""
    return build(_code_number(error), error.message, _details(error))


def to_row_status(error: IsoglossError) -> status_pb2.Status:
    """Returns the google.rpc.Status of one failed row."""
    return build_row_error(_code_number(error), error.message, _details(error))


def _code_number(error: IsoglossError) -> int:
    number: int = grpc.StatusCode[error.code].value[0]
    return number


def _details(error: IsoglossError) -> ErrorDetails:
    return ErrorDetails(
        reason=error.reason,
        metadata=error.metadata,
        violations=[(violation.field, violation.description) for violation in error.violations],
        retry_after_s=error.retry_after_s,
    )


def abort(context: Any, error: IsoglossError, extra: tuple[Trailer, ...]) -> NoReturn:
    """Ends the call with `error`; the trailers are its details and `extra`."""
    if error.code in RETRIED_CODES and not error.retryable:
        status = to_status(error.replaced(error.message, retry_after_s=None))
        extra = (*extra, NO_RETRY, *trailers(status, None, math.inf))
    else:
        status = to_status(error)
        remaining_s = context.time_remaining()
        extra = (*extra, *trailers(status, error.retry_after_s, math.inf if remaining_s is None else remaining_s))
    context.set_trailing_metadata(extra)
    context.abort(grpc.StatusCode[error.code], error.message)
    raise AssertionError("abort never returns")


Error = TypeVar("Error", bound=IsoglossError)
Member = TypeVar("Member", bound=ContractEnum)


def read_enum(default: Member, number: int, path: str) -> Member:
    """Returns the member with `number`, `default` for 0; raises InvalidArgumentError, reason UNKNOWN_ENUM."""
    if number == UNSPECIFIED:
        return default
    member = type(default).by_number.get(number)
    if member is None:
        raise refusal("UNKNOWN_ENUM", f"unknown number {number}", path, actual=number)
    return member


def reported_timings() -> pb.Timings:
    """Returns the timings of every response."""
    return pb.Timings(total=duration_pb2.Duration(nanos=round(REPORTED_TOTAL_S * 1e9)))


def check_model(settings: Settings, name: str) -> None:
    """Raises NotFoundError if the request names another model."""
    if name not in ("", settings.model):
        raise _at("model", NotFoundError(f"unknown model; served: {settings.model}", reason="UNKNOWN_MODEL"))


def check_space(settings: Settings, space_id: str, path: str) -> None:
    """Raises SpaceMismatchError if `space_id` is not that of the model."""
    if space_id != settings.space_id:
        message = f"another space than that of the model, {settings.space_id}"
        metadata = {"expected": settings.space_id}
        raise _at(path, SpaceMismatchError(message, reason="SPACE_MISMATCH", metadata=metadata))


def check_texts(settings: Settings, texts: Sequence[str], path: str) -> None:
    """Raises InvalidArgumentError if a list of texts is empty or too long."""
    if not texts:
        raise refusal("EMPTY_TEXTS", "at least one text is required", path)
    _check("TOO_MANY_TEXTS", len(texts), settings.max_texts, "texts of one request", path)


def check_request_bytes(settings: Settings, actual: int, path: str) -> None:
    """Raises InvalidArgumentError if the texts and vectors of a request are too large."""
    _check("REQUEST_TOO_LARGE", actual, settings.max_request_bytes, "bytes of texts and vectors of one request", path)


def check_response_bytes(settings: Settings, actual: int, path: str) -> None:
    """Raises InvalidArgumentError if the response would be too large."""
    _check("RESPONSE_TOO_LARGE", actual, settings.max_response_bytes, "bytes of one response", path)


def check_pairs(settings: Settings, actual: int) -> None:
    """Raises InvalidArgumentError if a comparison has too many pairs."""
    _check("RESPONSE_TOO_LARGE", actual, settings.max_pairs, "pairs of one Similarity", "candidates")


def columns_of(settings: Settings, dimensions: int) -> int:
    """Returns the length of the vectors; raises InvalidArgumentError if the model does not offer `dimensions`."""
    offered = settings.offered_dimensions
    if dimensions and dimensions not in offered:
        choice = ", ".join(map(str, offered))
        message = f"the model offers {choice} dimensions, not {dimensions}"
        raise refusal("UNSUPPORTED_DIMENSIONS", message, "dimensions", actual=dimensions, offered=choice)
    return dimensions or offered[0]


def row_errors(
    texts: Sequence[str], counts: Sequence[int], truncation: Truncation, max_tokens: int, path: str
) -> dict[int, InvalidArgumentError]:
    """Returns the errors of the rows that cannot be embedded."""
    errors = {}
    for row, count in enumerate(counts):
        if not texts[row].strip():
            cause = ("EMPTY_TEXT", "the text is empty or white space only")
        elif truncation is Truncation.ERROR and count > max_tokens:
            cause = ("TEXT_TOO_LONG", f"the text has {count} tokens; the maximum is {max_tokens}")
        else:
            continue
        errors[row] = refusal(*cause, f"{path}[{row}]", index=row)
    return errors


def merge(errors: dict[int, InvalidArgumentError]) -> InvalidArgumentError:
    """Returns the first of `errors`, with the violations of all errors that have its reason."""
    first = errors[min(errors)]
    alike = [violation for error in errors.values() if error.reason == first.reason for violation in error.violations]
    return first.replaced(first.message, violations=tuple(alike[:MAX_VIOLATIONS]))


def _check(reason: str, actual: int, limit: int, what: str, path: str) -> None:
    if actual > limit:
        raise refusal(reason, f"{actual} {what}; the maximum is {limit}", path, actual=actual, limit=limit)


def _at(path: str, error: Error) -> Error:
    return error.replaced(error.message, violations=(FieldViolation(path, error.message),))


Rows = NDArray[np.float32]


def raw_rows(texts: Sequence[str], heads: Mapping[str, str], space_id: str, columns: int) -> NDArray[np.int64]:
    """Returns raw vectors, int64 [n, columns], which depend on the texts, their groups and the space only."""
    rows = [_numbers(text, heads.get(text, text), space_id, columns) for text in texts]
    return np.array(rows, np.int64).reshape(len(texts), columns)


def float_rows(raw: NDArray[np.int64], *, normalize: bool) -> Rows:
    """Returns float32 [n, d]: whole numbers if they are to be normalized, whose sums are exact on every machine."""
    return raw.astype(np.float32) if normalize else (raw / SHARED).astype(np.float32)


def read_matrix(message: pb.Matrix, path: str) -> Rows:
    """Returns float32 [n, d] of a request's matrix; raises InvalidArgumentError, reason BAD_MATRIX."""
    element_type = read_enum(ElementType.FLOAT32, message.element_type, f"{path}.element_type")
    try:
        return decode_numbers(message, element_type)
    except MatrixError as error:
        raise refusal("BAD_MATRIX", str(error), f"{path}.{error.part}") from None


def _numbers(text: str, head: str, space_id: str, columns: int) -> NDArray[np.int64]:
    signs = np.where(_hashed(columns, "group", space_id, head) & 1, SHARED, -SHARED)
    return signs + _hashed(columns, "text", space_id, text) % (2 * OWN + 1) - OWN


def _hashed(columns: int, *seed: str) -> NDArray[np.int64]:
    """Returns `columns` numbers from 0 to 65,535; more columns extend fewer ones."""
    digest = hashlib.shake_128("\0".join(seed).encode()).digest(2 * columns)
    return np.frombuffer(digest, "<u2").astype(np.int64)


@dataclass(frozen=True, slots=True)
class EmbeddedTexts:
    """Embedded texts: raw vectors int64 [n, d], token counts after truncation, truncated rows, and errors by row."""

    raw: NDArray[np.int64]
    token_counts: tuple[int, ...]
    truncated: tuple[int, ...]
    errors: dict[int, InvalidArgumentError]


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: texts, or vectors float32 [n, d]; `path` is its field in the request."""

    path: str
    texts: tuple[str, ...]
    rows: Rows | None
    wire_bytes: int

    def __len__(self) -> int:
        return len(self.texts if self.rows is None else self.rows)


class Responder:
    """Computes the responses of the methods."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()
        self._embedded_texts = 0

    def embed(self, settings: Settings, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Returns the response to an Embed."""
        texts = request.texts
        read_enum(InputType.SIMILARITY, request.input_type, "input_type")
        read_enum(Priority.INTERACTIVE, request.priority, "priority")
        element_type = read_enum(ElementType.FLOAT32, request.element_type, "element_type")
        truncation = read_enum(Truncation.END, request.truncation, "truncation")
        check_model(settings, request.model)
        check_texts(settings, texts, "texts")
        check_request_bytes(settings, utf8_bytes(texts), "texts")
        if request.space_id:
            check_space(settings, request.space_id, "space_id")
        columns = columns_of(settings, request.dimensions)
        size = embed_response_bytes(len(texts), columns, element_type, allow_partial=request.allow_partial)
        check_response_bytes(settings, size, "texts")
        read = self.embed_texts(settings, texts, columns, truncation, "texts")
        if read.errors and not request.allow_partial:
            raise merge(read.errors)
        normalize = request.normalize if request.HasField("normalize") else True
        response = pb.EmbedResponse(
            model=settings.model,
            space_id=settings.space_id,
            token_counts=read.token_counts,
            truncated_rows=read.truncated,
            row_errors=[pb.RowError(row=row, status=to_row_status(error)) for row, error in read.errors.items()],
            total_tokens=sum(read.token_counts),
            per_text_counts=True,
            timings=reported_timings(),
        )
        rows = float_rows(read.raw, normalize=normalize)
        encode(to_elements(rows, columns, normalize=normalize, element_type=element_type), response.embeddings)
        return response

    def embed_texts(
        self, settings: Settings, texts: Sequence[str], columns: int, truncation: Truncation, path: str
    ) -> EmbeddedTexts:
        """Embeds `texts`; rows with an error are zero."""
        most = settings.max_tokens
        words = [text.split() for text in texts]
        counts = list(map(len, words))
        errors = row_errors(texts, counts, truncation, most, path)
        truncated = [row for row, count in enumerate(counts) if count > most and row not in errors]
        cut = {row: words[row][-most:] if truncation is Truncation.START else words[row][:most] for row in truncated}
        seen = [" ".join(cut[row]) if row in cut else text for row, text in enumerate(texts)]
        raw = raw_rows(seen, settings.group_heads(), settings.space_id, columns)
        raw[list(errors)] = 0
        tokens = tuple(0 if row in errors else min(count, most) for row, count in enumerate(counts))
        self._embedded_texts += len(texts) - len(errors)
        return EmbeddedTexts(raw, tokens, tuple(truncated), errors)

    def health(self, settings: Settings, request: pb.HealthRequest) -> pb.HealthResponse:
        """Returns the response to a Health, with the status of the settings."""
        check_model(settings, request.model)
        status = ServingStatus(settings.status).number
        uptime = duration_pb2.Duration()
        uptime.FromNanoseconds(round((time.monotonic() - self._started_s) * 1e9))
        model = pb.ModelHealth(
            model=settings.model,
            status=status,
            detail=settings.status_detail,
            embedded_texts=self._embedded_texts,
        )
        return pb.HealthResponse(status=status, version=__version__, uptime=uptime, models=[model])

    def models(self, settings: Settings, _request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Returns the response to a ListModels."""
        model = pb.ModelInfo(
            name=settings.model,
            space_id=settings.space_id,
            backend="fake",
            dimensions=settings.offered_dimensions,
            max_tokens=settings.max_tokens,
            max_texts=settings.max_texts,
            max_request_bytes=settings.max_request_bytes,
            max_response_bytes=settings.max_response_bytes,
            max_pairs=settings.max_pairs,
            truncations=[truncation.number for truncation in Truncation],
            license="Apache-2.0",
        )
        return pb.ListModelsResponse(models=[model])

    def compare(self, settings: Settings, request: pb.SimilarityRequest) -> pb.SimilarityResponse:
        """Returns the response to a Similarity."""
        metric = read_enum(Metric.COSINE, request.metric, "metric")
        truncation = read_enum(Truncation.END, request.truncation, "truncation")
        read_enum(Priority.INTERACTIVE, request.priority, "priority")
        check_model(settings, request.model)
        sides = [_side(settings, request.queries, "queries")]
        if request.HasField("candidates"):
            sides.append(_side(settings, request.candidates, "candidates"))
        check_request_bytes(settings, sum(side.wire_bytes for side in sides), sides[-1].path)
        _check_shape(settings, request, len(sides[0]), len(sides[-1]))
        columns = _columns(settings, request, sides)

        rows, truncated = [], []
        for side in sides:
            vectors, cut = self._vectors(settings, side, columns, truncation)
            rows.append(vectors)
            truncated.append(cut)
        response = pb.SimilarityResponse(
            model=settings.model,
            space_id=settings.space_id,
            truncated_queries=truncated[0],
            truncated_candidates=truncated[-1],
            timings=reported_timings(),
        )
        shape = request.WhichOneof("shape")
        if shape == "pairwise":
            scores = _scores(rows[0][:, None], rows[-1][:, None], metric)[:, 0, 0]
            _write_scores(scores[None], response.scores)
        elif shape == "nearest":
            scores = _scores(rows[0], rows[-1], metric)
            response.nearest.queries.extend(_nearest(row, request.nearest) for row in scores)
        else:
            _write_scores(_scores(rows[0], rows[-1], metric), response.scores)
        return response

    def _vectors(
        self, settings: Settings, side: Side, columns: int, truncation: Truncation
    ) -> tuple[Rows, tuple[int, ...]]:
        if side.rows is not None:
            return side.rows, ()
        read = self.embed_texts(settings, side.texts, columns, truncation, side.path)
        if read.errors:
            raise merge(read.errors)
        return unit_length(read.raw.astype(np.float32)), read.truncated


def _side(settings: Settings, items: pb.Items, path: str) -> Side:
    match items.WhichOneof("kind"):
        case "texts":
            texts = tuple(items.texts.texts)
            read_enum(InputType.SIMILARITY, items.texts.input_type, f"{path}.texts.input_type")
            check_texts(settings, texts, f"{path}.texts.texts")
            return Side(f"{path}.texts.texts", texts, None, utf8_bytes(texts))
        case "vectors":
            matrix = items.vectors.vectors
            rows = read_matrix(matrix, f"{path}.vectors.vectors")
            check_space(settings, items.vectors.space_id, f"{path}.vectors.space_id")
            return Side(f"{path}.vectors", (), rows, matrix_bytes(matrix))
        case _:
            raise refusal("MISSING_FIELD", "texts or vectors are required", path)


def _check_shape(settings: Settings, request: pb.SimilarityRequest, queries: int, candidates: int) -> None:
    shape, nearest = request.WhichOneof("shape"), request.nearest
    if shape == "pairwise" and queries != candidates:
        message = f"{queries} queries and {candidates} candidates; pairwise requires equal numbers"
        raise refusal("UNEQUAL_SIDES", message, "candidates", queries=queries, candidates=candidates)
    if shape == "nearest" and nearest.k < 1:
        raise refusal("BAD_K", "k must be at least 1", "nearest.k", actual=nearest.k, limit=1)
    if shape == "nearest" and math.isnan(nearest.min_score):
        raise refusal("BAD_MIN_SCORE", "min_score is not a number", "nearest.min_score")
    pairs = queries if shape == "pairwise" else queries * candidates
    check_pairs(settings, pairs)
    size = rankings_bytes(queries, min(nearest.k, candidates)) if shape == "nearest" else scores_bytes(pairs)
    check_response_bytes(settings, size, "nearest.k" if shape == "nearest" else "candidates")


def _columns(settings: Settings, request: pb.SimilarityRequest, sides: list[Side]) -> int:
    """Returns the length of the vectors to compare."""
    given = [(side.path, int(side.rows.shape[1])) for side in sides if side.rows is not None]
    if len(given) == len(sides):
        wanted = given[0][1]
    else:
        wanted = columns_of(settings, request.dimensions or (given[0][1] if given else 0))
    for path, columns in given:
        if columns != wanted:
            message = f"{columns} columns; the other side has {wanted}"
            raise refusal("DIMENSION_MISMATCH", message, path, actual=columns, expected=wanted)
    return wanted


def _scores(queries: Rows, candidates: Rows, metric: Metric) -> Rows:
    """Returns float32 [..., q, c] of [..., q, d] and [..., c, d]."""
    one, other = queries.astype(np.float64), candidates.astype(np.float64)
    if metric is Metric.COSINE:
        one, other = _directions(one), _directions(other)
    # One query at a time: all differences at once would need the memory of q * c vectors. Sums along the last axis
    # make a score independent of the other rows, so that equal candidates tie and split comparisons are exact.
    rows = [one[..., row, None, :] for row in range(one.shape[-2])]
    if metric in {Metric.COSINE, Metric.DOT}:
        scores = np.stack([(query * other).sum(axis=-1) for query in rows], axis=-2)
    else:
        power = 2 if metric is Metric.EUCLIDEAN else 1
        scores = np.stack([0.0 - np.linalg.norm(query - other, power, axis=-1) for query in rows], axis=-2)
    with np.errstate(over="ignore"):  # beyond float32 a score is infinite
        return (np.clip(scores, -1.0, 1.0) if metric is Metric.COSINE else scores).astype(np.float32)


def _write_scores(scores: Rows, message: pb.Matrix) -> None:
    encode(quantize(scores, ElementType.FLOAT32), message)


def _directions(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)


def _nearest(scores: Rows, shape: pb.Nearest) -> pb.NeighborList:
    rows = np.argsort(-scores, kind="stable")  # ties are ordered by row
    if shape.HasField("min_score"):
        rows = rows[scores[rows] >= np.float32(shape.min_score)]
    best = rows[: shape.k]
    return pb.NeighborList(rows=best.tolist(), scores=scores[best].tolist())
