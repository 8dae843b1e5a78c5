"""Texts, and the two sides of a comparison, as callers give them."""

from collections.abc import Iterable
from dataclasses import dataclass

from isogloss._arguments.checks import refusal, string, type_name, utf8_bytes, word
from isogloss.enums import InputType
from isogloss.errors import SpaceMismatchError
from isogloss.results import Embeddings, Vectors

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
