"""The arguments of each kind of call, as frozen values."""

from dataclasses import dataclass

import numpy as np

from isogloss._arguments.checks import count, refusal, string, type_name, word
from isogloss.enums import ElementType, InputType, Metric, Priority, Truncation


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
        return 4 * queries * candidates


@dataclass(frozen=True, slots=True)
class Pairwise:
    """Query i against candidate i alone."""

    def pairs(self, queries: int, _candidates: int) -> int:
        """Returns how many scores are computed."""
        return queries

    def response_bytes(self, queries: int, _candidates: int) -> int:
        """Returns the most bytes that the answer can take."""
        return 4 * queries


@dataclass(frozen=True, slots=True)
class Nearest:
    """The best k candidates of each query, of those that score at least min_score."""

    k: int
    min_score: float | None

    def pairs(self, queries: int, candidates: int) -> int:
        """Returns how many scores are computed."""
        return queries * candidates

    def response_bytes(self, queries: int, candidates: int) -> int:
        """Returns the most bytes that the answer can take.

        A row of up to 5 and a score of 4 for each neighbour, and 20 for each query that they are listed under.
        """
        return queries * (20 + 9 * min(self.k, candidates))


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
