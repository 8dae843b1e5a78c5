"""Plans of comparisons: one Similarity if it fits the limits, else vectors first and then block by block."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

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
from isogloss._embed import Call, KnownModels, Limits, Plan, embed
from isogloss._messages import NeighborLists, read_nearest, read_scores, similarity_request
from isogloss.results import NO_TIME, Comparison, Neighbors, PairScores, Scores, Timings, Vectors, read_only


def fits(sides: Sides, shape: Shape, limits: Limits) -> bool:
    """Says whether one request may hold both sides whole."""
    queries, candidates = sides.size
    present = [side for side in (sides.queries, sides.candidates) if side is not None]
    return (
        all(len(side) <= limits.max_texts for side in present if isinstance(side, TextSide))
        and request_bytes(sides) <= limits.max_request_bytes
        and shape.pairs(queries, candidates) <= limits.max_pairs
        and shape.response_bytes(queries, candidates) <= limits.max_response_bytes
    )


@dataclass(frozen=True, slots=True)
class VectorSides:
    """Both sides as vectors, of one space and one length, which may be cut anywhere."""

    queries: Vectors
    candidates: Vectors

    def cut(self, queries: slice, candidates: slice) -> Sides:
        """Returns a block of the comparison."""
        return Sides(_rows(self.queries, queries), _rows(self.candidates, candidates))

    def block(self, shape: Shape, limits: Limits) -> tuple[int, int]:
        """Returns how many queries and candidates one request may hold: near to a square, which sends the least."""
        height, width = len(self.queries), len(self.candidates)
        while height * width > 1 and not fits(self.cut(slice(height), slice(width)), shape, limits):
            if height >= width:
                height = -(-height // 2)
            else:
                width = -(-width // 2)
        return height, width


def request_bytes(sides: Sides) -> int:
    """Returns the bytes of texts and vectors of a comparison, as the server counts them."""
    return sum(_bytes(side) for side in (sides.queries, sides.candidates) if side is not None)


def _bytes(side: Side) -> int:
    return side.array.nbytes if isinstance(side, Vectors) else sum(side.sizes)


def _rows(vectors: Vectors, rows: slice) -> Vectors:
    return Vectors(vectors.array[rows], vectors.space_id)


Answer_co = TypeVar("Answer_co", covariant=True)


Block = tuple[slice, slice]  # rows of queries, rows of candidates


class Gatherer(Protocol[Answer_co]):
    """Knows how a comparison of one shape is cut into blocks, and puts their answers together."""

    def blocks(self, height: int, width: int) -> Iterator[Block]:
        """Yields the blocks of at most `height` queries and `width` candidates, which cover the comparison."""

    def add(self, block: Block, response: Any) -> Comparison:
        """Takes in the response to a block, and returns what it tells beside its scores."""

    def finished(self, about: dict[str, Any]) -> Answer_co:
        """Returns the result of the whole, read-only; `about` are the attributes of its Comparison."""


class Grid:
    """All pairs: scores float32 [q, c]."""

    def __init__(self, queries: int, candidates: int) -> None:
        self._values = np.zeros((queries, candidates), np.float32)

    def blocks(self, height: int, width: int) -> Iterator[Block]:
        """Yields blocks row by row."""
        return _grid(*self._values.shape, height, width)

    def add(self, block: Block, response: Any) -> Comparison:
        """Puts a block's scores in their place."""
        here = self._values[block]
        part = read_scores(response, *here.shape)
        here[:] = part.values
        return part

    def finished(self, about: dict[str, Any]) -> Scores:
        """Returns the scores."""
        return Scores(values=read_only(self._values), **about)


class Diagonal:
    """Pairs: scores float32 [n]."""

    def __init__(self, pairs: int) -> None:
        self._values = np.zeros(pairs, np.float32)

    def blocks(self, height: int, width: int) -> Iterator[Block]:
        """Yields blocks along the diagonal."""
        rows = _slices(len(self._values), min(height, width))
        return ((these, these) for these in rows)

    def add(self, block: Block, response: Any) -> Comparison:
        """Puts a block's scores in their place."""
        here = self._values[block[0]]
        part = read_scores(response, 1, len(here))
        here[:] = part.values[0]
        return part

    def finished(self, about: dict[str, Any]) -> PairScores:
        """Returns the scores."""
        return PairScores(values=read_only(self._values), **about)


Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]  # candidate rows and scores, best first


class Best:
    """Nearest: for each query the best k candidates of all blocks, ties by lower row."""

    def __init__(self, queries: int, k: int, texts: Sequence[str | None]) -> None:
        self._k = k
        self._texts = texts  # of the candidates
        self._best: list[Ranking] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * queries

    def blocks(self, height: int, width: int) -> Iterator[Block]:
        """Yields blocks row by row."""
        return _grid(len(self._best), len(self._texts), height, width)

    def add(self, block: Block, response: Any) -> NeighborLists:
        """Merges a block's neighbours into the best so far."""
        queries, candidates = block
        part = read_nearest(response, queries.stop - queries.start, candidates.stop - candidates.start)
        for query, (rows, scores) in enumerate(part.lists, start=queries.start):
            self._best[query] = self._merged(self._best[query], (rows + candidates.start, scores))
        return part

    def finished(self, about: dict[str, Any]) -> list[Neighbors]:
        """Returns the neighbours of each query."""
        truncated = set(about.pop("truncated_queries"))
        return [
            Neighbors(
                rows=read_only(rows),
                scores=read_only(scores),
                texts=tuple(self._texts[row] for row in rows),
                query_truncated=query in truncated,
                **about,
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
