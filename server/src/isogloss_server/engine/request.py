"""Requests of the engine, their limits, and the checks of both."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

from isogloss.wire.enums import ElementType, InputType, Metric, Priority, Truncation
from isogloss.wire.sizes import embed_response_bytes, rankings_bytes, scores_bytes, utf8_bytes

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
from isogloss_server.models.interfaces import ModelCard, Rows

# Cost of a pair: for each column under each metric, and of ranking; in products of a matrix multiplication.
PRODUCTS_OF_METRIC = {Metric.COSINE: 1, Metric.DOT: 1, Metric.EUCLIDEAN: 2, Metric.MANHATTAN: 20}
PRODUCTS_OF_PAIR = 50
# gRPC clients accept 4 MiB by default; the rest is room for other fields.
DEFAULT_RESPONSE_BYTES = 4 * 1024 * 1024 - 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one request to a model, as ListModels announces them."""

    max_texts: int
    max_request_bytes: int
    max_response_bytes: int
    max_pairs: int

    def check_texts(self, texts: Sequence[str], path: str) -> None:
        """Raises EmptyTextsError or TooManyTextsError if the length of the list `path` is out of bounds."""
        if not texts:
            raise EmptyTextsError(f"{path} is empty; at least one text is required", field=path)
        if len(texts) > self.max_texts:
            message = f"{len(texts)} texts; the limit of one request is {self.max_texts}"
            raise TooManyTextsError(message, field=path, actual=len(texts), limit=self.max_texts)

    def check_request_bytes(self, actual: int, path: str) -> None:
        """Raises RequestTooLargeError if `actual`, the bytes of texts and vectors of a request, exceeds the limit."""
        if actual > self.max_request_bytes:
            message = f"{actual} bytes of texts and vectors; the limit of one request is {self.max_request_bytes}"
            raise RequestTooLargeError(message, field=path, actual=actual, limit=self.max_request_bytes)

    def check_response_bytes(self, actual: int, path: str) -> None:
        """Raises ResponseTooLargeError if a response of `actual` bytes would exceed the limit."""
        if actual > self.max_response_bytes:
            message = f"the response would have {actual} bytes; the limit is {self.max_response_bytes}"
            raise ResponseTooLargeError(message, field=path, actual=actual, limit=self.max_response_bytes)

    def check_pairs(self, actual: int) -> None:
        """Raises ResponseTooLargeError if `actual` pairs of one Similarity exceed the limit."""
        if actual > self.max_pairs:
            message = f"{actual} pairs of a query and a candidate; the limit of one request is {self.max_pairs}"
            raise ResponseTooLargeError(message, field="candidates", actual=actual, limit=self.max_pairs)


def default_max_texts(dimensions: int) -> int:
    """Returns the number of float32 vectors of that width that fit 4 MiB, which gRPC clients accept by default."""
    return DEFAULT_RESPONSE_BYTES // embed_response_bytes(1, dimensions, ElementType.FLOAT32, allow_partial=True)


class RequestSize(NamedTuple):
    """Cost of a request.

    Attributes:
        texts: Texts to embed.
        text_bytes: Their bytes of UTF-8.
        vector_bytes: Bytes of the vectors that it holds.
        text_sides: Lists of texts.
        products: Products of two numbers that its comparison computes, weighted by the metric.
    """

    texts: int
    text_bytes: int
    vector_bytes: int = 0
    text_sides: int = 1
    products: int = 0


@dataclass(frozen=True, kw_only=True)
class EmbedRequest:
    """One Embed: each text to one row vector.

    Attributes:
        deadline_s: Moment of the clock after which the response is useless.
        from_stream: True for a request of a stream, which waits for room in the queue instead of being refused.
        truncation: None for the model's default.
        dimensions: 0 for all of the model's.
        caller: Name of the caller, "" if it is unknown.

    The others are those of the contract's EmbedRequest.
    """

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
    from_stream: bool = False
    caller: str = ""

    @cached_property
    def sides(self) -> tuple["TextSide"]:
        """The texts, in the form of a Similarity's side."""
        return (TextSide(self.path, self.texts, self.input_type),)

    def size(self, _card: ModelCard) -> RequestSize:
        """Returns the cost of the request."""
        side = self.sides[0]
        return RequestSize(len(side.texts), side.text_bytes)

    def check(self, card: ModelCard, limits: Limits) -> int:
        """Returns the number of columns of the response; raises a DomainError if the request as a whole is invalid."""
        limits.check_texts(self.texts, self.path)
        limits.check_request_bytes(self.sides[0].text_bytes, self.path)
        if self.space_id and self.space_id != card.space_id:
            raise space_mismatch_error(self.space_id, card, "space_id")
        check_truncation(self.truncation, card)
        columns = resolve_dimensions(self.dimensions, card, "dimensions")
        size = embed_response_bytes(len(self.texts), columns, self.element_type, allow_partial=self.allow_partial)
        limits.check_response_bytes(size, self.path)
        return columns


@dataclass(frozen=True)
class TextSide:
    """Side of a comparison as texts; `path` is its field in the request."""

    path: str
    texts: Sequence[str]
    input_type: InputType

    @cached_property
    def text_bytes(self) -> int:
        """Bytes of UTF-8 of all texts; counted once, for the limits and for admission."""
        return utf8_bytes(self.texts)

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class VectorSide:
    """Side of a comparison as vectors, float32 [n, d], which occupy `wire_bytes` bytes of the request."""

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
    """Query i against candidate i."""


