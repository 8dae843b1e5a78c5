"""A model whose batches the test sees, holds and fails, and a clock that the test owns."""

import asyncio
import queue
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from isogloss_server.engine.batcher import Batcher
from isogloss_server.models.interfaces import Rows, TokenBatch, Urgency

DIMENSIONS = 3
WATCHDOG_S = 80.0  # so that one look of the watch is 10 s after the other


class OwnClock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic_s(self) -> float:
        """Returns the seconds that the test has set."""
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        """Sleeps for ever: a test in which somebody is to wake takes a clock that lets time pass."""
        await asyncio.get_running_loop().create_future()


class GatedModel:
    """Gives each text the row that `row_of` says; where `gated`, every batch waits for a `go`."""

    def __init__(self, *, gated: bool = False, change: Callable[[Rows], Rows] = lambda rows: rows) -> None:
        """`change` is what becomes of a batch's rows before they are given; it may raise."""
        self.batches: list[list[list[int]]] = []
        self._gated = gated
        self._change = change
        self._began: queue.SimpleQueue[list[list[int]]] = queue.SimpleQueue()
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()  # whole in one step, should the thread die

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns rows float32 [n, 3]."""
        texts = [part.tolist() for part in np.split(batch.ids, np.cumsum(batch.lengths)[:-1])]
        self.batches.append(texts)
        self._began.put(texts)
        if self._gated:
            self._permits.get(timeout=60)
        return self._change(np.array([row_of(text) for text in texts], np.float32))

    async def next_batch(self) -> list[list[int]]:
        """Returns the texts of the next batch that has begun."""
        return await asyncio.get_running_loop().run_in_executor(None, lambda: self._began.get(timeout=60))

    def go(self, batches: int = 1) -> None:
        """Lets so many batches be computed."""
        for _ in range(batches):
            self._permits.put(None)


def row_of(text: Sequence[int]) -> list[float]:
    """Returns what the model gives for a text: its length, its first token, and the sum of its tokens."""
    return [len(text), text[0], sum(text)]


def batch_of(*texts: Sequence[int]) -> TokenBatch:
    """Returns the token batch of some texts."""
    ids = np.array([token for text in texts for token in text], np.int32)
    return TokenBatch(ids, np.array([len(text) for text in texts]))


async def busy(batcher: Batcher, model: GatedModel) -> "asyncio.Future[Any]":
    """Keeps the one thread at work until the model may `go`; whatever is submitted then waits."""
    future = batcher.submit(batch_of([0]), Urgency())
    await model.next_batch()
    return future
