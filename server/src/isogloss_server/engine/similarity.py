"""Similarity scores of queries and candidates in numpy, computed in float64 and returned in float32.

With float64, the score of a pair does not depend on the block it is computed in, except in about one case in ten
million, where a sum is within rounding of the midpoint between two float32 numbers. So equal candidates tie, and parts
of a large comparison can be merged by score.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from isogloss.wire.enums import Metric
from numpy.typing import NDArray

from isogloss_server.models.interfaces import Rows

BLOCK_PAIRS = 1 << 18  # scores in float64 at a time: 2 MiB
BLOCK_NUMBERS = 1 << 15  # differences in float64 at a time: 256 KiB, which fit a core's cache
# Below this share of |a|^2 + |b|^2 a squared distance taken from dot products has lost digits and is recomputed.
CANCELLED = 1e-6

Wide = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rankings:
    """The nearest candidates of each query, best first, end to end: rows int64 [n], scores float32 [n], counts [q]."""

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    counts: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence["Rankings"]) -> "Rankings":
        """Returns the rankings of all parts' queries, in order."""
        rows, scores, counts = zip(*((part.rows, part.scores, part.counts) for part in parts), strict=True)
        return cls(np.concatenate(rows), np.concatenate(scores), np.concatenate(counts))


class Comparison:
    """Scores any queries, float32 [q, d], against the same candidates, float32 [c, d], under one metric."""

    def __init__(self, candidates: Rows, metric: Metric) -> None:
        wide = candidates.astype(np.float64)
        self._metric = metric
        self._candidates = _directions(wide) if metric is Metric.COSINE else wide
        self._squares = _squares(wide)

    @property
    def max_queries(self) -> int:
        """Largest number of queries to score at once, so that memory is bounded."""
        return max(1, BLOCK_PAIRS // max(1, len(self._candidates)))

    def scores(self, queries: Rows) -> Rows:
        """Returns float32 [q, c]; the cosine of a row of zeros with anything is 0."""
        wide = queries.astype(np.float64)
        if self._metric is Metric.MANHATTAN:
            scores = self._manhattan(wide)
        elif self._metric is Metric.EUCLIDEAN:
            scores = self._euclidean(wide)
        else:
            scores = (_directions(wide) if self._metric is Metric.COSINE else wide) @ self._candidates.T
        return _rounded(scores, self._metric)

    def nearest(self, queries: Rows, k: int, min_score: float | None) -> Rankings:
        """Returns each query's best k candidates that score at least `min_score`, ties by lower row."""
        scores = self.scores(queries)
        best = [_best(row, k, min_score) for row in scores]
        counts = np.array([len(rows) for rows in best], dtype=np.int64)
        rows = np.concatenate(best)
        return Rankings(rows, scores[np.repeat(np.arange(len(best)), counts), rows], counts)

    def _euclidean(self, queries: Wide) -> Wide:
        sums = _squares(queries)[:, None] + self._squares
        squared = sums - 2 * (queries @ self._candidates.T)
        inexact = squared <= CANCELLED * sums
        for row, chunk, differences in self._differences(queries, inexact):
            exact = np.einsum("nd,nd->n", differences, differences)
            np.copyto(squared[row, chunk], exact, where=inexact[row, chunk])
        return 0.0 - np.sqrt(squared)

    def _manhattan(self, queries: Wide) -> Wide:
        scores = np.empty((len(queries), len(self._candidates)))
        for row, chunk, differences in self._differences(queries):
            scores[row, chunk] = 0.0 - np.abs(differences, out=differences).sum(axis=1)
        return scores

    def _differences(self, queries: Wide, wanted: NDArray[np.bool_] | None = None) -> Iterator[tuple[int, slice, Wide]]:
        """Yields the differences of one query and some candidates, float64 [n, d], in a buffer that is reused.

        Args:
            queries: The queries, float64 [q, d].
            wanted: The pairs that are needed, bool [q, c]; None for all.

        Yields:
            The row of the query, the slice of the candidates, and the differences.
        """
        step = max(1, BLOCK_NUMBERS // max(1, queries.shape[1]))
        buffer = np.empty((min(step, len(self._candidates)), queries.shape[1]))
        rows = range(len(queries)) if wanted is None else np.flatnonzero(wanted.any(axis=1)).tolist()
        for first in range(0, len(self._candidates) if rows else 0, step):
            chunk = slice(first, min(first + step, len(self._candidates)))
            candidates = self._candidates[chunk]
            for row in rows:
                if wanted is None or wanted[row, chunk].any():
                    yield row, chunk, np.subtract(candidates, queries[row], out=buffer[: len(candidates)])


def pairwise(queries: Rows, candidates: Rows, metric: Metric) -> Rows:
    """Returns float32 [n]: the score of row i of float32 [n, d] against row i of float32 [n, d]."""
    left, right = queries.astype(np.float64), candidates.astype(np.float64)
    if metric is Metric.MANHATTAN:
        scores = 0.0 - np.abs(left - right).sum(axis=1)
    elif metric is Metric.EUCLIDEAN:
        scores = 0.0 - np.sqrt(_squares(left - right))
    else:
        if metric is Metric.COSINE:
            left, right = _directions(left), _directions(right)
        scores = np.einsum("nd,nd->n", left, right)
    return _rounded(scores, metric)


def _best(scores: Rows, k: int, min_score: float | None) -> NDArray[np.int64]:
    """Returns the rows of the best k of float32 [c], ties by lower row; sorts all that tie with the k-th."""
    rows = np.arange(len(scores))
    if k < len(scores):
        rows = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    if min_score is not None:
        rows = rows[scores[rows] >= np.float32(min_score)]
    return rows[np.argsort(-scores[rows], kind="stable")[:k]]


def _squares(rows: Wide) -> Wide:
    squares: Wide = np.einsum("nd,nd->n", rows, rows)
    return squares


def _directions(rows: Wide) -> Wide:
    lengths = np.sqrt(_squares(rows))
    return rows / np.where(lengths > 0, lengths, 1.0)[:, None]


def _rounded(scores: Wide, metric: Metric) -> Rows:
    if metric is Metric.COSINE:
        scores = np.clip(scores, -1.0, 1.0)
    with np.errstate(over="ignore"):  # beyond float32 a product of finite numbers is infinite, as IEEE 754 says
        return scores.astype(np.float32)
