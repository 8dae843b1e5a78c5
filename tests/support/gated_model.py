"""A model whose batches a test observes, delays and fails."""

import asyncio
import queue
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from isogloss_server.engine.batcher import Batcher
from isogloss_server.models.interfaces import Rows, TokenBatch, Urgency

DIMENSIONS = 3
WATCHDOG_S = 80.0  # the watchdog checks every 10 s


class GatedModel:
    """Returns the row `row_of(text)` for each text. If `gated`, every batch waits for a `release`."""

    def __init__(self, *, gated: bool = False, change: Callable[[Rows], Rows] = lambda rows: rows) -> None:
        """Takes `change`, which is applied to the rows of each batch; it may raise."""
        self.batches: list[list[list[int]]] = []
        self._gated = gated
        self._change = change
        self._began: queue.SimpleQueue[list[list[int]]] = queue.SimpleQueue()
        self._permits: queue.SimpleQueue[None] = queue.SimpleQueue()  # `get` is atomic, also in a killed thread

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns rows float32 [n, 3]."""
        texts = [part.tolist() for part in np.split(batch.ids, np.cumsum(batch.lengths)[:-1])]
        self.batches.append(texts)
        self._began.put(texts)
        if self._gated:
            self._permits.get(timeout=60)
        return self._change(np.array([row_of(text) for text in texts], np.float32))

    async def next_batch(self) -> list[list[int]]:
        """Waits for the next batch to begin and returns its texts."""
        return await asyncio.get_running_loop().run_in_executor(None, lambda: self._began.get(timeout=60))

    def release(self, batches: int = 1) -> None:
        """Permits `batches` gated batches to be computed."""
        for _ in range(batches):
            self._permits.put(None)


def row_of(text: Sequence[int]) -> list[float]:
    """Returns the model's row for a text: its length, its first token, and the sum of its tokens."""
    return [len(text), text[0], sum(text)]


def batch_of(*texts: Sequence[int]) -> TokenBatch:
    """Returns the token batch of texts given as tokens."""
    ids = np.array([token for text in texts for token in text], np.int32)
    return TokenBatch(ids, np.array([len(text) for text in texts]))


async def occupy(batcher: Batcher, model: GatedModel) -> "asyncio.Future[Any]":
    """Occupies the only thread of `batcher` until `model.release`, so that later texts stay in the queue."""
    future = batcher.submit(batch_of([0]), Urgency())
    await model.next_batch()
    return future
