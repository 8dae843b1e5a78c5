"""Writes model folders in the sentence-transformers layout, of any size, with random weights.

`MULTILINGUAL` is paraphrase-multilingual-MiniLM-L12-v2 except for the values of its weights: names, shapes, files, and
the size of the tokenizer. The same shape and seed result in the same bytes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # ids 0 to 3, as in XLM-RoBERTa
MASK = "<mask>"  # the last id
SPECIAL_NAMES = {
    **{f"{name}_token": "<s>" for name in ("bos", "cls")},
    **{f"{name}_token": "</s>" for name in ("eos", "sep")},
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": MASK,
}
FILLER_SCORE = -100.0  # low enough that no text is split into filler pieces
Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a model; `positions` is the number of rows of the table, 2 of which XLM-RoBERTa never reads."""

    layers: int = 12
    hidden: int = 384
    heads: int = 12
    intermediate: int = 1536
    vocabulary: int = 250_037
    positions: int = 512
    max_tokens: int = 128
    model_type: Literal["bert", "xlm-roberta", "distilbert"] = "bert"
    pooling: Literal["mean", "cls", "max"] = "mean"
    dense: int | None = None  # width of a Dense module with tanh after the pooling
    normalize: bool = False
    std: float = 0.02  # of the weights; with a larger one, the first tokens of texts differ more


MULTILINGUAL = Shape()
SMALL = Shape(layers=2, hidden=48, heads=4, intermediate=96, vocabulary=4_000, positions=130, std=0.2)


def write(folder: Path, shape: Shape = MULTILINGUAL, *, seed: int = 0) -> Path:
    """Writes a model of `shape` into `folder`, which is created if missing, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    _json(folder / "config.json", _config(shape))
    _json(folder / "sentence_bert_config.json", {"max_seq_length": shape.max_tokens, "do_lower_case": False})
    _json(folder / "tokenizer.json", _tokenizer(shape.vocabulary))
    _json(folder / "tokenizer_config.json", _tokenizer_config(shape))
    _json(folder / "special_tokens_map.json", SPECIAL_NAMES)
    _json(folder / "modules.json", _modules(shape))
    save_file(_random(rng, _names(shape), shape.std), folder / "model.safetensors", metadata={"format": "pt"})
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    pooling = {f"pooling_mode_{word}": shape.pooling == mode for mode, word in modes.items()}
    _json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": shape.hidden, **pooling})
    if shape.dense:
        activation = "torch.nn.modules.activation.Tanh"
        sizes = {"in_features": shape.hidden, "out_features": shape.dense}
        _json(folder / "2_Dense" / "config.json", {**sizes, "bias": True, "activation_function": activation})
        names = {"linear.weight": (shape.dense, shape.hidden), "linear.bias": (shape.dense,)}
        save_file(_random(rng, iter(names.items()), shape.std), folder / "2_Dense" / "model.safetensors")
    if shape.normalize:
        (folder / _modules(shape)[-1]["path"]).mkdir(exist_ok=True)
    return folder


def _json(file: Path, value: object) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")


def _modules(shape: Shape) -> list[dict[str, Any]]:
    kinds = ["Transformer", "Pooling", *(["Dense"] if shape.dense else []), *(["Normalize"] if shape.normalize else [])]
    return [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]


def _config(shape: Shape) -> dict[str, object]:
    common: dict[str, object] = {
        "model_type": shape.model_type,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "initializer_range": shape.std,
    }
    if shape.model_type == "distilbert":
        sizes = {"dim": shape.hidden, "hidden_dim": shape.intermediate, "n_heads": shape.heads}
        rest = {"n_layers": shape.layers, "activation": "gelu", "pad_token_id": 1, "sinusoidal_pos_embds": False}
        return common | sizes | rest | {"architectures": ["DistilBertModel"]}
    bert = shape.model_type == "bert"
    return common | {
        "architectures": ["BertModel" if bert else "XLMRobertaModel"],
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12 if bert else 1e-5,
        "type_vocab_size": 2 if bert else 1,
        "pad_token_id": 0
        if bert
        else 1,  # multilingual models of type BERT have 0, although their tokenizer pads with 1
        "position_embedding_type": "absolute",
    }


def _names(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the name and shape of each tensor, as in the real repositories."""
    yield "embeddings.word_embeddings.weight", (shape.vocabulary, shape.hidden)
    yield "embeddings.position_embeddings.weight", (shape.positions, shape.hidden)
    if shape.model_type != "distilbert":
        types = 2 if shape.model_type == "bert" else 1
        yield "embeddings.token_type_embeddings.weight", (types, shape.hidden)
    yield from _norm("embeddings.LayerNorm", shape.hidden)
    layer = _distilbert_layer if shape.model_type == "distilbert" else _bert_layer
    for index in range(shape.layers):
        yield from layer(index, shape)
    if shape.model_type != "distilbert":
        yield from _linear("pooler.dense", shape.hidden, shape.hidden)


