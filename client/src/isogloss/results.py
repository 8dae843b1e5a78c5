"""Results of the client's calls, as frozen values."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isogloss.enums import ElementType, ServingStatus, Truncation
from isogloss.errors import InvalidArgumentError
from isogloss.wire.matrix import Elements, dequantize

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the server spent its time, in seconds, summed over the parts of a call that was split.

    Attributes:
        total_s: From the request's arrival to its answer.
        tokenization_s: Cutting texts into tokens.
        queue_s: Waiting for a batch.
        inference_s: Running the model, shared with the other texts of the batches.
        cached_rows: How many rows were answered without inference.
    """

    total_s: float = 0.0
    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    cached_rows: int = 0

    @classmethod
    def total(cls, parts: "Iterable[Timings]") -> "Timings":
        """Returns the sum of `parts`."""
        return reduce(cls._plus, parts, cls())

    def _plus(self, other: "Timings") -> "Timings":
        return Timings(
            self.total_s + other.total_s,
            self.tokenization_s + other.tokenization_s,
            self.queue_s + other.queue_s,
            self.inference_s + other.inference_s,
            self.cached_rows + other.cached_rows,
        )


NO_TIME = Timings()


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a text could not be embedded, where allow_partial let the others pass: its row, and what is wrong."""

    row: int
    code: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Embeddings:
    """One vector for each text of an embed, in order.

    Attributes:
        elements: The vectors as they crossed the wire, read-only: [n, d] of `element_type`, or uint8 or int8
            [n, ceil(d / 8)] for the two binary types.
        element_type: How to read `elements`.
        row_scales: float32 [n] for INT8 and UINT8, else [0].
        dimensions: d, the length of each vector.
        model: The model that answered.
        space_id: The space that the vectors lie in; only vectors of one space may be compared.
        token_counts: Tokens read of each text, after truncation; empty where the model's provider does not tell.
        truncated_rows: Rows whose text was cut, ascending; empty as well where the provider does not tell.
        row_errors: With allow_partial, the rows that are zeros because their text could not be embedded, ascending.
        total_tokens: Tokens read of all texts, as a provider bills them.
        timings: Where the server spent its time.
    """

    elements: NDArray[np.generic]
    element_type: ElementType
    row_scales: NDArray[np.float32] = field(default_factory=lambda: read_only(np.zeros(0, np.float32)))
    dimensions: int
    model: str
    space_id: str
    token_counts: tuple[int, ...] = ()
    truncated_rows: tuple[int, ...] = ()
    row_errors: tuple[RowError, ...] = ()
    total_tokens: int = 0
    timings: Timings = NO_TIME

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors as float32 [n, d], read-only, whatever the element type.

        FLOAT16 is widened, INT8 and UINT8 take their row's scale, and the two binary types read as +1 and -1. Rows
        have unit length where normalize was set and the element type is exact (FLOAT32; nearly so FLOAT16).
        """
        return read_only(dequantize(Elements(self.elements, self.dimensions, self.element_type, self.row_scales)))

    def __len__(self) -> int:
        return len(self.elements)

    def __repr__(self) -> str:
        shape = f"{len(self)} x {self.dimensions} {self.element_type}"
        return f"Embeddings({shape}, model={self.model!r}, space_id={self.space_id!r})"


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedChunk:
    """Some texts of an embed_many, which follow one another, and their vectors.

    Attributes:
        start: Row of the first text in the whole, and so how many texts came before.
        texts: The texts, as many as rows of `embeddings`.
        embeddings: Their vectors; rows in it, such as truncated_rows, are counted from `start`.
    """

    start: int
    texts: tuple[str, ...]
    embeddings: Embeddings

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False, repr=False)
class Vectors:
    """Vectors that a caller has kept, as one side of a comparison.

    Attributes:
        array: The vectors, float32 [n, d], read-only; any numbers that numpy reads as two dimensions are converted.
        space_id: The space they lie in, as the Embeddings that they came from said.

    Raises:
        InvalidArgumentError: The array has not two dimensions, or other things than numbers (reason BAD_MATRIX).
    """

    array: NDArray[np.float32]
    space_id: str

    def __init__(self, array: ArrayLike, space_id: str) -> None:
        object.__setattr__(self, "array", read_only(_matrix(array)))
        object.__setattr__(self, "space_id", space_id)

    def __len__(self) -> int:
        return len(self.array)

    def __repr__(self) -> str:
        rows, columns = self.array.shape
        return f"Vectors({rows} x {columns} float32, space_id={self.space_id!r})"


