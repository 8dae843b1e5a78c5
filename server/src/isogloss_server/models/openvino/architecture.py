"""The supported families of encoders: how their files name the settings and tensors of BERT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isogloss_server.errors import ModelFilesError, UnsupportedModelError

ACTIVATIONS = ("gelu", "gelu_new", "relu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The names of settings and tensors in one family; `{}` is replaced by the number of a layer."""

    prefixes: tuple[str, ...]  # of tensors' names, in files that hold more than the encoder
    hidden: str = "hidden_size"
    heads: str = "num_attention_heads"
    layers: str = "num_hidden_layers"
    intermediate: str = "intermediate_size"
    activation: str = "hidden_act"
    types: str = "embeddings.token_type_embeddings.weight"  # empty if the family has none
    positions_after_padding: bool = False  # positions start at the padding token's id plus 1
    layer: str = "encoder.layer.{}."
    query: str = "attention.self.query"
    key: str = "attention.self.key"
    value: str = "attention.self.value"
    attention_output: str = "attention.output.dense"
    attention_norm: str = "attention.output.LayerNorm"
    feed_in: str = "intermediate.dense"
    feed_out: str = "output.dense"
    output_norm: str = "output.LayerNorm"


ROBERTA = Architecture(prefixes=("roberta.",), positions_after_padding=True)
ARCHITECTURES: Mapping[str, Architecture] = {
    "bert": Architecture(prefixes=("bert.",)),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "camembert": ROBERTA,
    "distilbert": Architecture(
        prefixes=("distilbert.",),
        hidden="dim",
        heads="n_heads",
        layers="n_layers",
        intermediate="hidden_dim",
        activation="activation",
        types="",
        layer="transformer.layer.{}.",
        query="attention.q_lin",
        key="attention.k_lin",
        value="attention.v_lin",
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        feed_in="ffn.lin1",
        feed_out="ffn.lin2",
        output_norm="output_layer_norm",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """The settings of one encoder, from its config.json."""

    names: Architecture
    hidden: int
    heads: int
    layers: int
    intermediate: int
    activation: str
    epsilon: float  # of the layer norms
    vocabulary: int
    positions: int  # rows of the position table
    types: int  # token types; all tokens of a single text have type 0
    padding_id: int | None  # None unless positions start after it

    @property
    def max_tokens(self) -> int:
        """The number of tokens that have positions."""
        return self.positions - (0 if self.padding_id is None else self.padding_id + 1)


def read(config: Mapping[str, Any], file: object) -> Encoder:
    """Reads the settings of an encoder.

    Args:
        config: The content of config.json.
        file: Its path, for errors.

    Raises:
        UnsupportedModelError: The encoder is of another family, or has a setting that the graph does not support.
        ModelFilesError: A setting is missing or invalid.
    """
    kind = str(config.get("model_type", ""))
    names = ARCHITECTURES.get(kind)
    if names is None:
        raise UnsupportedModelError(
            f"{file}: unsupported model_type {kind!r}; the openvino backend supports {', '.join(ARCHITECTURES)}"
        )
    unsupported = {
        "position_embedding_type": config.get("position_embedding_type", "absolute") != "absolute",
        "is_decoder": bool(config.get("is_decoder")),
        "auto_map": bool(config.get("auto_map")),  # code in the model's repository
        "sinusoidal_pos_embds": bool(config.get("sinusoidal_pos_embds")),
        names.activation: config.get(names.activation, "gelu") not in ACTIVATIONS,
    }
    for key, is_unsupported in unsupported.items():
        if is_unsupported:
            raise UnsupportedModelError(f"{file}: {key} {config.get(key)!r} is not supported by the openvino backend")
    try:
        return Encoder(
            names=names,
            hidden=int(config[names.hidden]),
            heads=_check_heads(int(config[names.heads]), int(config[names.hidden])),
            layers=int(config[names.layers]),
            intermediate=int(config[names.intermediate]),
            activation=str(config.get(names.activation, "gelu")),
            epsilon=float(config.get("layer_norm_eps", 1e-12)),
            vocabulary=int(config["vocab_size"]),
            positions=int(config["max_position_embeddings"]),
            types=int(config.get("type_vocab_size", 2)) if names.types else 0,
            padding_id=int(config["pad_token_id"]) if names.positions_after_padding else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFilesError(f"{file} is damaged: {error!r}") from error


def _check_heads(heads: int, hidden: int) -> int:
    if heads < 1 or hidden % heads:
        raise ValueError(f"{heads} heads do not divide {hidden} hidden units")
    return heads