def _bert_layer(index: int, shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    prefix, hidden, wide = f"encoder.layer.{index}", shape.hidden, shape.intermediate
    for name in ("query", "key", "value"):
        yield from _linear(f"{prefix}.attention.self.{name}", hidden, hidden)
    yield from _linear(f"{prefix}.attention.output.dense", hidden, hidden)
    yield from _norm(f"{prefix}.attention.output.LayerNorm", hidden)
    yield from _linear(f"{prefix}.intermediate.dense", hidden, wide)
    yield from _linear(f"{prefix}.output.dense", wide, hidden)
    yield from _norm(f"{prefix}.output.LayerNorm", hidden)


def _distilbert_layer(index: int, shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    prefix, hidden, wide = f"transformer.layer.{index}", shape.hidden, shape.intermediate
    for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
        yield from _linear(f"{prefix}.attention.{name}", hidden, hidden)
    yield from _norm(f"{prefix}.sa_layer_norm", hidden)
    yield from _linear(f"{prefix}.ffn.lin1", hidden, wide)
    yield from _linear(f"{prefix}.ffn.lin2", wide, hidden)
    yield from _norm(f"{prefix}.output_layer_norm", hidden)


def _linear(name: str, width_in: int, width_out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width_out, width_in)
    yield f"{name}.bias", (width_out,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _random(rng: np.random.Generator, names: Iterator[tuple[str, tuple[int, ...]]], std: float) -> Tensors:
    """Returns random normal values, float32; a LayerNorm has weights 1 and biases 0, as before training."""
    tensors: Tensors = {}
    for name, size in names:
        if "norm" in name.lower():
            tensors[name] = np.full(size, float(name.endswith("weight")), dtype=np.float32)
        else:
            tensors[name] = rng.standard_normal(size, dtype=np.float32) * np.float32(std)
    return tensors


def _tokenizer(vocabulary: int) -> dict[str, Any]:
    """Returns the bundled tokenizer with XLM-RoBERTa's special tokens, truncated or padded to `vocabulary` pieces."""
    bundled = resources.files("isogloss_server") / "bundled" / "tokenizer.json"
    tokenizer: dict[str, Any] = json.loads(bundled.read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"][2 : vocabulary - len(SPECIAL) + 1]  # without [PAD] and [UNK]
    vocab = [[token, 0.0] for token in SPECIAL] + pieces
    # A character for private use, which no text contains, and a number.
    vocab += [[f"\ue000{index}", FILLER_SCORE] for index in range(vocabulary - 1 - len(vocab))] + [[MASK, 0.0]]
    tokenizer["model"] |= {"vocab": vocab, "unk_id": SPECIAL.index("<unk>")}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ids = {**{token: index for index, token in enumerate(SPECIAL)}, MASK: vocabulary - 1}
    tokenizer["added_tokens"] = [{"id": index, "content": token, **flags} for token, index in ids.items()]
    start, end = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, first, end],
        "pair": [start, first, end, end, second, end],
        "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in ("<s>", "</s>")},
    }
    return tokenizer


def _tokenizer_config(shape: Shape) -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.positions - (2 if shape.model_type == "xlm-roberta" else 0),
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": True,
        **SPECIAL_NAMES,
    }
