"""The encoder once more, in plain numpy from the same files: slow, and with nothing in common with the packed graph.

What a start-up check holds the compiled graph against: a processor's kernel, a cached graph or a packing that is wrong
shows there.
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
    """Returns float32 [t, hidden] of one text's embeddings, float32 [t, hidden]."""
    reference = _Reference(encoder, tensors)
    rows = reference.norm(embeddings, "embeddings.LayerNorm")
    for number in range(encoder.layers):
        rows = reference.layer(rows, encoder.names.layer.format(number))
    return rows


class _Reference:
    def __init__(self, encoder: Encoder, tensors: Tensors) -> None:
        self._encoder = encoder
        self._tensors = tensors

    def layer(self, rows: Array, place: str) -> Array:
        """Returns one layer's rows [t, hidden]; its tensors' names begin with `place`."""
        names, hidden, inner = self._encoder.names, self._encoder.hidden, self._encoder.intermediate
        attended = self._linear(self._attention(rows, place), f"{place}{names.attention_output}", hidden, hidden)
        rows = self.norm(attended + rows, f"{place}{names.attention_norm}")
        fed = ACTIVATIONS[self._encoder.activation](self._linear(rows, f"{place}{names.feed_in}", inner, hidden))
        fed = self._linear(fed, f"{place}{names.feed_out}", hidden, inner)
        return self.norm(fed + rows, f"{place}{names.output_norm}")

    def norm(self, rows: Array, name: str) -> Array:
        """Returns rows with mean 0 and variance 1, scaled and shifted."""
        hidden = self._encoder.hidden
        even: Array = rows - rows.mean(axis=1, keepdims=True)
        even /= np.sqrt((even**2).mean(axis=1, keepdims=True) + np.float32(self._encoder.epsilon))
        return even * self._get(f"{name}.weight", hidden) + self._get(f"{name}.bias", hidden)

    def _attention(self, rows: Array, place: str) -> Array:
        names, hidden, heads = self._encoder.names, self._encoder.hidden, self._encoder.heads
        query, key, value = (
            self._linear(rows, f"{place}{part}", hidden, hidden).reshape(len(rows), heads, -1).swapaxes(0, 1)
            for part in (names.query, names.key, names.value)
        )
        scores = query @ key.swapaxes(1, 2) / np.float32(math.sqrt(hidden / heads))
        shares: Array = np.exp(scores - scores.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        return (shares @ value).swapaxes(0, 1).reshape(len(rows), hidden)

    def _linear(self, rows: Array, name: str, outputs: int, inputs: int) -> Array:
        product: Array = rows @ self._get(f"{name}.weight", outputs, inputs).T
        return product + self._get(f"{name}.bias", outputs)

    def _get(self, name: str, *shape: int) -> Array:
        return self._tensors.get(name, *shape).whole()


def _gelu(x: Array) -> Array:
    halves: Array = x * np.float32(0.5) * (1 + _erf(x / np.float32(math.sqrt(2))))
    return halves


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    halves: Array = x * np.float32(0.5) * (1 + np.tanh(inner))
    return halves


def _relu(x: Array) -> Array:
    return np.maximum(x, 0)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {"gelu": _gelu, "gelu_new": _gelu_tanh, "relu": _relu}
