"""Results of the client's calls, as frozen values with read-only arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from isogloss.enums import ElementType, ServingStatus, Truncation
from isogloss.errors import InvalidArgumentError
from isogloss.wire.matrix import Elements, dequantize

Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Timings:
    """Time that the server spent on a call, in seconds, summed over all requests if the call was split.

    If one request embeds the texts of two sides, each stage is that of the side that took longer.

    Attributes:
        total_s: From the start of the checks to the complete result, without decoding and encoding of messages.
        tokenization_s: Tokenizing the texts; 0 for a provider's model.
        queue_s: Waiting: for admission, for a thread, for a batch, for a provider's rate limit, or for another request
            that computes the same text.
        inference_s: Running the model, on batches that may contain texts of other calls too; for a provider's model,
            the calls to the provider.
        cached_rows: Number of rows taken from the cache, without inference.
    """

    total_s: float = 0.0
    tokenization_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0
    cached_rows: int = 0

    @classmethod
    def total(cls, parts: "Iterable[Timings]") -> "Timings":
        """Returns the sum of `parts`, field by field."""
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
    """Failure of one text of an embed with allow_partial.

    Attributes:
        row: Row of the text.
        code: Name of the gRPC status, such as "INVALID_ARGUMENT".
        reason: Stable identifier of the cause, such as "EMPTY_TEXT".
        message: Description for people.
    """

    row: int
    code: str
    reason: str
    message: str


class _ReadOnlyArrays:
    """Keeps arrays read-only in pickles and deep copies, where those of numpy are writable."""

    def __getstate__(self) -> dict[str, Any]:
        cached = {name for name, value in vars(type(self)).items() if isinstance(value, cached_property)}
        return {name: value for name, value in vars(self).items() if name not in cached}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for value in state.values():
            if isinstance(value, np.ndarray):
                read_only(value)
        vars(self).update(state)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Embeddings(_ReadOnlyArrays):
    """Result of an embed: one vector per text, in order.

    Attributes:
        elements: The vectors as received, read-only: [n, d] of `element_type`; UBINARY uint8 and BINARY int8
            [n, ceil(d / 8)].
        element_type: Number format of `elements`.
        row_scales: Scale of each row, float32 [n], for INT8 and UINT8; [0] for other types.
        dimensions: d, the length of each vector.
        model: Name of the model that computed the vectors.
        space_id: Embedding space of the vectors. Only vectors of the same space are comparable.
        token_counts: Tokens of each text after truncation; empty if the model's provider does not report them.
        truncated_rows: Rows whose text was truncated, ascending; empty if the provider does not report them.
        row_errors: The rows of zeros whose text failed, ascending; only with allow_partial.
        total_tokens: Tokens of all texts, as billed by a provider.
        timings: Time that the server spent.
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
        """The vectors as float32 [n, d], read-only, for every element type.

        FLOAT16 is widened, INT8 and UINT8 are multiplied by their row's scale, and bits of the two binary types become
        +1 and -1. With normalize, rows have unit length for FLOAT32 and, up to rounding, for FLOAT16.
        """
        return read_only(dequantize(Elements(self.elements, self.dimensions, self.element_type, self.row_scales)))

    def __len__(self) -> int:
        return len(self.elements)

    def __repr__(self) -> str:
        shape = f"{len(self)} x {self.dimensions} {self.element_type}"
        return f"Embeddings({shape}, model={self.model!r}, space_id={self.space_id!r})"


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddedChunk:
    """Consecutive texts of an embed_many, and their vectors.

    Attributes:
        start: Row of the first text among all texts; equals the number of texts before this chunk.
        texts: The texts, one per row of `embeddings`.
        embeddings: Their vectors. Row numbers in it, such as truncated_rows, are relative to this chunk.
    """

    start: int
    texts: tuple[str, ...]
    embeddings: Embeddings

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, eq=False, repr=False)
class Vectors(_ReadOnlyArrays):
    """Stored vectors, as one side of a comparison. They are compared as given, without normalization.

    Args:
        array: Numbers [n, d], as anything that numpy converts. A writable array is copied.
        space_id: Embedding space of the vectors: the `space_id` of the Embeddings that they come from.

    Attributes:
        array: The vectors, float32 [n, d], read-only.
        space_id: Embedding space of the vectors.

    Raises:
        InvalidArgumentError: The array does not have two dimensions, or does not consist of numbers (reason
            BAD_MATRIX).
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
    """Makes `array` read-only and returns it."""
    array.setflags(write=False)
    return array


def _matrix(array: ArrayLike) -> NDArray[np.float32]:
    try:
        given = np.asarray(array)
        # Copies an array that the caller could still modify.
        matrix = np.array(given, dtype=np.float32, order="C", copy=True) if given.flags.writeable else given
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            "vectors must be rows of numbers, all of the same length", reason="BAD_MATRIX"
        ) from None
    if given.ndim != 2:
        message = f"vectors must have two dimensions [n, d], not {given.ndim}"
        raise InvalidArgumentError(message, reason="BAD_MATRIX")
    return matrix


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison(_ReadOnlyArrays):
    """Attributes that all results of comparisons have in common.

    Attributes:
        model: Name of the model that embedded the texts.
        space_id: Embedding space of both sides.
        truncated_queries: Rows of queries whose text was truncated, ascending.
        truncated_candidates: Rows of candidates whose text was truncated, ascending.
        timings: Time that the server spent.
    """

    model: str
    space_id: str
    truncated_queries: tuple[int, ...] = ()
    truncated_candidates: tuple[int, ...] = ()
    timings: Timings = NO_TIME


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores(Comparison):
    """Score of each query with each candidate: values float32 [q, c], read-only. Higher is nearer for all metrics."""

    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores(Comparison):
    """Score of query i with candidate i: values float32 [n], read-only. Higher is nearer for all metrics."""

    values: NDArray[np.float32]


class Neighbor(NamedTuple):
    """A candidate near a query: its row, its text (None if the candidates were vectors), its score."""

    row: int
    text: str | None
    score: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Neighbors(_ReadOnlyArrays, Sequence[Neighbor]):
    """Candidates nearest to one query, best first, ties ordered by row. A sequence of Neighbor, equal to such a list.

    Attributes:
        rows: Rows of the candidates, int64 [k], read-only.
        scores: Their scores, float32 [k], read-only, descending. Higher is nearer for all metrics.
        texts: Their texts; None for each if the candidates were vectors.
        model: Name of the model that embedded the texts.
        space_id: Embedding space of both sides.
        query_truncated: True if the query's text was truncated.
        truncated_candidates: Rows of all candidates, listed here or not, whose text was truncated, ascending.
        timings: Time that the server spent on all queries of the call.
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
    """A served model, and the limits of one request to it. The client splits larger calls by these limits.

    Attributes:
        name: Value for the argument `model`.
        space_id: Embedding space of its vectors.
        backend: Runtime of the model, such as "static".
        revision: Revision of the weights; empty if unknown.
        dimensions: Values for the argument `dimensions`, the model's own first.
        max_tokens: Tokens per text; longer texts are truncated or refused.
        max_texts: Texts per request. Here and below, 0 means that the server reports no limit.
        max_request_bytes: Bytes of UTF-8 text, or of vectors, per request.
        max_response_bytes: Bytes per response.
        max_pairs: Queries times candidates per comparison.
        languages: Languages of the training data, as BCP 47 tags; empty if unknown.
        has_roles: True if input_type changes the vector.
        truncations: Values for the argument `truncation`.
        license: License of the weights, as an SPDX expression.
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
    """Health of one model.

    Attributes:
        model: Name of the model.
        status: Serving status.
        detail: Description for people, one line; empty if the model is healthy.
        queued_texts: Texts of requests that wait for the model or that it computes now.
        embedded_texts: Texts embedded since the start of the server, cached ones included.
    """

    model: str
    status: ServingStatus
    detail: str
    queued_texts: int
    embedded_texts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """Health of the server.

    Attributes:
        status: The worst status of the models in `models`.
        version: Version of the server.
        uptime_s: Seconds since the start of the server.
        models: Health of each model, or of the requested model alone.
    """

    status: ServingStatus
    version: str
    uptime_s: float
    models: tuple[ModelHealth, ...]
