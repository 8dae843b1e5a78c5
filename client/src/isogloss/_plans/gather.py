"""The answers to the blocks of a comparison -> the answer to the whole. One gatherer for each shape."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from isogloss._messages import NeighborLists, read_nearest, read_scores
from isogloss.results import Neighbors, PairScores, Scores
from isogloss.results.comparisons import Comparison
from isogloss.results.embeddings import read_only

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
