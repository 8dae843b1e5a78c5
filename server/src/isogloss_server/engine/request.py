"""Requests of the engine, their limits, and the checks of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from isogloss.wire.enums import ElementType, InputType, Metric, Priority, Truncation

from isogloss_server.engine.vectors import bytes_per_row
from isogloss_server.errors import (
    BadKError,
    BadMinScoreError,
    DimensionMismatchError,
    DomainError,
    EmptyTextError,
    EmptyTextsError,
    RequestTooLargeError,
    ResponseTooLargeError,
    SpaceMismatchError,
    TooManyTextsError,
    UnequalSidesError,
    UnsupportedDimensionsError,
    UnsupportedTruncationError,
)
from isogloss_server.models.interfaces import ModelCard, Rows, Urgency

# The most that parts of an answer take on the wire; a test holds them against real messages.
ROW_OVERHEAD_BYTES = 20  # of a row beside its numbers: token count, truncated row, scale
ROW_ERROR_BYTES = 240
RANKING_BYTES = 20  # of a query beside its neighbours
NEIGHBOR_BYTES = 9  # a row number and a score
DEFAULT_ANSWER_BYTES = 4 * 1024 * 1024 - 65_536  # what gRPC clients accept by default, less some room


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request of a model may ask for, as ListModels announces it."""

    max_texts: int
    max_request_bytes: int
    max_response_bytes: int
    max_pairs: int

    def check_texts(self, texts: Sequence[str], path: str) -> None:
        """Raises EmptyTextsError or TooManyTextsError where the request's list `path` is out of bounds."""
        if not texts:
            raise EmptyTextsError("at least one text is needed", field=path)
        if len(texts) > self.max_texts:
            message = f"{len(texts)} texts; one request may have {self.max_texts}"
            raise TooManyTextsError(message, field=path, actual=len(texts), limit=self.max_texts)

    def check_request_bytes(self, actual: int, path: str) -> None:
        """Raises RequestTooLargeError where the texts and vectors of a request are `actual` bytes, and too many."""
        if actual > self.max_request_bytes:
            message = f"{actual} bytes of texts and vectors; one request may have {self.max_request_bytes}"
            raise RequestTooLargeError(message, field=path, actual=actual, limit=self.max_request_bytes)

    def check_response_bytes(self, actual: int, path: str) -> None:
        """Raises ResponseTooLargeError where an answer of `actual` bytes would be too large."""
        if actual > self.max_response_bytes:
            message = f"the answer would have {actual} bytes; one response may have {self.max_response_bytes}"
            raise ResponseTooLargeError(message, field=path, actual=actual, limit=self.max_response_bytes)

    def check_pairs(self, actual: int) -> None:
        """Raises ResponseTooLargeError where `actual` pairs are too many for one Similarity."""
        if actual > self.max_pairs:
            message = f"{actual} pairs of a query and a candidate; one request may have {self.max_pairs}"
            raise ResponseTooLargeError(message, field="candidates", actual=actual, limit=self.max_pairs)


def default_max_texts(dimensions: int) -> int:
    """Returns how many texts' float32 vectors of that width fit the 4 MiB that gRPC clients accept by default."""
    return DEFAULT_ANSWER_BYTES // answer_bytes(1, dimensions, ElementType.FLOAT32, partial=True)


def answer_bytes(texts: int, columns: int, element_type: ElementType, *, partial: bool) -> int:
    """Returns the bytes that an answer to so many texts takes at most; `partial` where it may tell of failed rows."""
    overhead = ROW_OVERHEAD_BYTES + (ROW_ERROR_BYTES if partial else 0)
    return texts * (bytes_per_row(columns, element_type) + overhead)


def rankings_bytes(queries: int, neighbors: int) -> int:
    """Returns the bytes that so many neighbours for each query take at most."""
    return queries * (RANKING_BYTES + neighbors * NEIGHBOR_BYTES)


