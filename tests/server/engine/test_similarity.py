"""Scores: their formulas, bounds, ties, and blocks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from isogloss.wire.enums import Metric
from isogloss_server.engine import similarity
from isogloss_server.engine.similarity import Comparison, Rankings, pairwise

Array = np.ndarray[Any, Any]


def lists(rankings: Rankings) -> Iterator[tuple[list[int], list[float]]]:
    """Yields rows and scores, query by query."""
    ends = np.cumsum(rankings.counts)[:-1]
    for rows, scores in zip(np.split(rankings.rows, ends), np.split(rankings.scores, ends), strict=True):
        yield rows.tolist(), scores.tolist()


def by_formula(a: Array, b: Array, metric: Metric) -> float:
    """Returns the score of two vectors by the formula of the contract, in float64."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    if metric is Metric.COSINE:
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a @ b) / lengths if lengths else 0.0
    if metric is Metric.DOT:
        return float(a @ b)
    return -float(np.linalg.norm(a - b) if metric is Metric.EUCLIDEAN else np.abs(a - b).sum())


@pytest.mark.parametrize("metric", list(Metric))
def test_scores_match_the_formula(metric: Metric) -> None:
    """All pairs and pairwise match the formula of each metric, also for almost equal rows and zero rows."""
    rng = np.random.default_rng(7)
    queries = rng.standard_normal((13, 33)).astype(np.float32)
    candidates = np.concatenate([queries[:4], queries[4:8] + np.float32(1e-7), rng.standard_normal((5, 33))])
    candidates = candidates.astype(np.float32)
    queries[2] = candidates[9] = 0
    expected = np.array([[by_formula(q, c, metric) for c in candidates] for q in queries])
    scores = Comparison(candidates, metric).scores(queries)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=2e-7, atol=1e-12)
    np.testing.assert_allclose(pairwise(queries, candidates, metric), np.diag(expected), rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize("metric", [Metric.EUCLIDEAN, Metric.MANHATTAN])
def test_the_distance_of_a_vector_to_itself_is_zero(metric: Metric) -> None:
    """The distance of a vector to itself is exactly 0, without an error of rounding."""
    rows = np.random.default_rng(1).standard_normal((50, 384)).astype(np.float32)
    diagonal = np.diag(Comparison(rows, metric).scores(rows))
    assert (diagonal == 0).all()
    assert not np.signbit(diagonal).any()


def test_cosine_stays_within_its_bounds() -> None:
    """A cosine is never above 1 or below -1, and 1 for a vector with itself."""
    rows = np.random.default_rng(2).standard_normal((200, 100)).astype(np.float32)
    scores = Comparison(np.concatenate([rows, -rows]), Metric.COSINE).scores(rows)
    assert scores.max() <= 1
    assert scores.min() >= -1
    assert (np.diag(scores) == 1).all()


@given(
    data=st.data(),
    k=st.integers(1, 12),
    min_score=st.none() | st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
)
def test_nearest_matches_a_full_sort(data: st.DataObject, k: int, min_score: float | None) -> None:
    """Nearest returns the first k candidates by descending score, then ascending row, from `min_score` up."""
    numbers = hnp.arrays(np.float32, (8, 2), elements=st.integers(-2, 2))
    candidates, queries = data.draw(numbers), data.draw(numbers)
    comparison = Comparison(candidates, Metric.DOT)
    rankings = lists(comparison.nearest(queries, k, min_score))
    for row, (rows, scores) in zip(comparison.scores(queries), rankings, strict=True):
        order = sorted(range(8), key=lambda i: (-row[i], i))
        expected = [i for i in order if min_score is None or row[i] >= min_score][:k]
        assert rows == expected
        assert scores == [row[i] for i in expected]


@pytest.mark.parametrize("metric", list(Metric))
def test_scores_do_not_depend_on_the_blocks(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are the same in any division into blocks, and equal candidates tie in any position."""
    rng = np.random.default_rng(3)
    queries, few = (rng.standard_normal((n, 40)).astype(np.float32) for n in (37, 19))
    candidates = np.concatenate([few, few, few])
    whole = Comparison(candidates, metric).scores(queries)
    monkeypatch.setattr(similarity, "BLOCK_PAIRS", 100)
    monkeypatch.setattr(similarity, "BLOCK_NUMBERS", 90)
    comparison = Comparison(candidates, metric)
    step = comparison.max_queries
    assert 1 <= step < len(queries)
    parts = np.concatenate([comparison.scores(queries[row : row + step]) for row in range(0, len(queries), step)])
    np.testing.assert_array_equal(parts, whole)
    for rows, _ in lists(comparison.nearest(queries, 3, None)):
        assert [row - rows[0] for row in rows] == [0, 19, 38]


def test_products_beyond_float32_are_infinite() -> None:
    """A product beyond the range of float32 is infinite, as in IEEE 754, and not NaN."""
    rows = np.full((2, 4), 3e38, np.float32)
    assert np.isposinf(Comparison(rows, Metric.DOT).scores(rows)).all()
    assert (Comparison(rows, Metric.COSINE).scores(rows) == 1).all()


def test_distances_of_equal_rows_gather_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """If every pair is close, differences are taken from slices of the candidates, each query and slice once."""
    rows = np.ones((40, 30), np.float32)
    rows[1::2] += np.float32(1e-6)
    comparison = Comparison(rows, Metric.EUCLIDEAN)
    slices: list[slice] = []
    taken = Comparison._differences

    def recorded(*arguments: Any) -> Any:
        for row, chunk, differences in taken(*arguments):
            slices.append(chunk)
            yield row, chunk, differences

    monkeypatch.setattr(Comparison, "_differences", recorded)
    monkeypatch.setattr(similarity, "BLOCK_NUMBERS", 300)
    expected = np.array([[by_formula(q, c, Metric.EUCLIDEAN) for c in rows] for q in rows])
    np.testing.assert_allclose(comparison.scores(rows), expected, rtol=2e-7)
    assert slices == [slice(first, first + 10) for first in range(0, 40, 10) for _ in rows]
