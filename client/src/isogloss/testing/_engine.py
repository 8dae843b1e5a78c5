"""Checks, vectors and comparisons of the fake server."""

import hashlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import grpc
import numpy as np
from google.protobuf import duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from numpy.typing import NDArray

from isogloss import __version__
from isogloss._failures import DETAILS_TRAILER, PUSHBACK_TRAILER
from isogloss._messages import DTYPES, PACKED, SCALED, from_matrix, row_bytes
from isogloss.enums import ElementType, InputType, Metric, Priority, ServingStatus, Truncation
from isogloss.errors import (
    RETRYABLE_CODES,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    IsoglossError,
    NotFoundError,
    SpaceMismatchError,
)
from isogloss.results import Embeddings
from isogloss.v1 import embedding_pb2 as pb
from isogloss.wire.enums import UNSPECIFIED, ContractEnum

MEBIBYTE = 2**20
DOMAIN = "isogloss"
MAX_VIOLATIONS = 16
ROW_OVERHEAD_BYTES = 20  # of an answer's row beside its numbers, as the server counts it
# A number is +SHARED or -SHARED as the group has it, and within OWN of that as the text itself has it. So a vector's
# angle to its group's is at most asin(OWN / SHARED), in any number of first columns, and that of two texts of a group
# at most twice that: their cosine is at least 0.92.
SHARED, OWN = 1000, 200
NEIGHBOR_BYTES = 9  # a row number and a score


@dataclass(kw_only=True, eq=False)
class Settings:
    """What the fake server serves. Every attribute may be changed while it runs, and holds from the next call on.

    Attributes:
        translations: Groups of texts whose vectors lie near each other.
        dimensions: Numbers of a vector; several are what a request may ask for, the model's own first.
        model: The name of the only model.
        space_id: The space of its vectors. Vectors of another space are other vectors.
        status: How the model fares, as Health tells it; calls are answered all the same.
        max_tokens: Tokens that the model reads of one text. A token is a word, by white space.
        max_texts: Texts of one request.
        max_request_bytes: Bytes of texts and vectors of one request.
        max_response_bytes: Bytes of one answer.
        max_pairs: Queries times candidates of one Similarity.
    """

    translations: Iterable[Sequence[str]] = ()
    dimensions: int | Sequence[int] = 256
    model: str = "fake"
    space_id: str = "fake-space"
    status: ServingStatus = ServingStatus.SERVING
    max_tokens: int = 512
    max_texts: int = 1000
    max_request_bytes: int = 4 * MEBIBYTE
    max_response_bytes: int = 16 * MEBIBYTE
    max_pairs: int = 4 * MEBIBYTE

    @property
    def offered_dimensions(self) -> tuple[int, ...]:
        """What a request may ask for, the model's own first."""
        return (self.dimensions,) if isinstance(self.dimensions, int) else tuple(self.dimensions)

    def add_translations(self, *texts: str) -> None:
        """Lets the vectors of `texts` lie near each other, and near all that already did to one of them."""
        self.translations = [*self.translations, texts]

    def kin(self) -> dict[str, str]:
        """Returns for each text that is listed the text that its group's vectors lie around."""
        heads: dict[str, str] = {}
        for group in self.translations:
            if isinstance(group, str):
                raise TypeError(f"translations are groups of texts, not a single text: {group!r}")
            found = {heads[text] for text in group if text in heads}
            known = [head for head in dict.fromkeys(heads.values()) if head in found]  # the earliest group's first
            head = next(iter([*known, *group]), "")
            if len(known) > 1:  # a group that joins others
                heads |= {text: head for text, other in heads.items() if other in known}
            heads |= dict.fromkeys(group, head)
        return heads

    def __post_init__(self) -> None:
        self.translations = list(self.translations)  # an iterator could be read only once
        self.kin()  # says at once what is wrong with them


def refusal(reason: str, message: str, *fields: str, **figures: object) -> InvalidArgumentError:
    """Returns the error for a request that is wrong in these fields."""
    violations = tuple(FieldViolation(field, message) for field in fields[:MAX_VIOLATIONS])
    metadata = {name: str(value) for name, value in figures.items()}
    return InvalidArgumentError(message, reason=reason, metadata=metadata, violations=violations)


