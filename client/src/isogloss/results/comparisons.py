"""Texts and vectors compared. In shapes, q counts queries, c candidates, n pairs and k neighbours."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from isogloss.results.embeddings import NO_TIME, Timings


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What every comparison tells beside its scores.

    Attributes:
        model: The model that answered.
        space_id: The space that was compared in.
        truncated_queries: Rows of queries whose text was cut, ascending.
        truncated_candidates: Rows of candidates whose text was cut, ascending.
        timings: Where the server spent its time.
    """

    model: str
    space_id: str
    truncated_queries: tuple[int, ...] = ()
    truncated_candidates: tuple[int, ...] = ()
    timings: Timings = NO_TIME


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores(Comparison):
    """Every query against every candidate: values float32 [q, c], read-only. Greater is nearer, whatever the metric."""

    values: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores(Comparison):
    """Query i against candidate i: values float32 [n], read-only. Greater is nearer, whatever the metric."""

    values: NDArray[np.float32]


class Neighbor(NamedTuple):
    """A candidate near to a query: its row, its text (None where candidates were vectors), its score."""

    row: int
    text: str | None
    score: float


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Neighbors(Sequence[Neighbor]):
    """The candidates nearest to one query, best first, ties by lower row. Reads as a list of Neighbor.

    Attributes:
        rows: int64 [k], read-only: rows of the candidates.
        scores: float32 [k], read-only, descending. Greater is nearer, whatever the metric.
        texts: The candidates' texts; None for each where candidates were vectors.
        model: The model that answered.
        space_id: The space that was compared in.
        query_truncated: Whether the query's text was cut.
        truncated_candidates: Rows of all candidates, near or not, whose text was cut, ascending.
        timings: Where the server spent its time, on all queries of the call.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    texts: tuple[str | None, ...]
    model: str
    space_id: str
    query_truncated: bool = False
    truncated_candidates: tuple[int, ...] = ()
    timings: Timings = NO_TIME

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> Neighbor: ...

    @overload
    def __getitem__(self, index: slice) -> "Neighbors": ...

    def __getitem__(self, index: int | slice) -> "Neighbor | Neighbors":
        if isinstance(index, slice):
            return replace(self, rows=self.rows[index], scores=self.scores[index], texts=self.texts[index])
        return Neighbor(int(self.rows[index]), self.texts[index], float(self.scores[index]))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Neighbors | list) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(list(self))
