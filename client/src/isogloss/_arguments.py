"""Checks arguments and returns frozen values. Limits of a server are checked by the server."""

import math
import operator
from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np

from isogloss.enums import ElementType, InputType, Metric, Priority, Truncation
from isogloss.errors import FieldViolation, InvalidArgumentError, SpaceMismatchError
from isogloss.results import Embeddings, Vectors
from isogloss.wire.sizes import rankings_bytes, scores_bytes

YEAR_S = 365 * 86_400.0  # a deadline much further away is past for gRPC, whose clock wraps
LARGEST_UINT32 = 2**32 - 1
LONGEST_S = 1e7  # 115 days; more overflows what waits are counted in


Word = TypeVar("Word", bound=StrEnum)


def word(kind: type[Word], name: str, value: str) -> Word:
    """Returns the member of `kind` that `value` is or spells; raises InvalidArgumentError, reason UNKNOWN_ENUM."""
    try:
        return kind(value)
    except ValueError:
        raise refusal(name, f"must be one of {', '.join(kind)}; not {value!r}", "UNKNOWN_ENUM") from None


def string(name: str, value: str) -> str:
    """Returns `value`; raises InvalidArgumentError where it is no str, which protobuf would refuse without a name."""
    if not isinstance(value, str):
        raise refusal(name, f"must be a str, not {type_name(value)}", "BAD_TYPE")
    utf8_bytes(name, value)
    return value


def utf8_bytes(name: str, text: str) -> int:
    """Returns how many bytes a text takes; raises InvalidArgumentError, reason BAD_TEXT, where UTF-8 cannot write it.

    The text itself is not quoted: errors end in logs.
    """
    if not isinstance(text, str):
        raise refusal(name, f"must be a str, not {type_name(text)}", "BAD_TEXT")
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise refusal(name, "has half a surrogate pair, which is no character", "BAD_TEXT") from None


def count(name: str, value: int, reason: str, *, least: int = 0) -> int:
    """Returns `value` as an int that fits the wire; raises InvalidArgumentError with `reason` where it does not."""
    try:
        number = operator.index(value)
    except TypeError:
        raise refusal(name, f"must be a whole number, not {type_name(value)}", reason) from None
    if not least <= number <= LARGEST_UINT32:
        raise refusal(name, f"must be from {least} to {LARGEST_UINT32}, not {number}", reason)
    return number


def seconds(name: str, value: Any, default: float) -> float:
    """Returns the seconds that `value` stands for; raises InvalidArgumentError unless they are finite and above 0."""
    if value is None:
        value = default
    if not isinstance(value, int | float | np.number) or not 0 < value < math.inf:
        raise refusal(name, f"must be a number of seconds above 0, not {value!r}", "BAD_TIMEOUT")
    return min(float(value), YEAR_S)


def refusal(name: str, description: str, reason: str) -> InvalidArgumentError:
    """Returns the error for an argument that is wrong whatever a server says."""
    violations = (FieldViolation(name, description),)
    return InvalidArgumentError(f"{name} {description}", reason=reason, violations=violations)


def type_name(value: object) -> str:
    """Returns the name of the value's class."""
    return type(value).__name__


GivenTexts = Iterable[str]


GivenSide = GivenTexts | Embeddings | Vectors


@dataclass(frozen=True, slots=True)
class TextSide:
    """Texts of one kind, and how many bytes of UTF-8 each takes."""

    texts: tuple[str, ...]
    sizes: tuple[int, ...]
    input_type: InputType

    def __len__(self) -> int:
        return len(self.texts)


Side = TextSide | Vectors


@dataclass(frozen=True, slots=True)
class Sides:
    """What is compared; without candidates, the queries with themselves."""

    queries: Side
    candidates: Side | None

    @property
    def size(self) -> tuple[int, int]:
        """How many queries and candidates there are."""
        return len(self.queries), len(self.queries if self.candidates is None else self.candidates)

    def check(self) -> None:
        """Raises SpaceMismatchError or InvalidArgumentError where two sides of vectors cannot be compared."""
        queries, candidates = self.queries, self.candidates
        if not isinstance(queries, Vectors) or not isinstance(candidates, Vectors):
            return
        if queries.space_id != candidates.space_id:
            spaces = f"{queries.space_id!r} and {candidates.space_id!r}"
            raise SpaceMismatchError(f"vectors of two spaces cannot be compared: {spaces}", reason="SPACE_MISMATCH")
        columns, others = queries.array.shape[1], candidates.array.shape[1]
        if columns != others:
            raise refusal("candidates", f"have {others} dimensions, the queries {columns}", "DIMENSION_MISMATCH")


def sides(queries: GivenSide, candidates: GivenSide | None, query_type: str, candidate_type: str) -> Sides:
    """Returns the two sides of a comparison, checked as far as one side alone can be."""
    first = _side("queries", queries, word(InputType, "query_type", query_type))
    kind = word(InputType, "candidate_type", candidate_type)
    return Sides(first, None if candidates is None else _side("candidates", candidates, kind))


def both_sides(queries: GivenSide, candidates: GivenSide, query_type: str, candidate_type: str) -> Sides:
    """Returns two sides of which neither may be absent: a None by mistake would compare the queries with themselves."""
    if candidates is None:
        raise refusal("candidates", "must be a list of str or vectors, not None", "NOT_A_LIST")
    return sides(queries, candidates, query_type, candidate_type)


