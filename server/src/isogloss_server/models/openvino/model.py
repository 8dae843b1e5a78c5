"""Runs a compiled graph on packed batches: texts are arranged in rows without padding each to the longest."""

import queue
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isogloss_server.models.interfaces import Rows, TokenBatch
from isogloss_server.models.openvino.graph_cache import Compiled
from isogloss_server.models.pooling import Head
from isogloss_server.models.safetensors_file import Tensor

LANES = 16  # float32 numbers in a register of AVX-512
TOKEN_STEPS = 64  # half of them in each doubling; OpenVINO keeps about 0.75 MB for each number of tokens
MIN_WIDTH = 64  # of a row with several texts; measured to be faster than narrower and wider ones
MASKED = np.float32(-1e9)  # added to scores between different texts: their exponential is 0
PADDING = -1  # owner id of unused slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """The inputs of the graph beside the embeddings.

    Attributes:
        tokens: int32 [rows, width], the index of the token in each slot.
        mask: float32 [rows, 1, width or 1, width], 0 for slots of the same text, else MASKED.
        slots: int32 [t], the slot of each token; t is rounded up.
    """

    tokens: NDArray[np.int32]
    mask: NDArray[np.float32]
    slots: NDArray[np.int32]


def pack(lengths: NDArray[np.int64]) -> Packing:
    """Packs texts into rows.

    Args:
        lengths: The number of tokens of each text, int64 [n], at least 1 each.
    """
    longest = int(lengths.max())
    width = rounded_width(longest) if len(lengths) > 1 else rounded_tokens(longest)
    firsts, rows = _arrange(lengths.tolist(), width)
    total = int(lengths.sum())
    slots = np.zeros(rounded_tokens(total), dtype=np.int32)
    starts = np.cumsum(lengths) - lengths
    slots[:total] = np.arange(total) + np.repeat(np.array(firsts) - starts, lengths)
    tokens = np.zeros(rounded_rows(rows) * width, dtype=np.int32)
    tokens[slots[:total]] = np.arange(total)
    owners = np.full(len(tokens), PADDING, dtype=np.int32)
    owners[slots[:total]] = np.repeat(np.arange(len(lengths)), lengths)
    mask = _mask(owners.reshape(-1, width), shared=rows < len(lengths))
    return Packing(tokens=tokens.reshape(-1, width), mask=mask, slots=slots)


def _mask(owners: NDArray[np.int32], *, shared: bool) -> NDArray[np.float32]:
    """Returns the mask of slots.

    Args:
        owners: The text in each slot, or PADDING, int32 [rows, width].
        shared: True if a row has several texts. If not, one line of the mask serves all slots of a row; for a text of
            thousands of tokens, it is thousands of times smaller.
    """
    if not shared:
        return np.where(owners == PADDING, MASKED, np.float32(0))[:, None, None, :]
    return np.where(owners[:, :, None] == owners[:, None, :], np.float32(0), MASKED)[:, None]


def _arrange(lengths: list[int], width: int) -> tuple[list[int], int]:
    """Arranges texts in rows, by first fit decreasing; returns the first slot of each text, and the number of rows."""
    firsts = [0] * len(lengths)
    ends: list[int] = []  # used slots of each row
    for text in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = rounded_tokens(lengths[text])
        row = next((row for row, end in enumerate(ends) if end + length <= width), len(ends))
        if row == len(ends):
            ends.append(0)
        firsts[text] = row * width + ends[row]
        ends[row] += length
    return firsts, len(ends)


def rounded_tokens(tokens: int) -> int:
    """Rounds a number of tokens up: to a multiple of LANES up to 1,024, beyond in 32 steps for each doubling."""
    return _rounded_up(tokens, least=LANES, steps=TOKEN_STEPS)


def rounded_rows(rows: int) -> int:
    """Rounds a number of rows up, in eight or more steps for each doubling: new shapes cost OpenVINO milliseconds."""
    return _rounded_up(rows, least=1)


def rounded_width(longest: int) -> int:
    """Rounds the length of the longest text up to a width of rows, as for rows, in multiples of LANES."""
    return max(MIN_WIDTH, _rounded_up(longest, least=LANES))


def _rounded_up(number: int, *, least: int, steps: int = 16) -> int:
    step = max(least, (1 << (number - 1).bit_length()) // steps)
    return -(-number // step) * step


class Embeddings:
    """The input of the encoder: the sum of word, position and token type embeddings.

    Word embeddings are gathered from the memory-mapped file: in multilingual models they are most of the weights.
    """

    def __init__(self, words: Tensor, positions: NDArray[np.float32], padding_id: int | None) -> None:
        """Creates the embeddings.

        Args:
            words: [vocabulary, hidden].
            positions: float32 [length, hidden], with the embedding of token type 0 added.
            padding_id: The padding token's id, if positions start after it; else None.
        """
        self._words = words
        self._positions = positions
        self._padding_id = padding_id

    def rows(self, batch: TokenBatch) -> NDArray[np.float32]:
        """Returns the embeddings of the tokens, float32 [t, hidden]."""
        starts = np.repeat(np.cumsum(batch.lengths) - batch.lengths, batch.lengths)
        positions = np.arange(len(batch.ids)) - starts
        if self._padding_id is not None:
            positions = self._after_padding(batch.ids, starts, positions)
        rows = self._words.rows(batch.ids)
        rows += self._positions[positions]
        return rows

    def _after_padding(
        self, ids: NDArray[np.int32], starts: NDArray[np.int64], positions: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Returns RoBERTa's positions: they start after the padding token's id, and skip padding tokens in the text."""
        is_padding = ids == self._padding_id
        first = int(self._padding_id or 0) + 1
        if not is_padding.any():
            return positions + first
        before = np.cumsum(is_padding)
        skipped = before - (before[starts] - is_padding[starts])
        return np.where(is_padding, first - 1, positions + first - skipped)


class OpenVinoModel:
    """An encoder: embeddings, compiled graph, and head (pooling and the modules after it)."""

    def __init__(self, compiled: Compiled, embeddings: Embeddings, head: Head, *, threads: int) -> None:
        """Creates one inference request for each thread.

        Args:
            compiled: The graph of the encoder, compiled for `threads` streams.
            embeddings: The input of the encoder.
            head: The modules after the encoder.
            threads: The number of threads that call `forward` at the same time.
        """
        self._compiled = compiled
        self._embeddings = embeddings
        self._head = head
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(threads):
            self._requests.put(compiled.graph.create_infer_request())

    def forward(self, batch: TokenBatch) -> Rows:
        """Returns float32 [n, d], of unit length if the model has Normalize; each text has at least one token."""
        packing = pack(batch.lengths)
        rows = self._embeddings.rows(batch)
        rounded = np.zeros((len(packing.slots), rows.shape[1]), dtype=np.float32)
        rounded[: len(rows)] = rows
        inputs = [rounded, packing.tokens, packing.mask, packing.slots]
        request = self._requests.get()
        try:
            encoded = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
            return self._head(encoded[: len(rows)], batch.lengths)
        finally:
            self._requests.put(request)