def read_only(array: NDArray[Number]) -> NDArray[Number]:
    """Returns `array` itself, closed to writing."""
    array.setflags(write=False)
    return array


def _matrix(array: ArrayLike) -> NDArray[np.float32]:
    try:
        given = np.asarray(array)
        # A copy where the caller could still write into it: results and their sides never change.
        matrix = np.array(given, dtype=np.float32, order="C", copy=True) if given.flags.writeable else given
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    except (TypeError, ValueError):
        raise InvalidArgumentError("vectors must be numbers in rows of one length", reason="BAD_MATRIX") from None
    if given.ndim != 2:
        message = f"vectors must have two dimensions [n, d], not {given.ndim}"
        raise InvalidArgumentError(message, reason="BAD_MATRIX")
    return matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What every comparison tells beside its scores.

    Attributes:
        model: The model that answered.
        space_id: The space that was compared in.
        truncated_queries: Rows of queries whose text was cut, ascending.
        truncated_candidates: Rows of candidates whose text was cut, ascending.
        timings: Where the server spent its time.
    """

    model: str
    space_id: str
    truncated_queries: tuple[int, ...] = ()
    truncated_candidates: tuple[int, ...] = ()
    timings: Timings = NO_TIME


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores(Comparison):
    """Every query against every candidate: values float32 [q, c], read-only. Greater is nearer, whatever the metric."""

    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores(Comparison):
    """Query i against candidate i: values float32 [n], read-only. Greater is nearer, whatever the metric."""

    values: NDArray[np.float32]


class Neighbor(NamedTuple):
    """A candidate near to a query: its row, its text (None where candidates were vectors), its score."""

    row: int
    text: str | None
    score: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Neighbors(Sequence[Neighbor]):
    """The candidates nearest to one query, best first, ties by lower row. Reads as a list of Neighbor.

    Attributes:
        rows: int64 [k], read-only: rows of the candidates.
        scores: float32 [k], read-only, descending. Greater is nearer, whatever the metric.
        texts: The candidates' texts; None for each where candidates were vectors.
        model: The model that answered.
        space_id: The space that was compared in.
        query_truncated: Whether the query's text was cut.
        truncated_candidates: Rows of all candidates, near or not, whose text was cut, ascending.
        timings: Where the server spent its time, on all queries of the call.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    texts: tuple[str | None, ...]
    model: str
    space_id: str
    query_truncated: bool = False
    truncated_candidates: tuple[int, ...] = ()
    timings: Timings = NO_TIME

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> Neighbor: ...

    @overload
    def __getitem__(self, index: slice) -> "Neighbors": ...

    def __getitem__(self, index: int | slice) -> "Neighbor | Neighbors":
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index], scores=self.scores[index], texts=self.texts[index])
        return Neighbor(int(self.rows[index]), self.texts[index], float(self.scores[index]))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Neighbors | list) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(list(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """A model that the server offers, and the limits of one request to it. The client keeps them by itself.

    Attributes:
        name: What to give as `model`.
        space_id: The space of its vectors.
        backend: What runs it, such as "static".
        revision: Of the weights, where there is one.
        dimensions: What to give as `dimensions`, the model's own first.
        max_tokens: Tokens that it reads of one text.
        max_texts: Texts of one request. Here and below, 0 means that the server announces no limit.
        max_request_bytes: Bytes of UTF-8 text, or of vectors, of one request.
        max_response_bytes: Bytes of one answer.
        max_pairs: Queries times candidates of one comparison.
        languages: BCP 47 tags of the languages it was trained for.
        has_roles: Whether input_type changes the vector.
        truncations: What to give as `truncation`.
        license: SPDX expression of the weights.
    """

    name: str
    space_id: str
    backend: str
    revision: str
    dimensions: tuple[int, ...]
    max_tokens: int
    max_texts: int
    max_request_bytes: int
    max_response_bytes: int
    max_pairs: int
    languages: tuple[str, ...]
    has_roles: bool
    truncations: tuple[Truncation, ...]
    license: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelHealth:
    """How one model fares.

    Attributes:
        model: Its name.
        status: Whether it serves.
        detail: One line for people; empty where all is well.
        queued_texts: Texts that wait for a batch now.
        embedded_texts: Texts embedded since the server started.
    """

    model: str
    status: ServingStatus
    detail: str
    queued_texts: int
    embedded_texts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """How the server fares.

    Attributes:
        status: The worst of the models', or that of the one asked for.
        version: Of the server.
        uptime_s: Seconds since the server started.
        models: Each model, or the one asked for.
    """

    status: ServingStatus
    version: str
    uptime_s: float
    models: tuple[ModelHealth, ...]