def texts(name: str, value: GivenTexts, input_type: InputType) -> TextSide:
    """Returns the texts that a caller gave as the argument `name`.

    Raises:
        InvalidArgumentError: `value` is no list (reason NOT_A_LIST: a bare str would be taken for its characters),
            or an item is no str, or has half a surrogate pair, which UTF-8 cannot write (reason BAD_TEXT).
    """
    no_list = refusal(name, f"must be a list of str, not a single {type_name(value)}", "NOT_A_LIST")
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise no_list
    try:
        items = tuple(iter(value))
    except TypeError:  # an array of no dimension says that it can be iterated
        raise no_list from None
    sizes = tuple(utf8_bytes(f"{name}[{row}]", item) for row, item in enumerate(items))
    return TextSide(items, sizes, input_type)


def _side(name: str, value: GivenSide, input_type: InputType) -> Side:
    if isinstance(value, Embeddings):
        # Vectors go out as float32 whatever they came as: the values are the same.
        return Vectors(value.vectors, value.space_id)
    if isinstance(value, Vectors):
        string(f"{name}.space_id", value.space_id)
        return value
    return texts(name, value, input_type)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedArguments:
    """The arguments of an embed beside its texts."""

    model: str
    input_type: InputType
    dimensions: int = 0
    element_type: ElementType = ElementType.FLOAT32
    truncation: Truncation | None = None
    normalize: bool = True
    priority: Priority = Priority.INTERACTIVE
    allow_partial: bool = False
    space_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareArguments:
    """The arguments that every comparison has beside its two sides."""

    model: str
    metric: Metric
    dimensions: int
    truncation: Truncation | None
    priority: Priority


@dataclass(frozen=True, slots=True)
class AllPairs:
    """Every query against every candidate."""

    def pairs(self, queries: int, candidates: int) -> int:
        """Returns how many scores are computed."""
        return queries * candidates

    def response_bytes(self, queries: int, candidates: int) -> int:
        """Returns the most bytes that the answer can take."""
        return scores_bytes(queries * candidates)


@dataclass(frozen=True, slots=True)
class Pairwise:
    """Query i against candidate i alone."""

    def pairs(self, queries: int, _candidates: int) -> int:
        """Returns how many scores are computed."""
        return queries

    def response_bytes(self, queries: int, _candidates: int) -> int:
        """Returns the most bytes that the answer can take."""
        return scores_bytes(queries)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The best k candidates of each query, of those that score at least min_score."""

    k: int
    min_score: float | None

    def pairs(self, queries: int, candidates: int) -> int:
        """Returns how many scores are computed."""
        return queries * candidates

    def response_bytes(self, queries: int, candidates: int) -> int:
        """Returns the most bytes that the answer can take."""
        return rankings_bytes(queries, min(self.k, candidates))


Shape = AllPairs | Pairwise | Nearest


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
    """Returns the arguments of an embed, checked; raises InvalidArgumentError, which names the first wrong one."""
    return EmbedArguments(
        model=string("model", model),
        input_type=word(InputType, "input_type", input_type),
        dimensions=count("dimensions", dimensions, "UNSUPPORTED_DIMENSIONS"),
        element_type=word(ElementType, "element_type", element_type),
        truncation=_truncation(truncation),
        normalize=bool(normalize),
        priority=word(Priority, "priority", priority),
        allow_partial=bool(allow_partial),
        space_id=string("space_id", space_id),
    )


def compare_arguments(
    *, model: str, metric: str, dimensions: int, truncation: str | None, priority: str
) -> CompareArguments:
    """Returns the arguments of a comparison, checked; raises InvalidArgumentError, which names the first wrong one."""
    return CompareArguments(
        model=string("model", model),
        metric=word(Metric, "metric", metric),
        dimensions=count("dimensions", dimensions, "UNSUPPORTED_DIMENSIONS"),
        truncation=_truncation(truncation),
        priority=word(Priority, "priority", priority),
    )


def nearest_shape(k: int, min_score: float | None) -> Nearest:
    """Returns the shape of a nearest; raises InvalidArgumentError where k is below 1 (reason BAD_K)."""
    if min_score is not None and not isinstance(min_score, int | float | np.number):
        raise refusal("min_score", f"must be a number, not {type_name(min_score)}", "BAD_TYPE")
    try:
        score = None if min_score is None else float(min_score)
    except OverflowError:
        raise refusal("min_score", "is beyond all numbers that a score can be", "BAD_MIN_SCORE") from None
    return Nearest(count("k", k, "BAD_K", least=1), score)


def _truncation(given: str | None) -> Truncation | None:
    """Returns the member of Truncation; None leaves it to the server, which knows what the model offers."""
    return None if given is None else word(Truncation, "truncation", given)


AnyTexts = Iterable[str] | AsyncIterable[str]


Source = TypeVar("Source", bound=AnyTexts)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkArguments:
    """How an embed of any size is cut and sent.

    Attributes:
        chunk_texts: The most texts of a chunk.
        window_chunks: The most chunks that are held at a time, from reading their texts to giving them out.
        patience_s: Seconds of waiting without any answer before giving up.
    """

    chunk_texts: int
    window_chunks: int
    patience_s: float


def bulk_arguments(*, chunk_texts: int, window_chunks: int, patience_s: float) -> BulkArguments:
    """Returns the arguments, checked; raises InvalidArgumentError, which names the first wrong one."""
    return BulkArguments(
        chunk_texts=count("chunk_texts", chunk_texts, "BAD_CHUNK", least=1),
        window_chunks=count("window_chunks", window_chunks, "BAD_WINDOW", least=1),
        patience_s=min(seconds("patience_s", patience_s, LONGEST_S), LONGEST_S),
    )


def many_texts(value: Source, *kinds: type) -> Source:
    """Returns `value`; raises InvalidArgumentError, reason NOT_A_LIST, unless it is an iterable of one of `kinds`."""
    if isinstance(value, str | bytes) or not isinstance(value, kinds):
        raise refusal("texts", f"must be an iterable of str, not a single {type_name(value)}", "NOT_A_LIST")
    return value
