"""BERT's encoder as one padding-free graph, built from a model's tensors with OpenVINO's operations.

Linear layers, norms and activations run over the tokens of all texts end to end, [t, hidden]. Only for attention are
tokens gathered into rows of whole texts, [rows, width, hidden]; a mask separates the texts of a row.
The encoder: Devlin et al. 2018, https://arxiv.org/abs/1810.04805; names as in the transformers library.
"""

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset16 as op

from isogloss_server.models.openvino.architecture import Encoder
from isogloss_server.models.safetensors_file import Tensors

Node = Any  # OpenVINO's nodes are dynamically typed


def build(encoder: Encoder, tensors: Tensors) -> ov.Model:
    """Builds the graph of an encoder.

    Its inputs are `embeddings` (the sum of word, position and type embeddings, float32 [t, hidden]), and `tokens`,
    `mask` and `slots` of `model.Packing`; its output is float32 [t, hidden].

    Args:
        encoder: The settings of the encoder.
        tensors: Its weights. Those in float32 are not copied, so `tensors` must outlive the graph.

    Raises:
        UnsupportedModelError: A tensor is missing.
        ModelFilesError: A tensor has another shape than config.json requires.
    """
    builder = _Builder(encoder, tensors)
    embeddings = _parameter("embeddings", np.float32, -1, encoder.hidden)
    tokens = _parameter("tokens", np.int32, -1, -1)
    mask = _parameter("mask", np.float32, -1, 1, -1, -1)
    slots = _parameter("slots", np.int32, -1)
    rows = builder.norm(embeddings, "embeddings.LayerNorm")
    for layer in range(encoder.layers):
        rows = builder.layer(rows, layer, (tokens, mask, slots))
    return ov.Model([op.result(rows)], [embeddings, tokens, mask, slots], "packed encoder")


class _Builder:
    def __init__(self, encoder: Encoder, tensors: Tensors) -> None:
        self._encoder = encoder
        self._tensors = tensors

    def layer(self, rows: Node, number: int, packing: tuple[Node, Node, Node]) -> Node:
        """Returns the rows of one layer, [t, hidden]: attention, then feed-forward, each with residual and norm."""
        names, hidden, inner = self._encoder.names, self._encoder.hidden, self._encoder.intermediate
        prefix = names.layer.format(number)
        attended = self._linear(
            self._attention(rows, prefix, packing), f"{prefix}{names.attention_output}", hidden, hidden
        )
        rows = self.norm(op.add(attended, rows), f"{prefix}{names.attention_norm}")
        fed = self._activation(self._linear(rows, f"{prefix}{names.feed_in}", inner, hidden))
        fed = self._linear(fed, f"{prefix}{names.feed_out}", hidden, inner)
        return self.norm(op.add(fed, rows), f"{prefix}{names.output_norm}")

    def norm(self, rows: Node, name: str) -> Node:
        """Returns the layer norm of rows."""
        hidden = self._encoder.hidden
        normalized = op.mvn(rows, _integers(-1), True, self._encoder.epsilon, "inside_sqrt")
        scaled = op.multiply(normalized, self._constant(f"{name}.weight", hidden))
        return op.add(scaled, self._constant(f"{name}.bias", hidden))

    def _attention(self, rows: Node, prefix: str, packing: tuple[Node, Node, Node]) -> Node:
        names, hidden, heads = self._encoder.names, self._encoder.hidden, self._encoder.heads
        tokens, mask, slots = packing
        scale = np.float32((hidden / heads) ** -0.5)  # of the scores, multiplied into the queries' weights once
        parts = ((names.query, scale), (names.key, 1), (names.value, 1))
        weight = np.concatenate([self._values(f"{prefix}{part}.weight", hidden, hidden) * by for part, by in parts])
        bias = np.concatenate([self._values(f"{prefix}{part}.bias", hidden) * by for part, by in parts])
        projected = op.add(op.matmul(rows, op.constant(weight), False, True), op.constant(bias[None]))
        gathered = op.gather(projected, tokens, op.constant(np.int32(0)))
        split = op.reshape(gathered, _integers(0, 0, 3, heads, hidden // heads), special_zero=True)
        split = op.transpose(split, _integers(2, 0, 3, 1, 4))  # [3, rows, heads, width, hidden / heads]
        three = op.split(split, op.constant(np.int64(0)), 3).outputs()
        query, key, value = (op.squeeze(one, _integers(0)) for one in three)
        unscaled = op.constant(np.float32(1))
        attended = op.scaled_dot_product_attention(query, key, value, mask, unscaled, causal=False)
        attended = op.reshape(op.transpose(attended, _integers(0, 2, 1, 3)), _integers(-1, hidden), special_zero=False)
        return op.gather(attended, slots, op.constant(np.int32(0)))

    def _linear(self, rows: Node, name: str, outputs: int, inputs: int) -> Node:
        product = op.matmul(rows, self._constant(f"{name}.weight", outputs, inputs), False, True)
        return op.add(product, self._constant(f"{name}.bias", outputs))

    def _activation(self, rows: Node) -> Node:
        if self._encoder.activation == "relu":
            return op.relu(rows)
        return op.gelu(rows, "erf" if self._encoder.activation == "gelu" else "tanh")

    def _constant(self, name: str, *shape: int) -> Node:
        values = self._values(name, *shape)
        return op.constant(values if len(shape) > 1 else values[None], shared_memory=True)

    def _values(self, name: str, *shape: int) -> NDArray[np.float32]:
        return self._tensors.get(name, *shape).whole()


def _parameter(name: str, dtype: Any, *shape: int) -> Node:
    return op.parameter(ov.PartialShape(list(shape)), dtype, name=name)


def _integers(*numbers: int) -> Node:
    return op.constant(np.array(numbers, dtype=np.int64))
