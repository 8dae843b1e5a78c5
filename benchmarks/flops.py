"""How many floating-point operations a text takes in an encoder of the BERT family, without any padding."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer


def of_length(config: dict[str, Any], tokens: int) -> int:
    """Returns the operations of the matrix products for one text, a product and a sum counted as two.

    A layer multiplies each token by four hidden x hidden matrices (query, key, value, output) and two hidden x
    intermediate ones, and in attention each token with every other, twice. What is no matrix product (embeddings,
    norms, softmax, activation, pooling) is left out, as of the chip's rate.
    """
    hidden, wide, layers = _sizes(config)
    linear = 2 * tokens * (4 * hidden * hidden + 2 * hidden * wide)
    attention = 2 * 2 * tokens * tokens * hidden
    return layers * (linear + attention)


def _sizes(config: dict[str, Any]) -> tuple[int, int, int]:
    if config["model_type"] == "distilbert":
        return config["dim"], config["hidden_dim"], config["n_layers"]
    return config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]


def lengths(folder: Path, texts: Iterable[str]) -> list[int]:
    """Returns the tokens that the model in `folder` reads of each text, special ones and truncation included."""
    limit = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit)
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts))]


def per_text(folder: Path, token_lengths: list[int]) -> float:
    """Returns the mean operations of one text."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return sum(of_length(config, tokens) for tokens in token_lengths) / len(token_lengths)
