"""A library without a wire as a driver, in the library's own process: one call after the other, or many at a time."""

from collections.abc import Awaitable, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.drivers.driver import Outcome, take_turns

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


class Concurrent:
    """Awaits `embed` for as many calls at a time as there are callers."""

    def __init__(self, embed: Callable[[Sequence[str]], Awaitable[NDArray[np.float32]]]) -> None:
        self._embed = embed
        self._ready: list[tuple[int, list[str]]] = []
        self._callers = 1

    def prepare(self, calls: Sequence[Sequence[str]], callers: int) -> None:
        """Keeps the calls."""
        self._callers = callers
        self._ready = [(len(texts), list(texts)) for texts in calls]

    async def run(self, limit_s: float) -> Outcome:
        """Makes the calls that were made ready."""
        return await take_turns(self._embed, self._ready, self._callers, limit_s)

    async def vectors(self, texts: Sequence[str]) -> list[list[float]]:
        """Returns the vector of each text."""
        rows: list[list[float]] = (await self._embed(texts)).tolist()
        return rows