def utf8_bytes(texts: Sequence[str]) -> int:
    """Returns the bytes that `texts` take together in UTF-8."""
    return sum(len(text) if text.isascii() else len(text.encode()) for text in texts)


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """One Embed: texts to one row vector each. `deadline_s` is a moment of the clock."""

    path: ClassVar[str] = "texts"

    texts: Sequence[str]
    model: str = ""
    input_type: InputType = InputType.SIMILARITY
    dimensions: int = 0
    element_type: ElementType = ElementType.FLOAT32
    truncation: Truncation | None = None
    normalize: bool = True
    priority: Priority = Priority.INTERACTIVE
    allow_partial: bool = False
    space_id: str = ""
    deadline_s: float = math.inf
    patient: bool = False  # waits for room in the queue, since who asks is not read further meanwhile

    @property
    def text_count(self) -> int:
        """How many texts are to be embedded."""
        return len(self.texts)

    @cached_property
    def text_bytes(self) -> int:
        """How many bytes of UTF-8 these texts have."""
        return utf8_bytes(self.texts)

    @property
    def vector_bytes(self) -> int:
        """How many bytes of vectors came with the request."""
        return 0

    @property
    def urgency(self) -> Urgency:
        """How soon the answer is wanted."""
        return Urgency(self.priority, self.deadline_s)

    def check(self, card: ModelCard, limits: Limits) -> int:
        """Returns the columns to answer with; raises the error of what is wrong with the whole request."""
        limits.check_texts(self.texts, self.path)
        limits.check_request_bytes(self.text_bytes, self.path)
        if self.space_id and self.space_id != card.space_id:
            raise space_mismatch_error(self.space_id, card, "space_id")
        check_truncation(self.truncation, card)
        columns = resolve_dimensions(self.dimensions, card, "dimensions")
        size = answer_bytes(len(self.texts), columns, self.element_type, partial=self.allow_partial)
        limits.check_response_bytes(size, self.path)
        return columns


