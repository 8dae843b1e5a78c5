"""A library without a wire as a driver: one call after the other, in the library's own process."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.turns import Outcome, take_turns

Encode = Callable[[Sequence[str]], NDArray[np.float32]]


class InProcess:
    """Calls `encode` with each call's texts. Callers of a library share one thread of work, so they take turns."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._ready: list[tuple[int, list[str]]] = []

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Keeps the calls, in one queue however many callers there are."""
        del callers
        self._ready = [(len(texts), list(texts)) for texts in calls]

    async def run(self, limit_s: float) -> Outcome:
        """Makes the calls that were made ready."""
        return await take_turns(self._call, self._ready, 1, limit_s)

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        rows: list[list[float]] = np.asarray(self._encode(list(texts)), dtype=np.float32).tolist()
        return rows

    async def _call(self, texts: list[str]) -> None:
        self._encode(texts)
