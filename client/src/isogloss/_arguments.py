"""Validates the arguments of calls and returns them as frozen values. The server's own limits are checked elsewhere."""

import math
import operator
from collections.abc import AsyncIterable, Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from isogloss.enums import ElementType, InputType, Metric, Priority, Truncation
from isogloss.errors import FieldViolation, InvalidArgumentError, SpaceMismatchError
from isogloss.results import Embeddings, Vectors
from isogloss.wire.sizes import rankings_bytes, scores_bytes

MAX_TIMEOUT_S = 365 * 86_400.0  # gRPC's clock overflows for deadlines much further away, which then count as past
MAX_PATIENCE_S = 1e7  # 115 days; the waits of locks and event loops overflow for larger values
MAX_UINT32 = 2**32 - 1
MAX_SHOWN = 40  # characters of a value in an error

Member = TypeVar("Member", bound=StrEnum)
Source = TypeVar("Source", bound=Iterable[str] | AsyncIterable[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedArguments:
    """The arguments of an embed except its texts."""

    model: str
    input_type: InputType
    dimensions: int = 0
    element_type: ElementType = ElementType.FLOAT32
    truncation: Truncation | None = None
    normalize: bool = True
    priority: Priority = Priority.INTERACTIVE
    allow_partial: bool = False
    space_id: str = ""


def embed_arguments(
    *,
    model: str,
    input_type: str,
    dimensions: int,
    element_type: str,
    truncation: str | None,
    normalize: bool,
    priority: str,
    allow_partial: bool,
    space_id: str,
) -> EmbedArguments:
    """Returns the validated arguments of an embed; raises InvalidArgumentError for the first invalid one."""
    return EmbedArguments(
        model=string("model", model),
        input_type=member(InputType, "input_type", input_type),
        dimensions=whole_number("dimensions", dimensions, "UNSUPPORTED_DIMENSIONS"),
        element_type=member(ElementType, "element_type", element_type),
        truncation=_truncation(truncation),
        normalize=bool(normalize),
        priority=member(Priority, "priority", priority),
        allow_partial=bool(allow_partial),
        space_id=string("space_id", space_id),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkArguments:
    """The arguments of an embed_many that bound its chunks and its retries.

    Attributes:
        chunk_texts: Maximum number of texts per chunk.
        window_chunks: Maximum number of chunks held in memory, from reading their texts to yielding them.
        patience_s: Retry budget: maximum seconds of waiting without a response.
    """

    chunk_texts: int
    window_chunks: int
    patience_s: float


def bulk_arguments(*, chunk_texts: int, window_chunks: int, patience_s: float) -> BulkArguments:
    """Returns the validated arguments; raises InvalidArgumentError for the first invalid one."""
    return BulkArguments(
        chunk_texts=whole_number("chunk_texts", chunk_texts, "BAD_CHUNK", least=1),
        window_chunks=whole_number("window_chunks", window_chunks, "BAD_WINDOW", least=1),
        patience_s=min(seconds("patience_s", patience_s, MAX_PATIENCE_S), MAX_PATIENCE_S),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareArguments:
    """The arguments that all comparisons have in common, except the two sides."""

    model: str
    metric: Metric
    dimensions: int
    truncation: Truncation | None
    priority: Priority


def compare_arguments(
    *, model: str, metric: str, dimensions: int, truncation: str | None, priority: str
) -> CompareArguments:
    """Returns the validated arguments of a comparison; raises InvalidArgumentError for the first invalid one."""
    return CompareArguments(
        model=string("model", model),
        metric=member(Metric, "metric", metric),
        dimensions=whole_number("dimensions", dimensions, "UNSUPPORTED_DIMENSIONS"),
        truncation=_truncation(truncation),
        priority=member(Priority, "priority", priority),
    )


@dataclass(frozen=True, slots=True)
class AllPairs:
    """Shape of a comparison: each query with each candidate."""

    def pairs(self, queries: int, candidates: int) -> int:
        """Returns the number of scores to compute."""
        return queries * candidates

    def response_bytes(self, queries: int, candidates: int) -> int:
        """Returns an upper bound of the response's size in bytes."""
        return scores_bytes(queries * candidates)


@dataclass(frozen=True, slots=True)
class Pairwise:
    """Shape of a comparison: query i with candidate i."""

    def pairs(self, queries: int, _candidates: int) -> int:
        """Returns the number of scores to compute."""
        return queries

    def response_bytes(self, queries: int, _candidates: int) -> int:
        """Returns an upper bound of the response's size in bytes."""
        return scores_bytes(queries)


@dataclass(frozen=True, slots=True)
class Nearest:
    """Shape of a comparison: for each query the best k candidates that score at least min_score."""

    k: int
    min_score: float | None

    def pairs(self, queries: int, candidates: int) -> int:
        """Returns the number of scores to compute."""
        return queries * candidates

    def response_bytes(self, queries: int, candidates: int) -> int:
        """Returns an upper bound of the response's size in bytes."""
        return rankings_bytes(queries, min(self.k, candidates))


Shape = AllPairs | Pairwise | Nearest


def nearest_shape(k: int, min_score: float | None) -> Nearest:
    """Returns the validated shape; raises InvalidArgumentError if k is below 1 (reason BAD_K)."""
    if min_score is not None and not isinstance(min_score, int | float | np.number):
        raise invalid_argument("min_score", f"must be a number, not {type_name(min_score)}", "BAD_TYPE")
    try:
        score = None if min_score is None else float(min_score)
    except OverflowError:
        raise invalid_argument("min_score", "exceeds the range of floating-point numbers", "BAD_MIN_SCORE") from None
    return Nearest(whole_number("k", k, "BAD_K", least=1), score)


@dataclass(frozen=True, slots=True)
class TextSide:
    """Texts with the same input type, and the size of each in bytes of UTF-8."""

    texts: tuple[str, ...] = field(repr=False)
    sizes: tuple[int, ...]
    input_type: InputType

    def __len__(self) -> int:
        return len(self.texts)


Side = TextSide | Vectors


@dataclass(frozen=True, slots=True)
class Sides:
    """The two sides of a comparison; candidates None compares the queries with each other."""

    queries: Side
    candidates: Side | None

    @property
    def size(self) -> tuple[int, int]:
        """Number of queries and number of candidates."""
        return len(self.queries), len(self.queries if self.candidates is None else self.candidates)

    def check(self) -> None:
        """Checks that two sides of vectors have the same space and dimensions.

        Raises:
            SpaceMismatchError: The spaces differ.
            InvalidArgumentError: The dimensions differ (reason DIMENSION_MISMATCH).
        """
        queries, candidates = self.queries, self.candidates
        if not isinstance(queries, Vectors) or not isinstance(candidates, Vectors):
            return
        if queries.space_id != candidates.space_id:
            spaces = f"{queries.space_id!r} and {candidates.space_id!r}"
            message = f"vectors of two spaces cannot be compared: {spaces}; embed both sides with the same model"
            raise SpaceMismatchError(message, reason="SPACE_MISMATCH")
        columns, others = queries.array.shape[1], candidates.array.shape[1]
        if columns != others:
            message = f"have {others} dimensions, but the queries have {columns}"
            raise invalid_argument("candidates", message, "DIMENSION_MISMATCH")


SideArgument = Iterable[str] | Embeddings | Vectors


def sides(queries: SideArgument, candidates: SideArgument | None, query_type: str, candidate_type: str) -> Sides:
    """Returns the two sides of a comparison, each validated by itself."""
    first = _side("queries", queries, member(InputType, "query_type", query_type))
    kind = member(InputType, "candidate_type", candidate_type)
    return Sides(first, None if candidates is None else _side("candidates", candidates, kind))


def both_sides(queries: SideArgument, candidates: SideArgument, query_type: str, candidate_type: str) -> Sides:
    """Returns the sides of a comparison that requires candidates; raises InvalidArgumentError for None.

    A request without candidates compares the queries with each other, so an accidental None would change the result.
    """
    if candidates is None:
        raise invalid_argument("candidates", "must be a list of str or vectors, not None", "NOT_A_LIST")
    return sides(queries, candidates, query_type, candidate_type)


def texts(name: str, value: Iterable[str], input_type: InputType) -> TextSide:
    """Returns the texts of the argument `name`.

    Raises:
        InvalidArgumentError: `text_source` refuses `value` (reason NOT_A_LIST), or an item is not a str or contains an
            unpaired surrogate (reason BAD_TEXT).
    """
    try:
        iterator = iter(text_source(name, value, Iterable))
    except TypeError:  # of a class that has __iter__ only to refuse
        raise invalid_argument(name, f"must be a list of str, not {type_name(value)}", "NOT_A_LIST") from None
    items = tuple(iterator)
    sizes = tuple(utf8_bytes(f"{name}[{row}]", item) for row, item in enumerate(items))
    return TextSide(items, sizes, input_type)


def text_source(name: str, value: Source, *kinds: type) -> Source:
    """Returns `value`; raises InvalidArgumentError, reason NOT_A_LIST, unless its items are those of a list of texts.

    Iteration over a str yields characters, over a mapping its keys, over a table its column names, and over a set its
    items in any order.

    Args:
        name: The argument.
        value: Its value.
        kinds: Iterable, AsyncIterable or both.
    """
    kind, shape = type_name(value), getattr(value, "shape", None)
    one_dimension = isinstance(shape, tuple) and len(shape) == 1
    if isinstance(value, str | bytes | bytearray | memoryview):
        problem = f"must be a list of str, not a single {kind}; write [text]"
    elif not isinstance(value, kinds):
        problem = f"must be a list of str, not {kind}"
    elif isinstance(shape, tuple) and not one_dimension:
        problem = f"must have one dimension, such as a column of texts; this {kind} has {len(shape)}"
    elif isinstance(value, Mapping) or (callable(getattr(value, "keys", None)) and not one_dimension):
        problem = f"must be a list of str, not {kind}, whose items are its keys; select the texts, as with .values()"
    elif isinstance(value, AbstractSet) and not isinstance(value, KeysView | Sequence):
        problem = f"must be a list of str, not {kind}, whose items have no order; write sorted(texts)"
    else:
        return value
    raise invalid_argument(name, problem, "NOT_A_LIST")


def member(kind: type[Member], name: str, value: str) -> Member:
    """Returns the member of `kind` with the given value; raises InvalidArgumentError, reason UNKNOWN_ENUM."""
    try:
        return kind(value)
    except ValueError:
        raise invalid_argument(name, f"must be one of {', '.join(kind)}, not {shown(value)}", "UNKNOWN_ENUM") from None


def string(name: str, value: str) -> str:
    """Returns `value`; raises InvalidArgumentError if it is not a str (reason BAD_TYPE) or not valid UTF-8."""
    if not isinstance(value, str):
        raise invalid_argument(name, f"must be a str, not {type_name(value)}", "BAD_TYPE")
    utf8_bytes(name, value)
    return value


def utf8_bytes(name: str, text: str) -> int:
    """Returns the size of `text` in bytes of UTF-8; raises InvalidArgumentError (BAD_TEXT) if UTF-8 cannot encode it.

    The message does not quote the text, because errors are logged.
    """
    if not isinstance(text, str):
        raise invalid_argument(name, f"must be a str, not {type_name(text)}", "BAD_TEXT")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        description = f"is not valid Unicode: character {error.start} is an unpaired surrogate; replace or remove it"
        raise invalid_argument(name, description, "BAD_TEXT") from None


def whole_number(name: str, value: int, reason: str, *, least: int = 0) -> int:
    """Returns `value` as an int between `least` and 2**32 - 1; raises InvalidArgumentError with `reason` otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise invalid_argument(name, f"must be a whole number, not {type_name(value)}", reason) from None
    if not least <= number <= MAX_UINT32:
        raise invalid_argument(name, f"must be between {least} and {MAX_UINT32}, not {shown(number)}", reason)
    return number


def seconds(name: str, value: Any, default: float) -> float:
    """Returns `value`, or `default` for None, as seconds; raises InvalidArgumentError unless finite and above 0."""
    if value is None:
        value = default
    if not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        description = f"must be a finite number of seconds above 0, not {shown(value)}"
        raise invalid_argument(name, description, "BAD_TIMEOUT")
    return float(min(value, MAX_TIMEOUT_S))


def invalid_argument(name: str, description: str, reason: str) -> InvalidArgumentError:
    """Returns the error for an argument that is invalid for every server."""
    violations = (FieldViolation(name, description),)
    return InvalidArgumentError(f"{name} {description}", reason=reason, violations=violations)


def type_name(value: object) -> str:
    """Returns the name of the value's class."""
    return type(value).__name__


def shown(value: object) -> str:
    """Returns an invalid value for an error: numbers and short words as they are, others by their type."""
    if isinstance(value, str):  # the repr of a member of an enum is <Truncation.END: 'end'>
        return repr(str(value)) if len(value) <= MAX_SHOWN else f"a str of {len(value)} characters"
    if isinstance(value, int) and abs(value) >= 10**MAX_SHOWN:  # str() fails for the longest
        return f"a number of more than {MAX_SHOWN} digits"
    return str(value) if isinstance(value, int | float | np.number) else type_name(value)


def _side(name: str, value: SideArgument, input_type: InputType) -> Side:
    if isinstance(value, Embeddings):
        # Sent as float32 for every element type; the values are the same.
        return Vectors(value.vectors, value.space_id)
    if isinstance(value, Vectors):
        string(f"{name}.space_id", value.space_id)
        return value
    return texts(name, value, input_type)


def _truncation(value: str | None) -> Truncation | None:
    """Returns the member of Truncation; None leaves the choice to the server, because support differs by model."""
    return None if value is None else member(Truncation, "truncation", value)
