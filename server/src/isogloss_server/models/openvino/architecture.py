"""The supported families of encoders: how their files name the settings and tensors of BERT."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isogloss_server.errors import ModelFilesError, UnsupportedModelError
from isogloss_server.models.layout import MAX_LAYERS
from isogloss_server.models.model_folder import flag, integer

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
        "is_decoder": flag(config, "is_decoder", file),
        "auto_map": bool(config.get("auto_map")),  # code in the model's repository
        "sinusoidal_pos_embds": flag(config, "sinusoidal_pos_embds", file),
        names.activation: config.get(names.activation, "gelu") not in ACTIVATIONS,
    }
    for key, is_unsupported in unsupported.items():
        if is_unsupported:
            raise UnsupportedModelError(f"{file}: {key} {config.get(key)!r} is not supported by the openvino backend")
    hidden, heads = integer(config, names.hidden, file), integer(config, names.heads, file)
    if hidden % heads:
        raise ModelFilesError(f"{file}: {names.hidden} {hidden} must be a multiple of {names.heads} {heads}")
    epsilon = config.get("layer_norm_eps", 1e-12)
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise ModelFilesError(f"{file}: layer_norm_eps must be a number between 0 and 1 instead of {epsilon!r}")
    positions = integer(config, "max_position_embeddings", file)
    padding_id = None
    if names.positions_after_padding:  # below the last row of the table of positions, since they start after it
        padding_id = integer(config, "pad_token_id", file, least=0, most=positions - 2)
    return Encoder(
        names=names,
        hidden=hidden,
        heads=heads,
        layers=integer(config, names.layers, file, most=MAX_LAYERS),
        intermediate=integer(config, names.intermediate, file),
        activation=str(config.get(names.activation, "gelu")),
        epsilon=float(epsilon),
        vocabulary=integer(config, "vocab_size", file),
        positions=positions,
        types=integer(config, "type_vocab_size", file, default=2) if names.types else 0,
        padding_id=padding_id,
    )
