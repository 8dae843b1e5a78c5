"""Plans for similarity, pairwise and nearest: one Similarity request, or embeds and then Similarity block by block."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

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
    invalid_argument,
)
from isogloss._embed import Call, KnownLimits, Limits, Plan, Result, embed
from isogloss._messages import NeighborLists, Ranking, read_similarity, similarity_request
from isogloss.errors import FieldViolation, IsoglossError, with_row_offset
from isogloss.results import NO_TIME, Comparison, Neighbors, PairScores, Scores, Timings, Vectors, read_only

Result_co = TypeVar("Result_co", covariant=True)
Block = tuple[slice, slice]  # rows of queries, rows of candidates

# Fields of a SimilarityRequest -> arguments of the client's methods.
ARGUMENT_NAMES = (
    (re.compile(r"\b(queries|candidates)\.texts\.texts\b"), r"\1"),
    (re.compile(r"\bqueries\.texts\.input_type\b"), "query_type"),
    (re.compile(r"\bcandidates\.texts\.input_type\b"), "candidate_type"),
    (re.compile(r"\b(queries|candidates)\.vectors\.space_id\b"), r"\1.space_id"),
    (re.compile(r"\b(queries|candidates)\.vectors(\.vectors)?\b"), r"\1"),
    (re.compile(r"\bnearest\.(k|min_score)\b"), r"\1"),
)
ONE_QUERY = ((re.compile(r"\bqueries\[0\]|^queries$"), "query"),)


def similarity(known: KnownLimits, arguments: CompareArguments, sides: Sides) -> Plan[Scores]:
    """Computes the score of each query with each candidate; without candidates, of each query with each query."""
    return _Comparer(known, arguments, AllPairs(), lambda: ScoreMatrix(*sides.size)).compare(sides)


def pairwise(known: KnownLimits, arguments: CompareArguments, sides: Sides) -> Plan[PairScores]:
    """Computes the score of query i with candidate i.

    Raises:
        InvalidArgumentError: The sides differ in length (reason UNEQUAL_SIDES).
    """
    queries, candidates = sides.size
    if queries != candidates:
        description = f"has {candidates} rows, but queries has {queries}; pairs need the same number"
        raise invalid_argument("candidates", description, "UNEQUAL_SIDES")
    return _Comparer(known, arguments, Pairwise(), lambda: PairList(queries)).compare(sides)


def nearest(known: KnownLimits, arguments: CompareArguments, shape: Nearest, sides: Sides) -> Plan[list[Neighbors]]:
    """Finds the candidates nearest to each query, best first, ties ordered by row."""
    queries, candidates = sides.size
    texts = sides.candidates.texts if isinstance(sides.candidates, TextSide) else (None,) * candidates
    return _Comparer(known, arguments, shape, lambda: TopCandidates(queries, shape.k, texts)).compare(sides)


def nearest_to_one(known: KnownLimits, arguments: CompareArguments, shape: Nearest, sides: Sides) -> Plan[Neighbors]:
    """Finds the candidates nearest to a single query; errors name the argument `query`."""
    try:
        [neighbors] = yield from nearest(known, arguments, shape, sides)
    except IsoglossError as error:
        raise _renamed(error, ONE_QUERY) from None
    return neighbors


@dataclass(frozen=True, slots=True)
class _EmbeddedSide:
    """One side as vectors, with the truncated rows and the timings of its embed."""

    vectors: Vectors
    truncated: tuple[int, ...] = ()
    timings: Timings = NO_TIME


@dataclass(frozen=True, slots=True)
class _Comparer(Generic[Result]):
    """Runs a comparison of one shape. `new_collector` creates an empty collector for the scores."""

    known: KnownLimits
    arguments: CompareArguments
    shape: Shape
    new_collector: Callable[[], Collector[Result]]

    def compare(self, sides: Sides) -> Plan[Result]:
        """Compares `sides` in as few requests as the limits allow."""
        sides.check()
        model, rows = self.arguments.model, max(sides.size)
        size = request_bytes(sides)
        result = yield from self.known.run(model, rows, size, partial(self._in_one_request, sides))
        if result is not None:
            return result
        queries = yield from self._embed("queries", sides.queries, sides.candidates)
        if sides.candidates is None:
            candidates = replace(queries, timings=NO_TIME)
        else:
            candidates = yield from self._embed("candidates", sides.candidates, queries.vectors)
        Sides(queries.vectors, candidates.vectors).check()
        return (yield from self.known.run(model, rows, size, partial(self._in_blocks, queries, candidates)))

    def _in_one_request(self, sides: Sides, limits: Limits) -> Plan[Result | None]:
        """Compares `sides` in one request; returns None if it would exceed the limits."""
        # A comparison with an empty side is sent for every limit: the server refuses it.
        if not fits(sides, self.shape, limits) and 0 not in sides.size:
            return None
        collector = self.new_collector()
        queries, candidates = sides.size
        part = yield from self._compare_block(collector, (slice(0, queries), slice(0, candidates)), sides)
        attributes = _attributes([part], part.truncated_queries, part.truncated_candidates, part.timings)
        return collector.result(attributes)

    def _in_blocks(self, queries: _EmbeddedSide, candidates: _EmbeddedSide, limits: Limits) -> Plan[Result]:
        collector = self.new_collector()
        sides = VectorSides(queries.vectors, candidates.vectors)
        parts: list[Comparison] = []
        for block in collector.blocks(*sides.block_size(self.shape, limits)):
            part = yield from self._compare_block(collector, block, sides.block(*block))
            parts.append(part)
        timings = Timings.total([queries.timings, candidates.timings, *(part.timings for part in parts)])
        return collector.result(_attributes(parts, queries.truncated, candidates.truncated, timings))

    def _compare_block(self, collector: Collector[Result], block: Block, sides: Sides) -> Plan[Comparison]:
        request = similarity_request(self.arguments, self.shape, sides.queries, sides.candidates)
        try:
            response = yield Call("Similarity", request)
        except IsoglossError as error:
            renamed = with_row_offset(_renamed(error, ARGUMENT_NAMES), block[0].start, "queries")
            raise with_row_offset(renamed, block[1].start, "candidates") from None
        part = read_similarity(response, self.arguments, self.shape, sides)
        collector.add(block, part)
        return part

    def _embed(self, name: str, side: Side, other: Side | None) -> Plan[_EmbeddedSide]:
        """Returns `side` as vectors of unit length, in the space and dimensions of `other` if that has vectors."""
        if isinstance(side, Vectors):
            return _EmbeddedSide(side)
        space_id, columns = (other.space_id, other.array.shape[1]) if isinstance(other, Vectors) else ("", 0)
        arguments = EmbedArguments(
            model=self.arguments.model,
            input_type=side.input_type,
            dimensions=self.arguments.dimensions or columns,
            truncation=self.arguments.truncation,
            priority=self.arguments.priority,
            space_id=space_id,
        )
        result = yield from embed(self.known, arguments, side, name)
        return _EmbeddedSide(Vectors(result.vectors, result.space_id), result.truncated_rows, result.timings)


def _attributes(
    parts: Sequence[Comparison],
    truncated_queries: tuple[int, ...],
    truncated_candidates: tuple[int, ...],
    timings: Timings,
) -> dict[str, Any]:
    """Returns the attributes of Comparison for the result of the whole call."""
    return {
        "model": parts[0].model,
        "space_id": parts[0].space_id,
        "truncated_queries": truncated_queries,
        "truncated_candidates": truncated_candidates,
        "timings": timings,
    }


def _renamed(error: IsoglossError, names: Sequence[tuple[re.Pattern[str], str]]) -> IsoglossError:
    """Returns `error` with the names of arguments in its message and violations replaced by `names`."""

    def renamed(text: str) -> str:
        """Returns `text` with all names replaced."""
        for pattern, name in names:
            text = pattern.sub(name, text)
        return text

    violations = tuple(FieldViolation(renamed(v.field), renamed(v.description)) for v in error.violations)
    return error.replaced(renamed(error.message), violations=violations)


def fits(sides: Sides, shape: Shape, limits: Limits) -> bool:
    """Returns True if one request may hold both sides whole."""
    queries, candidates = sides.size
    present = [side for side in (sides.queries, sides.candidates) if side is not None]
    return (
        all(len(side) <= limits.max_texts for side in present if isinstance(side, TextSide))
        and request_bytes(sides) <= limits.max_request_bytes
        and shape.pairs(queries, candidates) <= limits.max_pairs
        and shape.response_bytes(queries, candidates) <= limits.max_response_bytes
    )


def request_bytes(sides: Sides) -> int:
    """Returns the bytes of texts and vectors in a comparison, counted as the server does for max_request_bytes."""
    return sum(_side_bytes(side) for side in (sides.queries, sides.candidates) if side is not None)


def _side_bytes(side: Side) -> int:
    return side.array.nbytes if isinstance(side, Vectors) else sum(side.sizes)


@dataclass(frozen=True, slots=True)
class VectorSides:
    """Two sides of vectors with the same space and dimensions, which can be split at any row."""

    queries: Vectors
    candidates: Vectors

    def block(self, queries: slice, candidates: slice) -> Sides:
        """Returns the given rows of both sides."""
        return Sides(_rows(self.queries, queries), _rows(self.candidates, candidates))

    def block_size(self, shape: Shape, limits: Limits) -> tuple[int, int]:
        """Returns the numbers of queries and candidates per request.

        Halves the longer side until the block fits: blocks close to a square send the fewest vectors per score.
        """
        height, width = len(self.queries), len(self.candidates)
        while height * width > 1 and not fits(self.block(slice(height), slice(width)), shape, limits):
            if height >= width:
                height = -(-height // 2)
            else:
                width = -(-width // 2)
        return height, width


def _rows(vectors: Vectors, rows: slice) -> Vectors:
    return Vectors(vectors.array[rows], vectors.space_id)


class Collector(Protocol[Result_co]):
    """Splits a comparison of one shape into blocks, and merges the responses."""

    def blocks(self, height: int, width: int) -> Iterator[Block]:
        """Yields blocks of at most `height` queries and `width` candidates that cover the comparison."""

    def add(self, block: Block, part: Any) -> None:
        """Merges the result of a block."""

    def result(self, attributes: dict[str, Any]) -> Result_co:
        """Returns the result of the whole call, read-only, with the given attributes of Comparison."""


class ScoreMatrix:
    """Collector for all pairs: scores float32 [q, c]."""

    def __init__(self, queries: int, candidates: int) -> None:
        self._values = np.zeros((queries, candidates), np.float32)

    def blocks(self, height: int, width: int) -> Iterator[Block]:
        """Yields blocks row by row."""
        return _grid(*self._values.shape, height, width)

    def add(self, block: Block, part: Scores) -> None:
        """Stores the scores of a block."""
        self._values[block] = part.values

    def result(self, attributes: dict[str, Any]) -> Scores:
        """Returns the scores."""
        return Scores(values=read_only(self._values), **attributes)


class PairList:
    """Collector for pairs: scores float32 [n]."""

    def __init__(self, pairs: int) -> None:
        self._values = np.zeros(pairs, np.float32)

    def blocks(self, height: int, width: int) -> Iterator[Block]:
        """Yields blocks along the diagonal."""
        return ((rows, rows) for rows in _slices(len(self._values), min(height, width)))

    def add(self, block: Block, part: Scores) -> None:
        """Stores the scores of a block."""
        self._values[block[0]] = part.values[0]

    def result(self, attributes: dict[str, Any]) -> PairScores:
        """Returns the scores."""
        return PairScores(values=read_only(self._values), **attributes)


class TopCandidates:
    """Collector for nearest: for each query the best k candidates of all blocks, ties ordered by row."""

    def __init__(self, queries: int, k: int, texts: Sequence[str | None]) -> None:
        self._k = k
        self._texts = texts  # of the candidates
        self._best: list[Ranking] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * queries

    def blocks(self, height: int, width: int) -> Iterator[Block]:
        """Yields blocks row by row."""
        return _grid(len(self._best), len(self._texts), height, width)

    def add(self, block: Block, part: NeighborLists) -> None:
        """Merges the neighbours of a block into the best so far."""
        queries, candidates = block
        for query, (rows, scores) in enumerate(part.lists, start=queries.start):
            self._best[query] = self._merged(self._best[query], (rows + candidates.start, scores))

    def result(self, attributes: dict[str, Any]) -> list[Neighbors]:
        """Returns the neighbours of each query."""
        truncated = set(attributes.pop("truncated_queries"))
        return [
            Neighbors(
                rows=read_only(rows),
                scores=read_only(scores),
                texts=tuple(self._texts[row] for row in rows),
                query_truncated=query in truncated,
                **attributes,
            )
            for query, (rows, scores) in enumerate(self._best)
        ]

    def _merged(self, one: Ranking, other: Ranking) -> Ranking:
        rows, scores = np.concatenate([one[0], other[0]]), np.concatenate([one[1], other[1]])
        order = np.lexsort((rows, -scores))[: self._k]
        return rows[order], scores[order]


def _grid(queries: int, candidates: int, height: int, width: int) -> Iterator[Block]:
    return ((rows, columns) for rows in _slices(queries, height) for columns in _slices(candidates, width))


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