@dataclass(frozen=True, slots=True)
class Nearest:
    """The best k candidates of each query that score at least `min_score`."""

    k: int
    min_score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SimilarityRequest:
    """One Similarity; without candidates the queries are compared with themselves.

    The attributes are those of the contract's SimilarityRequest, and those of EmbedRequest.
    """

    queries: TextSide | VectorSide
    candidates: TextSide | VectorSide | None
    model: str = ""
    metric: Metric = Metric.COSINE
    dimensions: int = 0
    truncation: Truncation | None = None
    priority: Priority = Priority.INTERACTIVE
    shape: AllPairs | Pairwise | Nearest = AllPairs()
    deadline_s: float = math.inf
    caller: str = ""
    from_stream: ClassVar[bool] = False

    @property
    def sides(self) -> tuple[TextSide | VectorSide, ...]:
        """The queries, and the candidates if there are any."""
        return (self.queries,) if self.candidates is None else (self.queries, self.candidates)

    @property
    def pairs(self) -> int:
        """The number of pairs of a query and a candidate that are compared."""
        queries, candidates = len(self.sides[0]), len(self.sides[-1])
        return queries if isinstance(self.shape, Pairwise) else queries * candidates

    @property
    def response_bytes(self) -> int:
        """The maximum size of the response."""
        if isinstance(self.shape, Nearest):
            queries, candidates = len(self.sides[0]), len(self.sides[-1])
            return rankings_bytes(queries, min(self.shape.k, candidates))
        return scores_bytes(self.pairs)

    def size(self, card: ModelCard) -> RequestSize:
        """Returns the cost of the request to the model with this card."""
        texts = [side for side in self.sides if isinstance(side, TextSide)]
        vectors = [side.rows for side in self.sides if isinstance(side, VectorSide)]
        columns = vectors[0].shape[1] if vectors else card.dimensions[0]
        return RequestSize(
            texts=sum(map(len, texts)),
            text_bytes=sum(side.text_bytes for side in texts),
            vector_bytes=sum(rows.nbytes for rows in vectors),
            text_sides=len(texts),
            products=self.pairs * (columns * PRODUCTS_OF_METRIC[self.metric] + PRODUCTS_OF_PAIR),
        )

    def check(self, card: ModelCard, limits: Limits) -> int:
        """Returns the number of columns to compare; raises a DomainError if the request as a whole is invalid."""
        sides = self.sides
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
        queries, candidates = len(self.sides[0]), len(self.sides[-1])
        path = "candidates"
        if isinstance(self.shape, Pairwise):
            path = "queries"
            if queries != candidates:
                message = f"{queries} queries and {candidates} candidates; pairwise requires equal numbers"
                raise UnequalSidesError(message, field="candidates", queries=queries, candidates=candidates)
        limits.check_pairs(self.pairs)
        if isinstance(self.shape, Nearest):
            path = "nearest.k"
            if self.shape.k < 1:
                raise BadKError("k must be at least 1", field="nearest.k", actual=self.shape.k, limit=1)
            if self.shape.min_score is not None and math.isnan(self.shape.min_score):
                raise BadMinScoreError("min_score must be a number, not NaN", field="nearest.min_score")
        limits.check_response_bytes(self.response_bytes, path)

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
    """Returns the number of columns, all for 0; raises UnsupportedDimensionsError if the model does not offer it."""
    if not dimensions:
        return card.dimensions[0]
    if dimensions not in card.dimensions:
        choice = ", ".join(map(str, card.dimensions))
        message = f"the model offers {choice} dimensions, not {dimensions}"
        raise UnsupportedDimensionsError(message, field=path, actual=dimensions, offered=choice)
    return dimensions


def check_truncation(truncation: Truncation | None, card: ModelCard) -> None:
    """Raises UnsupportedTruncationError if the model does not offer `truncation`; None is always valid."""
    if truncation is not None and truncation not in card.truncations:
        choice = ", ".join(offer.value for offer in card.truncations)
        message = f"the model offers truncation {choice}, not {truncation.value}"
        raise UnsupportedTruncationError(message, field="truncation", actual=truncation.value, offered=choice)


def resolve_truncation(request: EmbedRequest | SimilarityRequest, card: ModelCard) -> Truncation:
    """Returns the truncation of a request; if unset END, or ERROR for a model without END."""
    if request.truncation is not None:
        return request.truncation
    return Truncation.END if Truncation.END in card.truncations else Truncation.ERROR


def space_mismatch_error(space_id: str, card: ModelCard, path: str) -> SpaceMismatchError:
    """Returns the error for a request of another space than the model's."""
    problem = "the vectors belong to another space" if space_id else "vectors require a space_id"
    return SpaceMismatchError(
        f"{problem}; the space of the model is {card.space_id!r}", field=path, expected=card.space_id
    )


def find_empty_texts(texts: Sequence[str]) -> dict[int, DomainError]:
    """Returns an error for each row whose text is empty or contains only white space."""
    message = "the text is empty or contains only white space"
    return {row: EmptyTextError(message) for row, text in enumerate(texts) if not text or text.isspace()}
