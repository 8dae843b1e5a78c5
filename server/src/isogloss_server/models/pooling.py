"""Pooling, Dense and Normalize: from the encoder's rows of tokens to vectors of texts, in float32 with numpy.

Each step computes a text's vector from its own rows, in their order, so the vector does not depend on the batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isogloss_server.models.interfaces import Rows


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """A linear layer.

    Attributes:
        weight: float32 [out, in].
        bias: float32 [out], or None.
        tanh: True if tanh follows.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    tanh: bool

    def __call__(self, rows: Rows) -> Rows:
        """Returns float32 [n, out]; row by row, since the order of sums in a matrix product may depend on n."""
        result = np.stack([self.weight @ row for row in rows])
        if self.bias is not None:
            result += self.bias
        return np.tanh(result) if self.tanh else result


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The modules after the encoder.

    Attributes:
        poolings: Names of poolings, whose results are concatenated.
        dense: The linear layers that follow.
        normalize: True if the result is scaled to unit length.
    """

    poolings: Sequence[str]
    dense: Sequence[DenseLayer] = ()
    normalize: bool = False

    def dimensions(self, hidden: int) -> int:
        """Returns the number of dimensions d of a text's vector, given that of the encoder's rows."""
        return len(self.dense[-1].weight) if self.dense else hidden * len(self.poolings)

    def __call__(self, tokens: NDArray[np.float32], lengths: NDArray[np.int64]) -> Rows:
        """Computes vectors of texts.

        Args:
            tokens: The encoder's rows, float32 [t, hidden], of all texts end to end.
            lengths: The number of tokens of each text, int64 [n].

        Returns:
            float32 [n, d], of unit length if `normalize` is set.
        """
        parts = [
            np.concatenate([_pool(text, name) for text in _runs_of_equal_length(tokens, lengths)])
            for name in self.poolings
        ]
        rows = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        for layer in self.dense:
            rows = layer(rows)
        if self.normalize:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return rows


def _runs_of_equal_length(tokens: NDArray[np.float32], lengths: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Yields the rows of consecutive texts of equal length together, as views float32 [texts, length, hidden]."""
    changes = np.flatnonzero(np.diff(lengths)) + 1
    row = 0
    for first, last in zip((0, *changes), (*changes, len(lengths)), strict=True):
        length, texts = int(lengths[first]), int(last - first)
        yield tokens[row : row + texts * length].reshape(texts, length, -1)
        row += texts * length


def _pool(texts: NDArray[np.float32], pooling: str) -> Rows:
    """Pools texts of one length, float32 [n, length, hidden], to float32 [n, hidden]."""
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
