"""Runs a packed encoder on the processor: token batches in, vectors out."""

import queue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isogloss_server.models.base import Rows, TokenBatch
from isogloss_server.models.openvino.graph_cache import Compiled
from isogloss_server.models.openvino.packing import pack
from isogloss_server.models.pooling import Head
from isogloss_server.models.tensors import Tensor


class Embeddings:
    """What goes into the encoder: a token's word, its position, and the one token type, summed.

    The words stay in the memory-mapped file, and are gathered from there: most of a multilingual model is this table.
    """

    def __init__(self, words: Tensor, positions: NDArray[np.float32], padding_id: int | None) -> None:
        """Takes words [vocabulary, hidden] and positions [length, hidden], the token type's vector already added."""
        self._words = words
        self._positions = positions
        self._padding_id = padding_id

    def rows(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Returns float32 [t, hidden]."""
        starts = np.repeat(np.cumsum(batch.lengths) - batch.lengths, batch.lengths)
        places = np.arange(len(batch.ids)) - starts
        if self._padding_id is not None:
            places = self._after_padding(batch.ids, starts, places)
        rows = self._words.rows(batch.ids)
        rows += self._positions[places]
        return rows

    def _after_padding(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """RoBERTa counts from behind its padding token's id, and does not count a padding token that a text spells."""
        spelled = ids == self._padding_id
        first = int(self._padding_id or 0) + 1
        if not spelled.any():
            return places + first
        before = np.cumsum(spelled)
        skipped = before - (before[starts] - spelled[starts])
        return np.where(spelled, first - 1, places + first - skipped)


class OpenVinoModel:
    """A compiled encoder with what stands before and after it."""

    def __init__(self, compiled: Compiled, embeddings: Embeddings, head: Head, *, threads: int) -> None:
        """Takes a graph that was compiled for so many threads at a time."""
        self._compiled = compiled
        self._embeddings = embeddings
        self._head = head
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(threads):
            self._requests.put(compiled.graph.create_infer_request())

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns float32 [n, d], of unit length only where the model says so; every text has a token at least."""
        packing = pack(batch.lengths)
        rows = self._embeddings.rows(batch)
        padded = np.zeros((len(packing.places), rows.shape[1]), dtype=np.float32)
        padded[: len(rows)] = rows
        inputs = [padded, packing.tokens, packing.mask, packing.places]
        request = self._requests.get()
        try:
            encoded = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
            return self._head(encoded[: len(rows)], batch.lengths)
        finally:
            self._requests.put(request)
