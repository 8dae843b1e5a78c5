"""A second implementation of the encoder in plain numpy, independent of the packed graph, and slow.

The self-test compares the compiled graph with it, and so detects a wrong kernel, cached graph or packing.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from isogloss_server.models.openvino.architecture import Encoder
from isogloss_server.models.safetensors_file import Tensors

Array = NDArray[np.float32]
_erf = np.vectorize(math.erf, otypes=[np.float32])


def encode(encoder: Encoder, tensors: Tensors, embeddings: Array) -> Array:
    """Runs the encoder on one text.

    Args:
        encoder: The settings of the encoder.
        tensors: Its weights.
        embeddings: The embeddings of the text's tokens, float32 [t, hidden].

    Returns:
        float32 [t, hidden].
    """
    reference = _Reference(encoder, tensors)
    rows = reference.norm(embeddings, "embeddings.LayerNorm")
    for number in range(encoder.layers):
        rows = reference.layer(rows, encoder.names.layer.format(number))
    return rows


class _Reference:
    def __init__(self, encoder: Encoder, tensors: Tensors) -> None:
        self._encoder = encoder
        self._tensors = tensors

    def layer(self, rows: Array, prefix: str) -> Array:
        """Returns the rows of one layer, [t, hidden]; `prefix` begins the names of its tensors."""
        names, hidden, inner = self._encoder.names, self._encoder.hidden, self._encoder.intermediate
        attended = self._linear(self._attention(rows, prefix), f"{prefix}{names.attention_output}", hidden, hidden)
        rows = self.norm(attended + rows, f"{prefix}{names.attention_norm}")
        fed = ACTIVATIONS[self._encoder.activation](self._linear(rows, f"{prefix}{names.feed_in}", inner, hidden))
        fed = self._linear(fed, f"{prefix}{names.feed_out}", hidden, inner)
        return self.norm(fed + rows, f"{prefix}{names.output_norm}")

    def norm(self, rows: Array, name: str) -> Array:
        """Returns the layer norm of rows."""
        hidden = self._encoder.hidden
        normalized: Array = rows - rows.mean(axis=1, keepdims=True)
        normalized /= np.sqrt((normalized**2).mean(axis=1, keepdims=True) + np.float32(self._encoder.epsilon))
        return normalized * self._get(f"{name}.weight", hidden) + self._get(f"{name}.bias", hidden)

    def _attention(self, rows: Array, prefix: str) -> Array:
        names, hidden, heads = self._encoder.names, self._encoder.hidden, self._encoder.heads
        query, key, value = (
            self._linear(rows, f"{prefix}{part}", hidden, hidden).reshape(len(rows), heads, -1).swapaxes(0, 1)
            for part in (names.query, names.key, names.value)
        )
        scores = query @ key.swapaxes(1, 2) / np.float32(math.sqrt(hidden / heads))
        weights: Array = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        return (weights @ value).swapaxes(0, 1).reshape(len(rows), hidden)

    def _linear(self, rows: Array, name: str, outputs: int, inputs: int) -> Array:
        product: Array = rows @ self._get(f"{name}.weight", outputs, inputs).T
        return product + self._get(f"{name}.bias", outputs)

    def _get(self, name: str, *shape: int) -> Array:
        return self._tensors.get(name, *shape).whole()


def _gelu(x: Array) -> Array:
    result: Array = x * np.float32(0.5) * (1 + _erf(x / np.float32(math.sqrt(2))))
    return result


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    result: Array = x * np.float32(0.5) * (1 + np.tanh(inner))
    return result


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"gelu": _gelu, "gelu_new": _gelu_tanh, "relu": _relu}
