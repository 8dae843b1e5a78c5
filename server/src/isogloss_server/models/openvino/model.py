"""Runs a compiled graph on packed batches."""

import queue
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isogloss_server.models.interfaces import Rows, TokenBatch
from isogloss_server.models.openvino.graph_cache import Compiled
from isogloss_server.models.pooling import Head
from isogloss_server.models.safetensors_file import Tensor

LANES = 16  # float32 numbers that the processor's widest registers hold
LEAST_WIDTH = 64  # of a row with several texts: wider costs more than it saves room, narrower as well
MASKED = np.float32(-1e9)  # added to a score that must not count: its exponential is 0
PADDING = -1  # whose a place is that belongs to no text


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Inputs of the graph beside the embeddings, for t tokens, rounded up."""

    tokens: NDArray[np.int32]  # [rows, width]: the token at each place
    mask: NDArray[np.float32]  # [rows, 1, width or 1, width]: 0 where two places are of one text, else MASKED
    slots: NDArray[np.int32]  # [t]: the place of each token


def pack(lengths: NDArray[np.int64]) -> Packing:
    """Returns the packing of texts of these lengths, int64 [n], each at least 1."""
    longest = int(lengths.max())
    width = width_steps(longest) if len(lengths) > 1 else token_steps(longest)
    firsts, rows = _arranged(lengths.tolist(), width)
    total = int(lengths.sum())
    places = np.zeros(token_steps(total), dtype=np.int32)
    starts = np.cumsum(lengths) - lengths
    places[:total] = np.arange(total) + np.repeat(np.array(firsts) - starts, lengths)
    tokens = np.zeros(row_steps(rows) * width, dtype=np.int32)
    tokens[places[:total]] = np.arange(total)
    owners = np.full(len(tokens), PADDING, dtype=np.int32)
    owners[places[:total]] = np.repeat(np.arange(len(lengths)), lengths)
    mask = _mask(owners.reshape(-1, width), shared=rows < len(lengths))
    return Packing(tokens=tokens.reshape(-1, width), mask=mask, slots=places)


def _mask(owners: NDArray[np.int32], *, shared: bool) -> NDArray[np.float32]:
    """Returns the mask of places [rows, width]; where no row is shared one line serves all places of a row.

    For a text of thousands of tokens that line is thousands of times smaller.
    """
    if not shared:
        return np.where(owners == PADDING, MASKED, np.float32(0))[:, None, None, :]
    return np.where(owners[:, :, None] == owners[:, None, :], np.float32(0), MASKED)[:, None]


def _arranged(lengths: list[int], width: int) -> tuple[list[int], int]:
    """Returns each text's first place, and the number of rows: the longest first, each into the first row with room."""
    firsts = [0] * len(lengths)
    ends: list[int] = []  # of each row, in places from its beginning
    for text in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = token_steps(lengths[text])
        row = next((row for row, end in enumerate(ends) if end + length <= width), len(ends))
        if row == len(ends):
            ends.append(0)
        firsts[text] = row * width + ends[row]
        ends[row] += length
    return firsts, len(ends)


def token_steps(tokens: int) -> int:
    """Returns the number of tokens that so many are rounded up to."""
    return -(-tokens // LANES) * LANES


def row_steps(rows: int) -> int:
    """Returns the number of rows that so many are rounded up to: at least eight steps to each doubling."""
    return _stepped(rows, least=1)


def width_steps(longest: int) -> int:
    """Returns the width of rows for a text so long: likewise, in multiples of LANES."""
    return max(LEAST_WIDTH, _stepped(longest, least=LANES))


def _stepped(number: int, *, least: int) -> int:
    step = max(least, (1 << (number - 1).bit_length()) // 16)
    return -(-number // step) * step


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
        padded = np.zeros((len(packing.slots), rows.shape[1]), dtype=np.float32)
        padded[: len(rows)] = rows
        inputs = [padded, packing.tokens, packing.mask, packing.slots]
        request = self._requests.get()
        try:
            encoded = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
            return self._head(encoded[: len(rows)], batch.lengths)
        finally:
            self._requests.put(request)
