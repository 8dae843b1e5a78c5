"""From the tokens' rows to a text's vector: pooling, Dense and Normalize, in float32 with numpy.

Every step of a text's vector runs over its own rows alone, in their order, so that no company changes it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isogloss_server.models.interfaces import Rows


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """weight float32 [out, in], bias float32 [out] or None, and whether tanh follows."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    tanh: bool

    def __call__(self, rows: Rows) -> Rows:
        """Returns float32 [n, out]; row by row, since a product of matrices may add up in another order than of one."""
        made = np.stack([self.weight @ row for row in rows])
        if self.bias is not None:
            made += self.bias
        return np.tanh(made) if self.tanh else made


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What comes after the encoder."""

    poolings: Sequence[str]
    dense: Sequence[DenseLayer] = ()
    normalize: bool = False

    def dimensions(self, hidden: int) -> int:
        """Returns the width d of a text's vector, where the encoder's rows are `hidden` wide."""
        return len(self.dense[-1].weight) if self.dense else hidden * len(self.poolings)

    def __call__(self, tokens: NDArray[np.float32], lengths: NDArray[np.int64]) -> Rows:
        """Returns float32 [n, d] of the encoder's rows, float32 [t, hidden], of n texts of these lengths."""
        parts = [np.concatenate([_pooled(text, name) for text in _alike(tokens, lengths)]) for name in self.poolings]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        for layer in self.dense:
            rows = layer(rows)
        if self.normalize:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows


def _alike(tokens: NDArray[np.float32], lengths: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Yields the rows of neighbours of equal length together, as views [neighbours, length, hidden]."""
    changes = np.flatnonzero(np.diff(lengths)) + 1
    row = 0
    for first, last in zip((0, *changes), (*changes, len(lengths)), strict=True):
        length, texts = int(lengths[first]), int(last - first)
        yield tokens[row : row + texts * length].reshape(texts, length, -1)
        row += texts * length


def _pooled(texts: NDArray[np.float32], pooling: str) -> Rows:
    """Returns float32 [n, hidden] of texts of one length, [n, length, hidden]."""
    rows: Rows
    if pooling == "cls":
        rows = texts[:, 0]
    elif pooling == "max":
        rows = texts.max(axis=1)
    elif pooling == "mean":
        rows = texts.mean(axis=1)
    else:  # mean_sqrt_len_tokens
        rows = texts.sum(axis=1) / np.float32(texts.shape[1] ** 0.5)
    return rows