def to_status(error: IsoglossError) -> status_pb2.Status:
    """Returns `error` with its details."""
    details: list[Message] = []
    if error.reason:
        details.append(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))
    if error.violations:
        violation = error_details_pb2.BadRequest.FieldViolation
        fields = [violation(field=v.field, description=v.description) for v in error.violations]
        details.append(error_details_pb2.BadRequest(field_violations=fields))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(_milliseconds(error.retry_after_s))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code: int = grpc.StatusCode[error.code].value[0]
    status = status_pb2.Status(code=code, message=error.message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def abort(context: Any, error: IsoglossError, trailers: tuple[tuple[str, str], ...]) -> NoReturn:
    """Ends the call with `error`."""
    if error.code in RETRYABLE_CODES and not error.retryable:
        trailers = (*trailers, (PUSHBACK_TRAILER, "-1"))
    elif error.retry_after_s is not None:
        trailers = (*trailers, (PUSHBACK_TRAILER, str(_milliseconds(error.retry_after_s))))
    status = (DETAILS_TRAILER, to_status(error).SerializeToString())
    context.set_trailing_metadata([*trailers, status])
    context.abort(grpc.StatusCode[error.code], error.message)
    raise AssertionError("abort returns never")


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


Error = TypeVar("Error", bound=IsoglossError)
Member = TypeVar("Member", bound=ContractEnum)


def read_enum(default: Member, number: int, path: str) -> Member:
    """Returns the member with `number`, `default` for 0; raises InvalidArgumentError, reason UNKNOWN_ENUM."""
    if number == UNSPECIFIED:
        return default
    found = type(default).from_number(number)
    if found is None:
        raise refusal("UNKNOWN_ENUM", f"the contract has no {number} here", path, actual=number)
    return found


def check_model(settings: Settings, name: str) -> None:
    """Raises NotFoundError where another model is asked for."""
    if name not in ("", settings.model):
        raise _at("model", NotFoundError(f"no such model; served is {settings.model}", reason="UNKNOWN_MODEL"))


def check_space(settings: Settings, space_id: str, path: str) -> None:
    """Raises SpaceMismatchError where `space_id` is not the model's."""
    if space_id != settings.space_id:
        message = f"the space is not the model's, which is {settings.space_id}"
        metadata = {"expected": settings.space_id}
        raise _at(path, SpaceMismatchError(message, reason="SPACE_MISMATCH", metadata=metadata))


def check_texts(settings: Settings, texts: Sequence[str], path: str) -> None:
    """Raises InvalidArgumentError where a list of texts is empty or too long."""
    if not texts:
        raise refusal("EMPTY_TEXTS", "at least one text is needed", path)
    _check("TOO_MANY_TEXTS", len(texts), settings.max_texts, "texts of one request", path)


def check_request_bytes(settings: Settings, actual: int, path: str) -> None:
    """Raises InvalidArgumentError where the texts and vectors of a request are too large."""
    _check("REQUEST_TOO_LARGE", actual, settings.max_request_bytes, "bytes of texts and vectors of one request", path)


def check_response_bytes(settings: Settings, actual: int, path: str) -> None:
    """Raises InvalidArgumentError where the answer would be too large."""
    _check("RESPONSE_TOO_LARGE", actual, settings.max_response_bytes, "bytes of one answer", path)


def check_pairs(settings: Settings, actual: int) -> None:
    """Raises InvalidArgumentError where too many pairs are to be compared."""
    _check("RESPONSE_TOO_LARGE", actual, settings.max_pairs, "pairs of one Similarity", "candidates")


def columns_of(settings: Settings, dimensions: int) -> int:
    """Returns the columns that `dimensions` stands for; raises InvalidArgumentError where they are not offered."""
    offered = settings.offered_dimensions
    if dimensions and dimensions not in offered:
        choice = ", ".join(map(str, offered))
        message = f"the model offers {choice} dimensions, not {dimensions}"
        raise refusal("UNSUPPORTED_DIMENSIONS", message, "dimensions", actual=dimensions, offered=choice)
    return dimensions or offered[0]


def answer_bytes(texts: int, columns: int, element_type: ElementType) -> int:
    """Returns the bytes that vectors take in an answer at most."""
    return texts * (row_bytes(element_type, columns) + ROW_OVERHEAD_BYTES)


def utf8_bytes(texts: Sequence[str]) -> int:
    """Returns the bytes that `texts` take."""
    return sum(len(text.encode()) for text in texts)


def text_faults(
    texts: Sequence[str], counts: Sequence[int], truncation: Truncation, max_tokens: int, path: str
) -> dict[int, InvalidArgumentError]:
    """Returns for each row that cannot be embedded what is wrong with its text."""
    faults = {}
    for row, count in enumerate(counts):
        if not texts[row].strip():
            found = ("EMPTY_TEXT", "the text is empty or white space alone")
        elif truncation is Truncation.ERROR and count > max_tokens:
            found = ("TEXT_TOO_LONG", f"the text has {count} tokens; the model reads {max_tokens}")
        else:
            continue
        faults[row] = refusal(*found, f"{path}[{row}]", index=row)
    return faults


def merged(faults: dict[int, InvalidArgumentError]) -> InvalidArgumentError:
    """Returns the first of `faults`, with the fields of all that have its reason."""
    first = faults[min(faults)]
    alike = [violation for fault in faults.values() if fault.reason == first.reason for violation in fault.violations]
    return first.replaced(first.message, violations=tuple(alike[:MAX_VIOLATIONS]))


def _check(reason: str, actual: int, limit: int, what: str, path: str) -> None:
    if actual > limit:
        raise refusal(reason, f"{actual} are more than the {limit} {what}", path, actual=actual, limit=limit)


def _at(path: str, error: Error) -> Error:
    return error.replaced(error.message, violations=(FieldViolation(path, error.message),))


Rows = NDArray[np.float32]


def raw_rows(texts: Sequence[str], kin: Mapping[str, str], space_id: str, columns: int) -> NDArray[np.int64]:
    """Returns int64 [n, columns] from the texts and the space alone; rows of one group of `kin` lie near each other."""
    rows = [_numbers(text, kin.get(text, text), space_id, columns) for text in texts]
    return np.array(rows, np.int64).reshape(len(texts), columns)


def shaped(raw: NDArray[np.int64], *, normalize: bool) -> Rows:
    """Returns float32 [n, d], of unit length where `normalize`. Sums of whole numbers are exact on every machine."""
    lengths = np.sqrt((raw**2).sum(axis=1)) if normalize else np.full(len(raw), float(SHARED))
    return (raw / np.where(lengths > 0, lengths, 1.0)[:, None]).astype(np.float32)


def to_matrix(rows: Rows, element_type: ElementType) -> pb.Matrix:
    """Returns float32 [n, d] as a message of elements of `element_type`."""
    count, columns = rows.shape
    scales = np.zeros(0, np.float32)
    if element_type in SCALED:
        scales = (np.abs(rows).max(axis=1) / np.float32(127)).astype(np.float32)
        steps = np.rint(rows / np.where(scales > 0, scales, np.float32(1))[:, None])
        elements = steps + (128 if element_type is ElementType.UINT8 else 0)
    elif element_type in PACKED:
        bits = np.packbits(rows > 0, axis=1).astype(np.int16)
        elements = bits - (128 if element_type is ElementType.BINARY else 0)
    else:
        elements = rows
    data = elements.astype(DTYPES[element_type]).tobytes()
    kind = element_type.number
    return pb.Matrix(data=data, rows=count, columns=columns, element_type=kind, row_scales=scales.tolist())


def read_matrix(matrix: pb.Matrix, path: str) -> Rows:
    """Returns float32 [n, d] of a request's matrix; raises InvalidArgumentError, reason BAD_MATRIX."""
    try:
        elements = from_matrix(matrix, matrix.rows)
    except InternalError:
        raise _bad(path, "rows, columns, scales and bytes disagree") from None
    if elements.element_type in PACKED or not elements.array.size:
        raise _bad(path, "at least one row and one column of numbers are needed, not of bits")
    rows = Embeddings(
        elements=elements.array,
        element_type=elements.element_type,
        row_scales=elements.scales,
        dimensions=elements.columns,
        model="",
        space_id="",
    ).vectors
    if not np.isfinite(rows).all():
        raise _bad(path, "a number is not finite")
    return rows


def _numbers(text: str, head: str, space_id: str, columns: int) -> NDArray[np.int64]:
    signs = np.where(_hashed(columns, "group", space_id, head) & 1, SHARED, -SHARED)
    return signs + _hashed(columns, "text", space_id, text) % (2 * OWN + 1) - OWN


def _hashed(columns: int, *seed: str) -> NDArray[np.int64]:
    """Returns whole numbers from 0 to 65,535; the first ones of many are those of few."""
    digest = hashlib.shake_128("\0".join(seed).encode()).digest(2 * columns)
    return np.frombuffer(digest, "<u2").astype(np.int64)


def _bad(path: str, what: str) -> InvalidArgumentError:
    return refusal("BAD_MATRIX", what, path)


@dataclass(frozen=True, slots=True)
class Read:
    """Texts as the model reads them: raw rows int64 [n, d], tokens read, rows cut, and what is wrong with which row."""

    raw: NDArray[np.int64]
    token_counts: tuple[int, ...]
    truncated: tuple[int, ...]
    faults: dict[int, InvalidArgumentError]


class Answers:
    """Answers each method as the settings say at that moment."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._started_s = time.monotonic()
        self._embedded_texts = 0

    def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        """Returns the vectors of the request's texts."""
        settings, texts = self._settings, request.texts
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
        check_response_bytes(settings, answer_bytes(len(texts), columns, element_type), "texts")
        read = self.read(texts, columns, truncation, "texts")
        if read.faults and not request.allow_partial:
            raise merged(read.faults)
        normalize = request.normalize if request.HasField("normalize") else True
        return pb.EmbedResponse(
            embeddings=to_matrix(shaped(read.raw, normalize=normalize), element_type),
            model=settings.model,
            space_id=settings.space_id,
            token_counts=read.token_counts,
            truncated_rows=read.truncated,
            row_errors=[pb.RowError(row=row, status=to_status(fault)) for row, fault in read.faults.items()],
            total_tokens=sum(read.token_counts),
            per_text_counts=True,
        )

    def read(self, texts: Sequence[str], columns: int, truncation: Truncation, path: str) -> Read:
        """Returns `texts` as the model reads them; rows that cannot be embedded are zeros."""
        settings, most = self._settings, self._settings.max_tokens
        words = [text.split() for text in texts]
        counts = [len(found) for found in words]
        faults = text_faults(texts, counts, truncation, most, path)
        truncated = [row for row, count in enumerate(counts) if count > most and row not in faults]
        cut = {row: words[row][-most:] if truncation is Truncation.START else words[row][:most] for row in truncated}
        seen = [" ".join(cut[row]) if row in cut else text for row, text in enumerate(texts)]
        raw = raw_rows(seen, settings.kin(), settings.space_id, columns)
        raw[list(faults)] = 0
        tokens = tuple(0 if row in faults else min(count, most) for row, count in enumerate(counts))
        self._embedded_texts += len(texts) - len(faults)
        return Read(raw, tokens, tuple(truncated), faults)

    def health(self, request: pb.HealthRequest) -> pb.HealthResponse:
        """Returns the status that the settings name."""
        settings = self._settings
        check_model(settings, request.model)
        status = ServingStatus(settings.status).number
        uptime = duration_pb2.Duration()
        uptime.FromNanoseconds(round((time.monotonic() - self._started_s) * 1e9))
        model = pb.ModelHealth(model=settings.model, status=status, embedded_texts=self._embedded_texts)
        return pb.HealthResponse(status=status, version=__version__, uptime=uptime, models=[model])

    def models(self, _request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        """Returns the one model, with its limits."""
        settings = self._settings
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
            read_enum(InputType.SIMILARITY, items.texts.input_type, f"{path}.texts.input_type")
            check_texts(settings, texts, f"{path}.texts.texts")
            return Side(f"{path}.texts.texts", texts, None, utf8_bytes(texts))
        case "vectors":
            matrix = items.vectors.vectors
            rows = read_matrix(matrix, f"{path}.vectors.vectors")
            check_space(settings, items.vectors.space_id, f"{path}.vectors.space_id")
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
    check_pairs(settings, pairs)
    check_response_bytes(settings, neighbors * NEIGHBOR_BYTES if shape == "nearest" else 4 * pairs, "candidates")


def _columns(settings: Settings, request: pb.SimilarityRequest, sides: list[Side]) -> int:
    """Returns the columns to compare in."""
    given = [(side.path, int(side.rows.shape[1])) for side in sides if side.rows is not None]
    if len(given) == len(sides):
        wanted = given[0][1]
    else:
        wanted = columns_of(settings, request.dimensions or (given[0][1] if given else 0))
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
        raise merged(read.faults)
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
