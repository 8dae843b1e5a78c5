"""The plans of comparisons: one Similarity where it fits the limits, else vectors first and then block by block."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from isogloss._arguments import (
    AllPairs,
    CompareArguments,
    EmbedArguments,
    Nearest,
    Pairwise,
    Shape,
    Side,
    Sides,
    TextSide,
    refusal,
)
from isogloss._messages import similarity_request
from isogloss._plans.blocks import VectorSides, fits, request_bytes
from isogloss._plans.embed import embed
from isogloss._plans.gather import Best, Block, Diagonal, Gatherer, Grid
from isogloss._plans.limits import KnownModels, Limits
from isogloss._plans.run import Call, Plan
from isogloss.results import Neighbors, PairScores, Scores, Timings, Vectors
from isogloss.results.comparisons import Comparison
from isogloss.results.embeddings import NO_TIME

Answer = TypeVar("Answer")


def similarity(known: KnownModels, arguments: CompareArguments, sides: Sides) -> Plan[Scores]:
    """Returns every query's score against every candidate; without candidates, the queries against themselves."""
    return _Comparing(known, arguments, AllPairs(), lambda: Grid(*sides.size)).compare(sides)


def pairwise(known: KnownModels, arguments: CompareArguments, sides: Sides) -> Plan[PairScores]:
    """Returns query i's score against candidate i; raises InvalidArgumentError where there are not as many of both."""
    queries, candidates = sides.size
    if queries != candidates:
        raise refusal("candidates", f"are {candidates} for {queries} queries", "UNEQUAL_SIDES")
    return _Comparing(known, arguments, Pairwise(), lambda: Diagonal(queries)).compare(sides)


def nearest(known: KnownModels, arguments: CompareArguments, shape: Nearest, sides: Sides) -> Plan[list[Neighbors]]:
    """Returns for each query the candidates nearest to it, best first, ties by lower row."""
    queries, candidates = sides.size
    texts = sides.candidates.texts if isinstance(sides.candidates, TextSide) else (None,) * candidates
    return _Comparing(known, arguments, shape, lambda: Best(queries, shape.k, texts)).compare(sides)


@dataclass(frozen=True, slots=True)
class _Embedded:
    """A side as vectors, and what embedding it told."""

    vectors: Vectors
    truncated: tuple[int, ...] = ()
    timings: Timings = NO_TIME


@dataclass(frozen=True, slots=True)
class _Comparing(Generic[Answer]):
    """A comparison of one shape. `new_gatherer` makes what puts its blocks together."""

    known: KnownModels
    arguments: CompareArguments
    shape: Shape
    new_gatherer: Callable[[], Gatherer[Answer]]

    def compare(self, sides: Sides) -> Plan[Answer]:
        """Returns the answer about `sides`, in as few requests as the limits allow."""
        sides.check()
        model, rows = self.arguments.model, max(sides.size)
        size = request_bytes(sides)
        answer = yield from self.known.within(model, rows, size, lambda limits: self._at_once(sides, limits))
        if answer is not None:
            return answer
        queries = yield from self._embedded("queries.texts.", sides.queries, sides.candidates)
        if sides.candidates is None:
            candidates = _Embedded(queries.vectors)
        else:
            candidates = yield from self._embedded("candidates.texts.", sides.candidates, queries.vectors)
        Sides(queries.vectors, candidates.vectors).check()
        by_blocks = partial(self._by_blocks, queries, candidates)
        return (yield from self.known.within(model, rows, size, by_blocks))

    def _at_once(self, sides: Sides, limits: Limits) -> Plan[Answer | None]:
        """Returns the answer to one request for everything; None where it would be too large."""
        # An empty side is too large for nobody: the server refuses it in its own words.
        if not fits(sides, self.shape, limits) and 0 not in sides.size:
            return None
        gatherer = self.new_gatherer()
        queries, candidates = sides.size
        part = yield from self._ask(gatherer, (slice(0, queries), slice(0, candidates)), sides)
        return gatherer.finished(_about([part], part.truncated_queries, part.truncated_candidates, part.timings))

    def _by_blocks(self, queries: _Embedded, candidates: _Embedded, limits: Limits) -> Plan[Answer]:
        gatherer = self.new_gatherer()
        sides = VectorSides(queries.vectors, candidates.vectors)
        parts: list[Comparison] = []
        for block in gatherer.blocks(*sides.block(self.shape, limits)):
            part = yield from self._ask(gatherer, block, sides.cut(*block))
            parts.append(part)
        timings = Timings.total([queries.timings, candidates.timings, *(part.timings for part in parts)])
        return gatherer.finished(_about(parts, queries.truncated, candidates.truncated, timings))

    def _ask(self, gatherer: Gatherer[Answer], block: Block, sides: Sides) -> Plan[Comparison]:
        request = similarity_request(self.arguments, self.shape, sides.queries, sides.candidates)
        response = yield Call("Similarity", request)
        return gatherer.add(block, response)

    def _embedded(self, path: str, side: Side, other: Side | None) -> Plan[_Embedded]:
        """Returns `side` as vectors of unit length, in the space and dimensions of `other` where that has them."""
        if isinstance(side, Vectors):
            return _Embedded(side)
        space_id, columns = (other.space_id, other.array.shape[1]) if isinstance(other, Vectors) else ("", 0)
        arguments = EmbedArguments(
            model=self.arguments.model,
            input_type=side.input_type,
            dimensions=self.arguments.dimensions or columns,
            truncation=self.arguments.truncation,
            priority=self.arguments.priority,
            space_id=space_id,
        )
        found = yield from embed(self.known, arguments, side, path)
        return _Embedded(Vectors(found.vectors, found.space_id), found.truncated_rows, found.timings)


def _about(
    parts: Sequence[Comparison],
    truncated_queries: tuple[int, ...],
    truncated_candidates: tuple[int, ...],
    timings: Timings,
) -> dict[str, Any]:
    """Returns the attributes of the whole's Comparison."""
    return {
        "model": parts[0].model,
        "space_id": parts[0].space_id,
        "truncated_queries": truncated_queries,
        "truncated_candidates": truncated_candidates,
        "timings": timings,
    }