@dataclass(frozen=True)
class TextSide:
    """A side of a comparison given as texts; `path` is its place in the request."""

    path: str
    texts: Sequence[str]
    input_type: InputType

    @cached_property
    def text_bytes(self) -> int:
        """How many bytes of UTF-8 the texts have; counted once, for the limits and for the queue."""
        return utf8_bytes(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class VectorSide:
    """A side of a comparison given as vectors, float32 [n, d], that stand for `wire_bytes` of the request."""

    path: str
    rows: Rows
    space_id: str
    wire_bytes: int

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class AllPairs:
    """Every query against every candidate."""


@dataclass(frozen=True, slots=True)
class Pairwise:
    """Query i against candidate i alone."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The best k candidates of each query that score at least `min_score`."""

    k: int
    min_score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityRequest:
    """One Similarity; without candidates the queries are compared with themselves."""

    queries: TextSide | VectorSide
    candidates: TextSide | VectorSide | None
    model: str = ""
    metric: Metric = Metric.COSINE
    dimensions: int = 0
    truncation: Truncation | None = None
    priority: Priority = Priority.INTERACTIVE
    shape: AllPairs | Pairwise | Nearest = AllPairs()
    deadline_s: float = math.inf
    patient: ClassVar[bool] = False

    @property
    def text_count(self) -> int:
        """How many texts are to be embedded."""
        return sum(len(side) for side in (self.queries, self.candidates) if isinstance(side, TextSide))

    @property
    def text_bytes(self) -> int:
        """How many bytes of UTF-8 these texts have."""
        sides = self.queries, self.candidates
        return sum(side.text_bytes for side in sides if isinstance(side, TextSide))

    @property
    def vector_bytes(self) -> int:
        """How many bytes of vectors came with the request."""
        return sum(side.rows.nbytes for side in (self.queries, self.candidates) if isinstance(side, VectorSide))

    @property
    def urgency(self) -> Urgency:
        """How soon the answer is wanted."""
        return Urgency(self.priority, self.deadline_s)

    def check(self, card: ModelCard, limits: Limits) -> int:
        """Returns the columns to compare in; raises the error of what is wrong with the whole request."""
        sides = [self.queries] if self.candidates is None else [self.queries, self.candidates]
        for side in sides:
            if isinstance(side, TextSide):
                limits.check_texts(side.texts, side.path)
            elif side.space_id != card.space_id:
                raise space_mismatch_error(side.space_id, card, f"{side.path}.space_id")
        request_bytes = [s.text_bytes if isinstance(s, TextSide) else s.wire_bytes for s in sides]
        limits.check_request_bytes(sum(request_bytes), sides[request_bytes.index(max(request_bytes))].path)
        check_truncation(self.truncation, card)
        self._check_shape(limits)
        return self._columns(sides, card)

    def _check_shape(self, limits: Limits) -> None:
        queries, candidates = len(self.queries), len(self.queries if self.candidates is None else self.candidates)
        if isinstance(self.shape, Pairwise):
            if queries != candidates:
                message = f"{queries} queries and {candidates} candidates; pairwise needs as many of both"
                raise UnequalSidesError(message, field="candidates", queries=queries, candidates=candidates)
            limits.check_pairs(queries)
            limits.check_response_bytes(4 * queries, "queries")
            return
        limits.check_pairs(queries * candidates)
        if isinstance(self.shape, AllPairs):
            limits.check_response_bytes(4 * queries * candidates, "candidates")
            return
        if self.shape.k < 1:
            raise BadKError("k must be at least 1", field="nearest.k", actual=self.shape.k, limit=1)
        if self.shape.min_score is not None and math.isnan(self.shape.min_score):
            raise BadMinScoreError("min_score is not a number", field="nearest.min_score")
        limits.check_response_bytes(rankings_bytes(queries, min(self.shape.k, candidates)), "nearest.k")

    def _columns(self, sides: Sequence[TextSide | VectorSide], card: ModelCard) -> int:
        given = [(side, int(side.rows.shape[1])) for side in sides if isinstance(side, VectorSide)]
        if len(given) == len(sides):
            wanted = given[0][1]
        else:
            wanted = resolve_dimensions(self.dimensions or (given[0][1] if given else 0), card, "dimensions")
        for side, columns in given:
            if columns != wanted:
                message = f"{side.path} has {columns} columns, the other side {wanted}"
                raise DimensionMismatchError(message, field=side.path, actual=columns, expected=wanted)
        return wanted


def resolve_dimensions(dimensions: int, card: ModelCard, path: str) -> int:
    """Returns the columns that `dimensions` stands for; raises UnsupportedDimensionsError where not offered."""
    if not dimensions:
        return card.dimensions[0]
    if dimensions not in card.dimensions:
        choice = ", ".join(map(str, card.dimensions))
        message = f"the model offers {choice} dimensions, not {dimensions}"
        raise UnsupportedDimensionsError(message, field=path, actual=dimensions, offered=choice)
    return dimensions


def check_truncation(truncation: Truncation | None, card: ModelCard) -> None:
    """Raises UnsupportedTruncationError where the model does not offer `truncation`; None suits every model."""
    if truncation is not None and truncation not in card.truncations:
        choice = ", ".join(offer.value for offer in card.truncations)
        message = f"the model offers truncation {choice}, not {truncation.value}"
        raise UnsupportedTruncationError(message, field="truncation", actual=truncation.value, offered=choice)


def resolve_truncation(job: EmbedRequest | SimilarityRequest, card: ModelCard) -> Truncation:
    """Returns what becomes of the job's texts too long: as it says; else END, or ERROR where END is not offered."""
    if job.truncation is not None:
        return job.truncation
    return Truncation.END if Truncation.END in card.truncations else Truncation.ERROR


def space_mismatch_error(space_id: str, card: ModelCard, path: str) -> SpaceMismatchError:
    """Returns the error for a request that is about another space than the model's."""
    message = "space_id is required with vectors" if not space_id else "the vectors' space is not the model's"
    return SpaceMismatchError(f"{message}, which is {card.space_id}", field=path, expected=card.space_id)


def find_empty_texts(texts: Sequence[str]) -> dict[int, DomainError]:
    """Returns an error for each row whose text has no character but white space."""
    message = "the text is empty or white space alone"
    return {row: EmptyTextError(message) for row, text in enumerate(texts) if not text or text.isspace()}
